//! So many bytes a second: a bucket of tokens that tasks and threads draw from.
//!
//! The bucket is kept as a point in time, as in the generic cell rate algorithm (ITU-T I.371): each
//! take moves it on by what its bytes cost, and whoever took waits until that point, less what may
//! come in one burst. So those who share a bucket go one after the other, each at its own time, and
//! no timer has to fill anything. A bucket without a rate costs one load of an atomic, and no lock.
//!
//! Who lets others go first ([`RateLimit::take_after_others`]) is given no time in advance: it looks when it
//! would be due and takes only then, so that those who take at once push it back by what they took. Many who
//! do that line up among themselves, so that each wakes up about once. When [`OVERTAKEN_MOST`] times
//! its own bytes went before it, it takes at once like the others: it comes to its end on a link that is always full too.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What may go at once after a pause, as the time that it costs: enough that a timer which is late
/// by some milliseconds takes nothing away, and too little to be seen on a link.
pub const BURST: Duration = Duration::from_millis(50);

/// How many times its own bytes go before somebody who lets others go first, at most.
const OVERTAKEN_MOST: u64 = 32;

/// A bound on bytes a second. Clones share it; the default one bounds nothing.
#[derive(Clone, Debug, Default)]
pub struct RateLimit(Arc<Bucket>);

#[derive(Debug, Default)]
struct Bucket {
    /// 0: none.
    bytes_per_second: AtomicU64,
    account: Mutex<Account>,
    waited_nanos: AtomicU64,
}

#[derive(Debug, Default)]
struct Account {
    /// Until when all bytes that were taken are paid for.
    paid: Option<Instant>,
    /// Until when those would be too that somebody who lets others go first waits with.
    lined_up: Option<Instant>,
    /// Bytes that went since one of those went.
    went_before: u64,
}

impl Account {
    fn paid_from(&self, now: Instant) -> Instant {
        self.paid.map_or(now, |paid| paid.max(now))
    }
}

/// The place of somebody who lets others go first.
#[derive(Clone, Copy, Debug)]
struct Place {
    bytes: u64,
    since: Instant,
    is_new: bool,
}

/// What somebody sees who lets others go first.
enum Look {
    /// The bytes are taken, and may go then.
    Taken { at: Instant },
    /// They may be due then.
    Again { at: Instant },
}

/// How it ended for somebody who lets others go first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "nothing may be taken"]
pub struct Yielded {
    /// The bytes were taken, and may go now.
    pub taken: bool,
    /// The rate that was waited for, if there was a wait.
    pub waited_for: Option<u64>,
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
        *self.account() = Account::default();
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.0.account.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.add_waited(wait);
        Some(Turn { at, bytes_per_second })
    }

    fn take_at(&self, bytes: u64, bytes_per_second: u64, now: Instant) -> Instant {
        let mut account = self.account();
        let until = account.paid_from(now) + cost(bytes, bytes_per_second);
        account.paid = Some(until);
        account.went_before = account.went_before.saturating_add(bytes);
        until - BURST.min(until.duration_since(now))
    }

    /// Takes so many bytes for somebody who came at `since` and lets all go first that take theirs meanwhile. Waits until they
    /// are due; or, with nothing taken, until `goes_first`, which is asked whenever it might be.
    pub async fn take_after_others(
        &self,
        bytes: u64,
        since: Instant,
        goes_first: impl Fn() -> bool,
    ) -> Yielded {
        let mut place = Place { bytes, since, is_new: true };
        let began = Instant::now();
        let (mut taken, mut waited_for) = (false, None);
        while !taken && !goes_first() {
            let Some(bytes_per_second) = self.bytes_per_second() else {
                taken = true;
                break;
            };
            let now = Instant::now();
            let at = match self.look(&mut place, bytes_per_second, now) {
                Look::Taken { at } => {
                    taken = true;
                    at
                }
                Look::Again { at } => at,
            };
            if at > now {
                waited_for = Some(bytes_per_second);
                tokio::time::sleep_until(at).await;
            }
        }
        self.add_waited(began.elapsed());
        Yielded { taken, waited_for }
    }

    /// Takes the bytes of somebody who lets others go first if they are due, or if too much has gone before.
    fn look(&self, place: &mut Place, bytes_per_second: u64, now: Instant) -> Look {
        let cost = cost(place.bytes, bytes_per_second);
        let mut account = self.account();
        let is_overtaken = account.went_before / OVERTAKEN_MOST >= place.bytes.max(1);
        let mut until = account.paid_from(if is_overtaken { now } else { place.since }) + cost;
        if std::mem::take(&mut place.is_new) && !is_overtaken {
            // Behind those who do the same and were there before.
            until = until.max(account.lined_up.map_or(until, |lined_up| lined_up + cost));
            account.lined_up = Some(until);
        }
        let at = until - BURST.min(until.duration_since(place.since));
        if !is_overtaken && at > now {
            return Look::Again { at };
        }
        account.paid = Some(until);
        account.went_before = 0;
        Look::Taken { at }
    }

    fn add_waited(&self, wait: Duration) {
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        self.0.waited_nanos.fetch_add(nanos, Relaxed);
    }

    /// How long all who took had to wait, added up, since it was made.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.0.waited_nanos.load(Relaxed))
    }
}

