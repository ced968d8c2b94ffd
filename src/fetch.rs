//! A blob as an ordered stream of bytes, fetched by many requests at once.
//!
//! A blob is cut into chunks. A task a blob walks over them in the order of their offsets: it
//! reserves a chunk's bytes in the daemon's [`Budget`], opens a place for it in the blob's window
//! and starts a task for it, which waits for its turn among the connections of the image, of the
//! host and of the daemon, and then asks for the chunk's range. Whose turn it is goes by
//! [`turns`](crate::budget::turns); how many connections a host gets, by `pace`; how far ahead of its
//! reader a blob is fetched, by what the reader had to wait for (`window`): one that is slower than
//! the network has little waiting for it, and the others have the connections and the bytes.
//! What arrives goes into the chunk's
//! place at once; the reader, on a thread of its own, takes from the first chunk as it arrives and
//! gives the reservation back when it has taken the chunk's last byte.
//!
//! ```text
//!   offset ─▶   chunk 3        chunk 4        chunk 5        chunk 6
//!            ┌────────────┬──────────────┬──────────────┬─────────────┐
//!   reader ◀─┤▓▓▓▓▓▓░░░░░░│▓▓▓▓▓▓▓▓▓▓▓▓▓▓│▓▓▓▓▓░░░░░░░░░│ reserved    │ not yet reserved
//!            └─────▲──────┴──────────────┴─────▲────────┴──────▲──────┘
//!              a request                   a request        waits for a connection
//! ```
//!
//! Why it cannot stand still: budget is reserved in the order of offsets and a whole chunk at a
//! time, so a blob's first chunk always holds its bytes before its later ones, and who is next in
//! line for the budget is waited for; whoever holds a
//! connection has its budget already and never waits for the reader, so connections come free
//! again. What is asked of the caller is that every reader is read or dropped: bytes in the window
//! of a reader that nobody reads are bytes that others wait for. The one exception are layers that wait
//! for their turn: each has its head fetched, one chunk, and all heads together have a small part of
//! the budget, without which the others can go on ([`Budget::heads`]). So a layer begins with bytes and
//! not with a round trip.
//!
//! A body that breaks off is resumed where it broke, by a request of its own, after a pause in
//! which its connection is another's. Progress starts the count of tries anew. Whether a host
//! serves parts at all shows in the first answer of a blob; one that does not sends the blob as one
//! stream, through the first chunk's reservation, and is made to wait while that is full.
//!
//! Where an operator limits bytes a second (`restraint`), whoever has read bytes waits until they are
//! due, and what it does not read meanwhile holds the sender up.
//!
//! Bytes are counted here and not hashed: `pull` does that, and only what it has verified counts.

mod connections;
mod pace;
mod restraint;
mod transfer;
mod window;

use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tracing::Instrument as _;

use crate::budget::Budget;
use crate::budget::rate::RateLimit;
use crate::budget::turns::{Party, Standing};
use crate::registry::{Blob, Registry, RegistryError};
use crate::timeline::LayerRecorder;

pub use restraint::{OfRegistry, Restraints};

use connections::Connections;
use restraint::InForce;
use transfer::Transfer;
use window::Window;

/// Why a blob did not come whole.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No host serves it, or what came was not what the descriptor says.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The stream had failed or was stopped before; the first error says why.
    #[error("the fetch was stopped: the daemon is going down, or the fetch had failed before")]
    Stopped,
    /// A task of the fetch panicked.
    #[error("the fetch panicked: {said}; this is a defect of hoist, please report it with the log")]
    Panicked {
        /// Its words.
        said: String,
    },
    /// Its [`Canceller`] was used.
    #[error("the fetch was cancelled")]
    Cancelled,
}

impl FetchError {
    /// Whether what came was not what the descriptor says.
    pub fn is_integrity(&self) -> bool {
        matches!(self, Self::Registry(error) if error.is_integrity())
    }
}

/// Ends a fetch from another thread than the reader's, which may be blocked in it.
#[derive(Clone)]
pub struct Canceller {
    window: Arc<Window>,
    task: AbortHandle,
}

impl Canceller {
    /// The reader gets [`FetchError::Cancelled`], at once if it waits, and all requests end.
    pub fn cancel(&self) {
        self.window.fail(FetchError::Cancelled);
        self.task.abort();
    }
}

/// How much is asked for at once. Numbers below 1 count as 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes that one request asks for. Object stores give their best from 8 MiB on.
    pub chunk_bytes: u64,
    /// Connections for one image.
    pub per_image: usize,
    /// Connections to one host at most; fewer while more do not bring more.
    pub per_host: usize,
    /// Connections of the daemon.
    pub global: usize,
}

impl Default for Limits {
    /// Eight connections of some 80 MB/s each, as object stores give, fill the links of most
    /// instances; the larger bounds are for several images at once.
    fn default() -> Self {
        Self { chunk_bytes: 8 << 20, per_image: 8, per_host: 16, global: 32 }
    }
}

/// Fetches blobs within the bounds of one daemon. Clones share the bounds.
#[derive(Clone)]
pub struct Fetcher {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Registry,
    budget: Budget,
    limits: Limits,
    connections: Connections,
    restraints: InForce,
}

