//! Where names lead on disk: parents, symbolic links, what is there already, hard links.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::{Coordinator, Link};
use crate::archive::LayerPath;
use crate::unpack::files::{Label, is_whiteout, path_in};
use crate::unpack::{LINKS_FOLLOWED, LONGEST_PATH_BYTES, UnpackError};

/// Paths through symbolic links that are remembered.
const ALIASES: usize = 4096;

impl Coordinator<'_> {
    /// Whether something that is no directory was made at `path`; a barrier if it may be.
    pub(super) fn is_there(
        &mut self,
        parent: &LayerPath,
        name: &CStr,
        path: &LayerPath,
        label: &Label,
    ) -> Result<bool, UnpackError> {
        if !self.may_be_there(path) {
            return Ok(false);
        }
        self.barrier()?;
        let stat = self.directories.stat(parent, name);
        Ok(stat.map_err(|e| label.error("looking for an earlier one", e))?.is_some())
    }

    /// Removes what an earlier entry made at `path`, so that a later one can. Says whether it was a
    /// whiteout, whose meaning outlives it where a directory comes in its place.
    pub(super) fn make_way(
        &mut self,
        parent: &LayerPath,
        name: &CStr,
        path: &LayerPath,
        label: &Label,
    ) -> Result<bool, UnpackError> {
        let known = self.directories.is_known(path);
        if known {
            self.barrier()?;
        } else if !self.is_there(parent, name, path, label)? {
            return Ok(false);
        }
        let failed = |e: io::Error| label.error("removing an earlier one", e);
        let stat = self.directories.stat(parent, name).map_err(|e| failed(e.into()))?;
        let dir = self.handle(parent, label)?;
        if known {
            let full = path_in(dir.as_fd(), name);
            let full = Path::new(OsStr::from_bytes(full.to_bytes()));
            std::fs::remove_dir_all(full).map_err(failed)?;
            self.directories.forget(path);
        } else {
            unlinkat(dir.as_fd(), name, UnlinkatFlags::NoRemoveDir)
                .map_err(|e| failed(e.into()))?;
        }
        self.recount = true;
        self.aliases.clear();
        Ok(stat.is_some_and(|stat| is_whiteout(&stat)))
    }

    /// The directory that `path` leads to, made if the archive only implies it.
    pub(super) fn real_parent(
        &mut self,
        path: &LayerPath,
        label: &Label,
    ) -> Result<LayerPath, UnpackError> {
        if self.directories.is_known(path) {
            return Ok(path.clone());
        }
        if let Some(real) = self.aliases.get(path) {
            return Ok(real.clone());
        }
        let real = self.follow(path, label)?;
        let mut parent = LayerPath::default();
        for part in real.parts() {
            let next = parent.join(part);
            if !self.directories.is_known(&next) {
                let name = CString::new(part).map_err(|e| label.error("its parent", e))?;
                self.imply(&parent, &name, &next, label)?;
            }
            parent = next;
        }
        if real != *path {
            if self.aliases.len() >= ALIASES {
                self.aliases.clear();
            }
            self.aliases.insert(path.clone(), real.clone());
        }
        Ok(real)
    }

    fn imply(
        &mut self,
        parent: &LayerPath,
        name: &CStr,
        path: &LayerPath,
        label: &Label,
    ) -> Result<(), UnpackError> {
        let failed = |e: Errno| label.error("making a directory that it implies", e);
        let mut hidden = false;
        if self.is_there(parent, name, path, label)? {
            let stat = self.directories.stat(parent, name).map_err(failed)?;
            if !stat.is_some_and(|stat| is_whiteout(&stat)) {
                return Err(failed(Errno::ENOTDIR));
            }
            hidden = self.make_way(parent, name, path, label)?;
        }
        self.directories.imply(parent, name, !hidden).map_err(failed)?;
        if hidden { self.opaque(path, label) } else { Ok(()) }
    }

    /// Follows the symbolic links in `path` as text, with the layer's root as `/`. What does not
    /// exist is no link.
    fn follow(&mut self, path: &LayerPath, label: &Label) -> Result<LayerPath, UnpackError> {
        let failed = |e: Errno| label.error("following its parent", e);
        if path.as_bytes().len() > LONGEST_PATH_BYTES {
            return Err(failed(Errno::ENAMETOOLONG));
        }
        let mut real = LayerPath::default();
        let mut rest: VecDeque<Vec<u8>> = path.parts().map(<[u8]>::to_vec).collect();
        let mut followed = 0;
        while let Some(part) = rest.pop_front() {
            if part == b".." {
                real = real.split().map_or_else(LayerPath::default, |(parent, _)| parent);
                continue;
            }
            let next = real.join(&part);
            if next.as_bytes().len() > LONGEST_PATH_BYTES {
                return Err(failed(Errno::ENAMETOOLONG));
            }
            let seen = self.may_be_there(&next);
            if self.directories.is_known(&next) || !seen {
                real = next;
                continue;
            }
            self.barrier()?;
            let name = CString::new(part).map_err(|e| label.error("its parent", e))?;
            let stat = self.directories.stat(&real, &name).map_err(failed)?;
            if stat.is_none_or(|stat| stat.st_mode & libc::S_IFMT != libc::S_IFLNK) {
                real = next;
                continue;
            }
            followed += 1;
            if followed > LINKS_FOLLOWED {
                return Err(failed(Errno::ELOOP));
            }
            let dir = self.handle(&real, label)?;
            let target = readlinkat(dir.as_fd(), name.as_c_str()).map_err(failed)?;
            let target = target.into_vec();
            if target.starts_with(b"/") {
                real = LayerPath::default();
            }
            let parts = target.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."));
            for part in parts.rev().map(<[u8]>::to_vec) {
                rest.push_front(part);
            }
        }
        Ok(real)
    }

    /// Refuses a hard link to what did not come yet: the link waits, and would find what comes
    /// after it or not, as the queue wills. Says nothing of what is certain only in a barrier.
    pub(super) fn check_target(
        &mut self,
        target: &LayerPath,
        label: &Label,
    ) -> Result<(), UnpackError> {
        let Some((parent, name)) = target.split() else { return Ok(()) };
        let path = self.follow(&parent, label)?.join(name);
        if self.may_be_there(&path) || self.directories.is_known(&path) {
            return Ok(());
        }
        Err(label.error("linking it to its target", Errno::ENOENT))
    }

    /// Makes a hard link, and gives the inode the metadata of the link's entry. Runs in a barrier.
    pub(super) fn make_link(&mut self, link: &Link) -> Result<(), UnpackError> {
        let Link { target, parent, name, attributes, label } = link;
        let failed = |e: Errno| label.error("linking it to its target", e);
        let (target_parent, target_name) = target.split().ok_or_else(|| failed(Errno::EPERM))?;
        let target_name = CString::new(target_name).map_err(|e| label.error("its target", e))?;
        let target_parent = self.follow(&target_parent, label)?;
        if !self.directories.is_known(&target_parent) {
            return Err(failed(Errno::ENOENT));
        }
        let from = self.handle(&target_parent, label)?;
        let to = self.handle(parent, label)?;
        let flags = AtFlags::empty();
        linkat(from.as_fd(), target_name.as_c_str(), to.as_fd(), name.as_c_str(), flags)
            .map_err(failed)?;
        let stat = self.directories.stat(parent, name).map_err(failed)?;
        attributes.apply_at(to.as_fd(), name, stat.as_ref(), self.rules, label)
    }
}
