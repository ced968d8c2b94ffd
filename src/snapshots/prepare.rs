//! Prepare, the call that a pull hides in.
//!
//! A Prepare with the label `containerd.io/snapshot.ref` asks for a layer. The answer *already
//! exists* says that a committed snapshot with this label and this parent stands; containerd looks
//! it up by that pair and does nothing more for the layer. So the way is: look whether it stands;
//! if not, claim the layer's tree from the source, which may take minutes and holds no lock; then,
//! in one short transaction, look again (a second caller may have been faster) and put the snapshot
//! down. Any other end than these is the ordinary Prepare, or an error.
//!
//! containerd holds a lock of its own during Prepare, so a claim ends when its caller goes away (the
//! future is dropped), at the deadline, and when the daemon goes down.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use rusqlite::{OptionalExtension as _, params};
use tokio_util::sync::CancellationToken;

use super::database::PUBLISHED;
use super::error::Error;
use super::labels::{self, Wanted};
use super::records::{self, Kind, LABEL_REF, Labels, NewSnapshot, Usage};
use super::source::{Claim, ClaimError, LayerSource};
use super::{Mount, OnLate, Snapshots};
use crate::pull::trees::HeldTree;

/// How often a claim is repeated when its tree was swept before the snapshot could be put down;
/// that takes an image deletion in exactly this moment, so twice in a row is a defect.
const CLAIM_ATTEMPTS: usize = 3;

/// Fallbacks that are remembered as told, before the memory starts anew.
const TOLD_MAX: usize = 1024;

/// A Prepare as containerd sends it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrepareRequest {
    /// containerd's namespace.
    pub namespace: String,
    /// The key of the active snapshot to be.
    pub key: String,
    /// The name of a committed snapshot; empty: none.
    pub parent: String,
    /// Labels.
    pub labels: Labels,
    /// The trace that the call is part of (W3C `traceparent`), as it came.
    pub trace_parent: Option<String>,
}

/// What became of the attempt to provide a layer.
enum Outcome {
    Provided,
    Ordinary,
}

impl Snapshots {
    /// Prepares a snapshot, providing its layer where `source` can. Waits for the layer; ends early
    /// when it is dropped or `closing` is cancelled.
    ///
    /// # Errors
    /// [`Error::Present`] says that the layer stands: for containerd the best answer.
    /// [`Error::Layer`], [`Error::Late`], [`Error::Cancelled`] where it could not be provided and
    /// should not be left to containerd; else as [`Snapshots::create`].
    pub async fn prepare(
        self: &Arc<Self>,
        source: Option<&Arc<dyn LayerSource>>,
        request: PrepareRequest,
        closing: &CancellationToken,
    ) -> Result<Vec<Mount>, Error> {
        if let Some(reference) = request.labels.get(LABEL_REF)
            && let Outcome::Provided = self.provide(source, &request, closing).await?
        {
            self.provided.fetch_add(1, Ordering::Relaxed);
            return Err(Error::Present { chain_id: reference.clone() });
        }
        let PrepareRequest { key, parent, labels, .. } = request;
        self.create_for_caller(Kind::Active, key, parent, labels).await
    }

