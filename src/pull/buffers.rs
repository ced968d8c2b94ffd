//! A fixed set of buffers for one layer's uncompressed bytes.
//!
//! The decoder takes an empty buffer, fills it and freezes it into [`Bytes`]; the buffer comes
//! back when the last slice of it is dropped, wherever that is. Their number bounds what a layer
//! has in flight behind its decoder, and reusing them spares the page faults of fresh memory.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::Bytes;

/// Bytes in one buffer: large enough that a thread's wake-up costs nothing beside it, small enough
/// that a layer's first files are written early.
pub(super) const BUFFER_BYTES: usize = 512 * 1024;

/// Buffers of one layer at most: each stage behind the decoder can hold a few.
pub(super) const BUFFERS: usize = 16;

#[derive(Debug)]
struct Shared {
    free: Mutex<Vec<Box<[u8]>>>,
    returned: Condvar,
}

/// The buffers of one layer.
#[derive(Debug)]
pub(super) struct Buffers(Arc<Shared>);

/// A buffer on loan; it returns when it is dropped.
#[derive(Debug)]
pub(super) struct Loan {
    bytes: Box<[u8]>,
    filled: usize,
    home: Arc<Shared>,
}

impl Buffers {
    /// So many, empty.
    pub(super) fn new(count: usize) -> Self {
        let free = (0..count).map(|_| vec![0; BUFFER_BYTES].into_boxed_slice()).collect();
        Self(Arc::new(Shared { free: Mutex::new(free), returned: Condvar::new() }))
    }

    /// Waits for a free buffer.
    pub(super) fn take(&self) -> Loan {
        let mut free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(bytes) = free.pop() {
                return Loan { bytes, filled: 0, home: Arc::clone(&self.0) };
            }
            free = self.0.returned.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Loan {
    /// The whole buffer, to be filled from its beginning.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The first `filled` bytes, to be shared.
    pub(super) fn freeze(mut self, filled: usize) -> Bytes {
        self.filled = filled.min(self.bytes.len());
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Loan {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.home.free.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        self.home.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_returns_with_its_last_slice() {
        let buffers = Buffers::new(BUFFERS);
        let mut loans: Vec<_> = (0..BUFFERS).map(|_| buffers.take()).collect();
        let mut loan = loans.pop().unwrap();
        loan.space()[..3].copy_from_slice(b"abc");
        let bytes = loan.freeze(3);
        let slice = bytes.slice(1..);
        drop(bytes);
        let taken = std::thread::spawn(move || buffers.take().space().len());
        assert_eq!(&slice[..], b"bc");
        assert!(!taken.is_finished());
        drop(slice);
        assert_eq!(taken.join().unwrap(), BUFFER_BYTES);
    }
}
