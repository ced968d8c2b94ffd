//! Where names lead in an image that is being made.

use std::collections::VecDeque;
use std::ffi::CStr;

use nix::errno::Errno;

use super::Builder;
use crate::archive::LayerPath;
use crate::erofs::{self, Kind, NodeId};
use crate::unpack::files::Label;
use crate::unpack::{LINKS_FOLLOWED, LONGEST_PATH_BYTES, UnpackError};

impl Builder<'_> {
    /// The directory that `path` leads to, made if the archive only implies it.
    pub(super) fn real_parent(
        &mut self,
        path: &LayerPath,
        label: &Label,
    ) -> Result<NodeId, UnpackError> {
        if let Some((last, id)) = &self.parent
            && last == path
        {
            return Ok(*id);
        }
        let real = self.follow(path, label)?;
        let mut id = self.image.tree.root();
        for part in real.parts() {
            let next = self.image.tree.lookup(id, part);
            id = match next.map(|next| (next, self.image.tree.kind(next))) {
                Some((next, Kind::Directory)) => next,
                Some((_, Kind::Whiteout)) => {
                    self.parent = None;
                    self.image.tree.remove(id, part);
                    let made = self.imply(id, part, false, label)?;
                    self.opaque(made, label)?;
                    made
                }
                Some(_) => {
                    let what = "making a directory that it implies";
                    return Err(label.error(what, Errno::ENOTDIR));
                }
                None => self.imply(id, part, true, label)?,
            };
        }
        self.parent = Some((path.clone(), id));
        Ok(id)
    }

    /// Makes a directory that no entry names. It is provisional where lower layers may know more.
    fn imply(
        &mut self,
        parent: NodeId,
        name: &[u8],
        from_lower: bool,
        label: &Label,
    ) -> Result<NodeId, UnpackError> {
        let failed = |e: Errno| label.error("making a directory that it implies", e);
        if name.contains(&0) {
            return Err(failed(Errno::EINVAL));
        }
        if name.len() > erofs::LONGEST_NAME_BYTES {
            return Err(failed(Errno::ENAMETOOLONG));
        }
        let above = self.image.tree.attributes(parent);
        let setgid = above.mode & libc::S_ISGID != 0;
        let gid = if setgid { above.gid } else { self.rules.gid };
        let time = (self.label.seconds, 0);
        let attributes = erofs::Attributes::new(0o755, self.rules.uid, gid, time);
        let id = self.image.tree.add_directory(parent, name, attributes, from_lower);
        self.check_memory()?;
        Ok(id)
    }

    /// Follows the symbolic links in `path` as text, with the layer's root as `/`. What does not
    /// exist is no link.
    fn follow(&self, path: &LayerPath, label: &Label) -> Result<LayerPath, UnpackError> {
        let failed = |e: Errno| label.error("following its parent", e);
        if path.as_bytes().len() > LONGEST_PATH_BYTES {
            return Err(failed(Errno::ENAMETOOLONG));
        }
        let tree = &self.image.tree;
        if self.passes_no_link(path) {
            return Ok(path.clone());
        }
        let mut real: Vec<(Vec<u8>, Option<NodeId>)> = Vec::new();
        let mut rest: VecDeque<Vec<u8>> = path.parts().map(<[u8]>::to_vec).collect();
        let (mut followed, mut length) = (0, 0);
        while let Some(part) = rest.pop_front() {
            if part == b".." {
                length -= real.pop().map_or(0, |(part, _)| part.len() + 1);
                continue;
            }
            let above = real.last().map_or(Some(tree.root()), |(_, id)| *id);
            let id = above.and_then(|above| tree.lookup(above, &part));
            let Some(Kind::Symlink(target)) = id.map(|id| tree.kind(id)) else {
                length += part.len() + 1;
                if length > LONGEST_PATH_BYTES + 1 {
                    return Err(failed(Errno::ENAMETOOLONG));
                }
                real.push((part, id));
                continue;
            };
            followed += 1;
            if followed > LINKS_FOLLOWED {
                return Err(failed(Errno::ELOOP));
            }
            if target.starts_with(b"/") {
                real.clear();
                length = 0;
            }
            let parts = target.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b"."));
            for part in parts.rev().map(<[u8]>::to_vec) {
                rest.push_front(part);
            }
        }
        let mut found = LayerPath::default();
        for (part, _) in &real {
            found = found.join(part);
        }
        Ok(found)
    }

    /// Whether a path is what it says: the usual case, without any memory.
    fn passes_no_link(&self, path: &LayerPath) -> bool {
        let tree = &self.image.tree;
        let mut at = Some(tree.root());
        for part in path.parts() {
            at = at.and_then(|id| tree.lookup(id, part));
            if at.is_some_and(|id| matches!(tree.kind(id), Kind::Symlink(_))) {
                return false;
            }
        }
        true
    }

    /// What a hard link links to.
    pub(super) fn link_target(&self, target: &CStr, label: &Label) -> Result<NodeId, UnpackError> {
        let failed = |e: Errno| label.error("linking it to its target", e);
        let target = LayerPath::clean(target.to_bytes());
        let (parent, name) = target.split().ok_or_else(|| failed(Errno::EPERM))?;
        let parent = self.follow(&parent, label)?;
        let tree = &self.image.tree;
        let mut id = Some(tree.root());
        for part in parent.parts() {
            id = id.and_then(|id| tree.lookup(id, part));
        }
        let found = id.and_then(|id| tree.lookup(id, name)).ok_or_else(|| failed(Errno::ENOENT))?;
        match tree.kind(found) {
            Kind::Directory => Err(failed(Errno::EPERM)),
            _ => Ok(found),
        }
    }
}
