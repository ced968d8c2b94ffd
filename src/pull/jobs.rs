//! One job per layer, however many ask for it.
//!
//! A job is known by its [`Key`]. Whoever needs it holds an [`Interest`]; the job runs in a task of
//! its own, so that a caller that goes away takes nothing with it, and is cancelled when the last
//! interest is dropped before it has ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::PullError;
use super::admission::{Cost, Layers};
use super::keep::{KEPT_BYTES, Keeping, Writing};
use super::layer::{self, Dest, ORDINARY_WINDOW_BYTES, Work};
use super::trees::{Content, HeldTree, StagedTree, TreeStore};
use crate::budget::turns::{Class, Gate, Held, Standing};
use crate::budget::{Budget, Permit};
use crate::compression::{CompressionError, Pool, Resources, Speculation};
use crate::fetch::ImageFetcher;
use crate::hashing::Hashers;
use crate::image::{Compression, DiffId, ImageLayer};
use crate::registry::Blob;
use crate::timeline::{LayerRecorder, LayerState, Phase, Stall};
use crate::unpack::{self, NoRoom, Summary};

/// What a job makes: the tree of a DiffID, to be shared, or one more tree of it whose implied
/// directories are settled as the given bytes say.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    pub(super) diff_id: DiffId,
    pub(super) settled: Option<Vec<u8>>,
}

/// How a job ended.
pub(super) type Outcome = Result<HeldTree, PullError>;

/// What decompressing may take beside what every layer has reserved for it.
#[derive(Clone)]
pub struct Decompression {
    /// Who helps with layers of several members or frames.
    pub pool: Option<Pool>,
    /// The most that a zstd window may take, in bytes. A layer with a larger window than usual is
    /// begun anew with so much reserved, for which it waits until fewer others are in work.
    pub window_bytes: u64,
    /// When they help with a layer of a single gzip member too.
    pub speculation: Speculation,
}

/// What a job needs to begin.
#[derive(Clone)]
pub(super) struct Order {
    pub(super) key: Key,
    pub(super) layer: ImageLayer,
    pub(super) compression: Compression,
    pub(super) blob: Blob,
    pub(super) fetcher: ImageFetcher,
    pub(super) recorder: Arc<LayerRecorder>,
    pub(super) standing: Arc<Standing>,
    /// Where containerd is to have the blob.
    pub(super) keep: Option<Arc<Keeping>>,
}

impl Order {
    /// Its standing: the longer its serial work, the sooner it is begun and fetched.
    pub(super) fn standing(
        fetcher: &ImageFetcher,
        layer: &ImageLayer,
        class: Class,
    ) -> Arc<Standing> {
        let rate = layer.compression().map_or(1, layer::serial_bytes_per_second);
        Standing::new(fetcher.party(), layer.size, rate).of_class(class)
    }
}

/// The jobs that run now, and what they share.
#[derive(Clone)]
pub(super) struct Jobs(Arc<Shared>);

struct Shared {
    store: Arc<dyn TreeStore>,
    budget: Budget,
    layers: Gate<Layers>,
    hashers: Hashers,
    unpack: unpack::Options,
    decompression: Decompression,
    running: Mutex<HashMap<Key, Running>>,
}

struct Running {
    interests: usize,
    cancel: CancellationToken,
    outcome: watch::Receiver<Option<Outcome>>,
    recorder: Arc<LayerRecorder>,
    standing: Arc<Standing>,
}

/// Somebody needs a job's tree. When the last is dropped the job is cancelled.
pub(super) struct Interest {
    key: Key,
    jobs: Arc<Shared>,
    cancel: CancellationToken,
    outcome: watch::Receiver<Option<Outcome>>,
    recorder: Arc<LayerRecorder>,
    standing: Arc<Standing>,
}

