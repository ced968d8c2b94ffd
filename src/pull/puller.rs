//! The images that are being pulled, and how long each is kept at hand.
//!
//! containerd asks for one layer after the other, so between two claims of an image nobody waits
//! for anything; its layers go on all the same. An image is let go when its topmost layer has
//! been claimed, a short while after its last claimant went away, or a longer while after a claim
//! that was answered and not followed by another (containerd may be pulling a layer by itself).

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::PullError;
use super::caught::caught;
use super::image::{Image, ImagePull, Means};
use super::jobs::Jobs;
use super::keep::{Keeper, Keeping};
use super::make::{Decompression, Maker};
use super::resolve::Start;
use super::settle::Settler;
use super::trees::{HeldTree, TreeStore};
use crate::budget::Budget;
use crate::budget::turns::Class;
use crate::containerd::Containerd;
use crate::fetch::Fetcher;
use crate::image::{BlobDigest, ChainId, NamedDocument, Platform, Reference, ReferenceError};
use crate::registry::Registry;
use crate::timeline::{History, PullRecorder, PullReport, PullState};
use crate::unpack;

/// How long an image is kept after a claim that was answered. containerd asks for the next layer
/// within milliseconds, unless it pulls one by itself.
const LINGER_AFTER_ANSWER: Duration = Duration::from_secs(120);

/// How long an image is kept after its last claimant went away: a client that tries again at once
/// finds its layers under way.
const LINGER_AFTER_LOSS: Duration = Duration::from_secs(1);

/// How long a failure is remembered: the claims of the image's other layers follow within this
/// time and need not fail as slowly; somebody who tries again after mending it is not kept waiting.
const LINGER_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// How pulls are to be made.
#[derive(Clone)]
pub struct Settings {
    /// Layers in work at once, over all images.
    pub layers_at_once: usize,
    /// How layers are unpacked.
    pub unpack: unpack::Options,
    /// How layers are decompressed.
    pub decompression: Decompression,
    /// The platform to choose from an index.
    pub platform: Platform,
    /// Has the compressed blobs put into containerd's content store; `None`: nobody needs them.
    pub keeper: Option<Keeper>,
    /// Told of every pull that has ended.
    pub on_end: Arc<dyn Fn(&PullReport) + Send + Sync>,
}

/// A layer that a Prepare asks for.
#[derive(Clone, Debug)]
pub struct Claim {
    /// containerd's namespace.
    pub namespace: String,
    /// The image reference, with its registry.
    pub image: String,
    /// The digest of the platform's manifest.
    pub manifest: BlobDigest,
    /// The layer's blob.
    pub layer: BlobDigest,
    /// The stack up to and with the layer.
    pub chain_id: ChainId,
    /// The directories of the layers below, topmost first.
    pub parents: Vec<PathBuf>,
    /// The trace that the caller's request is part of (W3C `traceparent`).
    pub trace_parent: Option<String>,
}

type ImageKey = (String, BlobDigest);

/// Pulls images. Clones share everything.
#[derive(Clone)]
pub struct Puller(Arc<Shared>);

struct Shared {
    means: Means,
    history: History,
    settings: Settings,
    settler: Settler,
    images: Mutex<HashMap<ImageKey, Entry>>,
}

/// An image at hand.
struct Entry {
    pull: Arc<ImagePull>,
    /// Claims that wait now.
    waiting: usize,
    /// Counts claims, to know whether a timer's reason is still the last.
    claims: u64,
    /// ChainIDs that have been claimed.
    claimed: HashSet<ChainId>,
    failure: Option<PullError>,
}

impl Entry {
    /// Whether containerd has the whole image: it asks for layers from the bottom up, and not for
    /// those whose ChainIDs it has of another image, so the topmost one's claim is the last.
    fn is_claimed(&self) -> bool {
        self.pull.top().is_some_and(|top| self.claimed.contains(&top))
    }
}

impl Puller {
    /// A puller that keeps trees in `store` and what happened in `history`.
    pub fn new(
        registry: Registry,
        fetcher: Fetcher,
        budget: Budget,
        store: Arc<dyn TreeStore>,
        history: History,
        settings: Settings,
    ) -> Self {
        let maker = Maker::new(
            Arc::clone(&store),
            budget,
            settings.layers_at_once,
            settings.unpack.clone(),
            settings.decompression.clone(),
        );
        let means = Means { registry, fetcher, jobs: Jobs::new(maker), store };
        Self(Arc::new(Shared {
            means,
            history,
            settings,
            settler: Settler::default(),
            images: Mutex::default(),
        }))
    }

