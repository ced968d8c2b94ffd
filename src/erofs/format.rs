//! The structures of the format, to bytes and back. All numbers are little-endian.
//!
//! ```text
//! superblock (128)  0 magic  4 checksum  8 compat  12 block bits  14 root nid (16 bit)  16 inodes
//!                   24 build time  32 its ns  36 blocks  40 meta block  44 xattr block
//!                   48 uuid (16)  64 volume name (16)  80 incompat  84.. zero
//! inode (64)        0 format  2 xattr count  4 mode  8 size  16 block, device or chunk format
//!                   20 number  24 uid  28 gid  32 mtime  40 its ns  44 links  48.. zero
//! dirent (12)       0 nid  8 offset of the name in its block  10 type
//! xattr body        0 filter (4)  4 shared count  5.. zero (7)  12 shared ids (4 each), entries
//! xattr entry (4)   0 length of the name  1 prefix  2 length of the value, name, value, to 4 bytes
//! ```

use std::ffi::CStr;

/// How large an image's blocks are. Every file begins at one, so small ones waste less.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BlockSize {
    /// 512 bytes: mounted by Linux 6.4 and later; an image holds up to 2 TiB.
    Sector,
    /// 4,096 bytes: mounted by every EROFS; an image holds up to 16 TiB.
    #[default]
    Page,
}

impl BlockSize {
    /// The logarithm to base two (`blkszbits`).
    fn bits(self) -> u8 {
        match self {
            Self::Sector => 9,
            Self::Page => 12,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> u64 {
        1 << self.bits()
    }

    /// The same, for what is in memory.
    pub(super) fn length(self) -> usize {
        1 << self.bits()
    }
}

/// What file systems give to a file at a time; the largest block too.
pub(super) const PAGE_BYTES: usize = 4096;
/// The same.
pub(super) const PAGE: u64 = PAGE_BYTES as u64;

/// What stands before the first file's data, whatever the blocks: unused bytes and the superblock.
pub(super) const HEAD_BYTES: usize = 4096;

/// Inodes begin at multiples of this; an inode's number (nid) counts them.
pub(super) const SLOT_BYTES: u64 = 32;

pub(super) const SUPERBLOCK_OFFSET: usize = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;

/// The checksum is there and holds (Linux 5.4).
const COMPAT_CHECKSUM: u32 = 1;
/// The time of an inode is that of the modification (Linux 5.12, no change in the format).
const COMPAT_MTIME: u32 = 2;
/// There are chunk-based files (Linux 5.15).
pub(super) const INCOMPAT_CHUNKED: u32 = 4;

pub(super) const INODE_BYTES: usize = 64;
pub(super) const DIRENT_BYTES: usize = 12;
pub(super) const XATTR_BODY_BYTES: usize = 12;
pub(super) const XATTR_ENTRY_BYTES: usize = 4;

/// A chunk that is a hole.
pub(super) const HOLE: u32 = u32::MAX;

/// The largest chunk is 2^(12 + 31) bytes; the field has five bits.
pub(super) const CHUNK_BITS_MAX: u32 = 31;

/// Where an inode's data are (`i_format` without its first bit).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DataLayout {
    Plain = 0,
    Inline = 2,
    Chunked = 4,
}

/// An inode as it stands in the image, always of the extended form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Inode {
    pub(super) layout: DataLayout,
    /// Bytes of xattrs behind it; 0 or at least [`XATTR_BODY_BYTES`] and four.
    pub(super) xattr_bytes: usize,
    pub(super) mode: u16,
    pub(super) size: u64,
    /// The first block, the device number or the chunk format.
    pub(super) value: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) seconds: u64,
    pub(super) nanos: u32,
    pub(super) links: u32,
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Inode {
    pub(super) fn to_bytes(self) -> [u8; INODE_BYTES] {
        let mut bytes = [0; INODE_BYTES];
        let count = match self.xattr_bytes {
            0 => 0,
            length => (length - XATTR_BODY_BYTES) / 4 + 1,
        };
        put(&mut bytes, 0, &(1 | (self.layout as u16) << 1).to_le_bytes());
        put(&mut bytes, 2, &u16::try_from(count).expect("bounded when set").to_le_bytes());
        put(&mut bytes, 4, &self.mode.to_le_bytes());
        put(&mut bytes, 8, &self.size.to_le_bytes());
        put(&mut bytes, 16, &self.value.to_le_bytes());
        put(&mut bytes, 20, &self.number.to_le_bytes());
        put(&mut bytes, 24, &self.uid.to_le_bytes());
        put(&mut bytes, 28, &self.gid.to_le_bytes());
        put(&mut bytes, 32, &self.seconds.to_le_bytes());
        put(&mut bytes, 40, &self.nanos.to_le_bytes());
        put(&mut bytes, 44, &self.links.to_le_bytes());
        bytes
    }

    pub(super) fn of_bytes(bytes: &[u8; INODE_BYTES]) -> Result<Self, String> {
        let layout = match u16_at(bytes, 0) {
            1 => DataLayout::Plain,
            5 => DataLayout::Inline,
            9 => DataLayout::Chunked,
            other => return Err(format!("an inode of format {other:#x}")),
        };
        let xattr_bytes = match u16_at(bytes, 2) {
            0 => 0,
            count => XATTR_BODY_BYTES + 4 * (usize::from(count) - 1),
        };
        Ok(Self {
            layout,
            xattr_bytes,
            mode: u16_at(bytes, 4),
            size: u64_at(bytes, 8),
            value: u32_at(bytes, 16),
            number: u32_at(bytes, 20),
            uid: u32_at(bytes, 24),
            gid: u32_at(bytes, 28),
            seconds: u64_at(bytes, 32),
            nanos: u32_at(bytes, 40),
            links: u32_at(bytes, 44),
        })
    }
}

