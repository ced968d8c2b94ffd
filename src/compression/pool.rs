//! Threads that help the decoders of all layers.
//!
//! Each layer has a thread of its own that decodes; a [`Pool`] is the others, shared by the whole
//! daemon, so that ten layers at once are not ten times as many. They begin when there is work,
//! take segments in the order in which they were cut, and end when there was none for a while. A
//! layer never depends on them: what no helper has begun when its turn comes, the layer's own
//! thread decodes itself.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Format;
use super::cut::Sizes;
use super::gzip::Members;
use super::memory::Buffer;
use super::speculative::Inflater;
use super::zstandard::Frames;
use crate::budget::Budget;

/// A helper without work ends after this time: between two pulls there are none.
const IDLE: Duration = Duration::from_secs(5);

/// Told of the time that a helper has worked for a stream.
pub(super) type OnHelp = Arc<dyn Fn(Instant, Instant) + Send + Sync>;

/// The helpers of a daemon, and the memory that their work may take. Clones share them; with the
/// last clone they end.
#[derive(Clone)]
pub struct Pool(Arc<Handle>);

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.queue().closed = true;
        self.0.work.notify_all();
    }
}

/// A stream that is decoded.
pub(super) struct Entered(Pool);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.0.0.streams.fetch_sub(1, Relaxed);
    }
}

struct Shared {
    helpers: usize,
    idle: Duration,
    sizes: Sizes,
    budget: Budget,
    lent: Budget,
    /// Streams that are decoded now.
    streams: AtomicUsize,
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Arc<dyn Work>>,
    threads: usize,
    waiting: usize,
    closed: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Helpers that make `threads` threads of a single layer's, the layer's own counted; 1 means
    /// none. What segments hold is reserved in `budget`, `lent_bytes` at most over all layers. The
    /// caller sees to it that what else is reserved there, and the chunks without which no layer
    /// goes on, always fit beside that.
    pub fn new(threads: usize, budget: Budget, lent_bytes: u64) -> Self {
        Self::with(threads, budget, lent_bytes, IDLE, Sizes::DEFAULT)
    }

    pub(super) fn with(
        threads: usize,
        budget: Budget,
        lent_bytes: u64,
        idle: Duration,
        sizes: Sizes,
    ) -> Self {
        Self(Arc::new(Handle(Arc::new(Shared {
            helpers: threads.saturating_sub(1),
            idle,
            sizes,
            budget,
            lent: Budget::new(lent_bytes),
            streams: AtomicUsize::new(0),
            queue: Mutex::default(),
            work: Condvar::new(),
        }))))
    }

    /// The most threads beside a layer's own.
    pub(super) fn helpers(&self) -> usize {
        self.0.0.helpers
    }

    /// How large the segments are that it is given.
    pub(super) fn sizes(&self) -> Sizes {
        self.0.0.sizes
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.0.0.budget
    }

    /// The bound on what all layers borrow.
    pub(super) fn lent(&self) -> &Budget {
        &self.0.0.lent
    }

    /// Counts a stream among those that are decoded, until what is returned is dropped.
    pub(super) fn enter(&self) -> Entered {
        self.0.0.streams.fetch_add(1, Relaxed);
        Entered(self.clone())
    }

    /// Threads that no other stream has for its own, the asking one's counted.
    pub(super) fn idle_threads(&self) -> usize {
        let others = self.0.0.streams.load(Relaxed).saturating_sub(1);
        (self.helpers() + 1).saturating_sub(others)
    }

    /// What all streams may borrow together, in bytes.
    pub fn lent_bytes(&self) -> u64 {
        self.lent().total()
    }

    /// Helpers that exist now.
    pub fn threads(&self) -> usize {
        self.0.0.queue().threads
    }

    /// Queues work, and begins one more helper if all are busy.
    pub(super) fn submit(&self, job: Arc<dyn Work>) {
        let shared = &self.0.0;
        let mut queue = shared.queue();
        if queue.jobs.len() >= queue.waiting && queue.threads < shared.helpers {
            let helper = Arc::clone(shared);
            let spawned = std::thread::Builder::new()
                .name("hoist-inflate".to_owned())
                .spawn(move || help(&helper));
            match spawned {
                Ok(_) => queue.threads += 1,
                // The layer's own thread does it all.
                Err(error) => tracing::warn!(%error, "no thread to help decompressing"),
            }
        }
        if queue.threads > 0 {
            queue.jobs.push_back(job);
            drop(queue);
            shared.work.notify_one();
        }
    }
}

/// Takes a helper off the count, however it ends.
struct Leaving<'a>(&'a Shared);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.queue().threads -= 1;
    }
}

