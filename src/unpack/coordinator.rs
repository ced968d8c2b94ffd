//! The thread that reads the archive and decides what is made when.

mod data;
mod resolve;
mod writer;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::CString;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use nix::sys::stat::SFlag;

use super::directories::Directories;
use super::files::{Attributes, Item, Label, Rules, What, open_root, path_in};
use super::queue::Queue;
use super::read::{Maker, place_of, read};
use super::{Options, Summary, UnpackError, Whiteouts};
use crate::archive::{Entry, Kind, LayerPath, Place, Source};
use crate::sys::xattrs;
use crate::timeline::{Blocked, Counting, LayerRecorder, Phase, Timing};
use data::Current;
use writer::{Job, Leave, write};

/// Entries of one batch: enough to make a queue's lock cheap, few enough to share the work.
const BATCH_ENTRIES: usize = 32;

/// Bytes of the archive that one batch may span, and so keep in memory.
const BATCH_SPAN_BYTES: u64 = 1 << 20;

/// Bytes that waiting hard links may take before all of them are made: some ten thousand of them,
/// or fewer with xattrs.
const LINKS_WAITING_BYTES: usize = 4 << 20;

/// Unpacks a layer into `dest`, an existing empty directory that becomes the layer's root (0755).
///
/// The calling thread reads `source` to its end, also past the end of the archive; `writers`
/// threads help it and are gone when this returns. On an error what was made so far stays in
/// `dest` for the caller to remove. Nothing is synced to disk.
///
/// # Errors
/// The first of: the source failed or is no archive; an entry cannot be made; a limit was reached.
pub fn unpack(
    source: &mut dyn Source,
    dest: &Path,
    options: &Options,
    recorder: &LayerRecorder,
) -> Result<Summary, UnpackError> {
    let tree =
        |what| move |source: io::Error| UnpackError::Tree { what, path: dest.to_owned(), source };
    let root = open_root(dest).map_err(|e| tree("opening")(e.into()))?;
    without_acls(root.as_fd()).map_err(tree("removing inherited ACLs from"))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dest, mode).map_err(tree("setting the mode of"))?;
    let rules = Rules {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        whiteouts: options.whiteouts,
    };
    let queue = Queue::new(2 * options.writers.max(1) + 2);
    std::thread::scope(|scope| {
        // Whatever happens here, a panic too: nobody waits for jobs that will not come.
        let _leave = Leave(&queue);
        let writers: io::Result<Vec<_>> = (0..options.writers.max(1))
            .map(|_| {
                let name = "unpack-writer".to_owned();
                let run = || write(&queue, rules, (&options.rate, &options.room), recorder);
                std::thread::Builder::new().name(name).spawn_scoped(scope, run)
            })
            .collect();
        let writers = writers.map_err(tree("starting writers for"))?;
        let directories = Directories::new(root, options.directory_handles, rules, current_umask());
        let blocked = Blocked::of(recorder);
        let coordinator = Coordinator::new(&queue, directories, options, rules, &blocked);
        let result = coordinator.run(source);
        queue.abort();
        for writer in writers {
            // A panic was told as the queue's error already.
            let _told = writer.join();
        }
        result
    })
}

/// Takes away the ACLs that the root inherited: a default ACL on the state directory would go down the whole tree, change
/// the modes of files and show in the container.
fn without_acls(root: BorrowedFd<'_>) -> io::Result<()> {
    let path = path_in(root, c".");
    for name in [c"system.posix_acl_default", c"system.posix_acl_access"] {
        match xattrs::remove_path(&path, name) {
            Err(error)
                if !matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) =>
            {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Permissions that are taken from what this thread makes. Everything, where that cannot be seen.
fn current_umask() -> u32 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o777)
}

/// A hard link that waits for what is before it.
struct Link {
    target: LayerPath,
    parent: LayerPath,
    name: CString,
    attributes: Attributes,
    label: Label,
}

impl Link {
    /// About what it takes in memory.
    fn bytes(&self) -> usize {
        let xattrs = self.attributes.xattrs.iter();
        let xattrs: usize = xattrs.map(|(name, value)| name.count_bytes() + value.len()).sum();
        size_of::<Self>() + 2 * self.parent.as_bytes().len() + self.target.as_bytes().len() + xattrs
    }
}

struct Coordinator<'a> {
    queue: &'a Queue<Job>,
    directories: Directories,
    options: &'a Options,
    rules: Rules,
    recorder: &'a LayerRecorder,
    blocked: &'a Blocked<'a>,
    batch: Vec<Item>,
    /// Where in the archive the batch begins.
    batch_begin: u64,
    current: Current,
    links: VecDeque<Link>,
    links_bytes: usize,
    /// Hashes of the paths of all that is no directory. A hit only leads to a look at the disk,
    /// so that two paths of one hash are a loss of time and nothing else.
    seen: HashSet<u64>,
    hasher: RandomState,
    /// Where paths through symbolic links lead, until something is removed.
    aliases: HashMap<LayerPath, LayerPath>,
    summary: Summary,
    /// Whether something counted was removed again.
    recount: bool,
}

