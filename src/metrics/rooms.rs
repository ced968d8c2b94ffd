//! One struct a room.

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use super::{ImageLabel, ImageNames};

/// From 5 ms, a small layer from a near cache, to ten minutes, a large image over a poor way.
const PULL_BUCKETS_SECONDS: [f64; 16] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

/// Calls of containerd take milliseconds, except a Prepare that waits for its layer.
const CALL_BUCKETS_SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0, 300.0, 600.0];

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<C>,
) -> C {
    let metric = made.expect("name and labels are well formed");
    registry.register(Box::new(metric.clone())).expect("every name is registered once");
    metric
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    registered(registry, Histogram::with_opts(opts))
}

fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
    labels: &[&str],
) -> HistogramVec {
    let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    registered(registry, HistogramVec::new(opts, labels))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    registered(registry, IntCounter::new(name, help))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    registered(registry, IntGauge::new(name, help))
}

/// Of whole pulls.
#[derive(Debug)]
pub struct PullMetrics {
    images: ImageNames,
    total: IntCounterVec,
    seconds: HistogramVec,
    resolve_seconds: Histogram,
    fallbacks: IntCounterVec,
    in_progress: IntGauge,
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
            resolve_seconds: histogram(
                registry,
                "hoist_pull_resolve_seconds",
                "Time until manifest and configuration of an image were known.",
                &PULL_BUCKETS_SECONDS,
            ),
            fallbacks: counters(
                registry,
                "hoist_fallbacks_total",
                "Layers that were left to containerd, by the kind of reason.",
                &["reason"],
            ),
            in_progress: gauge(registry, "hoist_pulls_in_progress", "Pulls that are under way."),
        }
    }

    /// Counts a pull that ended as `result` after `seconds`.
    pub fn ended(&self, result: &str, image: &str, seconds: f64, resolve_seconds: Option<f64>) {
        self.total.with_label_values(&[result]).inc();
        self.seconds.with_label_values(&[result, &self.images.value(image)]).observe(seconds);
        if let Some(seconds) = resolve_seconds {
            self.resolve_seconds.observe(seconds);
        }
    }

    /// Counts a layer that was left to containerd, for a kind of reason.
    pub fn fell_back(&self, reason: &'static str) {
        self.fallbacks.with_label_values(&[reason]).inc();
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
    phase_bytes: IntCounterVec,
    entries: IntCounter,
    retries: IntCounter,
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
        Self {
            total,
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
            phase_bytes: counters(
                registry,
                "hoist_phase_bytes_total",
                "Bytes that went through a phase, over all layers.",
                &["phase"],
            ),
            entries: counter(
                registry,
                "hoist_layer_entries_total",
                "Archive entries written to disk.",
            ),
            retries: counter(
                registry,
                "hoist_fetch_retries_total",
                "Requests for blobs that had to be made again.",
            ),
        }
    }

    /// Counts a layer that ended as `result`.
    pub fn ended(&self, result: &str, entries: u64, retries: u64) {
        self.total.with_label_values(&[result]).inc();
        self.entries.inc_by(entries);
        self.retries.inc_by(retries);
    }

    /// Observes one phase of one layer.
    pub fn phase(&self, phase: &str, wall_seconds: f64, busy_seconds: f64, bytes: u64) {
        self.phase_seconds.with_label_values(&[phase]).observe(wall_seconds);
        self.phase_busy_seconds.with_label_values(&[phase]).observe(busy_seconds);
        self.phase_bytes.with_label_values(&[phase]).inc_by(bytes);
    }
}

/// Of the calls that containerd makes.
#[derive(Debug)]
pub struct SnapshotMetrics {
    seconds: HistogramVec,
}

impl SnapshotMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let seconds = histograms(
            registry,
            "hoist_snapshotter_call_seconds",
            "Time to answer a call of containerd, by the call and the gRPC code of the answer.",
            &CALL_BUCKETS_SECONDS,
            &["call", "code"],
        );
        Self { seconds }
    }

    /// Observes one call, such as `"prepare"`, answered with a code such as `"ok"`.
    pub fn answered(&self, call: &str, code: &str, seconds: f64) {
        self.seconds.with_label_values(&[call, code]).observe(seconds);
    }
}

/// Of what is held in memory and on disk, read when it is asked for.
#[derive(Debug)]
pub struct StoreMetrics {
    budget: IntGauge,
    budget_in_use: IntGauge,
    snapshots: IntGaugeVec,
    trees: IntGauge,
    tree_bytes: IntGauge,
}

impl StoreMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let build = registered(
            registry,
            IntGaugeVec::new(
                Opts::new("hoist_build_info", "1; the labels say what runs."),
                &["version"],
            ),
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self {
            budget: gauge(
                registry,
                "hoist_memory_budget_bytes",
                "The most bytes that may be in flight.",
            ),
            budget_in_use: gauge(
                registry,
                "hoist_memory_budget_in_use_bytes",
                "Bytes in flight now.",
            ),
            snapshots: registered(
                registry,
                IntGaugeVec::new(
                    Opts::new("hoist_snapshots", "Snapshots, by kind: active, view, committed."),
                    &["kind"],
                ),
            ),
            trees: gauge(registry, "hoist_layer_trees", "Layer trees on disk."),
            tree_bytes: gauge(
                registry,
                "hoist_layer_tree_bytes",
                "Disk space of the layer trees, each counted once however many snapshots share it.",
            ),
        }
    }

    /// Sets the memory budget and what is in use of it.
    pub fn budget(&self, total_bytes: u64, in_use_bytes: u64) {
        self.budget.set(to_i64(total_bytes));
        self.budget_in_use.set(to_i64(in_use_bytes));
    }

    /// Sets the number of snapshots of one kind.
    pub fn snapshots(&self, kind: &str, count: u64) {
        self.snapshots.with_label_values(&[kind]).set(to_i64(count));
    }

    /// Sets the number and the size of layer trees.
    pub fn trees(&self, count: u64, bytes: u64) {
        self.trees.set(to_i64(count));
        self.tree_bytes.set(to_i64(bytes));
    }
}

fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
