//! Making one thing in a directory that exists: what the writers do.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens,
    makedev, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat};

use super::{UnpackError, Whiteouts};
use crate::archive::{Entry, Time};
use crate::sys::xattrs;

/// The last second whose nanoseconds fit in 63 bits; containerd takes later times for 1970.
const LAST_SECOND: i64 = i64::MAX / 1_000_000_000;

/// What holds for every entry of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Owner of what this process makes.
    pub(super) uid: u32,
    /// Group of what this process makes.
    pub(super) gid: u32,
    pub(super) whiteouts: Whiteouts,
}

/// Which entry, for errors.
#[derive(Clone, Debug)]
pub(super) struct Label {
    name: Box<[u8]>,
    offset: u64,
}

impl Label {
    pub(super) fn of(entry: &Entry) -> Self {
        Self { name: entry.name.as_slice().into(), offset: entry.offset }
    }

    /// Where the entry's header begins, in bytes.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn error(&self, what: &'static str, source: impl Into<io::Error>) -> UnpackError {
        UnpackError::Entry {
            name: String::from_utf8_lossy(&self.name).into_owned(),
            offset: self.offset,
            what,
            source: source.into(),
        }
    }
}

/// The metadata of an entry in the form that system calls take.
#[derive(Clone, Debug)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) atime: TimeSpec,
    pub(super) mtime: TimeSpec,
    pub(super) xattrs: Vec<(CString, Vec<u8>)>,
    /// Whether the mode has to be set even where making the file could have set it: because the
    /// thread's umask took bits away, or an inherited ACL did.
    pub(super) set_mode: bool,
}

fn bounded(time: Time) -> TimeSpec {
    if time.seconds < 0 || time.seconds >= LAST_SECOND {
        return TimeSpec::new(0, 0);
    }
    TimeSpec::new(time.seconds, i64::from(time.nanos))
}

impl Attributes {
    pub(super) fn of(entry: &mut Entry) -> Self {
        let atime = entry.atime.map_or(entry.mtime, |atime| atime.max(entry.mtime));
        let xattrs = std::mem::take(&mut entry.xattrs);
        Self {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            atime: bounded(atime),
            mtime: bounded(entry.mtime),
            // An ACL changes the permissions, which are set again after it.
            set_mode: xattrs.iter().any(|(name, _)| name.to_bytes().starts_with(b"system.")),
            xattrs,
        }
    }

    fn foreign(&self, rules: Rules) -> bool {
        (self.uid, self.gid) != (rules.uid, rules.gid)
    }

    /// Sets xattrs one by one with `set`. What an archive must not set, and what the file system or
    /// the kind of file cannot have, is passed over as containerd does.
    pub(super) fn set_xattrs(
        &self,
        rules: Rules,
        file_or_directory: bool,
        set: impl Fn(&CStr, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        for (name, value) in &self.xattrs {
            let bytes = name.to_bytes();
            let overlay =
                rules.whiteouts == Whiteouts::OverlayUser && bytes.starts_with(b"user.overlay.");
            if bytes.starts_with(b"trusted.") || overlay {
                continue;
            }
            let Err(error) = set(name, value) else { continue };
            match error.raw_os_error() {
                Some(libc::EOPNOTSUPP) => {}
                Some(libc::EPERM) if bytes.starts_with(b"user.") && !file_or_directory => {}
                _ => return Err(error),
            }
        }
        Ok(())
    }

    /// Sets all on an open file. Owner first: that takes away capabilities and setuid.
    fn apply(&self, file: &File, rules: Rules, label: &Label) -> Result<(), UnpackError> {
        if self.foreign(rules) {
            fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
                .map_err(|e| label.error("setting its owner", e))?;
        }
        self.set_xattrs(rules, true, |name, value| xattrs::set(file.as_fd(), name, value))
            .map_err(|e| label.error("setting its xattrs", e))?;
        if self.set_mode || self.mode & 0o7000 != 0 {
            fchmod(file, Mode::from_bits_truncate(self.mode))
                .map_err(|e| label.error("setting its mode", e))?;
        }
        futimens(file, &self.atime, &self.mtime).map_err(|e| label.error("setting its times", e))
    }

    /// Sets all on `name` in `dir`, which is no symbolic link's target but the name itself.
    /// With a `stat` the owner is left alone where it is right already, and so the capabilities.
    pub(super) fn apply_at(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        stat: Option<&FileStat>,
        rules: Rules,
        label: &Label,
    ) -> Result<(), UnpackError> {
        let foreign = match stat {
            Some(stat) => (stat.st_uid, stat.st_gid) != (self.uid, self.gid),
            None => self.foreign(rules),
        };
        if foreign {
            chown_at(dir, name, self.uid, self.gid)
                .map_err(|e| label.error("setting its owner", e))?;
        }
        let kind = stat.map(|stat| stat.st_mode & libc::S_IFMT);
        if !self.xattrs.is_empty() {
            let path = path_in(dir, name);
            let usual = matches!(kind, Some(libc::S_IFREG | libc::S_IFDIR));
            self.set_xattrs(rules, usual, |name, value| xattrs::set_path(&path, name, value))
                .map_err(|e| label.error("setting its xattrs", e))?;
        }
        let is_link = kind == Some(libc::S_IFLNK);
        if !is_link && (self.set_mode || stat.is_some() || self.mode & 0o7000 != 0) {
            // Following is harmless where there is no link, and not following needs Linux 6.6.
            let mode = Mode::from_bits_truncate(self.mode);
            fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)
                .map_err(|e| label.error("setting its mode", e))?;
        }
        self.set_times_at(dir, name).map_err(|e| label.error("setting its times", e))
    }

