//! The compressed blobs of layers in containerd's content store, where the operator wants them there.
//!
//! containerd needs no blob of a layer that hoist provides until somebody pushes or saves the image, or
//! builds on it. With a [`Keeper`] what arrives for a layer goes to containerd too, on its way into
//! the decoder:
//!
//! ```text
//! BlobReader ─▶ decoder ─▶ …
//!        ╰────▶ Sink ══(queue of bytes)══▶ a task ─▶ containerd's Content.Write
//! ```
//!
//! A layer is said to be there when its blob has been committed as well. Layers of the image that were
//! there already, or that another namespace's pull made, are looked after when the topmost one has been
//! answered, and fetched where the content store lacks them. The container's start goes before all of
//! this: where containerd does not take a blob (a full disk, a restart) the pull goes on without, the
//! log says which image, and nothing more of that image is tried.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, OnceCell};
use tokio::task::JoinHandle;

use crate::budget::Budget;
use crate::budget::turns::{Class, Standing};
use crate::containerd::{Address, Containerd, ContainerdError, Ingest, Labels, source_label};
use crate::fetch::{BlobReader, FetchError, ImageFetcher};
use crate::image::{BlobDigest, DiffId, Reference};
use crate::registry::Blob;
use crate::timeline::LayerRecorder;

/// Compressed bytes of a layer that wait to be sent to containerd, at most.
const BYTES_UNSENT: usize = 4 << 20;

/// Bytes of one message: few messages, and not much memory for those under way.
const MESSAGE_BYTES: usize = 512 << 10;

/// What a layer that is kept takes of the memory budget beside all else: the queue, two messages under
/// way, one being filled, one being encoded.
pub(super) const KEPT_BYTES: u64 = (BYTES_UNSENT + 4 * MESSAGE_BYTES) as u64;

