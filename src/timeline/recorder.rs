//! The counters that a running pull writes: those of a layer here, the pull itself in `pull`.

mod pull;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::report::{LayerReport, LayerState, Limit, PhaseReport, StallReport};
use super::samples::Sampler;
use super::{Phase, Stall};
use crate::image::ImageLayer;
pub use pull::{Bounds, PullRecorder};

/// One phase's counters, in nanoseconds since the pull began. `first` is 0 while it has not begun,
/// else one more than the time.
#[derive(Default, Debug)]
struct PhaseClock {
    first: AtomicU64,
    last: AtomicU64,
    busy: AtomicU64,
    bytes: AtomicU64,
    times: AtomicU64,
}

/// The phases whose bytes are sampled over time: those that a picture shows.
const SAMPLED: [Phase; 3] = [Phase::Download, Phase::Decompress, Phase::Write];

/// What is recorded of one layer. Cheap to share; every method takes `&self`.
#[derive(Debug)]
pub struct LayerRecorder {
    began: Instant,
    layer: ImageLayer,
    phases: [PhaseClock; Phase::ALL.len()],
    samples: [Sampler; SAMPLED.len()],
    stalls: [AtomicU64; Stall::ALL.len()],
    retries: AtomicU64,
    entries: AtomicU64,
    state: Mutex<LayerState>,
    host: Mutex<Option<String>>,
    limits: Mutex<Vec<Limit>>,
}

/// Time spent busy in a phase, from its making to its drop.
#[must_use = "a Timing measures until it is dropped"]
#[derive(Debug)]
pub struct Timing<'a> {
    recorder: &'a LayerRecorder,
    phase: Phase,
    began: Instant,
}

