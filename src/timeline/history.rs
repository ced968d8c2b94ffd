//! Pulls in progress and the last ended ones, in memory.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{PullRecorder, PullReport};

/// The pulls that can be looked at. Clones share one history.
#[derive(Clone, Debug)]
pub struct History {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    next_id: AtomicU64,
    kept: usize,
    pulls: Mutex<Pulls>,
}

#[derive(Debug, Default)]
struct Pulls {
    running: Vec<Arc<PullRecorder>>,
    ended: VecDeque<PullReport>,
}

impl History {
    /// A history that keeps the last `kept` ended pulls.
    pub fn new(kept: usize) -> Self {
        let shared = Shared { next_id: AtomicU64::new(1), kept, pulls: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    fn pulls(&self) -> MutexGuard<'_, Pulls> {
        self.shared.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new pull of `image`, shown as running until [`History::close`].
    pub fn open(&self, image: &str) -> Arc<PullRecorder> {
        let id = self.shared.next_id.fetch_add(1, Relaxed);
        let recorder = Arc::new(PullRecorder::new(id, image));
        self.pulls().running.push(Arc::clone(&recorder));
        recorder
    }

    /// Moves an ended pull to the ended ones and returns its last report. A second close of the
    /// same pull changes nothing.
    pub fn close(&self, recorder: &PullRecorder) -> PullReport {
        let report = recorder.report();
        let mut pulls = self.pulls();
        let before = pulls.running.len();
        pulls.running.retain(|running| running.id() != recorder.id());
        if pulls.running.len() < before {
            pulls.ended.push_front(report.clone());
            pulls.ended.truncate(self.shared.kept);
        }
        report
    }

    /// Running pulls, then ended ones, newest first, at most `limit` of the ended.
    pub fn list(&self, limit: usize) -> Vec<PullReport> {
        let pulls = self.pulls();
        let running = pulls.running.iter().rev().map(|pull| pull.report());
        running.chain(pulls.ended.iter().take(limit).cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::PullState;

    #[test]
    fn keeps_the_last_ended_pulls() {
        let history = History::new(2);
        let pulls: Vec<_> = (0..4).map(|i| history.open(&format!("image:{i}"))).collect();
        for pull in &pulls[..3] {
            pull.ended(PullState::Done);
            history.close(pull);
            history.close(pull);
        }
        let images: Vec<_> = history.list(9).into_iter().map(|pull| pull.image).collect();
        assert_eq!(images, ["image:3", "image:2", "image:1"]);
        assert_eq!(history.list(0).len(), 1);
    }
}
