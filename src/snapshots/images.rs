//! Layers that are EROFS images: whether this host can have them, and their mounts.
//!
//! The image of a tree is `trees/ID/layer.erofs`, and is mounted read-only on `trees/ID/fs`, where a
//! tree of files would be: whoever uses a layer by its path need not know what it is. It is mounted
//! as soon as nothing in it changes any more (`treestore`), at every start where a reboot took the
//! mounts away, and again where somebody else did. A mount outlives the daemon. It goes when the
//! tree is swept; an overlay that still stands on it keeps the image, and its bytes, until it goes.
//!
//! Mounts are made in the daemon's own mount name space and have to be seen by containerd, so they
//! propagate as those around them do.

use std::collections::HashSet;
use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::mount::{MntFlags, umount2};

use super::database::{IMAGE, PUBLISHED};
use super::error::Error;
use super::layout::Layout;
use super::records::Layer;
use super::{Backend, Snapshots, mounts};
use crate::erofs::{self, BlockSize, FileData, Image};
use crate::pull::trees::TreeId;
use crate::sys::images::{self, Attachment, Audience};

/// What this host has of images.
#[derive(Debug)]
pub(super) struct Images {
    /// New layers become images of such blocks; `None`: files.
    pub(super) wanted: Option<BlockSize>,
    /// Why none is mounted: nobody else would see it, and containers would be put on empty
    /// directories.
    hidden: Option<Lack>,
    /// The trees that are images and have to be mounted. Held while one is mounted or unmounted, so
    /// that none is mounted twice.
    mounted: Mutex<HashSet<TreeId>>,
}

impl Images {
    /// Whether layers become images, as `wanted` and this host have it; logs why.
    ///
    /// # Errors
    /// [`Error::NoImages`] where they have to and cannot.
    pub(super) fn choose(wanted: Backend, layout: &Layout) -> Result<Self, Error> {
        let hidden = hidden(layout);
        // An operator who insists may know what cannot be told from here.
        let trusted = wanted == Backend::Erofs && matches!(hidden, Some(Lack::Visibility));
        if let (Some(lack), true) = (&hidden, trusted) {
            tracing::warn!("{lack}; if it does not, containers start without their files");
        }
        let hidden = hidden.filter(|_| !trusted);
        let wanted = match (wanted, &hidden) {
            (Backend::Overlay, _) => files("as configured"),
            (Backend::Auto, Some(lack)) => files(lack),
            (Backend::Erofs, Some(lack)) => Err(Error::NoImages { reason: lack.to_string() }),
            (_, None) => match (probe(layout), wanted) {
                (Ok((block, how)), _) => images(block, how),
                (Err(lack), Backend::Erofs) => Err(Error::NoImages { reason: lack.to_string() }),
                (Err(lack), _) => files(lack),
            },
        };
        Ok(Self { wanted: wanted?, hidden, mounted: Mutex::default() })
    }

    fn locked(&self) -> MutexGuard<'_, HashSet<TreeId>> {
        self.mounted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mount_missing(&self, layout: &Layout, id: TreeId) -> Result<(), Error> {
        let (image, root) = (layout.tree_image(id), layout.tree_root(id));
        if images::is_mounted(&root).map_err(Error::io("looking at", &root))? {
            return Ok(());
        }
        if let Some(lack) = &self.hidden {
            return Err(Error::NotMounted { image, reason: lack.to_string() });
        }
        let mounted = images::mount_erofs(&image, &root);
        mounted.map_err(Error::io("mounting the layer's image", &image))?;
        tracing::debug!(tree = %id, "mounted");
        Ok(())
    }
}

fn files(why: impl Display) -> Result<Option<BlockSize>, Error> {
    tracing::info!(backend = "overlay", %why, "layers become files");
    Ok(None)
}

fn images(block: BlockSize, how: Attachment) -> Result<Option<BlockSize>, Error> {
    let why = match how {
        Attachment::File => "this kernel mounts image files, and overlay takes them",
        Attachment::Loop => "this kernel mounts images by loop devices, and overlay takes them",
    };
    tracing::info!(backend = "erofs", block_bytes = block.bytes(), why, "layers become images");
    Ok(Some(block))
}

