//! Makes the tree of one layer: waits for its turn and its memory, has it fetched and unpacked into a
//! staged tree, and publishes that.
//!
//! An attempt can show that the layer needs more than was thought, a larger window or files instead of
//! an image; it is then made anew with that. Where an attempt fails or is cancelled, what it has staged
//! is discarded.

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use super::PullError;
use super::admission::{Cost, Layers};
use super::caught::{caught, without_answer};
use super::footprint::ORDINARY_WINDOW_BYTES;
use super::keep::{KEPT_BYTES, Keeping, Writing};
use super::layer::{self, Dest, Work};
use super::trees::{Content, HeldTree, StagedTree, TreeStore};
use crate::budget::turns::{Class, Gate, Held, Standing};
use crate::budget::{Budget, Permit};
use crate::compression::{CompressionError, Pool, Resources, Speculation};
use crate::fetch::{BlobReader, ImageFetcher};
use crate::hashing::Hashers;
use crate::image::{Compression, DiffId, ImageLayer};
use crate::registry::Blob;
use crate::timeline::{LayerRecorder, LayerState, Phase, Stall};
use crate::unpack::{self, Room, Summary};

/// What a job makes: the tree of a DiffID, to be shared, or one more tree of it whose implied
/// directories are settled as the given bytes say.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    pub(super) diff_id: DiffId,
    pub(super) settled: Option<Vec<u8>>,
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
        let rate = layer.compression().map_or(1, serial_bytes_per_second);
        Standing::new(fetcher.party(), layer.size, rate).of_class(class).waiting()
    }

    /// Begins to fetch the blob.
    fn reader(&self) -> BlobReader {
        let Self { layer, blob, fetcher, recorder, standing, .. } = self;
        let (runtime, recorder) = (tokio::runtime::Handle::current(), Arc::clone(recorder));
        fetcher.start_for(&runtime, blob.clone(), layer.size, recorder, Arc::clone(standing))
    }

    /// The same while the layer waits for its turn: its head is there when the turn comes. Where nobody waits
    /// for the layer itself, that is no hurry; nor where it is made anew.
    fn head(&self) -> Option<BlobReader> {
        let waits = self.standing.class() == Class::Waited && !self.standing.is_in_work();
        waits.then(|| self.reader())
    }
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

/// Compressed bytes of a layer that its serial work takes in a second, about: only their ratio
/// matters, to tell which layer has most before it. (Measured with gzip -6 and zstd -3.)
fn serial_bytes_per_second(compression: Compression) -> u64 {
    match compression {
        Compression::Gzip => 146_000_000,
        Compression::Zstd => 230_000_000,
        Compression::None => 1_000_000_000,
    }
}

/// Makes the trees of layers, and has what they share.
pub(super) struct Maker {
    store: Arc<dyn TreeStore>,
    budget: Budget,
    layers: Gate<Layers>,
    hashers: Hashers,
    unpack: unpack::Options,
    decompression: Decompression,
}

impl Maker {
    /// Of the budget the layers in work have a half: the other half is for what is being fetched,
    /// without which no layer goes on.
    pub(super) fn new(
        store: Arc<dyn TreeStore>,
        budget: Budget,
        layers_at_once: usize,
        unpack: unpack::Options,
        decompression: Decompression,
    ) -> Self {
        let layers = Layers::gate(layers_at_once, budget.total() / 2);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self { store, budget, layers, hashers: Hashers::new(cores), unpack, decompression }
    }

    /// What the layers in work take their bytes from.
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Where layers are written to.
    pub(super) fn room(&self) -> &Room {
        &self.unpack.room
    }

    /// After somebody's standing has risen: it may be waiting where its class was bounded.
    pub(super) fn look_again(&self) {
        self.layers.look_again();
        self.budget.look_again();
    }

    /// Makes the tree; anew where it turns out that the layer's window needs more memory, or that the
    /// layer is too much for an image.
    ///
    /// # Errors
    /// Of the last attempt.
    pub(super) async fn make(&self, order: Order, cancel: &CancellationToken) -> Outcome {
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
        order.standing.set_to_work();
        let from = Instant::now();
        // Before what is fetched ahead for others: it has its turn.
        let ahead = Standing::ahead(order.standing.party());
        let bytes = self.budget.reserve(&ahead, cost.bytes).await;
        order.recorder.stalled(Stall::Admission, from);
        (turn, bytes)
    }

    /// Makes the tree once, as files unless it `may_be_image`, and publishes it.
    async fn attempt(
        &self,
        order: Order,
        window_bytes: u64,
        may_be_image: bool,
        cancel: &CancellationToken,
    ) -> Outcome {
        let from = Instant::now();
        let head = order.head();
        // Held until the tree is published.
        let paid = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(PullError::Cancelled),
            paid = self.admit(&order, window_bytes) => paid,
        };
        order.recorder.spent(Phase::Wait, from, Instant::now());
        order.recorder.state(LayerState::Running);
        let reader = head.inspect(BlobReader::begin).unwrap_or_else(|| order.reader());
        let diff_id = order.key.diff_id;
        let before = order.recorder.counted(Phase::Write);
        let store = Arc::clone(&self.store);
        let mut staged = blocking(&order.layer, move || store.stage(diff_id)).await??;
        staged.image = staged.image.filter(|_| may_be_image);
        let recorder = Arc::clone(&order.recorder);
        // What is staged is discarded after a panic, too.
        let blob = order.layer.blob;
        let unpacking = self.unpack(order, reader, window_bytes, &staged, cancel);
        match caught(|| format!("layer {blob}: its unpacking"), unpacking).await {
            Ok((summary, keep)) => {
                let busy = recorder.time(Phase::Commit);
                let tree = self.publish(diff_id, staged, summary, &recorder).await?;
                // Before another has the turn: it is told by that who waited for whom.
                drop(busy);
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
                self.room().takes(diff_id, written);
                let store = Arc::clone(&self.store);
                blocking(recorder.layer(), move || store.discard(staged)).await?;
                Err(error)
            }
        }
    }

    /// Gives a tree that is whole to the store.
    async fn publish(
        &self,
        diff_id: DiffId,
        staged: StagedTree,
        summary: Summary,
        recorder: &LayerRecorder,
    ) -> Outcome {
        let (store, room) = (Arc::clone(&self.store), self.room().clone());
        let again = staged.clone();
        let publish = move || {
            let Summary { bytes, inodes, implied, .. } = summary;
            room.takes(diff_id, bytes);
            let is_image = staged.image.is_some();
            let content = Content { is_image, bytes, inodes, implied };
            HeldTree::pin(&*store, store.publish(staged, content)?)
        };
        let published = blocking(recorder.layer(), publish).await;
        let published = published.and_then(|published| published.map_err(PullError::from));
        if published.is_err() {
            let store = Arc::clone(&self.store);
            blocking(recorder.layer(), move || store.discard(again)).await?;
        }
        published
    }

    /// What decompressing may take, whatever else is in work.
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

    /// Fetches and unpacks the layer into a tree that is staged.
    async fn unpack(
        &self,
        order: Order,
        reader: BlobReader,
        window_bytes: u64,
        staged: &StagedTree,
        cancel: &CancellationToken,
    ) -> Result<(Summary, Option<Writing>), PullError> {
        let Order { layer, compression, recorder, keep, .. } = order;
        let kept = match &keep {
            Some(keep) => keep.begin(layer.blob, layer.size).await,
            None => None,
        };
        let (keep, kept) = kept.unzip();
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
    let what = || format!("layer {layer}: a blocking task");
    let done = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
    done.map_err(|error| without_answer(what(), error))
}
