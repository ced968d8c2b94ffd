//! What the segments of one stream may hold in memory.
//!
//! The bytes come out of the daemon's budget, beside what the layer has reserved for its serial
//! way, and only for a stream that has turned out to have several frames. Nobody ever stands still
//! for them: they are asked for, the stream is decoded serially meanwhile, and where they are all
//! in use it is decoded serially again for a while. That, and a bound on what all streams may
//! borrow together ([`Pool`]), keeps decoders from waiting for fetches that wait for decoders.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::pool::Pool;
use crate::budget::{Pending, Permit};

/// It is not worth the while to borrow less.
const LEAST_BYTES: u64 = 1 << 20;

/// The memory of one stream.
pub(super) struct Memory {
    held: Arc<Held>,
    pool: Pool,
    asked: Option<(Pending, Permit, u64)>,
}

#[derive(Default)]
struct Held(Mutex<State>);

#[derive(Default)]
struct State {
    granted: u64,
    /// Bytes in use: compressed ones, and the capacity of buffers on loan.
    used: u64,
    /// Bytes that somebody will use.
    promised: u64,
    /// Buffers that have come back; using them again spares the page faults of fresh memory.
    idle: Vec<Vec<u8>>,
    /// In the budget, and in the bound over all streams.
    permits: Vec<(Permit, Permit)>,
}

impl Held {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes room for `bytes`, at the price of idle buffers if need be.
    fn charge(&mut self, bytes: u64) -> bool {
        let mut idle: u64 = self.idle.iter().map(|buffer| buffer.capacity() as u64).sum();
        if self.used + self.promised + bytes > self.granted {
            return false;
        }
        while self.used + idle + bytes > self.granted {
            let Some(buffer) = self.idle.pop() else { break };
            idle -= buffer.capacity() as u64;
        }
        self.used += bytes;
        true
    }
}

impl Memory {
    pub(super) fn new(pool: Pool) -> Self {
        Self { held: Arc::default(), pool, asked: None }
    }

    /// Asks for so much that the stream has `wanted` bytes, or as many as there are to borrow.
    pub(super) fn ask(&mut self, wanted: u64) {
        let missing = wanted.saturating_sub(self.granted());
        if self.asked.is_some() || missing == 0 {
            return;
        }
        let bound = self.pool.lent();
        let free = bound.total() - bound.in_use();
        let bytes = missing.max(LEAST_BYTES).min(free);
        if bytes >= LEAST_BYTES
            && let Some(permit) = bound.try_reserve(bytes)
        {
            self.asked = Some((self.pool.budget().request(bytes), permit, bytes));
        }
    }

    /// The bytes that have been granted until now.
    pub(super) fn granted(&mut self) -> u64 {
        let mut state = self.held.state();
        if let Some((pending, bound, bytes)) = self.asked.take() {
            match pending.granted() {
                Ok(permit) => {
                    state.permits.push((permit, bound));
                    state.granted += bytes;
                }
                Err(pending) => self.asked = Some((pending, bound, bytes)),
            }
        }
        state.granted
    }

    /// Counts `bytes` as in use, if there is room for them.
    pub(super) fn charge(&self, bytes: usize) -> bool {
        self.held.state().charge(bytes as u64)
    }

    /// Counts `bytes` as no longer in use.
    pub(super) fn release(&self, bytes: usize) {
        self.held.state().used -= bytes as u64;
    }

    /// An empty buffer of at least that capacity, if there is room for it.
    pub(super) fn buffer(&self, capacity: usize) -> Option<Buffer> {
        self.held.buffer(self.held.state(), capacity)
    }

    /// Who may promise some of it to others.
    pub(super) fn lender(&self) -> Lender {
        Lender(Arc::clone(&self.held))
    }
}

/// Promises bytes of a stream's memory.
pub(super) struct Lender(Arc<Held>);

impl Lender {
    /// Sets `bytes` aside, if they are not in use.
    pub(super) fn promise(&self, bytes: u64) -> Option<Promise> {
        let mut state = self.0.state();
        if state.used + state.promised + bytes > state.granted {
            return None;
        }
        state.promised += bytes;
        Some(Promise { held: Arc::clone(&self.0), bytes })
    }
}

/// Bytes that are set aside for buffers; what was not taken returns when it is dropped.
pub(super) struct Promise {
    held: Arc<Held>,
    bytes: u64,
}

impl Promise {
    /// An empty buffer of at least that capacity, if so much was promised.
    pub(super) fn buffer(&mut self, capacity: usize) -> Option<Buffer> {
        self.bytes = self.bytes.checked_sub(capacity as u64)?;
        let mut state = self.held.state();
        state.promised -= capacity as u64;
        self.held.buffer(state, capacity)
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.held.state().promised -= self.bytes;
    }
}

impl Held {
    fn buffer(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        capacity: usize,
    ) -> Option<Buffer> {
        let fits =
            |buffer: &Vec<u8>| buffer.capacity() >= capacity && buffer.capacity() / 2 <= capacity;
        let (bytes, charged) = if let Some(index) = state.idle.iter().position(fits) {
            let bytes = state.idle.swap_remove(index);
            let charged = bytes.capacity() as u64;
            state.used += charged;
            (bytes, charged)
        } else if state.charge(capacity as u64) {
            (Vec::with_capacity(capacity), capacity as u64)
        } else {
            return None;
        };
        drop(state);
        Some(Buffer { bytes, charged, home: Arc::clone(self) })
    }
}

/// A buffer on loan; it returns when it is dropped.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    charged: u64,
    home: Arc<Held>,
}

impl Buffer {
    /// The bytes; who fills them does not let them grow beyond their capacity.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// What was filled in, to be shared; the buffer returns with the last slice.
    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut state = self.home.state();
        state.used -= self.charged;
        if bytes.capacity() > 0 {
            state.idle.push(bytes);
        }
    }
}
