//! Of the calls that containerd makes, and of what the daemon holds.

use prometheus::{HistogramVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::rooms::{CALL_BUCKETS_SECONDS, gauge, histograms, registered, to_i64};

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

/// Of the metadata store. Clones share their figures.
#[derive(Clone, Debug)]
pub struct MetadataMetrics(HistogramVec);

impl Default for MetadataMetrics {
    /// Nobody's, for a store without a daemon.
    fn default() -> Self {
        Self::new(&Registry::new())
    }
}

impl MetadataMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        Self(histograms(
            registry,
            "hoist_metadata_seconds",
            "Time of one transaction of the metadata store, waiting for its turn included.",
            &CALL_BUCKETS_SECONDS,
            &["operation"],
        ))
    }

    /// Observes a `"read"`, a `"write"` or a `"checkpoint"`.
    pub fn took(&self, operation: &'static str, seconds: f64) {
        self.0.with_label_values(&[operation]).observe(seconds);
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
    saved_bytes: IntGauge,
    connections: IntGauge,
    connections_in_use: IntGauge,
    disk: IntGauge,
    disk_available: IntGauge,
    min_free: IntGauge,
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
            saved_bytes: gauge(
                registry,
                "hoist_layer_tree_saved_bytes",
                "Disk space that sharing saves: what the layer trees would take more, one for each snapshot.",
            ),
            connections: gauge(
                registry,
                "hoist_connections",
                "The most requests for blobs that may be made at once.",
            ),
            connections_in_use: gauge(
                registry,
                "hoist_connections_in_use",
                "Requests for blobs under way.",
            ),
            disk: gauge(
                registry,
                "hoist_filesystem_size_bytes",
                "Size of the file system that the root is on.",
            ),
            disk_available: gauge(
                registry,
                "hoist_filesystem_available_bytes",
                "What is free of it.",
            ),
            min_free: gauge(
                registry,
                "hoist_filesystem_min_free_bytes",
                "What has to stay free of it: no pull goes below.",
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

    /// Sets the number and the size of layer trees, and what their sharing saves.
    pub fn trees(&self, count: u64, bytes: u64, saved_bytes: u64) {
        self.trees.set(to_i64(count));
        self.tree_bytes.set(to_i64(bytes));
        self.saved_bytes.set(to_i64(saved_bytes));
    }

    /// Sets how many requests there may be, and are.
    pub fn connections(&self, most: usize, in_use: usize) {
        self.connections.set(to_i64(most as u64));
        self.connections_in_use.set(to_i64(in_use as u64));
    }

    /// Sets the size of the root's file system and what is free of it.
    pub fn disk(&self, size_bytes: u64, available_bytes: u64) {
        self.disk.set(to_i64(size_bytes));
        self.disk_available.set(to_i64(available_bytes));
    }

    /// Sets what has to stay free of it.
    pub fn min_free(&self, bytes: u64) {
        self.min_free.set(to_i64(bytes));
    }
}
