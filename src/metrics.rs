//! What Prometheus can ask for.
//!
//! One [`Metrics`] for the daemon, with a struct for each room that has figures. Rooms above hand
//! their figures in as plain numbers and words; nothing here knows what a pull is. Names begin
//! with `hoist_` and carry base units, every label has a bounded set of values, and
//! `docs/metrics.md` lists them all: a test compares it with what a scrape shows.

mod labels;
mod rates;
mod requests;
mod rooms;
mod store;
#[cfg(test)]
mod tests;

use prometheus::{Encoder, Registry, TextEncoder};

pub use labels::{ImageLabel, ImageNames};
pub use rates::{RateMetrics, RateNow};
pub use requests::RequestMetrics;
pub use rooms::{FallbackMetrics, LayerMetrics, PhaseSeconds, PullMetrics};
pub use store::{MetadataMetrics, SnapshotMetrics, StoreMetrics};

/// All metrics of a daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Of whole pulls.
    pub pulls: PullMetrics,
    /// Of layers and their phases.
    pub layers: LayerMetrics,
    /// Of limits on bytes a second, read when it is asked for.
    pub rates: RateMetrics,
    /// Of requests to registries.
    pub requests: RequestMetrics,
    /// Of the metadata store.
    pub metadata: MetadataMetrics,
    /// Of the calls that containerd makes.
    pub snapshots: SnapshotMetrics,
    /// Of what is held in memory and on disk, read when it is asked for.
    pub store: StoreMetrics,
}

/// The values of labels whose rooms are above this one.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Of a layer.
    pub phases: &'a [&'a str],
    /// What can hold a pull up.
    pub bottlenecks: &'a [&'a str],
    /// Of errors.
    pub kinds: &'a [&'a str],
    /// Of requests that are made again.
    pub causes: &'a [&'a str],
}

impl Metrics {
    /// All metrics, at zero, for a daemon of this version.
    pub fn new(image_label: ImageLabel) -> Self {
        let registry = Registry::new();
        let metrics = Self {
            pulls: PullMetrics::new(&registry, image_label),
            layers: LayerMetrics::new(&registry),
            rates: RateMetrics::new(&registry),
            requests: RequestMetrics::new(&registry),
            metadata: MetadataMetrics::new(&registry),
            snapshots: SnapshotMetrics::new(&registry),
            store: StoreMetrics::new(&registry),
            registry,
        };
        let process = prometheus::process_collector::ProcessCollector::for_self();
        metrics.registry.register(Box::new(process)).expect("its names are its own");
        metrics
    }

    /// Shows these at zero from the start: a rate sees a first event only where there was a zero before.
    pub fn known(&self, known: &Known<'_>) {
        self.pulls.known(known);
        self.layers.known(known.phases);
        self.requests.known(known.causes);
    }

    /// The media type of [`Metrics::text`].
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// All figures, in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut buffer = Vec::new();
        let families = self.registry.gather();
        TextEncoder::new().encode(&families, &mut buffer).expect("memory takes every byte");
        String::from_utf8(buffer).expect("labels and help texts are UTF-8")
    }
}
