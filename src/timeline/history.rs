//! Pulls in progress and the last ended ones.
//!
//! Ended pulls are in memory without their samples, for lists; with [`History::open`] the whole
//! reports are on disk and outlive the daemon.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::recorder::Bounds;
use super::records::{Records, RecordsError};
use super::{PullRecorder, PullReport};

/// How many ended pulls are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keep {
    /// At most so many; of 10 layers each, one takes some 10 kB of memory and 30 kB of disk.
    pub pulls: usize,
    /// At most so many bytes on disk.
    pub bytes: u64,
}

/// The pulls that can be looked at. Clones share one history.
#[derive(Clone, Debug)]
pub struct History {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    next_id: AtomicU64,
    kept: usize,
    bounds: Bounds,
    records: Option<Records>,
    pulls: Mutex<Pulls>,
}

#[derive(Debug, Default)]
struct Pulls {
    running: Vec<Arc<PullRecorder>>,
    ended: VecDeque<Ended>,
}

#[derive(Debug)]
struct Ended {
    report: PullReport,
    /// On disk there are its samples too.
    on_disk: bool,
}

impl History {
    /// A history in memory that keeps the last `kept` ended pulls.
    pub fn new(kept: usize) -> Self {
        Self::with(kept, Bounds::default(), None, Vec::new())
    }

    /// A history in `directory`, with what is there already. Blocks while it is read.
    ///
    /// # Errors
    /// The directory cannot be made or read. A single record that cannot be is none.
    pub fn open(directory: &Path, keep: Keep, bounds: Bounds) -> Result<Self, RecordsError> {
        let (records, reports) = Records::open(directory, keep)?;
        Ok(Self::with(keep.pulls, bounds, Some(records), reports))
    }

    /// The same, empty, for pulls that may use so much.
    #[must_use]
    pub fn bounded(kept: usize, bounds: Bounds) -> Self {
        Self::with(kept, bounds, None, Vec::new())
    }

    fn with(
        kept: usize,
        bounds: Bounds,
        records: Option<Records>,
        reports: Vec<PullReport>,
    ) -> Self {
        let last = records.as_ref().and_then(Records::last_id).unwrap_or(0);
        let ended = reports
            .into_iter()
            .map(|report| Ended { report: report.without_samples(), on_disk: true });
        let pulls = Pulls { running: Vec::new(), ended: ended.collect() };
        let next_id = AtomicU64::new(last + 1);
        let shared = Shared { next_id, kept, bounds, records, pulls: Mutex::new(pulls) };
        Self { shared: Arc::new(shared) }
    }

    /// A new pull of `image`, shown as running until [`History::close`].
    pub fn begin(&self, image: &str) -> Arc<PullRecorder> {
        let id = self.shared.next_id.fetch_add(1, Relaxed);
        let recorder = Arc::new(PullRecorder::new(id, image, self.shared.bounds));
        self.shared.pulls().running.push(Arc::clone(&recorder));
        recorder
    }

    /// Moves an ended pull to the ended ones, has it written, and returns its last report. A second
    /// close of the same pull changes nothing.
    pub fn close(&self, recorder: &PullRecorder) -> PullReport {
        let report = recorder.report().judged();
        let mut pulls = self.shared.pulls();
        let before = pulls.running.len();
        pulls.running.retain(|running| running.id() != recorder.id());
        if pulls.running.len() == before {
            return report;
        }
        pulls.ended.push_front(Ended { report: report.clone(), on_disk: false });
        pulls.ended.truncate(self.shared.kept);
        drop(pulls);
        if self.shared.records.is_some() {
            let (shared, id) = (Arc::clone(&self.shared), recorder.id());
            // Whoever ends a pull may be the event loop, and the disk has much to do just then.
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn_blocking(move || shared.write(id))),
                Err(_) => shared.write(id),
            }
        }
        report
    }

    /// How many pulls are running.
    pub fn running(&self) -> usize {
        self.shared.pulls().running.len()
    }

    /// The images that running pulls are of, then those of ended ones, newest first, at most `limit` of these.
    pub fn images(&self, limit: usize) -> Vec<String> {
        let pulls = self.shared.pulls();
        let running = pulls.running.iter().rev().map(|pull| pull.image());
        let ended = pulls.ended.iter().take(limit).map(|ended| ended.report.image.as_str());
        running.chain(ended).map(str::to_owned).collect()
    }

    /// Running pulls, then ended ones, newest first, at most `limit` of the ended; without samples.
    pub fn list(&self, limit: usize) -> Vec<PullReport> {
        let pulls = self.shared.pulls();
        let running = pulls.running.iter().rev().map(|pull| pull.report().judged());
        let ended = pulls.ended.iter().take(limit).map(|ended| ended.report.clone());
        running.chain(ended).map(PullReport::without_samples).collect()
    }

    /// One pull with all that is known of it. Blocks while its record is read.
    pub fn get(&self, id: u64) -> Option<PullReport> {
        let pulls = self.shared.pulls();
        if let Some(running) = pulls.running.iter().find(|pull| pull.id() == id) {
            return Some(running.report().judged());
        }
        let ended = pulls.ended.iter().find(|ended| ended.report.id == id)?;
        let (report, on_disk) = (ended.report.clone(), ended.on_disk);
        drop(pulls);
        let recorded = self.shared.records.as_ref().filter(|_| on_disk);
        Some(recorded.and_then(|records| records.told(id)).unwrap_or(report))
    }
}

