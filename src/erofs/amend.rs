//! Changing a provisional directory in a finished image, before it is mounted.
//!
//! The directory's inode is found by its path, as the kernel would, and rewritten in place: mode
//! and owner are fixed fields, and the xattrs become *shared* ones in an area of their own that is
//! appended to the image. Only their ids (four bytes each) have to find room behind the inode, and
//! that was left when the image was written. Doing it twice, or again after a crash in the middle,
//! comes to the same.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};

use super::ImageError;
use super::format::{
    self, DataLayout, HEAD_BYTES, INODE_BYTES, Inode, PAGE_BYTES, SLOT_BYTES, Superblock,
    XATTR_BODY_BYTES,
};
use super::layout::AMENDED_XATTRS;

/// What becomes of one directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Amendment {
    /// Its path below the root.
    pub path: PathBuf,
    /// Permissions: the low twelve bits of a mode.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Xattrs that it has besides its own. Of namespaces that EROFS does not have none is taken.
    pub xattrs: Vec<(CString, Vec<u8>)>,
}

/// Amends provisional directories of a finished image, which must not be mounted: those that
/// [`Tree::provisional`](super::Tree::provisional) told. Xattrs that an earlier call gave to any of
/// them are gone, unless given again: amend all at once.
///
/// # Errors
/// [`ImageError::NotProvisional`], [`ImageError::Malformed`], [`ImageError::Io`];
/// [`ImageError::TooLarge`] for more than 128 xattrs on a directory.
pub fn amend(file: &File, amendments: &[Amendment]) -> Result<(), ImageError> {
    let mut image = Reader::open(file)?;
    let mut inodes = Vec::with_capacity(amendments.len());
    for amendment in amendments {
        let (at, inode) = image.find(&amendment.path)?;
        // Only provisional directories are not inline; a full one that is not is larger.
        if inode.layout != DataLayout::Plain {
            return Err(ImageError::NotProvisional { path: amendment.path.clone() });
        }
        inodes.push((at, inode));
    }
    let mut shared = Vec::new();
    let mut ids = Vec::with_capacity(amendments.len());
    for amendment in amendments {
        let mut own = Vec::new();
        for (name, value) in &amendment.xattrs {
            let Some((prefix, rest)) = format::xattr_prefix(name) else { continue };
            own.push(u32::try_from(shared.len() / 4).map_err(|_| ImageError::TooLarge)?);
            format::xattr_entry(prefix, rest, value, &mut shared);
        }
        if own.len() > AMENDED_XATTRS {
            return Err(ImageError::TooLarge);
        }
        ids.push(own);
    }
    // From here on the image changes; the inodes come last, as they refer to the rest.
    if !shared.is_empty() {
        image.append_shared(&mut shared)?;
    }
    for ((amendment, (at, inode)), ids) in amendments.iter().zip(inodes).zip(ids) {
        image.rewrite(at, inode, amendment, &ids)?;
    }
    Ok(())
}

/// Reads what the writer wrote.
struct Reader<'a> {
    file: &'a File,
    superblock: Superblock,
}

impl<'a> Reader<'a> {
    fn open(file: &'a File) -> Result<Self, ImageError> {
        let mut head = [0; HEAD_BYTES];
        read(file, 0, &mut head)?;
        let superblock = Superblock::of_head(&head).map_err(malformed)?;
        Ok(Self { file, superblock })
    }

    /// Bytes of a block.
    fn block(&self) -> u64 {
        self.superblock.block.bytes()
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), ImageError> {
        read(self.file, at, into)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), ImageError> {
        self.file.write_all_at(bytes, at).map_err(ImageError::io("amending the image"))
    }

    fn inode(&self, nid: u64) -> Result<(u64, Inode), ImageError> {
        let at = nid
            .checked_mul(SLOT_BYTES)
            .and_then(|at| at.checked_add(u64::from(self.superblock.meta_block) * self.block()))
            .ok_or_else(|| malformed("an inode's number is out of range".to_owned()))?;
        let mut bytes = [0; INODE_BYTES];
        self.read(at, &mut bytes)?;
        Ok((at, Inode::of_bytes(&bytes).map_err(malformed)?))
    }