/// What the superblock says; the rest of it is fixed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Superblock {
    pub(super) block: BlockSize,
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) xattr_block: u32,
    pub(super) uuid: [u8; 16],
    pub(super) incompat: u32,
}

impl Superblock {
    /// The whole of the head.
    pub(super) fn to_head(self) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        let bytes = &mut head[SUPERBLOCK_OFFSET..];
        put(bytes, 0, &MAGIC.to_le_bytes());
        put(bytes, 8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        bytes[12] = self.block.bits();
        put(bytes, 14, &self.root_nid.to_le_bytes());
        put(bytes, 16, &self.inodes.to_le_bytes());
        put(bytes, 36, &self.blocks.to_le_bytes());
        put(bytes, 40, &self.meta_block.to_le_bytes());
        put(bytes, 44, &self.xattr_block.to_le_bytes());
        put(bytes, 48, &self.uuid);
        put(bytes, 80, &self.incompat.to_le_bytes());
        // Up to the end of its block (`erofs_superblock_csum_verify`).
        let checked = match self.block {
            BlockSize::Sector => self.block.length(),
            BlockSize::Page => self.block.length() - SUPERBLOCK_OFFSET,
        };
        let checksum = crc32c(&bytes[..checked]);
        put(bytes, 4, &checksum.to_le_bytes());
        head
    }

    pub(super) fn of_head(head: &[u8; HEAD_BYTES]) -> Result<Self, String> {
        let bytes = &head[SUPERBLOCK_OFFSET..];
        let sizes = [BlockSize::Sector, BlockSize::Page];
        let block = sizes.into_iter().find(|size| size.bits() == bytes[12]);
        let found = Self {
            block: block.unwrap_or_default(),
            root_nid: u16_at(bytes, 14),
            inodes: u64_at(bytes, 16),
            blocks: u32_at(bytes, 36),
            meta_block: u32_at(bytes, 40),
            xattr_block: u32_at(bytes, 44),
            uuid: bytes[48..64].try_into().expect("sixteen bytes"),
            incompat: u32_at(bytes, 80),
        };
        // Also tells any difference in what is fixed.
        if found.to_head() != *head {
            return Err("its superblock is none of ours, or damaged".to_owned());
        }
        Ok(found)
    }
}

/// The checksum of a superblock up to the end of its block, its own field being zero: CRC-32C
/// without the last inversion (`erofs_superblock_csum_verify`).
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 }
        })
    })
}

/// One name in a directory's block.
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    /// One of Linux's `FT_` numbers.
    pub(super) kind: u8,
}