impl Shared {
    fn pulls(&self) -> MutexGuard<'_, Pulls> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes an ended pull's record. One that cannot be written stays in memory as it is.
    fn write(&self, id: u64) {
        let Some(records) = &self.records else { return };
        let found = self.pulls().ended.iter().find(|e| e.report.id == id).map(|e| e.report.clone());
        let Some(report) = found else { return };
        if let Err(error) = records.write(&report) {
            tracing::warn!(pull = id, %error, "the record of a pull could not be written");
            return;
        }
        let report = report.without_samples();
        if let Some(ended) = self.pulls().ended.iter_mut().find(|ended| ended.report.id == id) {
            *ended = Ended { report, on_disk: true };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::{LayerRecorder, Phase, PullState};

    const KEEP: Keep = Keep { pulls: 3, bytes: 1 << 20 };

    fn pull(history: &History, image: &str) -> u64 {
        let pull = history.begin(image);
        let layer = Arc::new(LayerRecorder::detached());
        layer.bytes(Phase::Download, 7);
        layer.spent(Phase::Download, pull.began(), std::time::Instant::now());
        pull.attach(layer);
        pull.ended(PullState::Done);
        history.close(&pull).id
    }

    fn images(history: &History) -> Vec<String> {
        let listed: Vec<_> = history.list(9).into_iter().map(|pull| pull.image).collect();
        assert_eq!(history.images(9), listed);
        listed
    }

    fn sampled(report: &PullReport) -> bool {
        report.layers.iter().flat_map(|layer| &layer.phases).any(|phase| phase.samples.is_some())
    }

    #[test]
    fn keeps_the_last_ended_pulls() {
        let history = History::new(2);
        let pulls: Vec<_> = (0..4).map(|i| history.begin(&format!("image:{i}"))).collect();
        for pull in &pulls[..3] {
            pull.ended(PullState::Done);
            history.close(pull);
            history.close(pull);
        }
        assert_eq!(images(&history), ["image:3", "image:2", "image:1"]);
        assert_eq!((history.list(0).len(), history.running()), (1, 1));
        assert_eq!(history.get(2).unwrap().image, "image:1");
        assert_eq!(history.get(1), None);
    }

    #[test]
    fn survives_a_restart_and_forgets_the_oldest() {
        let directory = tempfile::tempdir().unwrap();
        let history = History::open(directory.path(), KEEP, Bounds::default()).unwrap();
        let ids: Vec<_> = (0..4).map(|i| pull(&history, &format!("image:{i}"))).collect();
        let (listed, got) = (history.list(9), history.get(ids[3]).unwrap());
        assert!(!sampled(&listed[0]) && sampled(&got), "samples are for one pull alone");
        let again = History::open(directory.path(), KEEP, Bounds::default()).unwrap();
        assert_eq!(images(&again), ["image:3", "image:2", "image:1"]);
        assert_eq!(again.get(ids[3]), Some(got));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
        assert_eq!(pull(&again, "next"), ids[3] + 1, "no number twice");
        // Room for one only.
        let size = std::fs::metadata(directory.path().join("5.json")).unwrap().len();
        let keep = Keep { bytes: size + size / 2, ..KEEP };
        let small = History::open(directory.path(), keep, Bounds::default()).unwrap();
        assert_eq!(images(&small), ["next"]);
    }

    #[test]
    fn what_is_broken_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let history = History::open(directory.path(), KEEP, Bounds::default()).unwrap();
        let whole = pull(&history, "whole");
        let text = std::fs::read_to_string(path("1.json")).unwrap();
        std::fs::write(path("2.json"), &text[..text.len() / 2]).unwrap();
        std::fs::write(path("3.json"), text.replacen("\"version\":1", "\"version\":99", 1))
            .unwrap();
        std::fs::write(path("4.new"), "half").unwrap();
        std::fs::write(path("README"), "not ours").unwrap();
        let keep = Keep { pulls: 9, ..KEEP };
        let again = History::open(directory.path(), keep, Bounds::default()).unwrap();
        assert_eq!(images(&again), ["whole"]);
        assert!(!path("4.new").exists() && path("README").exists());
        assert_eq!(pull(&again, "next"), 4, "a broken record's number is not used again");
        // Broken while the daemon runs: what memory has is shown.
        std::fs::write(path("1.json"), "").unwrap();
        assert!(!sampled(&again.get(whole).unwrap()));
    }

    #[test]
    fn a_disk_that_takes_nothing_costs_no_pull() {
        let directory = tempfile::tempdir().unwrap();
        let history = History::open(directory.path(), KEEP, Bounds::default()).unwrap();
        std::fs::remove_dir(directory.path()).unwrap();
        let id = pull(&history, "image");
        assert!(sampled(&history.get(id).unwrap()), "all of it is in memory");
    }
}
