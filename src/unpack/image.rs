//! Entries into an EROFS image: the semantics of [`unpack`](super::unpack) without its machinery.
//!
//! No order has to be kept on a disk here, and nothing waits for anything: names and metadata
//! change in memory, data go to the image as they arrive. So what `coordinator` does with handles
//! and barriers is a few lines of text here; that both come to the same trees is what the tests
//! next to this show, for the odd archives and for random ones.
//!
//! Differences that can be seen, and why:
//! - Access times are the modification times: EROFS has one time an inode.
//! - A directory with a default ACL gives none to what the archive puts into it: the image holds
//!   what the archive says, and nobody creates files in it.
//! - Directories that no entry named, the root and whiteouts have the time that the caller gives,
//!   so that one input makes one image.

mod acl;
mod metadata;
mod resolve;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::errno::Errno;

use super::files::{Attributes, Label, Rules};
use super::read::{Maker, place_of, read};
use super::{Options, Summary, UnpackError, Whiteouts};
use crate::archive::{Entry, Kind, LayerPath, Place, Source};
use crate::budget::{Budget, Permit};
use crate::erofs::{self, BlockSize, Image, ImageError, NodeId};
use crate::timeline::{Blocked, LayerRecorder, Phase};
use metadata::erofs_attributes;

/// What names and metadata borrow from the budget at a time, in bytes: some 25,000 entries.
const BORROWED_BYTES: u64 = 4 << 20;

/// What an image is besides its content.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ImageLabel {
    /// The volume's UUID.
    pub uuid: [u8; 16],
    /// The time of what no entry gives a time, in seconds since 1970.
    pub seconds: u64,
    /// Of what size its blocks are.
    pub block: BlockSize,
}

/// Writes a layer's tree as an EROFS image to `dest`, a file that does not exist yet. What the
/// tree becomes, and what is refused, is as with [`unpack`](super::unpack); `options.writers` and
/// `options.directory_handles` mean nothing here, as the calling thread does everything. Names and
/// metadata are kept in memory until the end, and paid for from `budget` where there is one.
///
/// `Summary::bytes` are the bytes of the image's file. Nothing is synced to disk. On an error what
/// was written so far stays for the caller to remove.
///
/// # Errors
/// As [`unpack`](super::unpack), [`UnpackError::Image`] where the image itself cannot be written,
/// and [`UnpackError::ImageTree`] for more names and metadata than `options` allow.
pub fn unpack_image(
    source: &mut dyn Source,
    dest: &Path,
    label: ImageLabel,
    options: &Options,
    budget: Option<&Budget>,
    recorder: &LayerRecorder,
) -> Result<Summary, UnpackError> {
    let failed = |source| UnpackError::Image { path: dest.to_owned(), source };
    let file = File::options().read(true).write(true).create_new(true).open(dest);
    let file =
        file.map_err(|e| failed(ImageError::Io { what: "creating the image", source: e }))?;
    let rules = Rules {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        whiteouts: options.whiteouts,
    };
    let blocked = Blocked::of(recorder);
    let _counting = blocked.counting();
    let root = erofs::Attributes::new(0o755, rules.uid, rules.gid, (label.seconds, 0));
    let image = Image::new(file, label.block, root).map_err(failed)?;
    let builder = Builder {
        image,
        dest,
        label,
        options,
        rules,
        budget,
        borrowed: Vec::new(),
        recorder,
        blocked: &blocked,
        current: None,
        parent: None,
        summary: Summary::default(),
    };
    builder.run(source)
}

/// A regular file whose data come next.
struct Current {
    node: NodeId,
    missing: u64,
}

struct Builder<'a> {
    image: Image,
    dest: &'a Path,
    label: ImageLabel,
    options: &'a Options,
    rules: Rules,
    budget: Option<&'a Budget>,
    borrowed: Vec<Permit>,
    recorder: &'a LayerRecorder,
    blocked: &'a Blocked<'a>,
    current: Option<Current>,
    /// The directory of the entry before, as archives come in the order of their directories.
    parent: Option<(LayerPath, NodeId)>,
    summary: Summary,
}

/// The archive, the wait for which is not the disk's.
struct Arriving<'a> {
    source: &'a mut dyn Source,
    blocked: &'a Blocked<'a>,
}

impl Source for Arriving<'_> {
    fn next_bytes(&mut self) -> io::Result<Option<Bytes>> {
        self.blocked.except(|| self.source.next_bytes())
    }
}

