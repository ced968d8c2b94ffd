//! The directories of a layer while it is written.
//!
//! Every directory that was made is known by its path, and each is reached through a handle that
//! was opened from the root without following a link. Handles are cached, as archives come in the
//! order of their directories.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, UtimensatFlags, fchmodat, fstat, mkdirat, utimensat,
};
use nix::sys::time::TimeSpec;

use super::files::{self, Attributes, Label, Rules, path_in, stat_at};
use super::{UnpackError, Whiteouts};
use crate::archive::LayerPath;
use crate::sys::xattrs;

/// What is still to be done for a directory at the end, and where it came from.
#[derive(Default, Debug)]
struct Known {
    /// Access and modification time.
    times: Option<(TimeSpec, TimeSpec)>,
    /// The whole mode, where it has setuid or setgid. Only set at the end, as what is made in a
    /// directory with setgid inherits its group.
    mode: Option<u32>,
    /// No entry named it, and lower layers may.
    implied: bool,
}

pub(super) struct Directories {
    root: Arc<OwnedFd>,
    known: HashMap<LayerPath, Known>,
    handles: HashMap<LayerPath, (Arc<OwnedFd>, u64)>,
    capacity: usize,
    clock: u64,
    rules: Rules,
    /// Permissions that the calling thread's umask takes away.
    umask: u32,
    /// Set once a directory has a default ACL, which everything in it may inherit.
    pub(super) acl_seen: bool,
}

impl Directories {
    pub(super) fn new(root: OwnedFd, capacity: usize, rules: Rules, umask: u32) -> Self {
        Self {
            root: Arc::new(root),
            known: HashMap::new(),
            handles: HashMap::new(),
            capacity: capacity.max(2),
            clock: 0,
            rules,
            umask,
            acl_seen: false,
        }
    }

    pub(super) fn umask(&self) -> u32 {
        self.umask
    }

    pub(super) fn is_known(&self, path: &LayerPath) -> bool {
        path.is_root() || self.known.contains_key(path)
    }

    /// A handle of a directory.
    pub(super) fn handle(&mut self, path: &LayerPath) -> Result<Arc<OwnedFd>, Errno> {
        if path.is_root() {
            return Ok(Arc::clone(&self.root));
        }
        self.clock += 1;
        if let Some((handle, used)) = self.handles.get_mut(path) {
            *used = self.clock;
            return Ok(Arc::clone(handle));
        }
        let how =
            OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(
                ResolveFlag::RESOLVE_BENEATH
                    | ResolveFlag::RESOLVE_NO_SYMLINKS
                    | ResolveFlag::RESOLVE_NO_MAGICLINKS,
            );
        let handle = Arc::new(openat2(&*self.root, path.as_path(), how)?);
        if self.handles.len() >= self.capacity {
            self.evict();
        }
        self.handles.insert(path.clone(), (Arc::clone(&handle), self.clock));
        Ok(handle)
    }

    /// Closes the half that was not used for longest.
    fn evict(&mut self) {
        let mut ages: Vec<u64> = self.handles.values().map(|(_, used)| *used).collect();
        let middle = ages.len() / 2;
        let (_, &mut median, _) = ages.select_nth_unstable(middle);
        self.handles.retain(|_, (_, used)| *used > median);
    }

    /// What is at `name` in the directory `parent`; `None` too where there is no such directory.
    pub(super) fn stat(
        &mut self,
        parent: &LayerPath,
        name: &CStr,
    ) -> Result<Option<FileStat>, Errno> {
        if !self.is_known(parent) {
            return Ok(None);
        }
        stat_at(self.handle(parent)?.as_fd(), name)
    }

    /// Makes a directory that no entry names.
    pub(super) fn imply(
        &mut self,
        parent: &LayerPath,
        name: &CStr,
        from_lower: bool,
    ) -> Result<(), Errno> {
        let dir = self.handle(parent)?;
        self.make_at(dir.as_fd(), name, 0o755)?;
        if self.has_setgid(parent) {
            // As if the bit were set already, which it is at the end only.
            let group = fstat(&*dir)?.st_gid;
            files::chown_at(dir.as_fd(), name, self.rules.uid, group)?;
        }
        let known = Known { implied: from_lower, ..Known::default() };
        self.known.insert(parent.join(name.to_bytes()), known);
        Ok(())
    }

    /// Whether an entry of this archive gave the directory setgid.
    fn has_setgid(&self, path: &LayerPath) -> bool {
        let mode = self.known.get(path).and_then(|known| known.mode);
        mode.is_some_and(|mode| mode & libc::S_ISGID != 0)
    }