/// Whether, and why, nobody would see what is mounted here.
fn hidden(layout: &Layout) -> Option<Lack> {
    match images::audience(layout.root()) {
        Ok(Audience::Own) => Some(Lack::Hidden),
        Ok(Audience::Unknown) => Some(Lack::Visibility),
        Ok(Audience::All) | Err(_) => None,
    }
}

impl Snapshots {
    /// Mounts a tree that is an image and will not change any more. One that is mounted is well.
    pub(super) fn mount_tree(&self, id: TreeId) -> Result<(), Error> {
        let mut mounted = self.images.locked();
        self.images.mount_missing(&self.layout, id)?;
        mounted.insert(id);
        Ok(())
    }

    /// Mounts those images among `layers` that are not mounted, whoever unmounted them.
    pub(super) fn ensure_mounted(&self, layers: &[Layer]) -> Result<(), Error> {
        let mounted = self.images.locked();
        let mut trees =
            layers.iter().filter_map(|layer| layer.tree).filter(|id| mounted.contains(id));
        trees.try_for_each(|id| self.images.mount_missing(&self.layout, id))
    }

    /// One of `layers` that is an image.
    pub(super) fn image_among(&self, layers: &[Layer]) -> Option<TreeId> {
        let mounted = self.images.locked();
        layers.iter().filter_map(|layer| layer.tree).find(|id| mounted.contains(id))
    }

    /// Mounts all images that stand, after a reboot as after a restart. What cannot be mounted is
    /// told and stays: whoever asks for it is told again.
    pub(super) fn mount_all(&self) -> Result<(), Error> {
        let sql = "
            SELECT id FROM trees
            WHERE form = ?1 AND state = ?2 AND (settled IS NOT NULL OR implied = x'') ORDER BY id";
        let ids = self.database.read(|db| -> rusqlite::Result<_> {
            let mut statement = db.prepare(sql)?;
            let ids = statement.query_map([IMAGE, PUBLISHED], |row| row.get(0).map(TreeId))?;
            ids.collect::<Result<Vec<_>, _>>()
        })?;
        for &id in &ids {
            if let Err(error) = self.mount_tree(id) {
                self.images.locked().insert(id);
                tracing::error!(%error, "a layer's image cannot be mounted");
            }
        }
        if !ids.is_empty() {
            tracing::info!(images = ids.len(), "layers that are images are mounted");
        }
        Ok(())
    }

    /// Takes a tree's mount away, if it has one.
    pub(super) fn unmount_tree(&self, id: TreeId) {
        self.images.locked().remove(&id);
        if let Err(error) = unmount_all(&self.layout.tree_root(id)) {
            tracing::warn!(tree = %id, %error, "cannot be unmounted yet");
        }
    }
}

/// Unmounts all that is mounted on `point`; a directory that is not there has nothing on it.
pub(super) fn unmount_all(point: &Path) -> io::Result<()> {
    loop {
        match images::is_mounted(point) {
            Ok(true) => images::unmount(point)?,
            Ok(false) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Why layers cannot be images here.
#[derive(Debug, thiserror::Error)]
enum Lack {
    #[error("the probe's image cannot be written: {0}")]
    Write(String),
    #[error("{}", explain(.0))]
    Mount(io::Error),
    #[error("overlay does not take an EROFS image as a lower layer: {0}")]
    Stack(io::Error),
    #[error("a file in the probe's image reads as other bytes")]
    Read,
    #[error(
        "mounts that hoistd makes stay in its own mount name space, where containerd does not see them \
         (in the unit: ProtectSystem=, ProtectHome=, PrivateTmp= and the like)"
    )]
    Hidden,
    #[error(
        "it cannot be told whether containerd sees the mounts that hoistd makes: they come into its \
         mount name space from another one and do not go back"
    )]
    Visibility,
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENODEV) => {
            "this kernel has no EROFS (CONFIG_EROFS_FS, or the module erofs)".to_owned()
        }
        Some(libc::EPERM) => "hoistd may not mount here (CAP_SYS_ADMIN)".to_owned(),
        Some(libc::EINVAL | libc::EOPNOTSUPP) => {
            format!("this kernel's EROFS is too old for the images that hoist writes: {error}")
        }
        _ => format!(
            "no image can be mounted, as a file (Linux 6.12) or by a loop device (Linux 5.8): {error}"
        ),
    }
}