impl Maker for Builder<'_> {
    fn entry(&mut self, mut entry: Entry) -> Result<(), UnpackError> {
        self.check_memory()?;
        let label = Label::of(&entry);
        let leads = place_of(&entry)?;
        self.current = None;
        match leads {
            Place::Root => Ok(()),
            Place::Put { parent, name } => {
                let parent = self.real_parent(&parent, &label)?;
                let attributes = Attributes::of(&mut entry);
                self.put(&entry, parent, &name, &attributes, &label)
            }
            Place::Whiteout { parent, name } => {
                let parent = self.real_parent(&parent, &label)?;
                self.whiteout(&entry, parent, &name, &label)
            }
            Place::Opaque(path) => {
                let directory = self.real_parent(&path, &label)?;
                self.opaque(directory, &label)
            }
        }
    }

    fn data(&mut self, offset: u64, bytes: Bytes) -> Result<(), UnpackError> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let (bounds, length) = ((&self.options.rate, &self.options.room), bytes.len() as u64);
        super::wait_to_write(bounds, (length, length), self.blocked)?;
        let _timing = self.recorder.time(Phase::Write);
        current.missing -= bytes.len() as u64;
        let last = current.missing == 0;
        self.image.data(offset, &bytes).map_err(self.image_error())?;
        self.recorder.bytes(Phase::Write, bytes.len() as u64);
        if last { self.end_file() } else { Ok(()) }
    }
}

