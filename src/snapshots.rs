//! The containerd Snapshots service: a complete overlay snapshotter that can also provide layers.
//!
//! containerd speaks to [`Snapshots`] through the gRPC shell in `service`. An ordinary Prepare makes
//! a directory, a row, and answers with mounts. A Prepare that belongs to a pull names the layer it
//! is for; then the [`LayerSource`] is asked to have that layer's tree ready, a committed snapshot
//! that refers to the tree is put down, and containerd hears *already exists* and moves on to the
//! next layer (`prepare`). Where the source cannot help, the ordinary answer makes containerd pull
//! the layer itself.
//!
//! What stands is in one SQLite database (`database`, `records`); files without a row are garbage
//! and swept in the background (`sweep`, `ledger`). Layer trees live here too (`treestore`): pulls
//! stage and publish them through [`TreeStore`](crate::pull::trees::TreeStore). No lock is held
//! while a pull runs, so Remove, List, Stat and Cleanup answer at once meanwhile.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

mod caller;
mod database;
mod error;
mod filter;
mod images;
mod inventory;
mod labels;
mod layout;
mod ledger;
mod mounts;
mod options;
mod pins;
mod prepare;
mod records;
mod service;
mod source;
mod statistics;
mod sweep;
#[cfg(test)]
mod tests;
mod timed;
mod treestore;
mod usage;

pub use error::Error;
pub use inventory::TreeUse;
pub use labels::Wanted;
pub use mounts::Mount;
pub use options::{Backend, OnLate, Options, Sync};
pub use pins::{ImagePin, PinnedLayer, Place};
pub use prepare::PrepareRequest;
pub use records::{Info, Kind, Labels, Usage};
pub use source::{Claim, ClaimError, LayerSource};
pub use statistics::Statistics;
pub use timed::OnCall;

use database::Database;
use filter::Filters;
use images::Images;
use labels::Mapping;
use layout::Layout;
use ledger::Ledger;
use records::NewSnapshot;

/// A root directory with snapshots and layer trees. Its methods block for milliseconds unless they
/// say otherwise; async callers wrap them in `spawn_blocking`, as `service` does.
#[derive(Debug)]
pub struct Snapshots {
    layout: Layout,
    database: Database,
    options: Options,
    overlay_options: Vec<String>,
    images: Images,
    ledger: Arc<Ledger>,
    /// Wakes the sweeper.
    wake: Arc<Notify>,
    /// Held by whoever sweeps.
    sweeping: Mutex<()>,
    /// Fallbacks that were logged, so that an image of sixty layers is told once.
    told: Mutex<HashSet<(String, String)>>,
    provided: AtomicU64,
    fallbacks: AtomicU64,
    unlabelled: AtomicU64,
    /// Locked for as long as this lives.
    _lock: File,
}

impl Snapshots {
    /// Opens or makes the root directory and moves what an earlier life left half done out of the
    /// way.
    ///
    /// # Errors
    /// [`Error::Locked`] if another daemon works there, [`Error::Newer`] if a newer hoist wrote its
    /// metadata, [`Error::NoDirectoryTypes`] on a file system that overlay cannot use,
    /// [`Error::NoImages`] where layers have to be images and cannot, [`Error::Database`],
    /// [`Error::Io`].
    pub fn open(root: &Path, options: Options) -> Result<Arc<Self>, Error> {
        let layout = Layout::open(root)?;
        let lock = layout.lock()?;
        layout.check_directory_types()?;
        let database = Database::open(&layout.root().join("metadata.db"), options.sync)?
            .counted(options.metadata.clone());
        let overlay_options = mounts::overlay_options(&layout.trash());
        let images = Images::choose(options.backend, &layout)?;
        let this = Self {
            layout,
            database,
            options,
            overlay_options,
            images,
            ledger: Arc::new(Ledger::new()),
            wake: Arc::default(),
            sweeping: Mutex::default(),
            told: Mutex::default(),
            provided: AtomicU64::default(),
            fallbacks: AtomicU64::default(),
            unlabelled: AtomicU64::default(),
            _lock: lock,
        };
        this.recover()?;
        this.mount_all()?;
        Ok(Arc::new(this))
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Database`].
    pub fn stat(&self, name: &str) -> Result<Info, Error> {
        self.database.read(|db| records::info(db, name))
    }

    /// The snapshots that pass one of `filters`; all of them without any.
    ///
    /// # Errors
    /// [`Error::Filter`], [`Error::Database`].
    pub fn list(&self, filters: &[String]) -> Result<Vec<Info>, Error> {
        let filters = Filters::parse(filters)?;
        let mut infos = self.database.read(|db| records::all(db))?;
        infos.retain(|info| filters.pass(info));
        Ok(infos)
    }

    /// Changes labels: all of them for an empty `mask` or the path `labels`, one for `labels.KEY`.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Immutable`] for another path, [`Error::Database`].
    pub fn update(&self, name: &str, labels: &Labels, mask: &[String]) -> Result<Info, Error> {
        self.database.write(|db| records::update(db, name, labels, mask))
    }

