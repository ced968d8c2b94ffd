//! Bytes in flight: one budget for the whole daemon.
//!
//! Every window, queue and buffer of a pull is paid for with a [`Permit`] that lives inside the
//! thing it pays for and gives its bytes back when it is dropped. Waiters are served in the order
//! of their arrival, so that a large reservation is not starved by small ones.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The smallest thing that is counted. A semaphore counts in `u32`; in units of a KiB it reaches
/// 4 TiB.
const UNIT_BYTES: u64 = 1024;

/// A bounded number of bytes that may be in flight at once.
#[derive(Clone, Debug)]
pub struct Budget {
    units: Arc<Semaphore>,
    total: u32,
}

/// Bytes reserved in a [`Budget`]; they return when it is dropped.
#[derive(Debug)]
pub struct Permit(#[allow(dead_code, reason = "held for its Drop")] OwnedSemaphorePermit);

/// A reservation that its owner looks for now and then, instead of waiting. It keeps its place in
/// the queue all the while; dropping it gives the place up.
pub struct Pending(Pin<Box<dyn Future<Output = Permit> + Send>>);

impl Pending {
    /// The bytes, if they have been reserved by now; then it is used up.
    ///
    /// # Errors
    /// They have not: here it is again.
    pub fn granted(mut self) -> Result<Permit, Self> {
        // Nobody is to be woken: the owner has other work and asks again.
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Ok(permit),
            Poll::Pending => Err(self),
        }
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pending")
    }
}

fn to_units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Budget {
    /// A budget of `bytes`, rounded up to a whole KiB.
    pub fn new(bytes: u64) -> Self {
        let total = to_units(bytes).min(Semaphore::MAX_PERMITS.min(u32::MAX as usize) as u32);
        Self { units: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits for `bytes`. A request for more than the whole budget gets the whole budget: the
    /// smallest piece of work can always go on, if alone.
    pub async fn reserve(&self, bytes: u64) -> Permit {
        let units = to_units(bytes).min(self.total);
        let permit = Arc::clone(&self.units).acquire_many_owned(units).await;
        Permit(permit.expect("the semaphore is never closed"))
    }

    /// Queues for `bytes` like [`reserve`](Self::reserve), for somebody who can go on without them.
    pub fn request(&self, bytes: u64) -> Pending {
        let budget = self.clone();
        Pending(Box::pin(async move { budget.reserve(bytes).await }))
    }

    /// Takes `bytes` if they are free now.
    pub fn try_reserve(&self, bytes: u64) -> Option<Permit> {
        let units = to_units(bytes).min(self.total);
        Arc::clone(&self.units).try_acquire_many_owned(units).ok().map(Permit)
    }

    /// All bytes of the budget.
    pub fn total(&self) -> u64 {
        u64::from(self.total) * UNIT_BYTES
    }

    /// Bytes reserved now.
    pub fn in_use(&self) -> u64 {
        self.total() - self.units.available_permits() as u64 * UNIT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn permits_return_and_the_whole_is_the_most() {
        let budget = Budget::new(10 * 1024);
        let first = budget.reserve(4 * 1024).await;
        assert_eq!(budget.in_use(), 4 * 1024);
        assert!(budget.try_reserve(7 * 1024).is_none());
        drop(first);
        let all = budget.reserve(u64::MAX).await;
        assert_eq!(budget.in_use(), budget.total());
        drop(all);
        assert_eq!(budget.in_use(), 0);
    }

    #[test]
    fn a_request_keeps_its_place_without_being_waited_for() {
        let budget = Budget::new(10 * 1024);
        let all = budget.try_reserve(10 * 1024).unwrap();
        let asked = budget.request(8 * 1024).granted().expect_err("nothing is free");
        let given_up = budget.request(1024).granted().expect_err("nothing is free");
        drop(all);
        assert!(budget.try_reserve(4 * 1024).is_none(), "the request goes first");
        drop(given_up);
        let permit = asked.granted().expect("all is free");
        assert_eq!(budget.in_use(), 8 * 1024);
        drop(permit);
        assert_eq!(budget.in_use(), 0);
    }
}