    /// Waits for the tree that `claim` asks for, settled for its parents. Dropping the future
    /// withdraws the claim.
    ///
    /// # Errors
    /// Why the layer cannot be provided.
    pub async fn claim(&self, claim: Claim) -> Result<HeldTree, PullError> {
        let reference = parse_reference(&claim.image)?;
        let key = (claim.image.clone(), claim.manifest);
        let mut waiting = self.0.wait(&key, || {
            let keeper = self.0.settings.keeper.as_ref();
            let keep = keeper.map(|keeper| keeper.image(&claim.namespace, &reference));
            let platform = self.0.settings.platform.clone();
            let start = Start::Digest(claim.manifest);
            self.0.begin(&claim.image, reference, start, platform, Class::Waited, keep)
        });
        if let Some(parent) = &claim.trace_parent {
            waiting.pull.recorder().traced(parent);
        }
        let answer = self.0.answer(&waiting.pull, &claim);
        let result = caught(|| format!("{}: its claim", claim.image), answer).await;
        waiting.answered = Some((claim.chain_id, result.as_ref().err().cloned()));
        result
    }

    /// Begins to pull a whole image that no containerd asks for. `Pulling::trees` waits for it.
    ///
    /// # Errors
    /// Where `image` is not a reference.
    pub fn start(&self, image: &str, platform: Option<Platform>) -> Result<Pulling, PullError> {
        self.whole(image, platform, Class::Waited, None)
    }

    /// The same ahead of time: what somebody waits for goes before it, everywhere. A layer of it that
    /// somebody comes to wait for goes with those from then on. Where blobs are kept, they go to `containerd`, in which nothing
    /// refers to them yet: it has to be a connection under a lease.
    ///
    /// # Errors
    /// Where `image` is not a reference.
    pub fn prefetch(
        &self,
        image: &str,
        platform: Option<Platform>,
        containerd: Option<&Containerd>,
    ) -> Result<Pulling, PullError> {
        self.whole(image, platform, Class::Ahead, containerd)
    }

    fn whole(
        &self,
        image: &str,
        platform: Option<Platform>,
        class: Class,
        kept_in: Option<&Containerd>,
    ) -> Result<Pulling, PullError> {
        let reference = parse_reference(image)?;
        let start = Start::named(platform.is_some());
        let platform = platform.unwrap_or_else(|| self.0.settings.platform.clone());
        let kept_in = self.0.settings.keeper.as_ref().zip(kept_in);
        let keep = kept_in.map(|(keeper, there)| keeper.image_in(there.clone(), &reference));
        let pull = self.0.begin(image, reference, start, platform, class, keep);
        Ok(Pulling { shared: Arc::clone(&self.0), pull })
    }
}

/// Reads an image reference.
///
/// # Errors
/// Where it is none; the error names it.
pub fn parse_reference(image: &str) -> Result<Reference, PullError> {
    image.parse().map_err(|error: ReferenceError| PullError::Reference {
        reference: image.to_owned(),
        reason: error.to_string(),
    })
}

/// A pull of a whole image. Dropping it cancels it.
pub struct Pulling {
    shared: Arc<Shared>,
    pull: Arc<ImagePull>,
}

impl Pulling {
    /// What is recorded of it.
    pub fn recorder(&self) -> &Arc<PullRecorder> {
        self.pull.recorder()
    }

    /// What the image's name leads to, from an index or a manifest down to the configuration.
    ///
    /// # Errors
    /// Why they cannot be had.
    pub async fn documents(&self) -> Result<Vec<NamedDocument>, PullError> {
        Ok(self.pull.started().await?.documents.clone())
    }

    /// Waits until the containerd that blobs are kept in, if there is one, has those of all layers: of those too that were
    /// there already.
    ///
    /// # Errors
    /// Why the image's layers are not known.
    pub async fn keep(&self) -> Result<(), PullError> {
        let started = self.pull.started().await?;
        self.pull.keep_own(&started).await;
        Ok(())
    }

    /// Waits for all trees, lowest first, settled over each other.
    ///
    /// # Errors
    /// The first error of a layer, lowest first.
    pub async fn trees(&self) -> Result<Vec<HeldTree>, PullError> {
        let what = || format!("{}: its trees", self.pull.reference());
        let trees = caught(what, self.stack()).await;
        self.shared.close(
            &self.pull,
            match &trees {
                Ok(_) => PullState::Done,
                Err(error) => PullState::Failed(error.to_string()),
            },
        );
        trees
    }

