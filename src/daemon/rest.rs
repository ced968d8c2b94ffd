//! A daemon at rest: the memory of pulls goes back when the last one has ended.
//!
//! While pulls follow each other, memory that one has freed is there for the next without a page fault. When none has
//! come for a while it is given back, once. There is no clock that ticks: after that this task sleeps until
//! another pull has ended, and an idle hoistd wakes up for its watchdog only. Connections to registries go with it: their
//! buffers are large, and the clock that would close them later is one more that ticks.
//!
//! ```text
//!             a pull has ended              nothing for AFTER_PULL
//!   sleeping ─────────────────▶ waiting ───────────────────────────▶ gives back ─▶ sleeping
//!                                │   ▲
//!                                ╰───╯ another one has ended
//! ```

use std::future::Future;
use std::time::Duration;

use tokio::sync::Notify;

/// How long after the last pull: longer than the runtime keeps a thread for blocking work that has nothing to do
/// (10 s), so that what those threads had is given back with the rest.
const AFTER_PULL: Duration = Duration::from_secs(12);

/// Has memory given back (`give_back`) a while after pulls, each of whose ends is told by `ended`, unless some are
/// `running` by then, which will end in their turn. Runs until it is dropped.
pub(super) async fn rest<Given: Future<Output = ()>>(
    ended: &Notify,
    running: impl Fn() -> bool,
    give_back: impl Fn() -> Given,
) {
    loop {
        ended.notified().await;
        while tokio::time::timeout(AFTER_PULL, ended.notified()).await.is_ok() {}
        if !running() {
            give_back().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[derive(Clone, Default)]
    struct Scene {
        ended: Arc<Notify>,
        running: Arc<AtomicBool>,
        given: Arc<AtomicUsize>,
    }

    impl Scene {
        fn begin() -> Self {
            let scene = Self::default();
            let Self { ended, running, given } = scene.clone();
            tokio::spawn(async move {
                let give_back = || async {
                    given.fetch_add(1, Relaxed);
                };
                rest(&ended, || running.load(Relaxed), give_back).await;
            });
            scene
        }

        /// How often memory was given back, when so much time has passed.
        async fn given_after(&self, time: Duration) -> usize {
            tokio::time::sleep(time).await;
            self.given.load(Relaxed)
        }
    }

    const LESS: Duration = AFTER_PULL.saturating_sub(Duration::from_secs(1));
    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn memory_is_given_back_once_after_the_last_of_several_pulls() {
        let scene = Scene::begin();
        assert_eq!(scene.given_after(HOUR).await, 0, "there was no pull");
        for _ in 0..5 {
            scene.ended.notify_one();
            assert_eq!(scene.given_after(LESS).await, 0, "the next may come");
        }
        assert_eq!(scene.given_after(HOUR).await, 1);
        scene.ended.notify_one();
        assert_eq!(scene.given_after(HOUR).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_under_way_keeps_what_it_may_need() {
        let scene = Scene::begin();
        scene.running.store(true, Relaxed);
        scene.ended.notify_one();
        assert_eq!(scene.given_after(HOUR).await, 0);
        scene.running.store(false, Relaxed);
        assert_eq!(scene.given_after(HOUR).await, 0, "nobody looks again by the clock");
        scene.ended.notify_one();
        assert_eq!(scene.given_after(HOUR).await, 1);
    }
}