impl Maker for Coordinator<'_> {
    fn entry(&mut self, mut entry: Entry) -> Result<(), UnpackError> {
        let label = Label::of(&entry);
        let leads = place_of(&entry)?;
        self.current = Current::None;
        match leads {
            Place::Root => Ok(()),
            Place::Put { parent, name } => {
                let parent = self.real_parent(&parent, &label)?;
                let attributes = Attributes::of(&mut entry);
                self.put(entry, parent, name, attributes, label)
            }
            Place::Whiteout { parent, name } => {
                let parent = self.real_parent(&parent, &label)?;
                let attributes = Attributes::of(&mut entry);
                self.whiteout(&entry, &parent, name, attributes, label)
            }
            Place::Opaque(parent) => {
                let parent = self.real_parent(&parent, &label)?;
                self.opaque(&parent, &label)
            }
        }
    }

    fn data(&mut self, offset: u64, bytes: Bytes) -> Result<(), UnpackError> {
        self.piece(offset, bytes)
    }
}

impl<'a> Coordinator<'a> {
    fn new(
        queue: &'a Queue<Job>,
        directories: Directories,
        options: &'a Options,
        rules: Rules,
        blocked: &'a Blocked<'a>,
    ) -> Self {
        Self {
            queue,
            directories,
            options,
            rules,
            recorder: blocked.recorder(),
            blocked,
            batch: Vec::with_capacity(BATCH_ENTRIES),
            batch_begin: 0,
            current: Current::None,
            links: VecDeque::new(),
            links_bytes: 0,
            seen: HashSet::new(),
            hasher: RandomState::new(),
            aliases: HashMap::new(),
            summary: Summary::default(),
            recount: false,
        }
    }

    /// For as long as this thread makes something itself.
    fn writes(&self) -> (Timing<'a>, Counting<'a>) {
        (self.recorder.time(Phase::Write), self.blocked.counting())
    }

    fn run(mut self, source: &mut dyn Source) -> Result<Summary, UnpackError> {
        let (options, recorder) = (self.options, self.recorder);
        self.summary.entries = read(source, &mut self, options, recorder)?;
        self.finish()
    }

    fn finish(mut self) -> Result<Summary, UnpackError> {
        self.barrier()?;
        let _busy = self.writes();
        let (directories, bytes) = self.directories.finish()?;
        self.summary.inodes += directories;
        self.summary.bytes += bytes;
        self.summary.implied = self.directories.implied();
        if self.recount {
            let root = self.directories.handle(&LayerPath::default());
            let root = root.expect("the root's handle is always open");
            let path = path_in(root.as_fd(), c".");
            let path = Path::new(std::ffi::OsStr::new(path.to_str().expect("made of ASCII")));
            (self.summary.bytes, self.summary.inodes) = super::merge::usage(path)?;
        }
        Ok(self.summary)
    }

    /// Waits until all before is made, hard links included.
    fn barrier(&mut self) -> Result<(), UnpackError> {
        self.flush()?;
        self.blocked.except(|| self.queue.drain())?;
        self.links_bytes = 0;
        while let Some(link) = self.links.pop_front() {
            let _busy = self.writes();
            self.make_link(&link)?;
        }
        Ok(())
    }