impl Drop for Timing<'_> {
    fn drop(&mut self) {
        self.recorder.spent(self.phase, self.began, Instant::now());
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl LayerRecorder {
    /// A recorder whose clock starts at `began`.
    pub fn new(began: Instant, layer: ImageLayer) -> Self {
        Self {
            began,
            layer,
            phases: Default::default(),
            samples: Default::default(),
            stalls: Default::default(),
            retries: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            state: Mutex::new(LayerState::Waiting),
            host: Mutex::new(None),
            limits: Mutex::default(),
        }
    }

    /// A recorder that nobody looks at, for tests and tools.
    pub fn detached() -> Self {
        let zero = crate::image::Sha256::from_bytes([0; 32]);
        let layer = ImageLayer {
            blob: crate::image::BlobDigest(zero),
            size: 0,
            media_type: String::new(),
            diff_id: crate::image::DiffId(zero),
            chain_id: crate::image::ChainId(zero),
        };
        Self::new(Instant::now(), layer)
    }

    /// The layer that is recorded.
    pub fn layer(&self) -> &ImageLayer {
        &self.layer
    }

    /// Counts the time until the returned value is dropped as busy in `phase`.
    pub fn time(&self, phase: Phase) -> Timing<'_> {
        Timing { recorder: self, phase, began: Instant::now() }
    }

    /// Counts the time from `from` to `to` as busy in `phase`.
    pub fn spent(&self, phase: Phase, from: Instant, to: Instant) {
        let clock = &self.phases[phase as usize];
        let begin = nanos(from.saturating_duration_since(self.began));
        let end = nanos(to.saturating_duration_since(self.began));
        if clock.first.load(Relaxed) == 0 {
            // Two threads may come here at once; either's begin is right to a few microseconds.
            clock.first.store(begin + 1, Relaxed);
        }
        clock.last.fetch_max(end, Relaxed);
        clock.busy.fetch_add(end.saturating_sub(begin), Relaxed);
        clock.times.fetch_add(1, Relaxed);
    }

    /// Counts the time from `from` until now as waiting for something.
    pub fn stalled(&self, stall: Stall, from: Instant) {
        self.waited(stall, from.elapsed());
    }

    /// Counts time that was waited for something.
    pub(super) fn waited(&self, stall: Stall, time: Duration) {
        self.stalls[stall as usize].fetch_add(nanos(time), Relaxed);
    }

    /// Counts bytes that went through `phase` just now.
    pub fn bytes(&self, phase: Phase, bytes: u64) {
        self.phases[phase as usize].bytes.fetch_add(bytes, Relaxed);
        if let Some(sampled) = SAMPLED.iter().position(|&sampled| sampled == phase) {
            self.samples[sampled].add(nanos(self.began.elapsed()), bytes);
        }
    }

    /// The bytes that have gone through `phase` until now.
    pub fn counted(&self, phase: Phase) -> u64 {
        self.phases[phase as usize].bytes.load(Relaxed)
    }

    /// Counts a request that had to be made again.
    pub fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    /// Counts archive entries written.
    pub fn entries(&self, count: u64) {
        self.entries.fetch_add(count, Relaxed);
    }

    /// Notes the host that serves the layer.
    pub fn host(&self, host: &str) {
        let mut slot = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_deref() != Some(host) {
            *slot = Some(host.to_owned());
        }
    }

    /// Notes the limit that was waited for just now; of each kind the last one counts.
    pub fn limited(&self, limit: &Limit) {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        match limits.iter_mut().find(|known| known.stall == limit.stall) {
            Some(known) if known == limit => {}
            Some(known) => *known = limit.clone(),
            None => limits.push(limit.clone()),
        }
    }

    /// Moves the layer to another state.
    pub fn state(&self, state: LayerState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// The figures so far, on the layer's own clock.
    pub fn report(&self) -> LayerReport {
        self.report_since(self.began)
    }

    /// The figures so far, in seconds since `began`: a pull that joined another one's job shows it
    /// on its own clock.
    pub fn report_since(&self, began: Instant) -> LayerReport {
        let later = nanos(began.saturating_duration_since(self.began));
        let at = |nanos: u64| seconds(nanos.saturating_sub(later));
        let phases = Phase::ALL.iter().filter_map(|&phase| {
            let clock = &self.phases[phase as usize];
            let first = clock.first.load(Relaxed).checked_sub(1)?;
            let sampled = SAMPLED.iter().position(|&sampled| sampled == phase);
            Some(PhaseReport {
                phase,
                begin_seconds: at(first),
                end_seconds: at(clock.last.load(Relaxed)),
                busy_seconds: seconds(clock.busy.load(Relaxed)),
                times: clock.times.load(Relaxed),
                bytes: clock.bytes.load(Relaxed),
                samples: sampled.and_then(|sampled| self.samples[sampled].samples(later)),
            })
        });
        let stalls = Stall::ALL.iter().filter_map(|&stall| {
            let waited = self.stalls[stall as usize].load(Relaxed);
            (waited > 0).then(|| StallReport { stall, seconds: seconds(waited) })
        });
        LayerReport {
            digest: self.layer.blob,
            diff_id: self.layer.diff_id,
            media_type: self.layer.media_type.clone(),
            size: self.layer.size,
            state: self.state.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            joined: later > 0,
            host: self.host.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            retries: self.retries.load(Relaxed),
            entries: self.entries.load(Relaxed),
            phases: phases.collect(),
            stalls: stalls.collect(),
            limits: self.limits.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "nanoseconds of a pull fit in 53 bits")]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_has_a_span_and_a_busy_time() {
        let recorder = LayerRecorder::detached();
        let t0 = recorder.began;
        let ms = Duration::from_millis;
        recorder.spent(Phase::Hash, t0 + ms(10), t0 + ms(20));
        recorder.spent(Phase::Hash, t0 + ms(50), t0 + ms(60));
        recorder.bytes(Phase::Hash, 7);
        let report = recorder.report();
        let [hash] = report.phases.as_slice() else { panic!("one phase: {report:?}") };
        assert!((hash.begin_seconds - 0.010).abs() < 1e-6);
        assert!((hash.end_seconds - 0.060).abs() < 1e-6);
        assert!((hash.busy_seconds - 0.020).abs() < 1e-6);
        assert_eq!((hash.bytes, hash.times), (7, 2));
        assert_eq!(hash.samples, None, "nobody looks at hashes over time");
    }

    #[test]
    fn a_pull_that_joined_has_its_own_clock() {
        let recorder = LayerRecorder::detached();
        let t0 = recorder.began;
        let ms = Duration::from_millis;
        recorder.spent(Phase::Connect, t0, t0 + ms(10));
        recorder.spent(Phase::Download, t0 + ms(10), t0 + ms(50));
        recorder.bytes(Phase::Download, 7);
        assert!(!recorder.report().joined);
        let report = recorder.report_since(t0 + ms(20));
        assert!(report.joined);
        let (connect, download) = (&report.phases[0], &report.phases[1]);
        assert_eq!((connect.begin_seconds, connect.end_seconds), (0.0, 0.0));
        assert!((download.end_seconds - 0.030).abs() < 1e-6);
        assert!((download.busy_seconds - 0.040).abs() < 1e-6, "the work is the same");
        let samples = download.samples.as_ref().unwrap();
        assert_eq!(samples.bytes, [7]);
        assert!(samples.begin_seconds < 0.0);
    }

    #[test]
    fn stalls_add_up() {
        let recorder = LayerRecorder::detached();
        for _ in 0..2 {
            recorder.stalled(Stall::Bytes, Instant::now() - Duration::from_millis(5));
        }
        let report = recorder.report();
        assert!(report.stall(Stall::Bytes) >= 0.010);
        assert!(report.stall(Stall::Memory).abs() < f64::EPSILON);
    }
}
