//! The part of a blob that is in memory: chunks in the order of their offsets.
//!
//! Tasks fill the chunks' places, a thread takes from the first one. The lock is held for moves of
//! pointers only. Nothing here bounds bytes: whoever opens a place has reserved them, and the
//! reservation lies in the place.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use super::FetchError;
use crate::budget::Permit;

/// Pieces up to this size are put together: a host that sends crumbs shall not cost more in
/// bookkeeping than in bytes.
const CRUMB_BYTES: usize = 16 << 10;

/// Chunks that may be open at first.
const WIDTH_AT_FIRST: usize = 4;

/// Chunks that may be open at least: one is read while the next one arrives.
const WIDTH_LEAST: usize = 2;

/// Bytes that lie ready for the reader when it comes to the next chunk, from which on it is the
/// limit and not the network: what it takes a tenth of a second to decode.
const READY_BYTES: u64 = 16 << 20;

#[derive(Debug)]
struct Chunk {
    number: u64,
    pieces: VecDeque<Bytes>,
    whole: bool,
    _reservation: Permit,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Chunk>,
    /// Chunks that may be open, and how many at most.
    width: usize,
    width_most: usize,
    /// Nobody reads yet: the first chunk may be open, and no other.
    head_only: bool,
    /// The reader had to wait since it came to the first chunk.
    waited: bool,
    /// Bytes in all pieces.
    queued: u64,
    error: Option<FetchError>,
    closed: bool,
    /// All requests have ended well, and nothing came beyond the last byte.
    finished: bool,
}

/// Chunks between the tasks that fetch them and the thread that reads them.
#[derive(Debug, Default)]
pub(super) struct Window {
    state: Mutex<State>,
    arrived: Condvar,
    taken: Notify,
}

impl Window {
    /// An empty window with room for `most` chunks, if the reader is quick.
    pub(super) fn new(most: usize) -> Self {
        let window = Self::default();
        {
            let mut state = window.state();
            state.width_most = most.max(WIDTH_LEAST);
            state.width = WIDTH_AT_FIRST.min(state.width_most);
        }
        window
    }

    /// The same for a blob that nobody reads yet: the first chunk has its place, the others have theirs
    /// from [`Window::begin_reading`] on.
    pub(super) fn of_head(most: usize) -> Self {
        let window = Self::new(most);
        window.state().head_only = true;
        window
    }

    /// Says that somebody reads from now on.
    pub(super) fn begin_reading(&self) {
        self.state().head_only = false;
        self.taken.notify_one();
    }

    /// Waits until somebody reads.
    pub(super) async fn until_read(&self) {
        self.until(|state| !state.head_only).await;
    }

    /// Waits until one more chunk is worth its memory. (A closed window has room: what is opened in
    /// it is dropped.)
    pub(super) async fn room(&self) {
        let has_room = |state: &State| {
            let width = if state.head_only { 1 } else { state.width };
            state.chunks.len() < width
        };
        self.until(has_room).await;
    }