/// Told of every layer that was not there: "written", "failed".
pub type OnKept = Arc<dyn Fn(&'static str) + Send + Sync>;

/// Has the blobs of pulled layers put into containerd's content store.
#[derive(Clone)]
pub struct Keeper {
    /// containerd's socket.
    pub socket: PathBuf,
    /// Told of every layer.
    pub on_kept: OnKept,
}

impl Keeper {
    /// What it does for one image of one of containerd's namespaces.
    pub(super) fn image(&self, namespace: &str, reference: &Reference) -> Arc<Keeping> {
        self.keeping(namespace, reference, OnceCell::new())
    }

    /// The same through a connection that is there: to another containerd, or under a lease.
    pub(super) fn image_in(&self, containerd: Containerd, reference: &Reference) -> Arc<Keeping> {
        let namespace = containerd.namespace().to_owned();
        self.keeping(&namespace, reference, OnceCell::new_with(Some(containerd)))
    }

    fn keeping(
        &self,
        namespace: &str,
        reference: &Reference,
        containerd: OnceCell<Containerd>,
    ) -> Arc<Keeping> {
        Arc::new(Keeping {
            address: Address { socket: self.socket.clone(), namespace: namespace.to_owned() },
            source: source_label(reference.registry(), reference.repository()),
            image: reference.to_string(),
            containerd,
            given_up: AtomicBool::new(false),
            on_kept: Arc::clone(&self.on_kept),
        })
    }
}

/// An image whose blobs are kept.
pub(super) struct Keeping {
    address: Address,
    source: (String, String),
    image: String,
    containerd: OnceCell<Containerd>,
    given_up: AtomicBool,
    on_kept: OnKept,
}

impl Keeping {
    /// containerd's namespace.
    pub(super) fn namespace(&self) -> &str {
        &self.address.namespace
    }

    /// Begins to write a layer's blob, for a job that fetches it; `None` where the content store has it,
    /// or cannot have it.
    pub(super) async fn begin(
        self: &Arc<Self>,
        digest: BlobDigest,
        size: u64,
    ) -> Option<(Sink, Writing)> {
        if self.given_up.load(Relaxed) {
            return None;
        }
        let begun = async { self.containerd().await?.ingest(digest, size).await };
        match begun.await {
            Ok(Some(ingest)) => {
                let queue = Arc::new(Queue::default());
                let task = tokio::spawn(write(Arc::clone(&queue), ingest));
                let writing = Writing { keeping: Arc::clone(self), digest, task: Some(task) };
                Some((Sink(queue), writing))
            }
            // It is labelled with the image's other blobs, at the end.
            Ok(None) => None,
            Err(error) => {
                self.give_up(digest, &error);
                None
            }
        }
    }

    /// Looks after all blobs of the image: fetches those that the content store does not have, by this class.
    pub(super) async fn complete(
        &self,
        blobs: Vec<Blob>,
        (fetcher, class): (&ImageFetcher, Class),
        budget: &Budget,
    ) {
        for blob in blobs {
            if self.given_up.load(Relaxed) {
                return;
            }
            let digest = blob.digest();
            let ended = async {
                let (containerd, fetching) = (self.containerd().await?, (fetcher, class));
                fetch_missing(containerd, blob, fetching, budget, &self.source).await
            };
            match ended.await {
                Ok(true) => (self.on_kept)("written"),
                Ok(false) => {}
                Err(error) => self.give_up(digest, &error),
            }
        }
    }

    async fn containerd(&self) -> Result<&Containerd, ContainerdError> {
        self.containerd.get_or_try_init(|| Containerd::connect(&self.address)).await
    }

    fn give_up(&self, layer: BlobDigest, error: &dyn std::fmt::Display) {
        (self.on_kept)("failed");
        if !self.given_up.swap(true, Relaxed) {
            tracing::error!(
                image = self.image, namespace = self.address.namespace, %layer, %error,
                "the image was pulled, but containerd's content store lacks layers of it, which saving and pushing \
                 need; `ctr content fetch` brings them"
            );
        }
    }
}

/// Why a blob did not come into the content store.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    /// containerd does not answer or does not take it.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// It could not be fetched.
    #[error("layer {layer}: {source}")]
    Fetch {
        /// The layer.
        layer: BlobDigest,
        /// What the fetch says.
        source: FetchError,
    },
}

/// Fetches a blob into containerd's content store; `false` where it was there. Either way it says then
/// where it came from, in the label `source`.
///
/// # Errors
/// Where it cannot be fetched, or containerd does not take it.
async fn fetch_missing(
    containerd: &Containerd,
    blob: Blob,
    (fetcher, class): (&ImageFetcher, Class),
    budget: &Budget,
    source: &(String, String),
) -> Result<bool, KeepError> {
    let (digest, size) = (blob.digest(), blob.size());
    let labels = Labels::from([source.clone()]);
    let there = containerd.labels(digest).await?;
    let ingest = match &there {
        Some(_) => None,
        None => containerd.ingest(digest, size).await?,
    };
    let Some(ingest) = ingest else {
        if !there.is_some_and(|there| there.contains_key(&source.0)) {
            containerd.label(digest, labels).await?;
        }
        return Ok(false);
    };
    let first = Standing::ahead(fetcher.party()).of_class(class);
    let _paid = budget.reserve(&first, KEPT_BYTES).await;
    let runtime = tokio::runtime::Handle::current();
    let standing = Standing::new(fetcher.party(), size, 1).of_class(class);
    let recorder = Arc::new(LayerRecorder::detached());
    let reader = fetcher.start_for(&runtime, blob, size, recorder, standing);
    let queue = Arc::new(Queue::default());
    let (sink, canceller) = (Sink(Arc::clone(&queue)), Cancel(reader.canceller()));
    let read = tokio::task::spawn_blocking(move || drain(reader, sink));
    let written = write(queue, ingest).await;
    drop(canceller);
    let read = read.await.unwrap_or(Err(FetchError::Stopped));
    // Where containerd refuses, reading ends too, and that is no reason.
    let ingest = written?;
    read.map_err(|source| KeepError::Fetch { layer: digest, source })?;
    ingest.commit(labels).await?;
    Ok(true)
}