    /// Makes an active snapshot or a view on `parent` (empty: none), and says how to mount it.
    ///
    /// # Errors
    /// [`Error::Taken`], [`Error::ParentMissing`], [`Error::ParentNotCommitted`],
    /// [`Error::Mapping`], [`Error::EmptyName`], [`Error::Database`], [`Error::Io`].
    pub fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<Vec<Mount>, Error> {
        let mapping = Mapping::parse(labels)?;
        let mut made: Option<PathBuf> = None;
        let created = self.database.write(|db| -> Result<_, Error> {
            let parent_id = records::parent_id(db, parent)?;
            let new = NewSnapshot { name: key, kind, parent_id, tree: None, usage: None, labels };
            let id = records::insert(db, &new)?;
            let parents = records::chain(db, parent_id)?;
            self.ensure_mounted(&parents)?;
            // containerd 2.1 shifts what the lower directories have in common, by a clone without the mounts in it.
            if let (Some(_), Some(tree)) = (&mapping, self.image_among(&parents)) {
                return Err(Error::MappedImage { key: key.to_owned(), tree });
            }
            let owner = self.owner(mapping.as_ref(), parents.first())?;
            made = Some(self.layout.snapshot(id));
            self.layout.make_snapshot(id, kind == Kind::Active, owner)?;
            let own = records::Layer { snapshot: id, tree: None };
            Ok(self.mounts_of(kind, own, &parents, mapping.as_ref()))
        });
        if let (Err(_), Some(directory)) = (&created, made) {
            // Best effort: without its row it is swept at the next start anyway.
            let _ = self.layout.discard(&directory);
        }
        created
    }

    /// The mounts of an active snapshot or a view.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::NotMountable`], [`Error::Mapping`], [`Error::Database`].
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>, Error> {
        self.database.read(|db| {
            let record = records::get(db, key)?;
            if record.kind == Kind::Committed {
                return Err(Error::NotMountable(key.to_owned()));
            }
            let mapping = Mapping::parse(&records::info(db, key)?.labels)?;
            let parents = records::chain(db, record.parent_id)?;
            self.ensure_mounted(&parents)?;
            Ok(self.mounts_of(record.kind, record.layer, &parents, mapping.as_ref()))
        })
    }

    /// Commits the active snapshot `key` as `name`. What it occupies is counted when somebody asks.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Taken`], [`Error::NotActive`], [`Error::EmptyName`],
    /// [`Error::Database`].
    pub fn commit(&self, name: &str, key: &str, labels: &Labels) -> Result<(), Error> {
        self.sync()?;
        self.database.write(|db| records::commit(db, key, name, labels))
    }

    /// Removes a snapshot. Its files, and its tree if it was the last one to refer to it, go in the
    /// background.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::HasChildren`], [`Error::Database`].
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let layer = self.database.write(|db| records::remove(db, name))?;
        match layer.tree {
            Some(tree) => self.ledger.abandon(tree),
            None => {
                // The row is gone and the name free, so this is no failure of the call.
                if let Err(error) = self.layout.discard(&self.layout.snapshot(layer.snapshot)) {
                    tracing::warn!(%error, "a removed snapshot's files stay until the next start");
                }
            }
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Waits until all that was written into layers is on disk, where that was asked for.
    fn sync(&self) -> Result<(), Error> {
        match self.options.sync {
            Sync::None => Ok(()),
            Sync::Layer => self.layout.sync(),
        }
    }

    /// What a snapshot occupies. Walks the files of an active snapshot every time and those of one
    /// that containerd filled and committed once: such a call takes as long as that takes.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Database`], [`Error::Io`].
    pub fn usage(&self, name: &str) -> Result<Usage, Error> {
        let record = self.database.read(|db| records::get(db, name))?;
        let id = record.layer.snapshot;
        match (record.kind, record.usage) {
            (Kind::View, _) => Ok(Usage::default()),
            (Kind::Committed, Some(usage)) => Ok(usage),
            (kind, _) => {
                let upper = self.layout.upper(id);
                let usage = usage::count(&upper).map_err(Error::io("counting", &upper))?;
                if kind == Kind::Committed {
                    self.database.write(|db| records::set_usage(db, id, usage))?;
                }
                Ok(usage)
            }
        }
    }

    /// Who owns the root of a new layer: the mapped root, else whoever owns the layer below.
    fn owner(
        &self,
        mapping: Option<&Mapping>,
        parent: Option<&records::Layer>,
    ) -> Result<Option<(u32, u32)>, Error> {
        use std::os::unix::fs::MetadataExt as _;
        if let Some(mapping) = mapping {
            return Ok(Some(mapping.root));
        }
        let Some(&parent) = parent else { return Ok(None) };
        let path = self.layout.layer(parent);
        let metadata =
            fs::symlink_metadata(&path).map_err(Error::io("reading the owner of", &path))?;
        Ok(Some((metadata.uid(), metadata.gid())))
    }

    fn mounts_of(
        &self,
        kind: Kind,
        own: records::Layer,
        parents: &[records::Layer],
        mapping: Option<&Mapping>,
    ) -> Vec<Mount> {
        mounts::mounts(&self.layout, &self.overlay_options, kind, own, parents, mapping)
    }
}