impl Interest {
    /// Waits for the job's end, for a Prepare.
    pub(super) async fn outcome(&self) -> Outcome {
        self.standing.ask_for();
        let mut outcome = self.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Err(PullError::Cancelled)),
            Err(_) => {
                let layer = self.recorder.layer().blob;
                Err(PullError::Internal { layer, what: "its job" })
            }
        }
    }

    /// What is recorded of the job.
    pub(super) fn recorder(&self) -> &Arc<LayerRecorder> {
        &self.recorder
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut running = self.jobs.running();
        // A later job of the same key has another token.
        let Some(job) =
            running.get_mut(&self.key).filter(|job| job.outcome.same_channel(&self.outcome))
        else {
            return;
        };
        job.interests -= 1;
        if job.interests == 0 {
            self.cancel.cancel();
            running.remove(&self.key);
        }
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, HashMap<Key, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Jobs {
    /// No jobs yet. Of the budget the layers in work have a half: the other half is for what is
    /// being fetched, without which no layer goes on.
    pub(super) fn new(
        store: Arc<dyn TreeStore>,
        budget: Budget,
        layers_at_once: usize,
        unpack: unpack::Options,
        decompression: Decompression,
    ) -> Self {
        let layers = Layers::gate(layers_at_once, budget.total() / 2);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Shared {
            store,
            budget,
            layers,
            hashers: Hashers::new(cores),
            unpack,
            decompression,
            running: Mutex::default(),
        }))
    }

    /// What the layers in work take their bytes from.
    pub(super) fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// Joins the job of `order.key`, or begins it. A job that was begun ahead of time goes before the
    /// others of its kind from the moment that somebody joins it who waits.
    pub(super) fn join(&self, order: Order) -> Interest {
        let mut running = self.0.running();
        if let Some(job) = running.get_mut(&order.key) {
            job.interests += 1;
            let interest = Interest {
                key: order.key,
                jobs: Arc::clone(&self.0),
                cancel: job.cancel.clone(),
                outcome: job.outcome.clone(),
                recorder: Arc::clone(&job.recorder),
                standing: Arc::clone(&job.standing),
            };
            drop(running);
            if order.standing.class() > interest.standing.class() {
                self.promote(&interest.standing);
            }
            return interest;
        }
        let (ended, outcome) = watch::channel(None);
        let cancel = CancellationToken::new();
        let (recorder, standing) = (Arc::clone(&order.recorder), Arc::clone(&order.standing));
        let key = order.key.clone();
        running.insert(
            key.clone(),
            Running {
                interests: 1,
                cancel: cancel.clone(),
                outcome: outcome.clone(),
                recorder: Arc::clone(&recorder),
                standing: Arc::clone(&standing),
            },
        );
        drop(running);
        let span = tracing::info_span!("layer", blob = %order.layer.blob);
        tokio::spawn(Arc::clone(&self.0).run(order, cancel.clone(), ended).instrument(span));
        Interest { key, jobs: Arc::clone(&self.0), cancel, outcome, recorder, standing }
    }

    /// What an order's layer is expected to take on disk; nothing where somebody makes it already.
    pub(super) fn expected(&self, order: &Order) -> u64 {
        if self.0.running().contains_key(&order.key) {
            return 0;
        }
        self.0.unpack.room.expected(order.key.diff_id, order.layer.size)
    }

    /// Whether layers may begin that are expected to take so many bytes.
    pub(super) fn admit(&self, bytes: u64) -> Result<(), NoRoom> {
        self.0.unpack.room.admit(bytes)
    }

    fn promote(&self, standing: &Standing) {
        standing.promote();
        // It may be waiting where its class was bounded.
        self.0.layers.look_again();
        self.0.budget.look_again();
    }
}

impl Shared {
    async fn run(
        self: Arc<Self>,
        order: Order,
        cancel: CancellationToken,
        ended: watch::Sender<Option<Outcome>>,
    ) {
        let key = order.key.clone();
        let recorder = Arc::clone(&order.recorder);
        let outcome = self.make(order, &cancel).await;
        recorder.state(match &outcome {
            Ok(_) => LayerState::Done,
            Err(PullError::Cancelled) => LayerState::Cancelled,
            Err(error) => LayerState::Failed(error.to_string()),
        });
        {
            let mut running = self.running();
            if running.get(&key).is_some_and(|job| Arc::ptr_eq(&job.recorder, &recorder)) {
                running.remove(&key);
            }
        }
        // Nobody may be left to hear it.
        let _ = ended.send(Some(outcome));
    }

    /// Makes the tree; anew where it turns out that the layer's window needs more memory, or that the
    /// layer is too much for an image.
    async fn make(self: &Arc<Self>, order: Order, cancel: &CancellationToken) -> Outcome {
        let mut window_bytes = ORDINARY_WINDOW_BYTES;
        let mut may_be_image = true;
        loop {
            let outcome = self.attempt(order.clone(), window_bytes, may_be_image, cancel).await;
            if let Err(PullError::Unpack { source, layer }) = &outcome
                && source.is_of_the_image()
                && may_be_image
            {
                tracing::warn!(%layer, reason = %source, "this layer becomes files, not an image");
                may_be_image = false;
                continue;
            }
            let Err(PullError::Decompress { source, .. }) = &outcome else { return outcome };
            let CompressionError::Window { needed, .. } = **source else { return outcome };
            // In powers of two, so that a stream of growing windows is not begun too often.
            let larger = needed.next_power_of_two().min(self.decompression.window_bytes);
            if larger < needed || larger <= window_bytes {
                return outcome;
            }
            window_bytes = larger;
        }
    }

    /// Waits for a layer's turn and for its memory.
    async fn admit(&self, order: &Order, window_bytes: u64) -> (Held<Layers>, Permit) {
        let mut cost = Cost::of(order.layer.size, order.compression, window_bytes);
        if order.keep.is_some() {
            cost.bytes += KEPT_BYTES.min(2 * order.layer.size);
        }
        let turn = self.layers.enter(&order.standing, cost).await;
        let from = Instant::now();
        // Before what is fetched ahead for others: it has its turn.
        let ahead = Standing::ahead(order.standing.party());
        let bytes = self.budget.reserve(&ahead, cost.bytes).await;
        order.recorder.stalled(Stall::Admission, from);
        (turn, bytes)
    }

