//! A blob as an ordered stream of bytes, fetched by many requests at once.
//!
//! A blob is cut into chunks. A task a blob walks over them in the order of their offsets: it
//! reserves a chunk's bytes in the daemon's [`Budget`], opens a place for it in the blob's window
//! and starts a task for it, which waits for its turn among the connections of the image, of the
//! host and of the daemon, and then asks for the chunk's range. What arrives goes into the chunk's
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
//! time, so a blob's first chunk always holds its bytes before its later ones; whoever holds a
//! connection has its budget already and never waits for the reader, so connections come free
//! again. What is asked of the caller is that every reader is read or dropped: bytes in the window
//! of a reader that nobody reads are bytes that others wait for.
//!
//! A body that breaks off is resumed where it broke, by a request of its own, after a pause in
//! which its connection is another's. Progress starts the count of tries anew. Whether a host
//! serves parts at all shows in the first answer of a blob; one that does not sends the blob as one
//! stream, through the first chunk's reservation, and is made to wait while that is full.
//!
//! Bytes are counted here and not hashed: `pull` does that, and only what it has verified counts.

mod transfer;
mod window;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use crate::budget::Budget;
use crate::registry::{Blob, Registry, RegistryError};
use crate::timeline::LayerRecorder;

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
    /// Connections to one host.
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
    global: Arc<Semaphore>,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Fetcher {
    /// A fetcher whose windows together stay within `budget`. A chunk is at most a quarter of the
    /// budget, so that one can be read while others arrive.
    pub fn new(registry: Registry, budget: Budget, limits: Limits) -> Self {
        let at_least_one = |n: usize| n.clamp(1, Semaphore::MAX_PERMITS - transfer::PLACES_SPARE);
        let limits = Limits {
            chunk_bytes: limits.chunk_bytes.min(budget.total() / 4).max(1),
            per_image: at_least_one(limits.per_image),
            per_host: at_least_one(limits.per_host),
            global: at_least_one(limits.global),
        };
        let global = Arc::new(Semaphore::new(limits.global));
        let shared = Shared { registry, budget, limits, global, hosts: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// The registry that is fetched from.
    pub fn registry(&self) -> &Registry {
        &self.shared.registry
    }

    /// Requests that may be under way at once, and those that are.
    pub fn connections(&self) -> (usize, usize) {
        let most = self.shared.limits.global;
        (most, most - self.shared.global.available_permits())
    }

    /// Fetches for one image: the blobs started with what is returned share its connections.
    pub fn image(&self) -> ImageFetcher {
        let connections = Arc::new(Semaphore::new(self.shared.limits.per_image));
        ImageFetcher { shared: Arc::clone(&self.shared), connections }
    }
}

/// Fetches the blobs of one image. Clones share its bound of connections.
#[derive(Clone)]
pub struct ImageFetcher {
    shared: Arc<Shared>,
    connections: Arc<Semaphore>,
}

/// Leave for one connection: of the image, of the host and of the daemon, taken in this order by
/// everybody, so that nobody waits in a circle.
struct Connection {
    _permits: [OwnedSemaphorePermit; 3],
}

impl ImageFetcher {
    /// Begins to fetch `size` bytes of `blob` on `runtime` and returns their reader. The reader has
    /// to be read or dropped by somebody who does not wait for another reader of the same budget.
    pub fn start(
        &self,
        runtime: &Handle,
        blob: Blob,
        size: u64,
        recorder: Arc<LayerRecorder>,
    ) -> BlobReader {
        let window = Arc::new(Window::default());
        let transfer = Transfer::new(self.clone(), blob, size, recorder, Arc::clone(&window));
        let task = runtime.spawn(transfer.run()).abort_handle();
        BlobReader { window, task, left: size }
    }

    async fn connection(&self, host: &str) -> Connection {
        let of_host = {
            let mut hosts = self.shared.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Semaphore::new(self.shared.limits.per_host));
            Arc::clone(hosts.entry(host.to_owned()).or_insert_with(new))
        };
        let acquire = async |semaphore: &Arc<Semaphore>| {
            let permit = Arc::clone(semaphore).acquire_owned().await;
            permit.expect("the semaphores of connections are never closed")
        };
        let image = acquire(&self.connections).await;
        let host = acquire(&of_host).await;
        let global = acquire(&self.shared.global).await;
        Connection { _permits: [image, host, global] }
    }
}

/// The bytes of a blob in their order. Dropping it ends all of its requests and returns its bytes
/// to the budget.
pub struct BlobReader {
    window: Arc<Window>,
    task: AbortHandle,
    left: u64,
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
        Ok(Some(bytes))
    }

    /// Whether [`BlobReader::next`] returns at once.
    pub fn is_ready(&self) -> bool {
        if self.left == 0 { self.window.has_ended() } else { self.window.has_bytes() }
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