/// What so many bytes cost at a rate.
fn cost(bytes: u64, bytes_per_second: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(bytes_per_second.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
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

    /// Takes `pieces` of 10 kB one after the other, of a layer that is pulled ahead of time or not; when each went.
    fn pull(
        limit: &RateLimit,
        ahead: bool,
        pieces: usize,
    ) -> tokio::task::JoinHandle<Vec<Duration>> {
        let (limit, began) = (limit.clone(), Instant::now());
        tokio::spawn(async move {
            let mut went = Vec::new();
            for _ in 0..pieces {
                if ahead {
                    let taken = limit.take_after_others(10_000, Instant::now(), || false).await;
                    assert!(taken.taken);
                } else if let Some(turn) = limit.take(10_000) {
                    turn.wait().await;
                }
                went.push(began.elapsed());
            }
            went
        })
    }

    fn last(went: &[Duration]) -> f64 {
        went.last().unwrap().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn who_lets_others_go_first_has_what_they_leave() {
        // 100 pieces a second. Alone it is as quick as anybody.
        let limit = RateLimit::new(Some(1_000_000));
        let alone = pull(&limit, true, 100).await.unwrap();
        assert!((last(&alone) - 0.95).abs() < 0.02, "{alone:?}");
        // Eight ahead of time, and one that somebody waits for.
        let limit = RateLimit::new(Some(1_000_000));
        let ahead: Vec<_> = (0..8).map(|_| pull(&limit, true, 50)).collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let waited = pull(&limit, false, 100).await.unwrap();
        // It has the link but for one piece in 33.
        assert!(last(&waited) < 1.1, "{waited:?}");
        let mut all = Vec::new();
        for ahead in ahead {
            all.extend(ahead.await.unwrap());
        }
        all.sort();
        assert!(limit.waited() > Duration::from_secs(5), "{:?}", limit.waited());
        // 500 pieces in all, none faster than the rate and none of it left unused.
        assert!((last(&all) - 4.95).abs() < 0.1, "{:?}", last(&all));
        let during = all.iter().filter(|at| (0.1..1.1).contains(&at.as_secs_f64())).count();
        assert!((2..=8).contains(&during), "{during} pieces ahead of time went meanwhile");
    }

    #[tokio::test(start_paused = true)]
    async fn who_lets_others_go_first_comes_to_its_end_on_a_full_link() {
        let limit = RateLimit::new(Some(1_000_000));
        let waited: Vec<_> = (0..4).map(|_| pull(&limit, false, 1000)).collect();
        let ahead = pull(&limit, true, 20).await.unwrap();
        // Four hundredths more than 20 times 33 pieces.
        assert!((4.0..8.0).contains(&last(&ahead)), "{ahead:?}");
        for waited in waited {
            waited.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn somebody_comes_to_wait_for_it_and_the_rate_goes() {
        let limit = RateLimit::new(Some(1000));
        let _ = limit.take(10_000);
        let promoted = std::sync::atomic::AtomicBool::new(false);
        let (limit_now, since) = (limit.clone(), Instant::now());
        let goes_first = || promoted.load(Relaxed);
        let yielding = limit_now.take_after_others(1000, since, goes_first);
        let told = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            promoted.store(true, Relaxed);
        };
        let (yielded, ()) = tokio::join!(yielding, told);
        assert_eq!(yielded, Yielded { taken: false, waited_for: Some(1000) });
        let yielding = limit_now.take_after_others(1000, since, || false);
        let told = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            limit.set(None);
        };
        let (yielded, ()) = tokio::join!(yielding, told);
        assert!(yielded.taken, "{yielded:?}");
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
