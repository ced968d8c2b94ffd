//! Archives made by hand and by the `tar` crate, unpacked as root into temporary directories.
//!
//! Each row of `docs/semantics.md` names one of these tests.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tar::{EntryType, Header};
use tempfile::TempDir;

use super::*;
use crate::sys::xattrs;
use crate::timeline::LayerRecorder;

mod images;
mod model;
mod names;
mod odd;
mod trees;
mod whiteouts;

/// An archive in the making.
#[derive(Clone, Default)]
pub(super) struct Archive(Vec<u8>);

impl Archive {
    pub(super) fn header(kind: EntryType, name: &str, mode: u32) -> Header {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(0);
        header
    }

    pub(super) fn add(mut self, mut header: Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|n| n.to_string().len() + rest == *n).unwrap();
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        let mut header = Self::header(EntryType::XHeader, "pax", 0o644);
        header.set_size(data.len() as u64);
        self.add(header, &data)
    }

    pub(super) fn dir(self, name: &str, mode: u32) -> Self {
        self.add(Self::header(EntryType::Directory, name, mode), b"")
    }

    pub(super) fn file(self, name: &str, data: &[u8]) -> Self {
        let mut header = Self::header(EntryType::Regular, name, 0o644);
        header.set_size(data.len() as u64);
        self.add(header, data)
    }

    pub(super) fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, name, 0o644);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.add(header, b"")
    }

    pub(super) fn symlink(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, name, target)
    }

    pub(super) fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Link, name, target)
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// An archive as a source of pieces of `size` bytes.
pub(super) fn pieces(archive: &[u8], size: usize) -> impl FnMut() -> io::Result<Option<Bytes>> {
    let mut rest = Bytes::copy_from_slice(archive);
    move || {
        let count = rest.len().min(size);
        Ok((count > 0).then(|| rest.split_to(count)))
    }
}

pub(super) struct Tree {
    pub(super) dir: TempDir,
    pub(super) summary: Summary,
}

/// Unpacks an archive into files. The same archive as an image has to come to the same, or be
/// refused too.
pub(super) fn try_with(archive: &[u8], options: &Options) -> Result<Tree, UnpackError> {
    let tree = try_files(archive, options);
    images::agrees(archive, options, &tree);
    tree
}

fn try_files(archive: &[u8], options: &Options) -> Result<Tree, UnpackError> {
    let dir = tempfile::tempdir().unwrap();
    let recorder = LayerRecorder::detached();
    let summary = unpack(&mut pieces(archive, 70_000), dir.path(), options, &recorder)?;
    Ok(Tree { dir, summary })
}

pub(super) fn try_unpack(archive: Archive) -> Result<Tree, UnpackError> {
    try_with(&archive.end(), &Options { writers: 2, ..Options::default() })
}

pub(super) fn unpacked(archive: Archive) -> Tree {
    try_unpack(archive).unwrap_or_else(|error| panic!("{error}"))
}

/// The error of an archive that must fail.
pub(super) fn refused(archive: Archive) -> String {
    try_unpack(archive).err().expect("refused").to_string()
}

impl Tree {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn stat(&self, name: &str) -> fs::Metadata {
        fs::symlink_metadata(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(super) fn exists(&self, name: &str) -> bool {
        fs::symlink_metadata(self.path(name)).is_ok()
    }

    pub(super) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(super) fn mode(&self, name: &str) -> u32 {
        self.stat(name).mode() & 0o7777
    }

    pub(super) fn xattr(&self, name: &str, key: &std::ffi::CStr) -> Option<Vec<u8>> {
        xattrs::get_path(&c_path(&self.path(name)), key).unwrap()
    }

    pub(super) fn is_whiteout(&self, name: &str) -> bool {
        let stat = self.stat(name);
        stat.file_type().is_char_device() && stat.rdev() == 0
    }

    pub(super) fn is_opaque(&self, name: &str) -> bool {
        self.xattr(name, c"trusted.overlay.opaque").as_deref() == Some(b"y")
    }
}

pub(super) fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// All that can be seen of a tree, by path: inodes of hard links are numbered in the order of paths.
pub(super) fn picture(root: &Path) -> BTreeMap<PathBuf, String> {
    let (mut all, mut waiting) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = waiting.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        if stat.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        all.insert(path.strip_prefix(root).unwrap().to_owned(), (path, stat));
    }
    let mut inodes: Vec<u64> = Vec::new();
    let mut describe = |path: &Path, stat: &fs::Metadata| {
        let number = inodes.iter().position(|&ino| ino == stat.ino()).unwrap_or_else(|| {
            inodes.push(stat.ino());
            inodes.len() - 1
        });
        let content = match stat.file_type() {
            kind if kind.is_file() => fs::read(path).unwrap(),
            kind if kind.is_symlink() => {
                fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()
            }
            _ => Vec::new(),
        };
        let full = c_path(path);
        let mut keys = xattrs::list_path(&full).unwrap();
        keys.sort();
        let xattrs: Vec<_> =
            keys.into_iter().map(|key| (xattrs::get_path(&full, &key).unwrap(), key)).collect();
        let size = if stat.is_dir() { 0 } else { stat.size() };
        format!(
            "{:o} {}:{} mtime {}.{} device {} size {size} inode {number} {xattrs:?} content {:x}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.mtime_nsec(),
            stat.rdev(),
            content_hash(&content),
        )
    };
    all.into_iter().map(|(name, (path, stat))| (name, describe(&path, &stat))).collect()
}

/// Equal for equal content; a picture that holds large files themselves takes long to compare.
fn content_hash(content: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher as _};
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    hasher.finish()
}