    fn set_times_at(&self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(dir, name, &self.atime, &self.mtime, flags)
    }
}

/// Sets the owner of `name` in `dir`, of a symbolic link itself.
pub(super) fn chown_at(dir: BorrowedFd<'_>, name: &CStr, uid: u32, gid: u32) -> Result<(), Errno> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    fchownat(dir, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// A path to `name` in `dir` for calls that take no directory handle.
pub(super) fn path_in(dir: BorrowedFd<'_>, name: &CStr) -> CString {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    CString::new(path).expect("a C string has no zero byte inside")
}

/// What `name` in `dir` is, of a symbolic link itself; `None` if there is nothing.
pub(super) fn stat_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<FileStat>, Errno> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether it is what overlayfs takes for a whiteout: a character device 0:0.
pub(super) fn is_whiteout(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0
}

/// What is to be made.
#[derive(Debug)]
pub(super) enum What {
    File {
        size: u64,
        sparse: bool,
        pieces: Vec<(u64, Bytes)>,
    },
    Symlink(CString),
    /// A device or a pipe.
    Node {
        kind: SFlag,
        major: u32,
        minor: u32,
    },
    Whiteout,
}

/// One thing to be made, whole.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) dir: Arc<OwnedFd>,
    pub(super) name: CString,
    pub(super) what: What,
    pub(super) attributes: Attributes,
    pub(super) label: Label,
}

impl Item {
    pub(super) fn make(self, rules: Rules) -> Result<(), UnpackError> {
        let dir = self.dir.as_fd();
        let Self { name, attributes, label, .. } = &self;
        match &self.what {
            What::File { size, sparse, pieces } => {
                let file = create(dir, name, attributes, label)?;
                if *sparse {
                    file.set_len(*size).map_err(|e| label.error("setting its length", e))?;
                }
                for (offset, bytes) in pieces {
                    file.write_all_at(bytes, *offset)
                        .map_err(|e| label.error("writing its data", e))?;
                }
                attributes.apply(&file, rules, label)
            }
            What::Symlink(target) => {
                symlinkat(target.as_c_str(), dir, name.as_c_str())
                    .map_err(|e| label.error("making the symbolic link", e))?;
                // A link has no mode, so none is set.
                let plain = Attributes { mode: 0, set_mode: false, ..attributes.clone() };
                plain.apply_at(dir, name, None, rules, label)
            }
            What::Node { kind, major, minor } => {
                let device = makedev(u64::from(*major), u64::from(*minor));
                let mode = Mode::from_bits_truncate(attributes.mode);
                mknodat(dir, name.as_c_str(), *kind, mode, device)
                    .map_err(|e| label.error("making the device or pipe", e))?;
                attributes.apply_at(dir, name, None, rules, label)
            }
            What::Whiteout => {
                mknodat(dir, name.as_c_str(), SFlag::S_IFCHR, Mode::empty(), 0)
                    .map_err(|e| label.error("making the whiteout", e))?;
                if attributes.foreign(rules) {
                    chown_at(dir, name, attributes.uid, attributes.gid)
                        .map_err(|e| label.error("setting the whiteout's owner", e))?;
                }
                Ok(())
            }
        }
    }
}

fn create(
    dir: BorrowedFd<'_>,
    name: &CStr,
    attributes: &Attributes,
    label: &Label,
) -> Result<File, UnpackError> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(attributes.mode & 0o777);
    let made = openat(dir, name, flags | OFlag::O_NOFOLLOW, mode);
    Ok(File::from(made.map_err(|e| label.error("making the file", e))?))
}

/// A file whose data come piece by piece.
#[derive(Debug)]
pub(super) struct LargeFile {
    file: File,
    /// Bytes not yet written.
    remaining: AtomicU64,
    attributes: Attributes,
    label: Label,
}

impl LargeFile {
    pub(super) fn create(
        dir: BorrowedFd<'_>,
        name: &CStr,
        entry: &Entry,
        sparse: bool,
        attributes: Attributes,
    ) -> Result<Self, UnpackError> {
        let label = Label::of(entry);
        let file = create(dir, name, &attributes, &label)?;
        let too_large = |e| label.error("reserving its length", e);
        if sparse {
            file.set_len(entry.size).map_err(too_large)?;
        } else {
            let length = i64::try_from(entry.size)
                .map_err(|_| too_large(io::Error::from(io::ErrorKind::FileTooLarge)))?;
            // Only an optimization: a file system that has no such call is written to as it is.
            // The file's length stays what was written, so that a short one is seen.
            match nix::fcntl::fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
                Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
                Err(error) => return Err(too_large(error.into())),
            }
        }
        Ok(Self { file, remaining: AtomicU64::new(entry.stored), attributes, label })
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8], rules: Rules) -> Result<(), UnpackError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|e| self.label.error("writing its data", e))?;
        let count = bytes.len() as u64;
        // The last writer must see the others' writes done before it sets the times.
        if self.remaining.fetch_sub(count, Ordering::AcqRel) == count {
            self.attributes.apply(&self.file, rules, &self.label)?;
        }
        Ok(())
    }
}

/// Opens `dest` as a directory handle.
pub(super) fn open_root(dest: &std::path::Path) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(AT_FDCWD, dest, flags, Mode::empty())
}