    async fn attempt(
        self: &Arc<Self>,
        order: Order,
        window_bytes: u64,
        may_be_image: bool,
        cancel: &CancellationToken,
    ) -> Outcome {
        let from = Instant::now();
        // Held until the tree is published.
        let paid = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(PullError::Cancelled),
            paid = self.admit(&order, window_bytes) => paid,
        };
        order.recorder.spent(Phase::Wait, from, Instant::now());
        order.recorder.state(LayerState::Running);
        let diff_id = order.key.diff_id;
        let before = order.recorder.counted(Phase::Write);
        let store = Arc::clone(&self.store);
        let mut staged = blocking(&order.layer, move || store.stage(diff_id)).await??;
        staged.image = staged.image.filter(|_| may_be_image);
        let recorder = Arc::clone(&order.recorder);
        match self.unpack(order, window_bytes, &staged, cancel).await {
            Ok((summary, keep)) => {
                let _busy = recorder.time(Phase::Commit);
                let (store, room) = (Arc::clone(&self.store), self.unpack.room.clone());
                let publish = move || {
                    let Summary { bytes, inodes, implied, .. } = summary;
                    room.takes(diff_id, bytes);
                    let is_image = staged.image.is_some();
                    let content = Content { is_image, bytes, inodes, implied };
                    HeldTree::pin(&*store, store.publish(staged, content)?)
                };
                let tree = blocking(recorder.layer(), publish).await??;
                drop(paid);
                if let Some(keep) = keep {
                    // containerd writes it to disk, which others need not wait for.
                    tokio::select! {
                        () = keep.commit(diff_id) => {}
                        () = cancel.cancelled() => {}
                    }
                }
                Ok(tree)
            }
            Err(error) => {
                let written = recorder.counted(Phase::Write).saturating_sub(before);
                self.unpack.room.takes(diff_id, written);
                let store = Arc::clone(&self.store);
                blocking(recorder.layer(), move || store.discard(staged)).await?;
                Err(error)
            }
        }
    }

    fn resources(
        &self,
        compressed_bytes: u64,
        window_bytes: u64,
        recorder: &Arc<LayerRecorder>,
    ) -> Resources {
        // A layer with a large window may be in work alone because there is no room for more.
        let pool = self.decompression.pool.clone();
        let pool = pool.filter(|_| window_bytes == ORDINARY_WINDOW_BYTES);
        let recorder = Arc::clone(recorder);
        let on_help = move |from, to| recorder.spent(Phase::Decompress, from, to);
        Resources {
            window_bytes,
            pool,
            speculation: self.decompression.speculation,
            compressed_bytes,
            on_help: Some(Arc::new(on_help)),
        }
    }

    async fn unpack(
        &self,
        order: Order,
        window_bytes: u64,
        staged: &StagedTree,
        cancel: &CancellationToken,
    ) -> Result<(Summary, Option<Writing>), PullError> {
        let Order { layer, compression, blob, fetcher, recorder, standing, keep, .. } = order;
        let kept = match &keep {
            Some(keep) => keep.begin(layer.blob, layer.size).await,
            None => None,
        };
        let (keep, kept) = kept.unzip();
        let handle = tokio::runtime::Handle::current();
        let reader = fetcher.start_for(&handle, blob, layer.size, Arc::clone(&recorder), standing);
        let stop = reader.canceller();
        let named = layer.clone();
        let dest = match staged.image.clone() {
            Some(staged) => Dest::Image { staged, budget: self.budget.clone() },
            None => Dest::Files(staged.path.clone()),
        };
        let resources = self.resources(layer.size, window_bytes, &recorder);
        let (hashers, unpack) = (self.hashers.clone(), self.unpack.clone());
        let work =
            Work { layer, compression, resources, reader, keep, hashers, dest, unpack, recorder };
        let mut running = std::pin::pin!(blocking(&named, move || layer::run(work)));
        tokio::select! {
            ended = &mut running => Ok((ended??, kept)),
            () = cancel.cancelled() => {
                stop.cancel();
                // A thread may wait for containerd to take bytes.
                drop(kept);
                // Its threads still write into the staged tree; it can be discarded when they have ended.
                let _ = running.await;
                Err(PullError::Cancelled)
            }
        }
    }
}

/// Runs `work` on a thread for blocking work; what it logs says of which pull and layer it is.
pub(super) async fn blocking<T: Send + 'static>(
    layer: &ImageLayer,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PullError> {
    let layer = layer.blob;
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .map_err(|_| PullError::Internal { layer, what: "a blocking task" })
}
