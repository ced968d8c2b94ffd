//! Of requests to registries, to what they redirect to, and to token services.

use std::sync::Arc;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, Registry};

use super::labels::Bounded;
use super::rooms::{CALL_BUCKETS_SECONDS, counters, histogram, histograms};

/// How many hosts get a label value of their own. A host talks to a handful of registries; a
/// registry that redirects to ever new names must not fill Prometheus.
const HOSTS: usize = 32;

/// Of requests to registries. Clones share their figures; the default ones are nobody's, for
/// clients without a daemon.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    hosts: Arc<Bounded>,
    total: IntCounterVec,
    seconds: HistogramVec,
    received: IntCounterVec,
    authorize_seconds: Histogram,
    retries: IntCounterVec,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self::new(&Registry::new())
    }
}

impl RequestMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        Self {
            hosts: Arc::new(Bounded::new(HOSTS)),
            total: counters(
                registry,
                "hoist_registry_requests_total",
                "Requests to registries, their storage and token services, by host and status code; \
                 \"error\" where no answer came, \"timeout\" where none came in time.",
                &["host", "code"],
            ),
            seconds: histograms(
                registry,
                "hoist_registry_request_seconds",
                "Time from sending a request until its answer's headers, connecting included.",
                &CALL_BUCKETS_SECONDS,
                &["host"],
            ),
            received: counters(
                registry,
                "hoist_registry_received_bytes_total",
                "Bytes of blobs received, counted while they arrive.",
                &["host"],
            ),
            authorize_seconds: histogram(
                registry,
                "hoist_registry_authorize_seconds",
                "Time to answer a challenge: finding credentials, asking a token service.",
                &CALL_BUCKETS_SECONDS,
            ),
            retries: counters(
                registry,
                "hoist_registry_retries_total",
                "Requests that had to be made again, by cause.",
                &["cause"],
            ),
        }
    }

    pub(super) fn known(&self, causes: &[&str]) {
        for cause in causes {
            self.retries.with_label_values(&[cause]);
        }
    }

    /// Counts a request that was answered with this code, such as `"206"`, after `seconds`.
    pub fn answered(&self, host: &str, code: &str, seconds: f64) {
        let host = self.hosts.value(host);
        self.total.with_label_values(&[host, code]).inc();
        self.seconds.with_label_values(&[host]).observe(seconds);
    }

    /// What counts bytes that `host` sends.
    pub fn received(&self, host: &str) -> IntCounter {
        self.received.with_label_values(&[self.hosts.value(host)])
    }

    /// Observes an answered challenge.
    pub fn authorized(&self, seconds: f64) {
        self.authorize_seconds.observe(seconds);
    }

    /// Counts a request that is made again.
    pub fn retried(&self, cause: &str) {
        self.retries.with_label_values(&[cause]).inc();
    }
}