    /// Sends the batch.
    fn flush(&mut self) -> Result<(), UnpackError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let next = Vec::with_capacity(BATCH_ENTRIES);
        self.queue.push(Job::Batch(std::mem::replace(&mut self.batch, next)))
    }

    fn opaque(&mut self, path: &LayerPath, label: &Label) -> Result<(), UnpackError> {
        self.summary.whiteouts += 1;
        self.directories.set_opaque(path).map_err(|e| label.error("making it opaque", e))
    }

    fn whiteout(
        &mut self,
        entry: &Entry,
        parent: &LayerPath,
        name: CString,
        attributes: Attributes,
        label: Label,
    ) -> Result<(), UnpackError> {
        let path = parent.join(name.to_bytes());
        // A whiteout hides what lower layers have, never what this one has (layer.md).
        if self.directories.is_known(&path) {
            return self.opaque(&path, &label);
        }
        if self.rules.whiteouts == Whiteouts::Drop || self.is_there(parent, &name, &path, &label)? {
            return Ok(());
        }
        self.summary.whiteouts += 1;
        self.summary.inodes += 1;
        self.mark(&path);
        let dir = self.handle(parent, &label)?;
        let item = Item { dir, name, what: What::Whiteout, attributes, label };
        self.send(item, entry.offset)
    }

    fn put(
        &mut self,
        entry: Entry,
        parent: LayerPath,
        name: CString,
        mut attributes: Attributes,
        label: Label,
    ) -> Result<(), UnpackError> {
        let path = parent.join(name.to_bytes());
        if entry.kind == Kind::Directory {
            let _busy = self.writes();
            let opaque = !self.directories.is_known(&path)
                && self.make_way(&parent, &name, &path, &label)?;
            self.directories.put(&parent, &name, &attributes, &label)?;
            return if opaque { self.opaque(&path, &label) } else { Ok(()) };
        }
        self.make_way(&parent, &name, &path, &label)?;
        self.mark(&path);
        attributes.set_mode |= self.directories.acl_seen;
        let (kind, offset) = (entry.kind.clone(), entry.offset);
        let node = |kind, major, minor| What::Node { kind, major, minor };
        let what = match kind {
            Kind::Directory => unreachable!("directories were made above"),
            Kind::Regular { sparse } => {
                return self.begin_file(entry, sparse, parent, name, attributes, label);
            }
            Kind::HardLink(target) => {
                let target = LayerPath::clean(target.to_bytes());
                self.check_target(&target, &label)?;
                let link = Link { target, parent, name, attributes, label };
                self.links_bytes += link.bytes();
                self.links.push_back(link);
                let full = self.links_bytes >= LINKS_WAITING_BYTES;
                return if full { self.barrier() } else { Ok(()) };
            }
            Kind::Symlink(target) => {
                // ext4 and XFS keep short targets in the inode.
                let blocks = u64::from(target.as_bytes().len() >= 60) * 4096;
                self.summary.bytes += blocks;
                What::Symlink(target)
            }
            Kind::Fifo => node(SFlag::S_IFIFO, 0, 0),
            Kind::CharDevice { major, minor } => node(SFlag::S_IFCHR, major, minor),
            Kind::BlockDevice { major, minor } => node(SFlag::S_IFBLK, major, minor),
        };
        self.summary.inodes += 1;
        let dir = self.handle(&parent, &label)?;
        self.send(Item { dir, name, what, attributes, label }, offset)
    }

    /// Adds something to the batch.
    fn send(&mut self, item: Item, offset: u64) -> Result<(), UnpackError> {
        if self.batch.is_empty() {
            self.batch_begin = offset;
        }
        self.batch.push(item);
        let full = self.batch.len() >= BATCH_ENTRIES
            || offset.saturating_sub(self.batch_begin) >= BATCH_SPAN_BYTES;
        if full { self.flush() } else { Ok(()) }
    }

    fn handle(&mut self, path: &LayerPath, label: &Label) -> Result<Arc<OwnedFd>, UnpackError> {
        self.directories.handle(path).map_err(|e| label.error("opening its parent", e))
    }

    fn mark(&mut self, path: &LayerPath) {
        self.seen.insert(self.hasher.hash_one(path));
    }

    /// Whether something that is no directory was made at `path`; may be wrong where it says so.
    fn may_be_there(&self, path: &LayerPath) -> bool {
        self.seen.contains(&self.hasher.hash_one(path))
    }
}
