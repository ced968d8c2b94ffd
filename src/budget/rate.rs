//! So many bytes a second: a bucket of tokens that tasks and threads draw from.
//!
//! The bucket is kept as a point in time, as in the generic cell rate algorithm (ITU-T I.371): each
//! take moves it on by what its bytes cost, and whoever took waits until that point, less what may
//! come in one burst. So those who share a bucket go one after the other, each at its own time, and
//! no timer has to fill anything. A bucket without a rate costs one load of an atomic, and no lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What may go at once after a pause, as the time that it costs: enough that a timer which is late
/// by some milliseconds takes nothing away, and too little to be seen on a link.
pub const BURST: Duration = Duration::from_millis(50);

/// A bound on bytes a second. Clones share it; the default one bounds nothing.
#[derive(Clone, Debug, Default)]
pub struct RateLimit(Arc<Bucket>);

#[derive(Debug, Default)]
struct Bucket {
    /// 0: none.
    bytes_per_second: AtomicU64,
    /// Until when all bytes that were taken are paid for.
    paid: Mutex<Option<Instant>>,
    waited_nanos: AtomicU64,
}

/// When the bytes that were taken may go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "who took bytes has to wait until then"]
pub struct Turn {
    /// Then, or a moment that has passed.
    pub at: Instant,
    /// The rate by which it was worked out.
    pub bytes_per_second: u64,
}

impl RateLimit {
    /// At most so many bytes a second; `None` and 0 bound nothing.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        let limit = Self::default();
        limit.set(bytes_per_second);
        limit
    }

    /// Changes the rate, for what is taken from now on.
    pub fn set(&self, bytes_per_second: Option<u64>) {
        self.0.bytes_per_second.store(bytes_per_second.unwrap_or(0), Relaxed);
        // What was taken at a slow rate is not held against a quicker one.
        *self.0.paid.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The rate, if there is one.
    pub fn bytes_per_second(&self) -> Option<u64> {
        Some(self.0.bytes_per_second.load(Relaxed)).filter(|&rate| rate > 0)
    }

    /// Takes so many bytes, now; says when they may go, or `None` where that is at once.
    pub fn take(&self, bytes: u64) -> Option<Turn> {
        let bytes_per_second = self.bytes_per_second()?;
        let now = Instant::now();
        let at = self.take_at(bytes, bytes_per_second, now);
        let wait = at.checked_duration_since(now).filter(|wait| !wait.is_zero())?;
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        self.0.waited_nanos.fetch_add(nanos, Relaxed);
        Some(Turn { at, bytes_per_second })
    }

    fn take_at(&self, bytes: u64, bytes_per_second: u64, now: Instant) -> Instant {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second.max(1));
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut paid = self.0.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let until = paid.map_or(now, |paid| paid.max(now)) + cost;
        *paid = Some(until);
        until - BURST.min(until.duration_since(now))
    }

    /// How long all who took had to wait, added up, since it was made.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.0.waited_nanos.load(Relaxed))
    }
}

impl Turn {
    /// Waits for it, in a task.
    pub async fn wait(self) {
        tokio::time::sleep_until(self.at).await;
    }

    /// Waits for it, on a thread of its own.
    pub fn block(self) {
        std::thread::sleep(self.at.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[tokio::test(start_paused = true)]
    async fn tasks_that_share_a_limit_take_the_time_that_their_bytes_cost() {
        let limit = RateLimit::new(Some(1_000_000));
        let began = Instant::now();
        let tasks = (0..8).map(|_| {
            let limit = limit.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    if let Some(turn) = limit.take(10_000) {
                        turn.wait().await;
                    }
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        // 4 MB, by the clock that goes as far as somebody waits.
        let took = began.elapsed() + BURST;
        assert!(took >= Duration::from_secs(4) && took < Duration::from_millis(4010), "{took:?}");
        assert!(limit.waited() > took, "eight waited side by side: {:?}", limit.waited());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_saves_up_a_burst_and_no_more() {
        let limit = RateLimit::new(Some(1_000_000));
        let burst = BURST.as_micros() as u64;
        assert_eq!(limit.take(burst), None);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(limit.take(burst), None);
        assert!(limit.take(1000).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rate_nobody_waits_and_a_new_rate_holds_at_once() {
        let limit = RateLimit::new(None);
        assert_eq!(limit.take(u64::MAX), None);
        limit.set(Some(1));
        let turn = limit.clone().take(1000).expect("a thousand seconds' worth");
        assert_eq!(turn.bytes_per_second, 1);
        limit.set(Some(1 << 40));
        assert_eq!(limit.take(1), None, "the debt was at the old rate");
        limit.set(None);
        assert_eq!(limit.take(u64::MAX), None);
        assert_eq!(limit.bytes_per_second(), None);
    }

    proptest! {
        /// Whatever is taken whenever: by no moment have more bytes gone than the rate gives until then and
        /// one burst and the bytes that go just then, and nobody waits longer than that takes.
        #[test]
        fn never_faster_and_never_slower_than_the_rate(
            rate in 1_000_u64..1_000_000_000,
            takes in prop::collection::vec((0_u64..2_000_000, 0_u64..200), 1..60),
        ) {
            let limit = RateLimit::new(Some(rate));
            let began = Instant::now();
            let (mut now, mut gone, mut free) = (began, 0_u128, began);
            for (bytes, pause_ms) in takes {
                now += Duration::from_millis(pause_ms);
                let at = limit.take_at(bytes, rate, now);
                prop_assert!(at >= now);
                gone += u128::from(bytes);
                let allowed = (at.duration_since(began) + BURST).as_nanos() * u128::from(rate)
                    / 1_000_000_000;
                prop_assert!(gone <= allowed + 100, "{gone} bytes went by {:?}", at - began);
                // An idle bucket that each take fills anew is the slowest there may be.
                let cost = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
                free = free.max(now) + Duration::from_nanos(u64::try_from(cost).unwrap());
                prop_assert!(at <= free);
            }
        }
    }
}
