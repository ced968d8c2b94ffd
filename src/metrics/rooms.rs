//! Of pulls and of layers.

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use super::{ImageLabel, ImageNames, Known};

/// From 5 ms, a small layer from a near cache, to ten minutes, a large image over a poor way.
const PULL_BUCKETS_SECONDS: [f64; 16] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

/// Calls of containerd take milliseconds, except a Prepare that waits for its layer.
pub(super) const CALL_BUCKETS_SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0, 300.0, 600.0];

pub(super) fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> C {
    let metric = made.expect("name and labels are well formed");
    registry.register(Box::new(metric.clone())).expect("every name is registered once");
    metric
}

pub(super) fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    registered(registry, Histogram::with_opts(opts))
}

pub(super) fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
    labels: &[&str],
) -> HistogramVec {
    let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    registered(registry, HistogramVec::new(opts, labels))
}

pub(super) fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> IntCounterVec {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

pub(super) fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    registered(registry, IntCounter::new(name, help))
}

pub(super) fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    registered(registry, IntGauge::new(name, help))
}

/// From 100 kB/s, which no pull should be at, to 10 GB/s.
const RATE_BUCKETS: [f64; 16] =
    [1e5, 3e5, 1e6, 3e6, 1e7, 2e7, 4e7, 8e7, 1.6e8, 3.2e8, 6.4e8, 1e9, 2e9, 4e9, 7e9, 1e10];

/// Of whole pulls.
#[derive(Debug)]
pub struct PullMetrics {
    images: ImageNames,
    total: IntCounterVec,
    seconds: HistogramVec,
    phase_seconds: HistogramVec,
    phase_busy_seconds: HistogramVec,
    rate: Histogram,
    bottlenecks: IntCounterVec,
    bottleneck_seconds: CounterVec,
    fallbacks: FallbackMetrics,
    errors: IntCounterVec,
    in_progress: IntGauge,
}

/// One phase of one thing, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct PhaseSeconds {
    /// From its begin to its end.
    pub wall: f64,
    /// What threads or connections were busy in it, added up.
    pub busy: f64,
}

/// Why a layer is left to containerd, beside the kinds of errors: its Prepare did not say which image
/// it is for, it took longer than `pull.deadline`, or its tree was swept again and again.
const FALLBACKS: [&str; 3] = ["unlabelled", "late", "swept"];

/// Of layers that were left to containerd. Clones share their figures.
#[derive(Clone, Debug)]
pub struct FallbackMetrics(IntCounterVec);

impl Default for FallbackMetrics {
    /// Nobody's, for a store without a daemon.
    fn default() -> Self {
        Self::new(&Registry::new())
    }
}

impl FallbackMetrics {
    fn new(registry: &Registry) -> Self {
        Self(counters(
            registry,
            "hoist_fallbacks_total",
            "Layers that were left to containerd, by the kind of reason.",
            &["reason"],
        ))
    }

    /// Counts a layer that was left to containerd, for a kind of reason.
    pub fn count(&self, reason: &'static str) {
        self.0.with_label_values(&[reason]).inc();
    }
}