/// Appends a directory's block: the entries, then their names. They are sorted and fit.
pub(super) fn directory_block(entries: &[Dirent<'_>], into: &mut Vec<u8>) {
    let mut offset = entries.len() * DIRENT_BYTES;
    for entry in entries {
        into.extend_from_slice(&entry.nid.to_le_bytes());
        into.extend_from_slice(&u16::try_from(offset).expect("within a block").to_le_bytes());
        into.extend_from_slice(&[entry.kind, 0]);
        offset += entry.name.len();
    }
    for entry in entries {
        into.extend_from_slice(entry.name);
    }
}

/// The entries of a directory's block as names with nids; the last name ends with the block's
/// bytes or with a zero.
pub(super) fn read_directory_block(block: &[u8]) -> Result<Vec<(&[u8], u64)>, String> {
    let broken = || "a directory's block is damaged".to_owned();
    let name_offset = |index: usize| {
        let at = index * DIRENT_BYTES + 8;
        if at + 2 > block.len() { Err(broken()) } else { Ok(usize::from(u16_at(block, at))) }
    };
    let count = name_offset(0)? / DIRENT_BYTES;
    let mut entries = Vec::with_capacity(count);
    for index in 0..count {
        let begin = name_offset(index)?;
        let end = if index + 1 < count { name_offset(index + 1)? } else { block.len() };
        let name = block.get(begin..end).ok_or_else(broken)?;
        let length = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        entries.push((&name[..length], u64_at(block, index * DIRENT_BYTES)));
    }
    Ok(entries)
}

/// What stands in an xattr's entry for the beginning of its name, and the rest of the name.
/// `None` for a namespace that EROFS does not have.
pub(super) fn xattr_prefix(name: &CStr) -> Option<(u8, &[u8])> {
    let name = name.to_bytes();
    match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        _ => {}
    }
    [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
        .into_iter()
        .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)))
        .filter(|(_, rest)| !rest.is_empty())
}

/// Bytes of an xattr's entry, with what fills it up.
pub(super) fn xattr_entry_bytes(name: &[u8], value: &[u8]) -> usize {
    (XATTR_ENTRY_BYTES + name.len() + value.len()).next_multiple_of(4)
}

/// Appends an xattr's entry.
pub(super) fn xattr_entry(prefix: u8, name: &[u8], value: &[u8], into: &mut Vec<u8>) {
    let end = into.len() + xattr_entry_bytes(name, value);
    into.push(u8::try_from(name.len()).expect("bounded when set"));
    into.push(prefix);
    let length = u16::try_from(value.len()).expect("bounded when set");
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(name);
    into.extend_from_slice(value);
    into.resize(end, 0);
}

/// A device number as Linux keeps it in 32 bits: twelve for the major, twenty for the minor.
/// `None` where they do not suffice.
pub(super) fn device(major: u32, minor: u32) -> Option<u32> {
    let fits = major < 1 << 12 && minor < 1 << 20;
    fits.then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_32c() {
        // RFC 3720, B.4: 32 bytes of zeros; here without the last inversion.
        assert_eq!(!crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(!crc32c(&[0xff; 32]), 0x62A8_AB43);
    }

    #[test]
    fn devices_are_coded_as_linux_does() {
        assert_eq!(device(1, 3), Some(0x103));
        assert_eq!(device(7, 300), Some(0x10_072c));
        assert_eq!(device(4095, 0xf_ffff), Some(0xffff_ffff));
        assert_eq!((device(4096, 0), device(0, 1 << 20)), (None, None));
    }

    #[test]
    fn a_damaged_superblock_is_seen() {
        for block in [BlockSize::Sector, BlockSize::Page] {
            let superblock = Superblock {
                block,
                root_nid: 2,
                inodes: 3,
                blocks: 9,
                meta_block: 7,
                xattr_block: 0,
                uuid: [7; 16],
                incompat: INCOMPAT_CHUNKED,
            };
            let head = superblock.to_head();
            assert_eq!(Superblock::of_head(&head).unwrap(), superblock);
            for damaged in [12, 37] {
                let mut head = head;
                head[SUPERBLOCK_OFFSET + damaged] ^= 1;
                assert!(Superblock::of_head(&head).is_err());
            }
        }
    }
}