/// The smallest blocks that this host takes, and how it takes an image.
fn probe(layout: &Layout) -> Result<(BlockSize, Attachment), Lack> {
    match probe_block(layout, BlockSize::Sector) {
        Ok(how) => Ok((BlockSize::Sector, how)),
        Err(_) => Ok((BlockSize::Page, probe_block(layout, BlockSize::Page)?)),
    }
}

/// Makes a small image, mounts it and an overlay over it, and reads through both.
fn probe_block(layout: &Layout, block: BlockSize) -> Result<Attachment, Lack> {
    let directory = layout.trash().join("erofs-probe");
    let root = directory.join("fs");
    let merged = directory.join("merged");
    let cleared = unmount_all(&merged).and_then(|()| unmount_all(&root));
    let written = cleared.and_then(|()| {
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        [&root, &directory.join("upper"), &directory.join("work"), &merged]
            .into_iter()
            .try_for_each(fs::create_dir_all)
    });
    written.map_err(|error| Lack::Write(error.to_string()))?;
    let image = directory.join("layer.erofs");
    write_probe(&image, block).map_err(Lack::Write)?;
    let result = try_out(&directory, &image, &root, &merged);
    for point in [&merged, &root] {
        // A mount that stays keeps the directory from being swept, and nothing else.
        let _ = unmount_all(point);
    }
    let _ = fs::remove_dir_all(&directory);
    result
}

const PROBE_TEXT: &[u8] = b"what is in an image can be read";

/// An image with what the images of layers have: an opaque mark, and a file in chunks.
fn write_probe(path: &Path, block: BlockSize) -> Result<(), String> {
    let written = || -> Result<(), erofs::ImageError> {
        let failed = |source| erofs::ImageError::Io { what: "creating it", source };
        let options = File::options().read(true).write(true).create_new(true).open(path);
        let attributes = |mode| erofs::Attributes::new(mode, 0, 0, (0, 0));
        let mut image = Image::new(options.map_err(failed)?, block, attributes(0o755))?;
        let top = image.tree.root();
        let directory = image.tree.add_directory(top, b"d", attributes(0o755), false);
        let opaque = image.tree.attributes_mut(directory);
        let set = opaque.set_xattr(c"trusted.overlay.opaque", b"y");
        set.map_err(failed)?;
        // Its second half is a hole.
        let file = image.tree.add_file(directory, b"f", attributes(0o644), FileData::empty());
        image.begin_data(2 << 20, PROBE_TEXT.len() as u64)?;
        image.data(0, PROBE_TEXT)?;
        let data = image.end_data()?;
        image.tree.set_data(file, data);
        image.finish([0; 16]).map(drop)
    };
    written().map_err(|error| error.to_string())
}

fn try_out(directory: &Path, image: &Path, root: &Path, merged: &Path) -> Result<Attachment, Lack> {
    let how = images::mount_erofs(image, root).map_err(Lack::Mount)?;
    let stacked = mounts::try_overlay(directory, root, "");
    stacked.map_err(|error| Lack::Stack(error.into()))?;
    let read = fs::read(merged.join("d/f"));
    let _ = umount2(merged, MntFlags::MNT_DETACH);
    let read = read.map_err(Lack::Stack)?;
    match read.starts_with(PROBE_TEXT) && read.len() == 2 << 20 {
        true => Ok(how),
        false => Err(Lack::Read),
    }
}

#[cfg(test)]
mod tests;