    /// Waits until it is so, or the window is closed.
    async fn until(&self, is_so: impl Fn(&State) -> bool) {
        loop {
            let taken = self.taken.notified();
            {
                let state = self.state();
                if state.closed || is_so(&state) {
                    return;
                }
            }
            taken.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the place of the next chunk. A closed window drops the reservation at once.
    pub(super) fn open(&self, number: u64, reservation: Permit) {
        let mut state = self.state();
        if !state.closed {
            let pieces = VecDeque::new();
            state.chunks.push_back(Chunk {
                number,
                pieces,
                whole: false,
                _reservation: reservation,
            });
        }
    }

    /// Adds bytes to an open chunk.
    pub(super) fn push(&self, number: u64, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.state();
        let length = bytes.len() as u64;
        let Some(chunk) = state.chunks.iter_mut().find(|chunk| chunk.number == number) else {
            return;
        };
        match chunk.pieces.back_mut() {
            Some(last) if last.len() + bytes.len() <= CRUMB_BYTES => {
                *last = joined(std::mem::take(last), &bytes);
            }
            _ => chunk.pieces.push_back(bytes),
        }
        state.queued += length;
        let first = state.chunks.front().is_some_and(|chunk| chunk.number == number);
        drop(state);
        if first {
            self.arrived.notify_one();
        }
    }

    /// Notes that a chunk's last byte was pushed.
    pub(super) fn complete(&self, number: u64) {
        let mut state = self.state();
        if let Some(chunk) = state.chunks.iter_mut().find(|chunk| chunk.number == number) {
            chunk.whole = true;
        }
        state.drop_read_chunks();
        drop(state);
        self.arrived.notify_one();
        self.taken.notify_one();
    }

    /// Notes that all requests have ended well.
    pub(super) fn finish(&self) {
        self.state().finished = true;
        self.arrived.notify_one();
    }

    /// Waits until all requests have ended, for whoever has taken the last byte: only then is it
    /// known that nothing came behind it.
    pub(super) fn ended(&self) -> Result<(), FetchError> {
        let mut state = self.state();
        loop {
            if state.finished {
                return Ok(());
            }
            if state.closed {
                return Err(state.error.take().unwrap_or(FetchError::Stopped));
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether [`Window::ended`] knows already.
    pub(super) fn has_ended(&self) -> bool {
        let state = self.state();
        state.finished || state.closed
    }

    /// Whether [`Window::take`] has something to tell.
    pub(super) fn has_bytes(&self) -> bool {
        let state = self.state();
        state.closed || state.chunks.front().is_some_and(|chunk| !chunk.pieces.is_empty())
    }

    /// Ends the stream with an error; the first one counts.
    pub(super) fn fail(&self, error: FetchError) {
        let mut state = self.state();
        if !state.closed {
            state.error.get_or_insert(error);
            state.close();
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// Ends the stream and drops what is in it.
    pub(super) fn close(&self) {
        self.state().close();
        self.arrived.notify_one();
        self.taken.notify_one();
    }

    /// Waits until at most `bytes` lie in the window.
    pub(super) async fn below(&self, bytes: u64) {
        loop {
            let taken = self.taken.notified();
            if self.state().queued <= bytes {
                return;
            }
            taken.await;
        }
    }

    /// The next bytes of the blob; blocks until they are there.
    pub(super) fn take(&self) -> Result<Bytes, FetchError> {
        let mut state = self.state();
        loop {
            if state.closed {
                return Err(state.error.take().unwrap_or(FetchError::Stopped));
            }
            let piece = state.chunks.front_mut().and_then(|chunk| chunk.pieces.pop_front());
            if let Some(piece) = piece {
                state.queued -= piece.len() as u64;
                state.drop_read_chunks();
                drop(state);
                self.taken.notify_one();
                return Ok(piece);
            }
            state.waited = true;
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    /// Drops chunks that came whole and were taken whole, and with them their reservations.
    fn drop_read_chunks(&mut self) {
        while self.chunks.front().is_some_and(|chunk| chunk.whole && chunk.pieces.is_empty()) {
            self.chunks.pop_front();
            self.settle_width();
        }
    }

    /// Fetches further ahead where the reader had to wait for the chunk that it has read, and less
    /// far where much is ready for it.
    fn settle_width(&mut self) {
        let ready = self.chunks.iter().take_while(|chunk| chunk.whole);
        let ready: usize = ready.flat_map(|chunk| chunk.pieces.iter().map(Bytes::len)).sum();
        if std::mem::take(&mut self.waited) {
            self.width = (self.width + 2).min(self.width_most);
        } else if ready as u64 >= READY_BYTES {
            self.width = (self.width - 1).max(WIDTH_LEAST);
        }
    }

    fn close(&mut self) {
        self.closed = true;
        self.chunks.clear();
        self.queued = 0;
    }
}

/// `first` with `second` behind it; copies `second` only, where `first` has room of its own.
fn joined(first: Bytes, second: &[u8]) -> Bytes {
    let mut both = first.try_into_mut().unwrap_or_else(|shared| {
        let mut own = BytesMut::with_capacity(CRUMB_BYTES);
        own.extend_from_slice(&shared);
        own
    });
    both.extend_from_slice(second);
    both.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    fn reservation(budget: &Budget) -> Permit {
        budget.try_reserve(1024).unwrap()
    }

    #[test]
    fn bytes_come_in_the_order_of_chunks_and_return_their_reservation() {
        let budget = Budget::new(4096);
        let window = Window::new(9);
        window.open(0, reservation(&budget));
        window.open(1, reservation(&budget));
        window.push(1, Bytes::from_static(b"cd"));
        window.complete(1);
        window.push(0, Bytes::from_static(b"a"));
        window.push(0, Bytes::from_static(b"b"));
        window.complete(0);
        assert_eq!(budget.in_use(), 2048);
        assert_eq!(window.take().unwrap(), "ab", "crumbs are put together");
        assert_eq!(budget.in_use(), 1024);
        assert_eq!(window.take().unwrap(), "cd");
        assert_eq!(budget.in_use(), 0);
    }

    #[test]
    fn an_error_comes_at_once_and_drops_what_was_there() {
        let budget = Budget::new(4096);
        let window = Window::new(9);
        window.open(0, reservation(&budget));
        window.push(0, Bytes::from_static(b"ab"));
        let error = crate::registry::RegistryError::NotFound {
            host: "h.example".to_owned(),
            what: "blob".to_owned(),
        };
        window.fail(error.into());
        assert_eq!(budget.in_use(), 0);
        assert!(matches!(window.take(), Err(FetchError::Registry(_))));
        assert!(matches!(window.take(), Err(FetchError::Stopped)));
        window.open(1, reservation(&budget));
        assert_eq!(budget.in_use(), 0);
    }

    #[test]
    fn crumbs_do_not_pile_up() {
        let budget = Budget::new(4096);
        let window = Window::new(9);
        window.open(0, reservation(&budget));
        let big = Bytes::from(vec![7; CRUMB_BYTES * 4]);
        for at in 0..CRUMB_BYTES * 2 {
            window.push(0, big.slice(at..=at));
        }
        assert_eq!(window.state().chunks[0].pieces.len(), 2);
        assert_eq!(window.take().unwrap().len(), CRUMB_BYTES);
    }

    fn width(window: &Window) -> usize {
        window.state().width
    }

    /// A chunk of 8 MiB that came whole.
    fn whole(window: &Window, number: u64, budget: &Budget) {
        window.open(number, reservation(budget));
        window.push(number, Bytes::from(vec![0; 8 << 20]));
        window.complete(number);
    }

    #[test]
    fn a_slow_reader_has_less_fetched_ahead_of_it_and_a_quick_one_more() {
        let budget = Budget::new(1 << 20);
        let window = std::sync::Arc::new(Window::new(10));
        assert_eq!(width(&window), WIDTH_AT_FIRST);
        for number in 0..9 {
            whole(&window, number, &budget);
        }
        let widths: Vec<_> = (0..9).map(|_| (window.take().unwrap(), width(&window)).1).collect();
        assert_eq!(widths, [3, 2, 2, 2, 2, 2, 2, 2, 2]);
        for (number, wider) in [(9, 4), (10, 6), (11, 8), (12, 10), (13, 10)] {
            window.open(number, reservation(&budget));
            let reader = std::sync::Arc::clone(&window);
            let reading = std::thread::spawn(move || reader.take().unwrap());
            while !window.state().waited {
                std::thread::yield_now();
            }
            window.push(number, Bytes::from_static(b"x"));
            reading.join().unwrap();
            window.complete(number);
            assert_eq!(width(&window), wider);
        }
    }
}