/// Ends a fetch that nobody waits for any more.
struct Cancel(crate::fetch::Canceller);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

fn drain(mut reader: BlobReader, sink: Sink) -> Result<(), FetchError> {
    while let Some(piece) = reader.next()? {
        sink.push(piece);
    }
    Ok(())
}

/// A blob that a job writes; dropped, it is aborted.
pub(super) struct Writing {
    keeping: Arc<Keeping>,
    digest: BlobDigest,
    task: Option<JoinHandle<Result<Ingest, ContainerdError>>>,
}

impl Writing {
    /// Waits until the blob, which has come whole and was found to be the archive `diff_id`, is in the
    /// content store; or notes why it is not.
    pub(super) async fn commit(mut self, diff_id: DiffId) {
        let keeping = Arc::clone(&self.keeping);
        // containerd notes it after it has unpacked a blob itself.
        let uncompressed = ("containerd.io/uncompressed".to_owned(), diff_id.to_string());
        let labels = Labels::from([keeping.source.clone(), uncompressed]);
        let task = self.task.as_mut().expect("only the drop takes it");
        let ended = async {
            match task.await {
                Ok(ingest) => ingest?.commit(labels).await,
                Err(error) => {
                    let problem = error.to_string();
                    Err(ContainerdError::Refused { digest: self.digest, problem })
                }
            }
        };
        match ended.await {
            Ok(()) => (keeping.on_kept)("written"),
            Err(error) => keeping.give_up(self.digest, &error),
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // With the task goes the ingest, which aborts itself.
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Sends what comes through the queue to its end.
async fn write(queue: Arc<Queue>, mut ingest: Ingest) -> Result<Ingest, ContainerdError> {
    let taker = Taker(queue);
    while let Some(message) = taker.next().await {
        ingest.write(message).await?;
    }
    Ok(ingest)
}

/// Where a layer's compressed bytes are pushed to. Dropping it says that there are no more.
pub(super) struct Sink(Arc<Queue>);

impl Sink {
    /// Adds bytes; blocks while as many wait as may. What nobody takes any more is dropped.
    pub(super) fn push(&self, piece: Bytes) {
        let mut state = self.0.state();
        while state.bytes >= BYTES_UNSENT && !state.gone {
            state = self.0.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.gone {
            return;
        }
        state.bytes += piece.len();
        state.pieces.push_back(piece);
        let enough = state.bytes >= MESSAGE_BYTES;
        drop(state);
        if enough {
            self.0.arrived.notify_one();
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.arrived.notify_one();
    }
}

/// The other end of the queue; dropping it lets go of whoever pushes.
struct Taker(Arc<Queue>);

impl Taker {
    /// A message full of bytes, or the last ones; `None` after them.
    async fn next(&self) -> Option<Vec<u8>> {
        loop {
            let arrived = self.0.arrived.notified();
            {
                let mut state = self.0.state();
                if state.bytes >= MESSAGE_BYTES || state.ended {
                    let message = state.take();
                    self.0.room.notify_one();
                    return message;
                }
            }
            arrived.await;
        }
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.gone = true;
        state.pieces.clear();
        self.0.room.notify_one();
    }
}

/// Between a thread that pushes and a task that takes.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    room: Condvar,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
    gone: bool,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self) -> Option<Vec<u8>> {
        let mut message = Vec::with_capacity(self.bytes.min(MESSAGE_BYTES));
        while message.len() < MESSAGE_BYTES
            && let Some(mut piece) = self.pieces.pop_front()
        {
            let part = piece.split_to(piece.len().min(MESSAGE_BYTES - message.len()));
            message.extend_from_slice(&part);
            if !piece.is_empty() {
                self.pieces.push_front(piece);
            }
        }
        self.bytes -= message.len();
        (!message.is_empty()).then_some(message)
    }
}

#[cfg(test)]
mod tests;
