//! What a header and its extensions say of an entry: its numbers, and what it is.

use std::ffi::CString;

use super::header::{Fault, RawHeader, number};
use super::pax::Pax;
use super::{Entry, Kind, Time};

/// What they say in numbers; name, kind and xattrs are still to come.
pub(super) fn fields(raw: &RawHeader, pax: &Pax) -> Result<Entry, Fault> {
    let old = raw.old();
    let size = match pax.size {
        Some(size) => size,
        None => number(&old.size, "size")?,
    };
    let size = u64::try_from(size).map_err(|_| format!("its size is negative: {size}"))?;
    let mtime = Time { seconds: number(&old.mtime, "mtime")?, nanos: 0 };
    let gnu_atime = match raw.gnu() {
        Some(gnu) if gnu.atime[0] != 0 => number(&gnu.atime, "atime").ok(),
        _ => None,
    };
    let mode = number(&old.mode, "mode")? & 0o7777;
    Ok(Entry {
        name: Vec::new(),
        offset: 0,
        kind: Kind::Directory,
        mode: u32::try_from(mode).expect("twelve bits"),
        uid: id(pax.uid.map_or_else(|| number(&old.uid, "uid"), Ok)?)?,
        gid: id(pax.gid.map_or_else(|| number(&old.gid, "gid"), Ok)?)?,
        mtime: pax.mtime.unwrap_or(mtime),
        atime: pax.atime.or(gnu_atime.map(|seconds| Time { seconds, nanos: 0 })),
        size,
        stored: size,
        xattrs: Vec::new(),
    })
}

/// An owner. Negative ones are what a writer made of large ones by way of 32 bits; -1 means to
/// chown that nothing is to change, which leaves root.
fn id(number: i64) -> Result<u32, Fault> {
    let id = i32::try_from(number).map(i32::cast_unsigned).or_else(|_| u32::try_from(number));
    match id {
        Ok(u32::MAX) => Ok(0),
        Ok(id) => Ok(id),
        Err(_) => Err(format!("its owner {number} is no user or group")),
    }
}

/// What the entry is, of the name that it has in the end; `link` is where it leads.
pub(super) fn kind(raw: &RawHeader, name: &[u8], link: Vec<u8>) -> Result<Kind, Fault> {
    let link = |what| CString::new(link).map_err(|_| format!("its {what} has a zero byte"));
    let device = || {
        let (major, minor) = raw.device()?;
        let fits = |number| u32::try_from(number);
        match (fits(major), fits(minor)) {
            (Ok(major), Ok(minor)) => Ok((major, minor)),
            _ => Err(format!("its device number {major}:{minor} is out of range")),
        }
    };
    Ok(match raw.type_flag() {
        // Before there was a type for directories, their names ended with a slash.
        0 if name.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::Regular { sparse: false },
        b'1' => Kind::HardLink(link("link name")?),
        b'2' => Kind::Symlink(link("target")?),
        b'3' => device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
        b'4' => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => {
            return Err(format!("its type {:?} is not known", other.escape_ascii().to_string()));
        }
    })
}