impl Fetcher {
    /// A fetcher whose windows together stay within `budget`. A chunk is at most a quarter of the
    /// budget, so that one can be read while others arrive.
    pub fn new(registry: Registry, budget: Budget, limits: Limits) -> Self {
        let limits = Limits {
            chunk_bytes: limits.chunk_bytes.min(budget.total() / 4).max(1),
            per_image: limits.per_image.max(1),
            per_host: limits.per_host.max(1),
            global: limits.global.max(1),
        };
        let connections = Connections::new(limits);
        let restraints = InForce::default();
        let shared = Shared { registry, budget, limits, connections, restraints };
        Self { shared: Arc::new(shared) }
    }

    /// Holds fetching to these restraints from now on, instead of those before; what is on its way
    /// too.
    pub fn restrain(&self, restraints: &Restraints) {
        self.shared.restraints.set(restraints);
    }

    /// The limits on bytes a second: first that of all registries together (`None`), which may have
    /// no rate, then those of registries that have one.
    pub fn rate_limits(&self) -> Vec<(Option<String>, RateLimit)> {
        self.shared.restraints.rates()
    }

    /// The registry that is fetched from.
    pub fn registry(&self) -> &Registry {
        &self.shared.registry
    }

    /// Requests that may be under way at once, and those that are.
    pub fn connections(&self) -> (usize, usize) {
        (self.shared.limits.global, self.shared.connections.count())
    }

    /// Fetches for one image: the blobs started with what is returned share its connections.
    pub fn image(&self) -> ImageFetcher {
        ImageFetcher { shared: Arc::clone(&self.shared), party: Party::new() }
    }
}

/// Fetches the blobs of one image. Clones share its bound of connections.
#[derive(Clone)]
pub struct ImageFetcher {
    shared: Arc<Shared>,
    party: Party,
}

impl ImageFetcher {
    /// The image among those that share.
    pub fn party(&self) -> Party {
        self.party
    }

    /// Begins to fetch `size` bytes of `blob` on `runtime` and returns their reader. The reader has
    /// to be read or dropped by somebody who does not wait for another reader of the same budget.
    pub fn start(
        &self,
        runtime: &Handle,
        blob: Blob,
        size: u64,
        recorder: Arc<LayerRecorder>,
    ) -> BlobReader {
        let standing = Standing::new(self.party, size, 1);
        self.start_for(runtime, blob, size, recorder, standing)
    }

    /// As [`start`](Self::start), for a layer whose `standing` the caller keeps an eye on. Of a layer that
    /// waits for its turn only the first chunk is fetched, after what others ask for, and the reader need
    /// not be read: once the layer was set to work, [`BlobReader::begin`] is to be called.
    pub fn start_for(
        &self,
        runtime: &Handle,
        blob: Blob,
        size: u64,
        recorder: Arc<LayerRecorder>,
        standing: Arc<Standing>,
    ) -> BlobReader {
        let most = self.shared.limits.per_image + transfer::CHUNKS_SPARE;
        let make = if standing.is_in_work() { Window::new } else { Window::of_head };
        let window = Arc::new(make(most));
        let transfer = Transfer {
            shared: Arc::clone(&self.shared),
            blob,
            size,
            recorder,
            standing: Arc::clone(&standing),
            window: Arc::clone(&window),
        };
        let task = runtime.spawn(transfer.run().in_current_span()).abort_handle();
        standing.begin(size);
        BlobReader { shared: Arc::clone(&self.shared), window, task, left: size, standing }
    }
}

/// The bytes of a blob in their order. Dropping it ends all of its requests and returns its bytes
/// to the budget.
pub struct BlobReader {
    shared: Arc<Shared>,
    window: Arc<Window>,
    task: AbortHandle,
    left: u64,
    standing: Arc<Standing>,
}

impl BlobReader {
    /// The next bytes, never none at all; `None` after the last of the blob's size. Blocks the
    /// thread: not to be called from a task.
    ///
    /// # Errors
    /// Where the blob cannot be had, as soon as that is known.
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator could not return the end's error"
    )]
    pub fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        if self.left == 0 {
            return self.window.ended().map(|()| None);
        }
        let bytes = self.window.take()?;
        self.left -= bytes.len() as u64;
        self.standing.worked(bytes.len() as u64);
        Ok(Some(bytes))
    }

    /// Whether [`BlobReader::next`] returns at once.
    pub fn is_ready(&self) -> bool {
        if self.left == 0 { self.window.has_ended() } else { self.window.has_bytes() }
    }

    /// Fetches on beyond the first chunk, for a layer that has waited for its turn and now has it.
    pub fn begin(&self) {
        self.shared.budget.look_again();
        self.window.begin_reading();
    }

    /// What ends this fetch from elsewhere.
    pub fn canceller(&self) -> Canceller {
        Canceller { window: Arc::clone(&self.window), task: self.task.clone() }
    }

    /// Bytes that were not returned yet.
    pub fn left(&self) -> u64 {
        self.left
    }
}

impl Drop for BlobReader {
    fn drop(&mut self) {
        self.task.abort();
        self.window.close();
    }
}