    /// [`Snapshots::create`] for a caller that may go away: then nothing stays.
    pub(super) async fn create_for_caller(
        self: &Arc<Self>,
        kind: Kind,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<Mount>, Error> {
        let (answer, caller) = tokio::sync::oneshot::channel();
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let created = this.create(kind, &key, &parent, &labels);
            if let Err(Ok(_)) = answer.send(created)
                && let Err(error) = this.remove(&key)
            {
                tracing::warn!(key, %error, "a snapshot that nobody waits for stays");
            }
        });
        caller.await.map_err(|error| Error::Task(error.to_string()))?
    }

    async fn provide(
        self: &Arc<Self>,
        source: Option<&Arc<dyn LayerSource>>,
        request: &PrepareRequest,
        closing: &CancellationToken,
    ) -> Result<Outcome, Error> {
        for _ in 0..CLAIM_ATTEMPTS {
            let this = Arc::clone(self);
            let (parent, labels) = (request.parent.clone(), request.labels.clone());
            let parents = match blocking(move || this.look(&parent, &labels)).await? {
                Look::Stands => return Ok(Outcome::Provided),
                Look::Missing { parents } => parents,
            };
            let Some(source) = source else { return Ok(Outcome::Ordinary) };
            let wanted = match labels::wanted(&request.labels) {
                Ok(wanted) => wanted,
                Err(reason) => {
                    self.unlabelled.fetch_add(1, Ordering::Relaxed);
                    self.options.fallbacks.count("unlabelled");
                    return Ok(self.fall_back("of an unnamed image", &reason));
                }
            };
            let claim = claim_of(request, &wanted, parents);
            let tree = match self.claim(source.as_ref(), claim, closing).await? {
                Some(tree) => tree,
                None => return Ok(Outcome::Ordinary),
            };
            let (this, request) = (Arc::clone(self), request.clone());
            let put_down = move || {
                let PrepareRequest { namespace, parent, labels, .. } = &request;
                this.put_down(namespace, parent, labels, &wanted, &tree)
            };
            if blocking(put_down).await?.is_some() {
                return Ok(Outcome::Provided);
            }
        }
        self.options.fallbacks.count("swept");
        Ok(self.fall_back(&request.key, "the layer's tree was swept again and again"))
    }

    /// Whether the layer stands already, and if not, what is below it.
    fn look(&self, parent: &str, labels: &Labels) -> Result<Look, Error> {
        let reference = labels.get(LABEL_REF).map_or("", String::as_str);
        self.database.read(|db| {
            let parent_id = records::parent_id(db, parent)?;
            if records::find_reference(db, reference, parent_id)?.is_some() {
                return Ok(Look::Stands);
            }
            let chain = records::chain(db, parent_id)?;
            // Implied directories are read there.
            self.ensure_mounted(&chain)?;
            let parents = chain.into_iter().map(|layer| self.layout.layer(layer)).collect();
            Ok(Look::Missing { parents })
        })
    }

    /// Waits for a tree; `None` leaves the layer to containerd.
    async fn claim(
        &self,
        source: &dyn LayerSource,
        claim: Claim,
        closing: &CancellationToken,
    ) -> Result<Option<HeldTree>, Error> {
        let (chain_id, image) = (claim.chain_id.to_string(), claim.image.clone());
        let timeout = self.options.claim_timeout;
        let claimed = tokio::select! {
            claimed = tokio::time::timeout(timeout, source.claim(claim)) => claimed,
            () = closing.cancelled() => return Err(Error::Cancelled { chain_id, image }),
        };
        match claimed {
            Ok(Ok(tree)) => Ok(Some(tree)),
            Ok(Err(ClaimError::Fallback { reason })) => {
                self.fall_back(&image, &reason);
                Ok(None)
            }
            Ok(Err(ClaimError::Failed { message })) => {
                Err(Error::Layer { chain_id, image, message })
            }
            Ok(Err(ClaimError::Cancelled)) => Err(Error::Cancelled { chain_id, image }),
            Err(_elapsed) => {
                let late =
                    Error::Late { chain_id, image: image.clone(), seconds: timeout.as_secs() };
                match self.options.on_late {
                    OnLate::Fail => Err(late),
                    OnLate::Fallback => {
                        self.options.fallbacks.count("late");
                        self.fall_back(&image, &late.to_string());
                        Ok(None)
                    }
                }
            }
        }
    }

    /// Puts down the committed snapshot of a layer on `parent` (empty: none) before anybody asks for it,
    /// and gives its name. A Prepare for the layer on this parent finds it then, and asks no registry.
    ///
    /// # Errors
    /// [`Error::ParentMissing`], [`Error::Swept`] where the tree is gone, [`Error::Database`],
    /// [`Error::Io`].
    pub fn put_down_ahead(
        &self,
        namespace: &str,
        parent: &str,
        wanted: &Wanted,
        held: &HeldTree,
    ) -> Result<String, Error> {
        let put_down = self.put_down(namespace, parent, &wanted.labels(), wanted, held)?;
        put_down.ok_or(Error::Swept { tree: held.tree.id })
    }

    /// Puts down the committed snapshot of a layer whose tree is ready; `None`: the tree is gone.
    fn put_down(
        &self,
        namespace: &str,
        parent: &str,
        labels: &Labels,
        wanted: &Wanted,
        held: &HeldTree,
    ) -> Result<Option<String>, Error> {
        let tree = held.tree.id;
        let reference = wanted.chain_id.to_string();
        self.ensure_mounted(&[records::Layer { snapshot: 0, tree: Some(tree) }])?;
        self.database.write(|db| {
            let parent_id = records::parent_id(db, parent)?;
            if let Some(name) = records::find_reference(db, &reference, parent_id)? {
                return Ok(Some(name));
            }
            let sql = "SELECT bytes, inodes FROM trees WHERE id = ?1 AND state = ?2";
            let usage: Option<(i64, i64)> = db
                .prepare_cached(sql)?
                .query_row(params![tree.0, PUBLISHED], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let Some((bytes, inodes)) = usage else { return Ok(None) };
            let usage = Usage { bytes: bytes.unsigned_abs(), inodes: inodes.unsigned_abs() };
            // The name carries the id, which is known once the row is there.
            let new = NewSnapshot {
                name: "hoist: being put down",
                kind: Kind::Committed,
                parent_id,
                tree: Some(tree),
                usage: Some(usage),
                labels,
            };
            let id = records::insert(db, &new)?;
            let name = format!("{namespace}/hoist/{id}/{reference}");
            records::rename(db, id, &name)?;
            Ok(Some(name))
        })
    }

    /// Counts a fallback and tells it, once for each image and reason.
    fn fall_back(&self, image: &str, reason: &str) -> Outcome {
        self.fallbacks.fetch_add(1, Ordering::Relaxed);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= TOLD_MAX {
            told.clear();
        }
        if told.insert((image.to_owned(), reason.to_owned())) {
            tracing::warn!(image, reason, "containerd pulls this layer itself");
        }
        Outcome::Ordinary
    }
}

/// What [`Snapshots::look`] saw.
enum Look {
    Stands,
    Missing { parents: Vec<PathBuf> },
}

fn claim_of(request: &PrepareRequest, wanted: &Wanted, parents: Vec<PathBuf>) -> Claim {
    Claim {
        namespace: request.namespace.clone(),
        image: wanted.image.clone(),
        manifest: wanted.manifest,
        layer: wanted.layer,
        chain_id: wanted.chain_id,
        parents,
        trace_parent: request.trace_parent.clone(),
    }
}

/// Runs work that blocks for milliseconds off the threads that drive the sockets.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Task(error.to_string()))?
}