fn help(shared: &Shared) {
    let leaving = Leaving(shared);
    let mut tools = Tools::default();
    loop {
        let mut queue = shared.queue();
        let job = loop {
            if queue.closed {
                drop(queue);
                return;
            }
            if let Some(job) = queue.jobs.pop_front() {
                break job;
            }
            queue.waiting += 1;
            let (locked, timeout) = shared
                .work
                .wait_timeout(queue, shared.idle)
                .unwrap_or_else(PoisonError::into_inner);
            queue = locked;
            queue.waiting -= 1;
            if timeout.timed_out() && queue.jobs.is_empty() {
                // Counted off under the same lock: a job that comes now begins another helper.
                queue.threads -= 1;
                std::mem::forget(leaving);
                return;
            }
        };
        drop(queue);
        let from = Instant::now();
        if job.run(&mut tools)
            && let Some(on_help) = job.on_help()
        {
            on_help(from, Instant::now());
        }
    }
}

/// What a helper can do.
pub(super) trait Work: Send + Sync {
    /// Does it, unless there is nothing left to be done; whether something was.
    fn run(&self, tools: &mut Tools) -> bool;

    /// Who is told of the time it took.
    fn on_help(&self) -> Option<&OnHelp>;
}

/// A thread's decoders, made when they are first needed.
#[derive(Default)]
pub(super) struct Tools {
    frames: Option<Frames>,
    members: Option<Members>,
    inflater: Option<Inflater>,
}

impl Tools {
    /// Who inflates from the middle of a stream.
    pub(super) fn inflater(&mut self) -> &mut Inflater {
        self.inflater.get_or_insert_with(Inflater::new)
    }

    /// Whether `compressed` is whole frames or members that `out` has room for; then they are in it.
    fn decode(&mut self, format: Format, compressed: &[u8], out: &mut Vec<u8>) -> bool {
        match format {
            Format::Gzip => self.members.get_or_insert_with(Members::new).decode(compressed, out),
            Format::Zstd => {
                if self.frames.is_none() {
                    self.frames = Frames::new();
                }
                self.frames.as_mut().is_some_and(|frames| frames.decode(compressed, out))
            }
        }
    }
}

/// A segment on its way through the threads.
pub(super) struct Job {
    format: Format,
    state: Mutex<State>,
    ended: Condvar,
    on_help: Option<OnHelp>,
}

enum State {
    /// Nobody has begun it: the compressed bytes, and room for the others.
    Waiting(Vec<u8>, Buffer),
    Running,
    Ended(Ended),
    /// Its result was taken, or it was given up.
    Gone,
}

/// What became of a segment.
pub(super) struct Ended {
    pub(super) compressed: Vec<u8>,
    /// `None` where it could not be decoded by itself.
    pub(super) decoded: Option<Bytes>,
}

impl Job {
    pub(super) fn new(
        format: Format,
        compressed: Vec<u8>,
        room: Buffer,
        on_help: Option<OnHelp>,
    ) -> Self {
        let state = Mutex::new(State::Waiting(compressed, room));
        Self { format, state, ended: Condvar::new(), on_help }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(*self.state(), State::Ended(_))
    }

    /// Waits for whoever has begun it.
    pub(super) fn wait(&self) {
        let mut state = self.state();
        while matches!(*state, State::Running) {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for whoever has begun it, and takes what became of it; what nobody has begun is taken
    /// as it is.
    pub(super) fn take(&self) -> Ended {
        let mut state = self.state();
        while matches!(*state, State::Running) {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match std::mem::replace(&mut *state, State::Gone) {
            State::Waiting(compressed, _) => Ended { compressed, decoded: None },
            State::Ended(ended) => ended,
            State::Running | State::Gone => unreachable!("it ends once, and is taken once"),
        }
    }

    /// Gives it up: nobody begins it any more, and what is done is dropped.
    pub(super) fn cancel(&self) {
        let mut state = self.state();
        if !matches!(*state, State::Running) {
            *state = State::Gone;
        }
    }
}

impl Work for Job {
    /// Decodes it, unless somebody else does; whether it was done here.
    fn run(&self, tools: &mut Tools) -> bool {
        let mut state = self.state();
        let (compressed, mut room) = match std::mem::replace(&mut *state, State::Running) {
            State::Waiting(compressed, room) => (compressed, room),
            other => {
                *state = other;
                return false;
            }
        };
        drop(state);
        // A panic is a defect; to the stream it is one more segment that has to be done serially.
        let decode = || tools.decode(self.format, &compressed, room.bytes());
        let decoded = catch_unwind(AssertUnwindSafe(decode)).unwrap_or(false);
        let ended = Ended { compressed, decoded: decoded.then(|| room.freeze()) };
        *self.state() = State::Ended(ended);
        self.ended.notify_all();
        true
    }

    fn on_help(&self) -> Option<&OnHelp> {
        self.on_help.as_ref()
    }
}