impl PullMetrics {
    pub(super) fn new(registry: &Registry, image_label: ImageLabel) -> Self {
        let total = counters(
            registry,
            "hoist_pulls_total",
            "Pulls that ended, by how: done, fallback, failed, cancelled.",
            &["result"],
        );
        for result in ["done", "fallback", "failed", "cancelled"] {
            total.with_label_values(&[result]);
        }
        Self {
            images: ImageNames::new(image_label),
            total,
            seconds: histograms(
                registry,
                "hoist_pull_seconds",
                "Wall time of a pull, from its first request to its last layer's commit.",
                &PULL_BUCKETS_SECONDS,
                &["result", "image"],
            ),
            phase_seconds: histograms(
                registry,
                "hoist_pull_phase_seconds",
                "Wall span of one phase of one pull, over all of its layers; phases overlap.",
                &PULL_BUCKETS_SECONDS,
                &["phase"],
            ),
            phase_busy_seconds: histograms(
                registry,
                "hoist_pull_phase_busy_seconds",
                "Time that threads or connections were busy in one phase of one pull.",
                &PULL_BUCKETS_SECONDS,
                &["phase"],
            ),
            rate: histogram(
                registry,
                "hoist_pull_rate_bytes_per_second",
                "Compressed bytes of a pull that ended well, by its wall time.",
                &RATE_BUCKETS,
            ),
            bottlenecks: counters(
                registry,
                "hoist_pull_bottlenecks_total",
                "Pulls by what held them up most.",
                &["bottleneck"],
            ),
            bottleneck_seconds: registered(
                registry,
                CounterVec::new(
                    Opts::new(
                        "hoist_pull_bottleneck_seconds_total",
                        "How long pulls were held up by their bottlenecks.",
                    ),
                    &["bottleneck"],
                ),
            ),
            fallbacks: FallbackMetrics::new(registry),
            errors: counters(
                registry,
                "hoist_errors_total",
                "Requests for layers that failed, by the kind of error.",
                &["kind"],
            ),
            in_progress: gauge(registry, "hoist_pulls_in_progress", "Pulls that are under way."),
        }
    }

    pub(super) fn known(&self, known: &Known<'_>) {
        for phase in known.phases.iter().chain(&["resolve"]) {
            self.phase_seconds.with_label_values(&[phase]);
            self.phase_busy_seconds.with_label_values(&[phase]);
        }
        for bottleneck in known.bottlenecks {
            self.bottlenecks.with_label_values(&[bottleneck]);
            self.bottleneck_seconds.with_label_values(&[bottleneck]);
        }
        for kind in known.kinds {
            self.errors.with_label_values(&[kind]);
        }
        for reason in known.kinds.iter().chain(&FALLBACKS) {
            self.fallbacks.0.with_label_values(&[reason]);
        }
        if let Some(image) = self.images.only() {
            self.seconds.with_label_values(&["done", image]);
        }
    }

    /// Shows the pulls of an image before one of them has ended: a host pulls most images once, and that one pull is
    /// in a rate only where a scrape saw none before it.
    pub fn seen(&self, image: &str) {
        self.seconds.with_label_values(&["done", self.images.value(image)]);
    }

    /// Counts a pull that ended as `result` after `seconds`.
    pub fn ended(&self, result: &str, image: &str, seconds: f64) {
        self.total.with_label_values(&[result]).inc();
        self.seconds.with_label_values(&[result, self.images.value(image)]).observe(seconds);
    }

    /// Observes one phase of one pull.
    pub fn phase(&self, phase: &str, seconds: PhaseSeconds) {
        self.phase_seconds.with_label_values(&[phase]).observe(seconds.wall);
        self.phase_busy_seconds.with_label_values(&[phase]).observe(seconds.busy);
    }

    /// Observes the rate of a pull that fetched something.
    pub fn rate(&self, bytes_per_second: f64) {
        self.rate.observe(bytes_per_second);
    }

    /// Counts a pull by what held it up, and for how long that did.
    pub fn held_up(&self, bottleneck: &str, seconds: f64) {
        self.bottlenecks.with_label_values(&[bottleneck]).inc();
        self.bottleneck_seconds.with_label_values(&[bottleneck]).inc_by(seconds.max(0.0));
    }

    /// Of layers that are left to containerd.
    pub fn fallbacks(&self) -> &FallbackMetrics {
        &self.fallbacks
    }

    /// Counts a failure, by the kind of error.
    pub fn failed(&self, kind: &'static str) {
        self.errors.with_label_values(&[kind]).inc();
    }

    /// Sets the number of pulls under way.
    pub fn in_progress(&self, pulls: usize) {
        self.in_progress.set(to_i64(pulls as u64));
    }
}