    fn make_at(&self, dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<(), Errno> {
        let mode = mode & 0o1777;
        mkdirat(dir, name, Mode::from_bits_truncate(mode))?;
        if mode & self.umask != 0 || self.acl_seen {
            self.chmod(dir, name, mode)?;
        }
        Ok(())
    }

    fn chmod(&self, dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<(), Errno> {
        let mode = Mode::from_bits_truncate(mode);
        fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)
    }

    /// Makes the directory that an entry names, or gives one that is there the entry's metadata.
    pub(super) fn put(
        &mut self,
        parent: &LayerPath,
        name: &CStr,
        attributes: &Attributes,
        label: &Label,
    ) -> Result<(), UnpackError> {
        let opening = |e: Errno| label.error("opening its parent", e);
        let handle = self.handle(parent).map_err(opening)?;
        let dir = handle.as_fd();
        let path = parent.join(name.to_bytes());
        let again = self.known.contains_key(&path);
        if !again {
            self.make_at(dir, name, attributes.mode)
                .map_err(|e| label.error("making the directory", e))?;
        }
        if again || (attributes.uid, attributes.gid) != (self.rules.uid, self.rules.gid) {
            files::chown_at(dir, name, attributes.uid, attributes.gid)
                .map_err(|e| label.error("setting its owner", e))?;
        }
        if !attributes.xattrs.is_empty() {
            let full = path_in(dir, name);
            attributes
                .set_xattrs(self.rules, true, |name, value| xattrs::set_path(&full, name, value))
                .map_err(|e| label.error("setting its xattrs", e))?;
            let default_acl = c"system.posix_acl_default";
            self.acl_seen |=
                attributes.xattrs.iter().any(|(name, _)| name.as_c_str() == default_acl);
        }
        if again || attributes.set_mode {
            self.chmod(dir, name, attributes.mode & 0o1777)
                .map_err(|e| label.error("setting its mode", e))?;
        }
        let special = attributes.mode & 0o6000 != 0;
        let known = Known {
            times: Some((attributes.atime, attributes.mtime)),
            mode: special.then_some(attributes.mode),
            implied: false,
        };
        self.known.insert(path, known);
        Ok(())
    }

    /// Marks a directory as hiding the lower layers'.
    pub(super) fn set_opaque(&mut self, path: &LayerPath) -> io::Result<()> {
        let name = match self.rules.whiteouts {
            Whiteouts::Overlay => c"trusted.overlay.opaque",
            Whiteouts::OverlayUser => c"user.overlay.opaque",
            Whiteouts::Drop => return Ok(()),
        };
        let handle = self.handle(path)?;
        xattrs::set_path(&path_in(handle.as_fd(), c"."), name, b"y")
    }

    /// Forgets a directory that was removed, and all in it.
    pub(super) fn forget(&mut self, path: &LayerPath) {
        let inside = |other: &LayerPath| other.as_path().starts_with(path.as_path());
        self.known.retain(|other, _| !inside(other));
        self.handles.retain(|other, _| !inside(other));
    }

    /// Sets what waited for the end, and returns the directories' number and their bytes on disk,
    /// the root included.
    pub(super) fn finish(&mut self) -> Result<(u64, u64), UnpackError> {
        let mut all: Vec<(LayerPath, Known)> = self.known.drain().collect();
        // Neighbours have the same parent, whose handle is then cached.
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        let failed = |path: &LayerPath, source: Errno| UnpackError::Tree {
            what: "setting the times of",
            path: path.as_path().to_owned(),
            source: source.into(),
        };
        let root =
            stat_at(self.root.as_fd(), c".").map_err(|e| failed(&LayerPath::default(), e))?;
        let (mut count, mut blocks) = (1, root.map_or(0, |stat| stat.st_blocks));
        // `handle` takes only known directories for granted, and reaches them by their path.
        for (path, known) in &all {
            let (parent, name) = path.split().expect("the root is not in the map");
            let name = CString::new(name).expect("it was one when it was made");
            let dir = self.handle(&parent).map_err(|e| failed(path, e))?;
            let stat = stat_at(dir.as_fd(), &name).map_err(|e| failed(path, e))?;
            count += 1;
            blocks += stat.map_or(0, |stat| stat.st_blocks);
            if let Some(mode) = known.mode {
                self.chmod(dir.as_fd(), &name, mode).map_err(|e| failed(path, e))?;
            }
            if let Some((atime, mtime)) = known.times {
                let flags = UtimensatFlags::NoFollowSymlink;
                utimensat(dir.as_fd(), name.as_c_str(), &atime, &mtime, flags)
                    .map_err(|e| failed(path, e))?;
            }
        }
        self.known = all.into_iter().collect();
        Ok((count, u64::try_from(blocks).unwrap_or(0) * 512))
    }

    /// Directories that no entry named, parents first.
    pub(super) fn implied(&self) -> Vec<PathBuf> {
        let implied = self.known.iter().filter(|(_, known)| known.implied);
        let mut paths: Vec<PathBuf> = implied.map(|(path, _)| path.as_path().into()).collect();
        paths.sort();
        paths
    }
}
