//! The metadata of directories that an archive implies and never names.
//!
//! `tmp/x` alone in an upper layer makes a directory `tmp` there that hides the metadata of the
//! lower layers' `tmp`. containerd copies them from the parents that it is given; layers here are
//! unpacked without waiting for their parents, and settled afterwards.
//!
//! The topmost layer that has something of that name decides; symbolic links are followed inside
//! that layer alone, as containerd does. If it is no directory, or no layer has it, the directory
//! stays 0755 and root's. The times stay those of the unpacking: containerd copies them, and
//! what it then makes inside changes them again.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat};

use super::UnpackError;
use super::files::{chown_at, open_root, path_in};
use crate::erofs::{self, Amendment, ImageError};
use crate::sys::xattrs;

/// What one implied directory takes from below.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Metadata {
    mode: u32,
    uid: u32,
    gid: u32,
    /// Sorted by name.
    xattrs: Vec<(CString, Vec<u8>)>,
}

/// The metadata of all implied directories of a tree. Two chains may share a tree if theirs
/// are equal.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Settled(Vec<(PathBuf, Option<Metadata>)>);

impl Settled {
    /// The same as bytes that are equal only if it is: what to keep of it, or to hash.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut field = |data: &[u8]| {
            bytes.extend_from_slice(&(data.len() as u64).to_le_bytes());
            bytes.extend_from_slice(data);
        };
        for (path, metadata) in &self.0 {
            field(path.as_os_str().as_encoded_bytes());
            let Some(metadata) = metadata else {
                field(b"");
                continue;
            };
            for number in [metadata.mode, metadata.uid, metadata.gid] {
                field(&number.to_le_bytes());
            }
            field(&(metadata.xattrs.len() as u64).to_le_bytes());
            for (name, value) in &metadata.xattrs {
                field(name.to_bytes());
                field(value);
            }
        }
        bytes
    }
}

/// Finds what each of `implied` takes from `lowers`, the trees of the layers below, topmost first.
/// Changes nothing.
///
/// # Errors
/// Where a lower tree cannot be read.
pub fn implied_metadata(implied: &[PathBuf], lowers: &[&Path]) -> Result<Settled, UnpackError> {
    if implied.is_empty() {
        return Ok(Settled::default());
    }
    let mut roots: HashMap<&Path, OwnedFd> = HashMap::new();
    let mut found = Vec::with_capacity(implied.len());
    for path in implied {
        let mut metadata = None;
        for lower in lowers {
            let failed = |source: Errno| UnpackError::Tree {
                what: "reading the metadata of",
                path: lower.join(path),
                source: source.into(),
            };
            if !roots.contains_key(lower) {
                roots.insert(lower, open_root(lower).map_err(failed)?);
            }
            match look(&roots[lower], path).map_err(failed)? {
                Found::Nothing => {}
                Found::Other => break,
                Found::Directory(handle) => {
                    metadata = Some(read(&handle, &lower.join(path))?);
                    break;
                }
            }
        }
        let metadata = metadata.or_else(|| inherited(path, &found));
        found.push((path.clone(), metadata));
    }
    Ok(Settled(found))
}

/// What the kernel gives a directory that is made in one with setgid: the group. (The bit itself
/// too, but containerd sets the mode of what it makes.) `found` has the parent, if it is implied.
fn inherited(path: &Path, found: &[(PathBuf, Option<Metadata>)]) -> Option<Metadata> {
    let parent = path.parent()?;
    let (_, parent) = found.iter().rev().find(|(other, _)| other == parent)?;
    let parent = parent.as_ref().filter(|parent| parent.mode & libc::S_ISGID != 0)?;
    let uid = nix::unistd::geteuid().as_raw();
    Some(Metadata { mode: 0o755, uid, gid: parent.gid, xattrs: Vec::new() })
}

enum Found {
    Nothing,
    /// Something that is no directory: it ends the search.
    Other,
    Directory(OwnedFd),
}