/// Of layers and their phases.
#[derive(Debug)]
pub struct LayerMetrics {
    total: IntCounterVec,
    phase_seconds: HistogramVec,
    phase_busy_seconds: HistogramVec,
    bytes: IntCounterVec,
    shared_bytes: IntCounter,
    kept: IntCounterVec,
    entries: IntCounter,
    now: IntGaugeVec,
}

impl LayerMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let total = counters(
            registry,
            "hoist_layers_total",
            "Layers of ended pulls, by how: done, shared, fallback, failed, cancelled.",
            &["result"],
        );
        for result in ["done", "shared", "fallback", "failed", "cancelled"] {
            total.with_label_values(&[result]);
        }
        let kept = counters(
            registry,
            "hoist_kept_layers_total",
            "Compressed blobs for containerd's content store, by how it went: written, failed.",
            &["result"],
        );
        for result in ["written", "failed"] {
            kept.with_label_values(&[result]);
        }
        Self {
            total,
            kept,
            phase_seconds: histograms(
                registry,
                "hoist_layer_phase_seconds",
                "Wall span of one phase of one layer; phases overlap.",
                &PULL_BUCKETS_SECONDS,
                &["phase"],
            ),
            phase_busy_seconds: histograms(
                registry,
                "hoist_layer_phase_busy_seconds",
                "Time that threads or connections were busy in one phase of one layer.",
                &PULL_BUCKETS_SECONDS,
                &["phase"],
            ),
            bytes: counters(
                registry,
                "hoist_bytes_total",
                "Bytes of ended pulls: received from the network (repeated requests too), compressed bytes of \
                 finished layers, uncompressed bytes of archives, bytes written to disk.",
                &["kind"],
            ),
            shared_bytes: counter(
                registry,
                "hoist_layer_shared_bytes_total",
                "Compressed bytes that were not fetched, because the layer was there already.",
            ),
            entries: counter(
                registry,
                "hoist_layer_entries_total",
                "Archive entries written to disk.",
            ),
            now: registered(
                registry,
                IntGaugeVec::new(
                    Opts::new("hoist_layers", "Layers of running pulls: waiting, running."),
                    &["state"],
                ),
            ),
        }
    }

    pub(super) fn known(&self, phases: &[&str]) {
        for phase in phases {
            self.phase_seconds.with_label_values(&[phase]);
            self.phase_busy_seconds.with_label_values(&[phase]);
        }
        for kind in ["network", "compressed", "uncompressed", "disk"] {
            self.bytes.with_label_values(&[kind]);
        }
    }

    /// Counts a layer that ended as `result`.
    pub fn ended(&self, result: &str, entries: u64) {
        self.total.with_label_values(&[result]).inc();
        self.entries.inc_by(entries);
    }

    /// Counts a blob that was to go to containerd's content store.
    pub fn kept(&self, result: &str) {
        self.kept.with_label_values(&[result]).inc();
    }

    /// Counts a layer of so many compressed bytes that was there already.
    pub fn shared(&self, bytes: u64) {
        self.shared_bytes.inc_by(bytes);
    }

    /// Observes one phase of one layer.
    pub fn phase(&self, phase: &str, seconds: PhaseSeconds) {
        self.phase_seconds.with_label_values(&[phase]).observe(seconds.wall);
        self.phase_busy_seconds.with_label_values(&[phase]).observe(seconds.busy);
    }

    /// Counts bytes of one kind: network, compressed, uncompressed, disk.
    pub fn bytes(&self, kind: &'static str, bytes: u64) {
        self.bytes.with_label_values(&[kind]).inc_by(bytes);
    }

    /// Sets how many layers wait for their turn, and how many are in work.
    pub fn now(&self, waiting: usize, running: usize) {
        self.now.with_label_values(&["waiting"]).set(to_i64(waiting as u64));
        self.now.with_label_values(&["running"]).set(to_i64(running as u64));
    }
}

pub(super) fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
