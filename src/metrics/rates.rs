//! Of limits on bytes a second.

use std::sync::{Mutex, PoisonError};

use prometheus::{CounterVec, IntGaugeVec, Opts, Registry};

use super::rooms::{registered, to_i64};

const LABELS: [&str; 2] = ["limit", "registry"];

/// Of limits on bytes a second.
#[derive(Debug)]
pub struct RateMetrics {
    /// Held by whoever brings them up to date: scrapes may come side by side.
    now: Mutex<IntGaugeVec>,
    waited: CounterVec,
}

/// One limit, as it is now.
#[derive(Clone, PartialEq, Debug)]
pub struct RateNow {
    /// "bandwidth" or "disk".
    pub limit: &'static str,
    /// The registry that it is for; empty: for all.
    pub registry: String,
    /// What it allows; 0: there is none.
    pub bytes_per_second: u64,
    /// How long was waited for it, added up over all that waited.
    pub waited_seconds: f64,
}

impl RateMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let now = Opts::new(
            "hoist_rate_limit_bytes_per_second",
            "Limits on bytes a second, of bandwidth and disk, for all registries or one; 0: none.",
        );
        let waited = Opts::new(
            "hoist_rate_limit_wait_seconds_total",
            "Time that connections and writers waited for these limits; several at once add up.",
        );
        Self {
            now: Mutex::new(registered(registry, IntGaugeVec::new(now, &LABELS))),
            waited: registered(registry, CounterVec::new(waited, &LABELS)),
        }
    }

    /// Sets all limits that there are; others that there were are gone.
    pub fn now(&self, rates: Vec<RateNow>) {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.reset();
        for rate in rates {
            let labels = [rate.limit, &rate.registry];
            now.with_label_values(&labels).set(to_i64(rate.bytes_per_second));
            let waited = self.waited.with_label_values(&labels);
            // A registry's limit that went and came again counts from zero.
            waited.inc_by((rate.waited_seconds - waited.get()).max(0.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{ImageLabel, Metrics};

    #[test]
    fn limits_come_and_go_and_what_was_waited_stays() {
        let metrics = Metrics::new(ImageLabel::None);
        let rate = |registry: &str, bytes_per_second, waited_seconds| RateNow {
            limit: "bandwidth",
            registry: registry.to_owned(),
            bytes_per_second,
            waited_seconds,
        };
        let shows = |line: &str| metrics.text().lines().any(|shown| shown == line);
        metrics.rates.now(vec![rate("", 0, 0.0), rate("host", 1000, 2.5)]);
        assert!(shows(
            r#"hoist_rate_limit_bytes_per_second{limit="bandwidth",registry="host"} 1000"#
        ));
        assert!(shows(r#"hoist_rate_limit_bytes_per_second{limit="bandwidth",registry=""} 0"#));
        metrics.rates.now(vec![rate("", 500, 1.0)]);
        let limits = metrics.text();
        assert!(!limits.contains(r#"per_second{limit="bandwidth",registry="host"}"#), "{limits}");
        let waited =
            r#"hoist_rate_limit_wait_seconds_total{limit="bandwidth",registry="host"} 2.5"#;
        assert!(shows(waited), "{limits}");
        metrics.rates.now(vec![rate("host", 7, 0.5)]);
        assert!(shows(waited), "a counter never falls");
    }
}
