//! What the kernel would make of an entry's metadata, on a file system that has what EROFS has.

use std::cell::RefCell;
use std::ffi::CStr;
use std::io;

use nix::errno::Errno;

use super::{Builder, acl};
use crate::erofs::{self, NodeId};
use crate::unpack::UnpackError;
use crate::unpack::files::{Attributes, Label};

/// Drops what the kernel drops of a file whose owner changes.
const CAPABILITY: &CStr = c"security.capability";

impl Builder<'_> {
    /// Gives an inode that is there already the metadata of an entry.
    pub(super) fn set_attributes(
        &mut self,
        id: NodeId,
        attributes: &Attributes,
        label: &Label,
    ) -> Result<(), UnpackError> {
        let kind = self.image.tree.kind(id);
        let (is_link, is_directory) =
            (matches!(kind, erofs::Kind::Symlink(_)), kind == erofs::Kind::Directory);
        let new = erofs_attributes(attributes);
        let old = self.image.tree.attributes_mut(id);
        if (old.uid, old.gid) != (new.uid, new.gid) && !is_directory {
            old.remove_xattr(CAPABILITY);
        }
        (old.uid, old.gid, old.seconds, old.nanos) = (new.uid, new.gid, new.seconds, new.nanos);
        if !is_link {
            old.mode = new.mode;
        }
        self.set_xattrs(id, attributes, label)
    }

    /// Sets xattrs as the kernel would on a file system that has those that EROFS has.
    pub(super) fn set_xattrs(
        &mut self,
        id: NodeId,
        attributes: &Attributes,
        label: &Label,
    ) -> Result<(), UnpackError> {
        let kind = self.image.tree.kind(id);
        let usual = matches!(kind, erofs::Kind::Regular | erofs::Kind::Directory);
        let (is_link, is_directory) =
            (matches!(kind, erofs::Kind::Symlink(_)), kind == erofs::Kind::Directory);
        let into = RefCell::new(self.image.tree.attributes_mut(id));
        let system = |errno: Errno| Err(io::Error::from(errno));
        let set = |name: &CStr, value: &[u8]| {
            let bytes = name.to_bytes();
            if bytes.starts_with(b"system.") {
                let default = bytes.ends_with(b"_default");
                return match acl::checked(value) {
                    _ if is_link => system(Errno::EOPNOTSUPP),
                    _ if default && !is_directory => system(Errno::EACCES),
                    None => system(Errno::EINVAL),
                    Some(()) => into.borrow_mut().set_xattr(name, value).map(drop),
                };
            }
            if bytes.starts_with(b"user.") && !usual {
                return system(Errno::EPERM);
            }
            match into.borrow_mut().set_xattr(name, value)? {
                true => Ok(()),
                false => system(Errno::EOPNOTSUPP),
            }
        };
        let done = attributes.set_xattrs(self.rules, usual, set);
        done.map_err(|e| label.error("setting its xattrs", e))?;
        acl::follow_mode(&mut into.borrow_mut());
        Ok(())
    }
}

/// The same in the image's words, without xattrs.
pub(super) fn erofs_attributes(from: &Attributes) -> erofs::Attributes {
    // Both are within their bounds: times were brought into 1970 to 2262.
    let time =
        (from.mtime.tv_sec().unsigned_abs(), u32::try_from(from.mtime.tv_nsec()).unwrap_or(0));
    erofs::Attributes::new(from.mode, from.uid, from.gid, time)
}