fn look(root: &OwnedFd, path: &Path) -> Result<Found, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(root, path, how) {
        Ok(handle) if fstat(&handle)?.st_mode & libc::S_IFMT == libc::S_IFDIR => {
            Ok(Found::Directory(handle))
        }
        Ok(_) | Err(Errno::ENOTDIR | Errno::ELOOP) => Ok(Found::Other),
        Err(Errno::ENOENT) => Ok(Found::Nothing),
        Err(error) => Err(error),
    }
}

fn read(handle: &OwnedFd, path: &Path) -> Result<Metadata, UnpackError> {
    let failed = |source: std::io::Error| UnpackError::Tree {
        what: "reading the metadata of",
        path: path.to_owned(),
        source,
    };
    let stat = fstat(handle).map_err(|e| failed(e.into()))?;
    let full = path_in(handle.as_fd(), c".");
    let mut names = xattrs::list_path(&full).map_err(failed)?;
    // The whiteouts of overlayfs are the lower tree's own.
    names.retain(|name| {
        let name = name.to_bytes();
        !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.")
    });
    names.sort();
    let mut values = Vec::with_capacity(names.len());
    for name in names {
        if let Some(value) = xattrs::get_path(&full, &name).map_err(failed)? {
            values.push((name, value));
        }
    }
    let mode = stat.st_mode & 0o7777;
    Ok(Metadata { mode, uid: stat.st_uid, gid: stat.st_gid, xattrs: values })
}

/// Gives each of `implied` in the tree `dest` what it takes from `lowers`, the trees of the layers
/// below, topmost first. `implied` is what [`super::unpack`] reported for the tree.
///
/// # Errors
/// Where a lower tree cannot be read or the tree cannot be changed.
pub fn settle(dest: &Path, implied: &[PathBuf], lowers: &[&Path]) -> Result<Settled, UnpackError> {
    let settled = implied_metadata(implied, lowers)?;
    for (path, metadata) in &settled.0 {
        let Some(metadata) = metadata else { continue };
        apply(&dest.join(path), metadata)?;
    }
    Ok(settled)
}

/// The same for a tree that is an EROFS image, the file `image`, not mounted yet.
///
/// # Errors
/// Where a lower tree cannot be read or the image cannot be changed.
pub fn settle_image(
    image: &Path,
    implied: &[PathBuf],
    lowers: &[&Path],
) -> Result<Settled, UnpackError> {
    let settled = implied_metadata(implied, lowers)?;
    let amendments: Vec<Amendment> = settled
        .0
        .iter()
        .filter_map(|(path, metadata)| metadata.as_ref().map(|metadata| (path, metadata)))
        .map(|(path, metadata)| Amendment {
            path: path.clone(),
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            xattrs: metadata.xattrs.clone(),
        })
        .collect();
    let failed = |source| UnpackError::Image { path: image.to_owned(), source };
    let file = File::options().read(true).write(true).open(image);
    let file = file.map_err(|e| failed(ImageError::Io { what: "opening the image", source: e }))?;
    erofs::amend(&file, &amendments).map_err(failed)?;
    Ok(settled)
}

fn apply(path: &Path, metadata: &Metadata) -> Result<(), UnpackError> {
    let failed = |source: std::io::Error| UnpackError::Tree {
        what: "setting the metadata of",
        path: path.to_owned(),
        source,
    };
    let handle = open_root(path).map_err(|e| failed(e.into()))?;
    let dir = handle.as_fd();
    chown_at(dir, c".", metadata.uid, metadata.gid).map_err(|e| failed(e.into()))?;
    let full = path_in(dir, c".");
    for (name, value) in &metadata.xattrs {
        match xattrs::set_path(&full, name, value) {
            Err(error) if error.raw_os_error() != Some(libc::EOPNOTSUPP) => {
                return Err(failed(error));
            }
            _ => {}
        }
    }
    let mode = Mode::from_bits_truncate(metadata.mode);
    fchmodat(dir, c".", mode, FchmodatFlags::FollowSymlink).map_err(|e| failed(e.into()))
}
