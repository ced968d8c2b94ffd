//! Threads that hash the streams of all layers, two at a time.
//!
//! A stream is in one of three places: it has nothing to hash, it is *ready*, or a thread has it.
//! A thread takes the two ready streams that have most to hash, as far as both reach. One that is
//! ready alone waits for a partner, until it is *urgent*: half full, or somebody waits for it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};

use super::Hasher;
use crate::image::Sha256;

/// Told of work done on a stream: when it began, how long the stream had of it, how many bytes.
pub type Hashed = Box<dyn Fn(Instant, Duration, u64) + Send + Sync>;

/// Threads that hash. Clones share them; they end with the last clone and stream.
#[derive(Clone)]
pub struct Hashers(Arc<Owner>);

/// Ends the threads when it is dropped.
struct Owner {
    shared: Arc<Shared>,
    threads: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// For threads: there is something to hash, or to leave.
    work: Condvar,
    /// For streams: bytes were hashed.
    moved: Condvar,
}

#[derive(Default)]
struct State {
    streams: HashMap<u64, Stream>,
    next: u64,
    closed: bool,
}

struct Stream {
    /// `None` while a thread has it.
    hasher: Option<Hasher>,
    pieces: VecDeque<Bytes>,
    /// Bytes that are not hashed yet, those that a thread has included.
    bytes: usize,
    /// The most that may be pending.
    capacity: usize,
    /// Somebody waits for it to be hashed.
    awaited: bool,
    /// A thread had it and panicked.
    lost: bool,
    hashed: Arc<Hashed>,
}

impl Stream {
    fn is_ready(&self) -> bool {
        self.hasher.is_some() && !self.pieces.is_empty()
    }

    fn is_urgent(&self) -> bool {
        self.awaited || self.bytes >= self.capacity / 2
    }
}

/// One stream on its way to its digest.
pub struct HashStream(Way);

enum Way {
    Pool {
        owner: Arc<Owner>,
        id: u64,
    },
    /// No thread could be had: whoever brings the bytes hashes them.
    Here {
        hasher: Hasher,
        hashed: Hashed,
    },
}

impl Hashers {
    /// At most `threads` threads; fewer where the system refuses, and with none the streams are
    /// hashed by whoever feeds them.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let spawn = |_: &usize| {
            let shared = Arc::clone(&shared);
            let named = std::thread::Builder::new().name("hoist-hash".to_owned());
            named
                .spawn(move || shared.work())
                .inspect_err(|error| tracing::warn!(%error, "a thread for hashing cannot start"))
                .is_ok()
        };
        let threads = (0..threads).take_while(spawn).count();
        Self(Arc::new(Owner { shared, threads }))
    }

    /// A new stream, of which at most `capacity` bytes wait to be hashed; `hashed` is told of all
    /// work that is done on it.
    pub fn stream(&self, capacity: usize, hashed: Hashed) -> HashStream {
        if self.0.threads == 0 {
            return HashStream(Way::Here { hasher: Hasher::default(), hashed });
        }
        let mut state = self.0.shared.state();
        let id = state.next;
        state.next += 1;
        let stream = Stream {
            hasher: Some(Hasher::default()),
            pieces: VecDeque::new(),
            bytes: 0,
            capacity,
            awaited: false,
            lost: false,
            hashed: Arc::new(hashed),
        };
        state.streams.insert(id, stream);
        HashStream(Way::Pool { owner: Arc::clone(&self.0), id })
    }

    /// Alive as long as a thread or a handle is.
    #[cfg(test)]
    pub(super) fn alive(&self) -> impl Fn() -> bool + use<> {
        let shared = Arc::downgrade(&self.0.shared);
        move || shared.strong_count() > 0
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.work.notify_all();
    }
}

impl HashStream {
    /// Adds bytes; waits while as many wait as may. A piece that is larger than that goes alone.
    ///
    /// # Panics
    /// Where a thread that hashed this stream has panicked.
    pub fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        match &mut self.0 {
            Way::Pool { owner, id } => owner.shared.push(*id, bytes),
            Way::Here { hasher, hashed } => {
                let began = Instant::now();
                hasher.update(&bytes);
                hashed(began, began.elapsed(), bytes.len() as u64);
            }
        }
    }

    /// Waits until all is hashed and returns the digest.
    ///
    /// # Panics
    /// Where a thread that hashed this stream has panicked.
    pub fn finish(mut self) -> Sha256 {
        let hasher = match &mut self.0 {
            Way::Here { hasher, .. } => std::mem::take(hasher),
            Way::Pool { owner, id } => {
                let mut state = owner.shared.wait_until(*id, |stream| stream.bytes == 0);
                let hasher = state.stream(*id).hasher.take();
                hasher.expect("no thread has a stream without bytes")
            }
        };
        hasher.finish()
    }
}

