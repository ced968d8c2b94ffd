//! Headers of a tar archive, the same bytes for the same entry always.
//!
//! USTAR (POSIX.1-1988) where it can say all, with a PAX extended header (POSIX.1-2001) before it
//! for what it cannot: long names, large numbers, times with nanoseconds, extended attributes
//! (`SCHILY.xattr.`, as containerd writes and reads them).

use std::io;

use tar::EntryType;

use super::tree::{Inode, InodeId, Node};
use crate::archive::{LayerPath, Time};

/// tar's unit in bytes.
pub(super) const BLOCK: u64 = 512;

/// Bytes of the field for a name.
const NAME_BYTES: usize = 100;

/// The largest numbers of fields with 7 and 11 octal digits.
const SEVEN_DIGITS: u64 = 0o777_7777;
const ELEVEN_DIGITS: u64 = 0o777_7777_7777;

/// One entry of a new layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Item {
    pub(super) path: LayerPath,
    pub(super) inode: InodeId,
    /// The earlier name in the same layer that this is another name of.
    pub(super) link: Option<LayerPath>,
}

/// The bytes before an item's content, whole blocks.
///
/// # Errors
/// Where a device's number does not fit.
pub(super) fn render(item: &Item, inode: &Inode) -> io::Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    let mut pax = Vec::new();
    let mut path = item.path.as_bytes().to_vec();
    let (mut size, mut target) = (0, &b""[..]);
    let kind = match &inode.node {
        _ if item.link.is_some() => EntryType::Link,
        Node::Directory(_) => EntryType::Directory,
        Node::File(content) => {
            size = content.size;
            EntryType::Regular
        }
        Node::Symlink(to) => {
            target = to.as_bytes();
            EntryType::Symlink
        }
        Node::Fifo => EntryType::Fifo,
        Node::CharDevice { .. } => EntryType::Char,
        Node::BlockDevice { .. } => EntryType::Block,
    };
    if let Some(link) = &item.link {
        target = link.as_bytes();
    }
    if kind == EntryType::Directory {
        path.extend_from_slice(if path.is_empty() { b"./" } else { b"/" });
    }
    header.set_entry_type(kind);
    if let Node::CharDevice { major, minor } | Node::BlockDevice { major, minor } = inode.node {
        for number in [major, minor] {
            if u64::from(number) > SEVEN_DIGITS {
                return Err(io::Error::other(format!(
                    "device number {number} does not fit into a tar archive"
                )));
            }
        }
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
    }
    text(&mut header.as_old_mut().name, "path", &path, &mut pax);
    text(&mut header.as_old_mut().linkname, "linkpath", target, &mut pax);
    header.set_mode(inode.mode);
    header.set_uid(fitting("uid", u64::from(inode.uid), SEVEN_DIGITS, &mut pax));
    header.set_gid(fitting("gid", u64::from(inode.gid), SEVEN_DIGITS, &mut pax));
    header.set_size(fitting("size", size, ELEVEN_DIGITS, &mut pax));
    header.set_mtime(time(inode.mtime, &mut pax));
    // A further name of a file has the first one's attributes.
    if item.link.is_none() {
        for (name, value) in &inode.xattrs {
            record(&mut pax, &[b"SCHILY.xattr.", name.as_bytes()].concat(), value);
        }
    }
    header.set_cksum();
    let mut all = if pax.is_empty() { Vec::new() } else { extended(&pax) };
    all.extend_from_slice(header.as_bytes());
    Ok(all)
}

/// The header that stands before an entry's own, with its records, in whole blocks.
fn extended(pax: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    let name = b"PaxHeaders.0/entry";
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(pax.len() as u64);
    header.set_cksum();
    let mut all = [header.as_bytes(), pax].concat();
    all.resize(all.len().next_multiple_of(BLOCK as usize), 0);
    all
}

/// Puts a text into its field, as much as fits, and all of it into a record where that is not all.
fn text(field: &mut [u8; NAME_BYTES], key: &str, value: &[u8], pax: &mut Vec<u8>) {
    let fits = value.len().min(NAME_BYTES);
    field[..fits].copy_from_slice(&value[..fits]);
    if value.len() > NAME_BYTES {
        record(pax, key.as_bytes(), value);
    }
}

/// The number for its field: itself, or 0 with a record where it is too large.
fn fitting(key: &str, number: u64, most: u64, pax: &mut Vec<u8>) -> u64 {
    if number <= most {
        return number;
    }
    record(pax, key.as_bytes(), number.to_string().as_bytes());
    0
}

/// The seconds for their field, with a record where they are not all or do not fit.
fn time(time: Time, pax: &mut Vec<u8>) -> u64 {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    if time.nanos > 0 || time.seconds < 0 || seconds > ELEVEN_DIGITS {
        let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
        let (sign, size) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
        let (whole, part) = (size / 1_000_000_000, size % 1_000_000_000);
        let fraction = if part == 0 { String::new() } else { format!(".{part:09}") };
        record(pax, b"mtime", format!("{sign}{whole}{fraction}").as_bytes());
    }
    seconds.min(ELEVEN_DIGITS)
}

/// Appends `LENGTH key=value\n`, whose length counts its own digits.
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(format!("{length} ").as_bytes());
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Event, Kind, Parser};

    fn read_back(item: &Item, inode: &Inode) -> crate::archive::Entry {
        let bytes = bytes::Bytes::from(render(item, inode).unwrap());
        assert_eq!(bytes.len() % 512, 0);
        let mut once = Some(bytes);
        let mut parser = Parser::new(move || Ok(once.take()));
        let Some(Event::Entry(entry)) = parser.next().unwrap() else { panic!("no entry") };
        *entry
    }

    #[test]
    fn what_ustar_cannot_say_is_read_back_all_the_same() {
        let long = "d/".repeat(120) + "name\u{e9}";
        let times =
            [(0, 0), (-1, 5), (-2, 0), (1, 999_999_999), (1 << 40, 1), (ELEVEN_DIGITS as i64, 0)];
        for (seconds, nanos) in times {
            for (path, id) in
                [("a".repeat(100), 0o777_7777), (long.clone(), u32::MAX - 1), ("é".into(), 0)]
            {
                let xattrs = vec![
                    (c"security.capability".to_owned(), b"\x01\n=\0".to_vec()),
                    (c"user.empty".to_owned(), Vec::new()),
                ];
                let inode = Inode {
                    node: Node::Symlink(std::ffi::CString::new("t".repeat(300)).unwrap()),
                    mode: 0o4755,
                    uid: id,
                    gid: id,
                    mtime: Time { seconds, nanos },
                    xattrs: xattrs.clone(),
                    layer: 0,
                };
                let item = Item { path: LayerPath::clean(path.as_bytes()), inode: 0, link: None };
                let entry = read_back(&item, &inode);
                assert_eq!(entry.name, path.as_bytes());
                assert_eq!((entry.mode, entry.uid, entry.gid), (0o4755, id, id));
                assert_eq!((entry.mtime.seconds, entry.mtime.nanos), (seconds, nanos));
                assert_eq!(entry.xattrs, xattrs);
                assert!(matches!(entry.kind, Kind::Symlink(to) if to.as_bytes().len() == 300));
            }
        }
    }
}