impl Builder<'_> {
    fn run(mut self, source: &mut dyn Source) -> Result<Summary, UnpackError> {
        let (options, recorder) = (self.options, self.recorder);
        let mut arriving = Arriving { source, blocked: self.blocked };
        self.summary.entries = read(&mut arriving, &mut self, options, recorder)?;
        let _timing = self.recorder.time(Phase::Write);
        let implied = self.image.tree.provisional();
        self.summary.implied = implied
            .into_iter()
            .map(|path| PathBuf::from(std::ffi::OsString::from_vec(path)))
            .collect();
        self.summary.implied.sort();
        let written = self.image.finish(self.label.uuid);
        let written =
            written.map_err(|source| UnpackError::Image { path: self.dest.to_owned(), source })?;
        (self.summary.bytes, self.summary.inodes) = (written.bytes, written.inodes);
        Ok(self.summary)
    }

    /// Pays for names and metadata. Where the budget has nothing free the layer goes on: nobody
    /// else could finish what it holds already. It asks again with the next entry, and gives up at
    /// its own limit.
    fn check_memory(&mut self) -> Result<(), UnpackError> {
        let (needed, limit) = (self.image.tree.memory() as u64, self.options.image_tree_bytes);
        if needed > limit {
            return Err(UnpackError::ImageTree { limit });
        }
        while needed > self.borrowed.len() as u64 * BORROWED_BYTES {
            let Some(permit) = self.budget.and_then(|b| b.try_reserve(BORROWED_BYTES)) else {
                break;
            };
            self.borrowed.push(permit);
        }
        Ok(())
    }

    fn image_error(&self) -> impl FnOnce(ImageError) -> UnpackError + use<> {
        let path = self.dest.to_owned();
        |source| UnpackError::Image { path, source }
    }

    /// Marks a directory as hiding the lower layers'.
    fn opaque(&mut self, directory: NodeId, label: &Label) -> Result<(), UnpackError> {
        self.summary.whiteouts += 1;
        let name = match self.rules.whiteouts {
            Whiteouts::Overlay => c"trusted.overlay.opaque",
            Whiteouts::OverlayUser => c"user.overlay.opaque",
            Whiteouts::Drop => return Ok(()),
        };
        let attributes = self.image.tree.attributes_mut(directory);
        let set = attributes.set_xattr(name, b"y");
        set.map(drop).map_err(|e| label.error("making it opaque", e))
    }

    fn whiteout(
        &mut self,
        entry: &Entry,
        parent: NodeId,
        name: &CString,
        label: &Label,
    ) -> Result<(), UnpackError> {
        // A whiteout hides what lower layers have, never what this one has (layer.md).
        match self.image.tree.lookup(parent, name.to_bytes()) {
            Some(id) if self.image.tree.kind(id) == erofs::Kind::Directory => {
                return self.opaque(id, label);
            }
            Some(_) => return Ok(()),
            None if self.rules.whiteouts == Whiteouts::Drop => return Ok(()),
            None => {}
        }
        self.check_name(name, "making the whiteout", label)?;
        self.summary.whiteouts += 1;
        let time = (self.label.seconds, 0);
        let attributes = erofs::Attributes::new(0, entry.uid, entry.gid, time);
        self.image.tree.add_device(parent, name.to_bytes(), attributes, false, (0, 0));
        Ok(())
    }

    fn put(
        &mut self,
        entry: &Entry,
        parent: NodeId,
        name: &CString,
        attributes: &Attributes,
        label: &Label,
    ) -> Result<(), UnpackError> {
        let there = self.image.tree.lookup(parent, name.to_bytes());
        if entry.kind == Kind::Directory {
            let directory = there.filter(|&id| self.image.tree.kind(id) == erofs::Kind::Directory);
            if let Some(id) = directory {
                self.image.tree.confirm(id);
                return self.set_attributes(id, attributes, label);
            }
        }
        let whiteout = there.is_some_and(|id| self.image.tree.kind(id) == erofs::Kind::Whiteout);
        if there.is_some() {
            self.parent = None;
            self.image.tree.remove(parent, name.to_bytes());
        }
        self.check_name(name, "making it", label)?;
        let id = self.make(entry, parent, name.to_bytes(), attributes, label)?;
        if whiteout && entry.kind == Kind::Directory { self.opaque(id, label) } else { Ok(()) }
    }

    /// Makes what an entry says, under a name that is free.
    fn make(
        &mut self,
        entry: &Entry,
        parent: NodeId,
        name: &[u8],
        attributes: &Attributes,
        label: &Label,
    ) -> Result<NodeId, UnpackError> {
        let plain = erofs_attributes(attributes);
        let tree = &mut self.image.tree;
        let bad_device = || label.error("making the device or pipe", Errno::EINVAL);
        let mut device = |block, number| {
            tree.add_device(parent, name, plain.clone(), block, number).ok_or_else(bad_device)
        };
        let id = match &entry.kind {
            Kind::CharDevice { major, minor } => device(false, (*major, *minor))?,
            Kind::BlockDevice { major, minor } => device(true, (*major, *minor))?,
            Kind::Directory => tree.add_directory(parent, name, plain, false),
            Kind::Fifo => tree.add_fifo(parent, name, plain),
            Kind::Symlink(target) => {
                check_target(target, label)?;
                let mut link = plain;
                // That of all links.
                link.mode = 0o777;
                tree.add_symlink(parent, name, link, target.to_bytes())
            }
            Kind::Regular { .. } => {
                let data = erofs::FileData::empty();
                let id = tree.add_file(parent, name, plain, data);
                self.set_xattrs(id, attributes, label)?;
                self.begin_file(entry, id)?;
                return Ok(id);
            }
            Kind::HardLink(target) => {
                let id = self.link_target(target, label)?;
                self.image.tree.link(parent, name, id);
                self.set_attributes(id, attributes, label)?;
                return Ok(id);
            }
        };
        self.set_xattrs(id, attributes, label)?;
        Ok(id)
    }

    fn check_name(
        &self,
        name: &CStr,
        what: &'static str,
        label: &Label,
    ) -> Result<(), UnpackError> {
        match name.count_bytes() > erofs::LONGEST_NAME_BYTES {
            true => Err(label.error(what, Errno::ENAMETOOLONG)),
            false => Ok(()),
        }
    }

    fn begin_file(&mut self, entry: &Entry, node: NodeId) -> Result<(), UnpackError> {
        self.options.check_bytes(entry.stored)?;
        let begun = self.image.begin_data(entry.size, entry.stored);
        begun.map_err(self.image_error())?;
        self.current = Some(Current { node, missing: entry.stored });
        if entry.stored == 0 { self.end_file() } else { Ok(()) }
    }

    fn end_file(&mut self) -> Result<(), UnpackError> {
        if let Some(current) = self.current.take() {
            let data = self.image.end_data().map_err(self.image_error())?;
            self.image.tree.set_data(current.node, data);
        }
        Ok(())
    }
}

fn check_target(target: &CStr, label: &Label) -> Result<(), UnpackError> {
    let refused = match target.count_bytes() {
        0 => Errno::ENOENT,
        length if length > erofs::LONGEST_TARGET_BYTES => Errno::ENAMETOOLONG,
        _ => return Ok(()),
    };
    Err(label.error("making the symbolic link", refused))
}