impl Drop for HashStream {
    fn drop(&mut self) {
        if let Way::Pool { owner, id } = &self.0 {
            owner.shared.state().streams.remove(id);
        }
    }
}

impl State {
    /// A stream that is not dropped yet.
    fn stream(&mut self, id: u64) -> &mut Stream {
        self.streams.get_mut(&id).expect("a stream is there until it is dropped")
    }

    /// What a thread should take now: one stream or two.
    fn choose(&self) -> Option<(u64, Option<u64>)> {
        let mut best: [Option<(usize, u64)>; 2] = [None; 2];
        for (&id, stream) in self.streams.iter().filter(|(_, stream)| stream.is_ready()) {
            let this = Some((stream.bytes, id));
            if this > best[0] {
                best = [this, best[0]];
            } else if this > best[1] {
                best[1] = this;
            }
        }
        let (_, first) = best[0]?;
        let second = best[1].map(|(_, id)| id);
        let goes = second.is_some() || self.streams.len() == 1 || self.streams[&first].is_urgent();
        goes.then_some((first, second))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `so` holds of a stream, which is urgent for as long.
    fn wait_until(&self, id: u64, so: impl Fn(&Stream) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.state();
        loop {
            let stream = state.stream(id);
            assert!(!stream.lost, "a thread that hashes has panicked");
            stream.awaited = !so(stream);
            if !stream.awaited {
                return state;
            }
            self.work.notify_one();
            state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn push(&self, id: u64, bytes: Bytes) {
        let fits =
            |stream: &Stream| stream.bytes == 0 || stream.bytes + bytes.len() <= stream.capacity;
        let mut state = self.wait_until(id, fits);
        let stream = state.stream(id);
        stream.bytes += bytes.len();
        stream.pieces.push_back(bytes);
        let goes = state.choose().is_some();
        drop(state);
        if goes {
            self.work.notify_one();
        }
    }

    /// A thread's life.
    fn work(&self) {
        let mut state = self.state();
        while !state.closed {
            let Some((first, second)) = state.choose() else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let first = Lane::take(self, &mut state, first);
            let second = second.map(|id| Lane::take(self, &mut state, id));
            let more = state.choose().is_some();
            drop(state);
            if more {
                // What else is ready need not wait for this thread.
                self.work.notify_one();
            }
            match second {
                Some(second) => hash_both(first, second),
                None => hash_one(first),
            }
            state = self.state();
        }
    }
}

/// A stream that a thread has; it goes back when this is dropped.
struct Lane<'a> {
    shared: &'a Shared,
    id: u64,
    hasher: Hasher,
    pieces: VecDeque<Bytes>,
    hashed: Arc<Hashed>,
    done: usize,
}

impl<'a> Lane<'a> {
    fn take(shared: &'a Shared, state: &mut State, id: u64) -> Self {
        let stream = state.stream(id);
        let hasher = stream.hasher.take().expect("only ready streams are chosen");
        let (pieces, hashed) = (std::mem::take(&mut stream.pieces), Arc::clone(&stream.hashed));
        Self { shared, id, hasher, pieces, hashed, done: 0 }
    }

    /// Drops `count` bytes of the first piece: they are hashed. A piece that is used up goes at
    /// once, as somebody may wait for its buffer.
    fn advance(&mut self, count: usize) {
        self.done += count;
        let Some(piece) = self.pieces.front_mut() else { return };
        piece.advance(count);
        if piece.is_empty() {
            self.pieces.pop_front();
        }
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        // The stream may have been given up meanwhile.
        if let Some(stream) = state.streams.get_mut(&self.id) {
            stream.lost = std::thread::panicking();
            stream.bytes -= self.done;
            stream.hasher = Some(std::mem::take(&mut self.hasher));
            while let Some(piece) = self.pieces.pop_back() {
                stream.pieces.push_front(piece);
            }
        }
        drop(state);
        self.shared.moved.notify_all();
    }
}

/// One piece only: a partner may come meanwhile.
fn hash_one(mut lane: Lane<'_>) {
    let began = Instant::now();
    let Some(piece) = lane.pieces.front() else { return };
    lane.hasher.update(piece);
    let length = piece.len();
    lane.advance(length);
    (lane.hashed)(began, began.elapsed(), length as u64);
}

/// As far as both reach.
fn hash_both(mut first: Lane<'_>, mut second: Lane<'_>) {
    let began = Instant::now();
    while let (Some(a), Some(b)) = (first.pieces.front(), second.pieces.front()) {
        let both = a.len().min(b.len());
        Hasher::update_both([&mut first.hasher, &mut second.hasher], [&a[..both], &b[..both]]);
        first.advance(both);
        second.advance(both);
    }
    let half = began.elapsed() / 2;
    (first.hashed)(began, half, first.done as u64);
    (second.hashed)(began, half, second.done as u64);
}