    async fn stack(&self) -> Result<Vec<HeldTree>, PullError> {
        let started = self.pull.started().await?;
        let mut trees: Vec<HeldTree> = Vec::new();
        for index in 0..started.plan.layers.len() {
            let parents = trees.iter().rev().map(|held| held.tree.path.clone()).collect();
            let store = &self.shared.means.store;
            trees
                .push(self.shared.settler.tree(&self.pull, &started, index, parents, store).await?);
        }
        Ok(trees)
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        self.shared.close(&self.pull, PullState::Cancelled);
    }
}

/// A claim that waits; when it ends, the image may be let go.
struct Waiting {
    shared: Arc<Shared>,
    key: ImageKey,
    pull: Arc<ImagePull>,
    answered: Option<(ChainId, Option<PullError>)>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.release(&self.key, self.answered.take());
    }
}

impl Shared {
    fn images(&self) -> MutexGuard<'_, HashMap<ImageKey, Entry>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(
        &self,
        image: &str,
        reference: Reference,
        start: Start,
        platform: Platform,
        class: Class,
        keep: Option<Arc<Keeping>>,
    ) -> Arc<ImagePull> {
        let recorder = self.history.begin(image);
        let image = Image::new(self.means.clone(), reference, class, keep);
        Arc::new(ImagePull::begin(image, start, platform, recorder))
    }

    fn wait(self: &Arc<Self>, key: &ImageKey, begin: impl FnOnce() -> Arc<ImagePull>) -> Waiting {
        let mut images = self.images();
        let entry = images.entry(key.clone()).or_insert_with(|| Entry {
            pull: begin(),
            waiting: 0,
            claims: 0,
            claimed: HashSet::new(),
            failure: None,
        });
        entry.waiting += 1;
        entry.claims += 1;
        Waiting {
            shared: Arc::clone(self),
            key: key.clone(),
            pull: Arc::clone(&entry.pull),
            answered: None,
        }
    }

    async fn answer(&self, pull: &ImagePull, claim: &Claim) -> Result<HeldTree, PullError> {
        let started = pull.started().await?;
        let index = started.position(claim.layer, claim.chain_id).ok_or_else(|| {
            PullError::NoSuchLayer {
                image: claim.image.clone(),
                layer: claim.layer,
                chain_id: claim.chain_id.to_string(),
            }
        })?;
        let parents = claim.parents.clone();
        let tree = self.settler.tree(pull, &started, index, parents, &self.means.store).await?;
        if let Some(keeper) = &self.settings.keeper
            && index + 1 == started.plan.layers.len()
        {
            pull.keep(&started, keeper, &claim.namespace).await;
        }
        Ok(tree)
    }

    /// A claim has ended, by an answer or because its caller went away.
    fn release(self: &Arc<Self>, key: &ImageKey, answered: Option<(ChainId, Option<PullError>)>) {
        let mut images = self.images();
        let Some(entry) = images.get_mut(key) else { return };
        entry.waiting -= 1;
        let linger = match answered {
            Some((chain_id, failure)) => {
                entry.claimed.insert(chain_id);
                let failed_early = failure.is_some();
                entry.failure = entry.failure.take().or(failure);
                if failed_early { LINGER_AFTER_FAILURE } else { LINGER_AFTER_ANSWER }
            }
            None => LINGER_AFTER_LOSS,
        };
        if entry.waiting > 0 {
            return;
        }
        let all = entry.is_claimed();
        if all {
            let entry = images.remove(key).expect("it was there a moment ago");
            drop(images);
            self.let_go(entry);
        } else {
            let claims = entry.claims;
            drop(images);
            let (shared, key) = (Arc::clone(self), key.clone());
            tokio::spawn(async move {
                tokio::time::sleep(linger).await;
                let mut images = shared.images();
                // Somebody who tries again and again does not keep a failure alive.
                let over = |e: &Entry| e.claims == claims || e.failure.is_some();
                if images.get(&key).is_some_and(|e| e.waiting == 0 && over(e)) {
                    let entry = images.remove(&key).expect("it was there a moment ago");
                    drop(images);
                    shared.let_go(entry);
                }
            });
        }
    }

    fn let_go(&self, entry: Entry) {
        let all = entry.is_claimed();
        let state = match entry.failure {
            Some(error) if error.is_integrity() || error.is_no_space() => {
                PullState::Failed(error.to_string())
            }
            Some(error) => PullState::FellBack(error.to_string()),
            None if all => PullState::Done,
            None => PullState::Cancelled,
        };
        self.close(&entry.pull, state);
    }

    fn close(&self, pull: &ImagePull, state: PullState) {
        if pull.recorder().ended(state) {
            (self.settings.on_end)(&self.history.close(pull.recorder()));
        }
    }
}
