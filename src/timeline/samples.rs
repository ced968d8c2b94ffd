//! Bytes over time, in a bounded number of samples.
//!
//! A sample is the bytes of one interval. When a layer takes longer than its samples reach, pairs
//! of them are put together and the interval is twice as long from then on: a layer of a second
//! and one of an hour both end with between half of the samples and all of them.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Samples of one phase. Three phases of a layer are sampled (download, decompress, write), so a
/// layer has 120 at most: about a kilobyte.
pub const SAMPLES_MOST: usize = 40;

/// The interval to begin with: layers of a few megabytes take no longer than some of these.
const FIRST_INTERVAL_NANOS: u64 = 5_000_000;

/// The bytes of a phase over time.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Samples {
    /// When the first interval begins, in seconds since the pull began. Negative where another pull
    /// began the layer before.
    pub begin_seconds: f64,
    /// How long each interval is.
    pub interval_seconds: f64,
    /// Bytes in each interval, at most [`SAMPLES_MOST`].
    pub bytes: Vec<u64>,
}

/// Takes samples. Its lock is held for an addition, now and then for forty.
#[derive(Debug, Default)]
pub(super) struct Sampler(Mutex<Option<State>>);

#[derive(Debug)]
struct State {
    begin_nanos: u64,
    interval_nanos: u64,
    bytes: [u64; SAMPLES_MOST],
    used: usize,
}

impl Sampler {
    /// Counts bytes at a time, in nanoseconds on the layer's clock.
    pub(super) fn add(&self, at_nanos: u64, bytes: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .get_or_insert(State {
                begin_nanos: at_nanos,
                interval_nanos: FIRST_INTERVAL_NANOS,
                bytes: [0; SAMPLES_MOST],
                used: 0,
            })
            .add(at_nanos, bytes);
    }

    /// The samples so far, on a clock that began `later_nanos` after the layer's.
    #[allow(clippy::cast_precision_loss, reason = "nanoseconds of a pull fit in 53 bits")]
    pub(super) fn samples(&self, later_nanos: u64) -> Option<Samples> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = state.as_ref()?;
        Some(Samples {
            begin_seconds: (state.begin_nanos as f64 - later_nanos as f64) / 1e9,
            interval_seconds: state.interval_nanos as f64 / 1e9,
            bytes: state.bytes[..state.used].to_vec(),
        })
    }
}

impl State {
    fn add(&mut self, at_nanos: u64, bytes: u64) {
        // Threads may come a little out of order.
        let since = at_nanos.saturating_sub(self.begin_nanos);
        while since / self.interval_nanos >= SAMPLES_MOST as u64 {
            self.halve();
        }
        let index = usize::try_from(since / self.interval_nanos).expect("it is below SAMPLES_MOST");
        self.bytes[index] += bytes;
        self.used = self.used.max(index + 1);
    }

    fn halve(&mut self) {
        for index in 0..SAMPLES_MOST {
            self.bytes[index] =
                self.bytes.get(2 * index..2 * index + 2).map_or(0, |pair| pair.iter().sum());
        }
        self.used = self.used.div_ceil(2);
        self.interval_nanos *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_grows_and_no_byte_is_lost() {
        let sampler = Sampler::default();
        assert_eq!(sampler.samples(0), None);
        // One byte each millisecond, from 1 s on.
        let mut last = FIRST_INTERVAL_NANOS;
        for millisecond in 0..10_000 {
            sampler.add(1_000_000_000 + millisecond * 1_000_000, 1);
            let samples = sampler.samples(0).unwrap();
            assert_eq!(samples.bytes.iter().sum::<u64>(), millisecond + 1);
            assert!(samples.bytes.len() <= SAMPLES_MOST);
            let nanos = (samples.interval_seconds * 1e9) as u64;
            assert!(nanos == last || nanos == 2 * last);
            last = nanos;
        }
        let samples = sampler.samples(500_000_000).unwrap();
        assert!((samples.begin_seconds - 0.5).abs() < 1e-9, "on the other clock");
        assert!(samples.bytes.len() > SAMPLES_MOST / 2, "{samples:?}");
        let (last, whole) = samples.bytes.split_last().unwrap();
        let each = (samples.interval_seconds * 1e3) as u64;
        assert!(whole.iter().all(|&bytes| bytes == each) && *last <= each, "{samples:?}");
    }

    #[test]
    fn a_late_thread_does_no_harm() {
        let sampler = Sampler::default();
        sampler.add(1_000, 1);
        sampler.add(0, 2);
        assert_eq!(sampler.samples(0).unwrap().bytes, [3]);
    }
}