    /// The inode at `path`, which goes through directories only.
    fn find(&self, path: &Path) -> Result<(u64, Inode), ImageError> {
        let missing = || ImageError::NotProvisional { path: path.to_owned() };
        let mut found = self.inode(u64::from(self.superblock.root_nid))?;
        for part in path.components() {
            let Component::Normal(name) = part else { return Err(missing()) };
            let nid = self.lookup(found.0, &found.1, name.as_encoded_bytes())?;
            found = self.inode(nid.ok_or_else(missing)?)?;
            if u32::from(found.1.mode) & libc::S_IFMT != libc::S_IFDIR {
                return Err(missing());
            }
        }
        Ok(found)
    }

    /// A name's inode. Blocks are read one by one: directories that are amended have few names.
    fn lookup(&self, at: u64, inode: &Inode, name: &[u8]) -> Result<Option<u64>, ImageError> {
        let mut block = [0; PAGE_BYTES];
        let mut offset = 0;
        while offset < inode.size {
            let length = usize::try_from((inode.size - offset).min(self.block())).expect("a block");
            let tail = inode.layout == DataLayout::Inline && inode.size - offset < self.block();
            let place = if tail {
                at + (INODE_BYTES + inode.xattr_bytes) as u64
            } else {
                u64::from(inode.value) * self.block() + offset
            };
            self.read(place, &mut block[..length])?;
            let entries = format::read_directory_block(&block[..length]).map_err(malformed)?;
            if let Some((_, nid)) = entries.into_iter().find(|(other, _)| *other == name) {
                return Ok(Some(nid));
            }
            offset += self.block();
        }
        Ok(None)
    }

    /// Puts shared xattrs behind everything else, or over those of an earlier call.
    fn append_shared(&mut self, shared: &mut Vec<u8>) -> Result<(), ImageError> {
        let block = self.superblock.block;
        shared.resize(shared.len().next_multiple_of(PAGE_BYTES), 0);
        let begin = match self.superblock.xattr_block {
            0 => self.superblock.blocks,
            begin => begin,
        };
        let blocks = u32::try_from(shared.len() / block.length()).ok();
        let end =
            blocks.and_then(|blocks| begin.checked_add(blocks)).ok_or(ImageError::TooLarge)?;
        self.write(u64::from(begin) * block.bytes(), shared)?;
        self.file
            .set_len(u64::from(end) * block.bytes())
            .map_err(ImageError::io("setting the image's length"))?;
        self.superblock.xattr_block = begin;
        self.superblock.blocks = end;
        self.write(0, &self.superblock.to_head())
    }

    /// Rewrites an inode and the xattrs behind it: shared ids first, then its own as they were.
    fn rewrite(
        &self,
        at: u64,
        inode: Inode,
        amendment: &Amendment,
        ids: &[u32],
    ) -> Result<(), ImageError> {
        let mut before = vec![0; inode.xattr_bytes];
        self.read(at + INODE_BYTES as u64, &mut before)?;
        // The own entries begin behind the ids of an earlier call.
        let own = before.get(4).map_or(0, |count| XATTR_BODY_BYTES + 4 * usize::from(*count));
        let own = before.get(own..).unwrap_or_default();
        let mut body = vec![0; XATTR_BODY_BYTES];
        body[4] = u8::try_from(ids.len()).map_err(|_| ImageError::TooLarge)?;
        body.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        body.extend_from_slice(own);
        if body.len() == XATTR_BODY_BYTES {
            // A body without anything in it is not allowed.
            body.clear();
        }
        let kind = u32::from(inode.mode) & libc::S_IFMT;
        let amended = Inode {
            xattr_bytes: body.len(),
            mode: u16::try_from(kind | (amendment.mode & 0o7777)).expect("sixteen bits"),
            uid: amendment.uid,
            gid: amendment.gid,
            ..inode
        };
        let bytes = [&amended.to_bytes()[..], &body].concat();
        self.write(at, &bytes)
    }
}

fn read(file: &File, at: u64, into: &mut [u8]) -> Result<(), ImageError> {
    file.read_exact_at(into, at).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => malformed("it ends too early".to_owned()),
        _ => ImageError::io("reading the image")(error),
    })
}

fn malformed(what: String) -> ImageError {
    ImageError::Malformed { what }
}
