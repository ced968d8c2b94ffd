//! Several layers' trees into one directory, for pulls that end in a plain directory.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::UnpackError;
use crate::sys::xattrs;

/// The attributes that mark an opaque directory.
const OPAQUE: [&std::ffi::CStr; 2] = [c"trusted.overlay.opaque", c"user.overlay.opaque"];

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UnpackError {
    move |source| UnpackError::Tree { what, path: path.to_owned(), source }
}

/// Merges `trees`, layers in overlay form, lowest first, into `dest`, an existing directory on the
/// same file system: later trees replace and hide what earlier ones brought. Files move by being
/// renamed, so nothing is copied; the trees are gone afterwards. The root keeps the metadata that
/// `dest` has.
///
/// # Errors
/// Where a file cannot be moved, EXDEV if `dest` is on another file system. What was moved stays.
pub fn merge(trees: &[PathBuf], dest: &Path) -> Result<(), UnpackError> {
    let root = fs::symlink_metadata(dest).map_err(failed("reading", dest))?;
    for tree in trees {
        merge_into(tree, dest)?;
        fs::remove_dir_all(tree).map_err(failed("removing", tree))?;
    }
    set_times(dest, &root)
}

fn entries(path: &Path) -> Result<Vec<DirEntry>, UnpackError> {
    let all = fs::read_dir(path).and_then(Iterator::collect);
    all.map_err(failed("listing", path))
}

/// What is at `path`, if anything.
fn look(path: &Path) -> Result<Option<Metadata>, UnpackError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("reading", path)(error)),
    }
}

fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn remove(path: &Path, metadata: &Metadata) -> Result<(), UnpackError> {
    let removed = if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(failed("removing", path))
}

/// Moves all that is in `from` into `to`.
fn merge_into(from: &Path, to: &Path) -> Result<(), UnpackError> {
    for entry in entries(from)? {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let new = fs::symlink_metadata(&source).map_err(failed("reading", &source))?;
        let mut old = look(&target)?;
        if is_whiteout(&new) {
            if let Some(old) = old {
                remove(&target, &old)?;
            }
            continue;
        }
        let merges = new.is_dir() && old.as_ref().is_some_and(Metadata::is_dir);
        if let Some(there) = old.take_if(|_| !merges || is_opaque(&source)) {
            remove(&target, &there)?;
        }
        if old.is_some() {
            merge_into(&source, &target)?;
            copy_metadata(&source, &target, &new)?;
        } else {
            if new.is_dir() {
                clean(&source, &new)?;
            }
            fs::rename(&source, &target).map_err(failed("moving", &source))?;
        }
    }
    Ok(())
}

/// Takes whiteouts and opaque marks out of a tree that has nothing below it.
fn clean(path: &Path, metadata: &Metadata) -> Result<(), UnpackError> {
    for name in OPAQUE {
        let removed = xattrs::remove_path(&c_path(path), name);
        if let Err(error) = removed
            && !matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP))
        {
            return Err(failed("making plain", path)(error));
        }
    }
    let mut changed = false;
    for entry in entries(path)? {
        let kind = entry.file_type().map_err(failed("reading", path))?;
        if kind.is_dir() {
            let metadata = entry.metadata().map_err(failed("reading", path))?;
            clean(&entry.path(), &metadata)?;
        } else if kind.is_char_device() {
            let metadata = entry.metadata().map_err(failed("reading", path))?;
            if is_whiteout(&metadata) {
                remove(&entry.path(), &metadata)?;
                changed = true;
            }
        }
    }
    if changed { set_times(path, metadata) } else { Ok(()) }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path that exists has no zero byte")
}

fn is_opaque(path: &Path) -> bool {
    let path = c_path(path);
    OPAQUE.iter().any(|name| matches!(xattrs::get_path(&path, name), Ok(Some(v)) if v == b"y"))
}

/// Gives the directory `to` the metadata of `from`, its times last.
fn copy_metadata(from: &Path, to: &Path, metadata: &Metadata) -> Result<(), UnpackError> {
    let what = "setting the metadata of";
    let (source, target) = (c_path(from), c_path(to));
    std::os::unix::fs::lchown(to, Some(metadata.uid()), Some(metadata.gid()))
        .map_err(failed(what, to))?;
    // The upper directory's attributes are the ones that show, and no others.
    for name in xattrs::list_path(&target).map_err(failed(what, to))? {
        if xattrs::get_path(&source, &name).map_err(failed(what, from))?.is_none() {
            xattrs::remove_path(&target, &name).map_err(failed(what, to))?;
        }
    }
    for name in xattrs::list_path(&source).map_err(failed(what, from))? {
        if OPAQUE.contains(&name.as_c_str()) {
            continue;
        }
        if let Some(value) = xattrs::get_path(&source, &name).map_err(failed(what, from))? {
            xattrs::set_path(&target, &name, &value).map_err(failed(what, to))?;
        }
    }
    fs::set_permissions(to, metadata.permissions()).map_err(failed(what, to))?;
    set_times(to, metadata)
}

fn set_times(path: &Path, metadata: &Metadata) -> Result<(), UnpackError> {
    let atime = TimeSpec::new(metadata.atime(), metadata.atime_nsec());
    let mtime = TimeSpec::new(metadata.mtime(), metadata.mtime_nsec());
    let flags = UtimensatFlags::NoFollowSymlink;
    utimensat(AT_FDCWD, path, &atime, &mtime, flags)
        .map_err(|e| failed("setting the times of", path)(e.into()))
}

/// Bytes on disk and inodes of a tree, counted as containerd does: blocks, each inode once.
pub(super) fn usage(root: &Path) -> Result<(u64, u64), UnpackError> {
    let mut inodes = HashSet::new();
    let mut bytes = 0;
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).map_err(failed("reading", &path))?;
        if inodes.insert((metadata.dev(), metadata.ino())) {
            bytes += metadata.blocks() * 512;
        }
        if metadata.is_dir() {
            waiting.extend(entries(&path)?.iter().map(DirEntry::path));
        }
    }
    Ok((bytes, inodes.len() as u64))
}
