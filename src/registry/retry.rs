//! When to try again: exponential backoff with jitter, and what `Retry-After` asks for.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime};

use super::RegistryError;
use crate::metrics::RequestMetrics;

/// How long a `Retry-After` is obeyed at most; beyond it, containerd's own pull is the better try.
pub(super) const RETRY_AFTER_MOST: Duration = Duration::from_secs(60);

/// How often and how patiently failures are tried again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetryPolicy {
    /// Tries after the first one.
    pub(crate) retries: u32,
    /// The first pause, before jitter.
    pub(crate) initial: Duration,
    /// The longest pause, before jitter.
    pub(crate) max: Duration,
}

/// The pauses between the tries of one thing.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    policy: RetryPolicy,
    metrics: RequestMetrics,
    tries: u32,
}

impl Backoff {
    /// Pauses by `policy`, none taken yet, each counted in `metrics`.
    pub(crate) fn new(policy: RetryPolicy, metrics: RequestMetrics) -> Self {
        Self { policy, metrics, tries: 0 }
    }

    /// Counts from the beginning again: there was progress.
    pub(crate) fn progressed(&mut self) {
        self.tries = 0;
    }

    /// How long to wait before the next try after `error`; `None` where it is not worth one or
    /// the tries are used up.
    pub(crate) fn pause(&mut self, error: &RegistryError) -> Option<Duration> {
        if !error.is_transient() || self.tries >= self.policy.retries {
            return None;
        }
        let doubled = self.policy.initial.saturating_mul(1 << self.tries.min(20));
        self.tries += 1;
        self.metrics.retried(error.cause());
        let own = jittered(doubled.min(self.policy.max));
        let asked = error.retry_after().unwrap_or_default().min(RETRY_AFTER_MOST);
        Some(own.max(asked))
    }
}

/// Between half of `full` and all of it, so that many clients do not come back at once.
fn jittered(full: Duration) -> Duration {
    // Each RandomState hashes with its own keys: random enough for spreading, and in std.
    let random = RandomState::new().build_hasher().finish() % 1024;
    let half = full / 2;
    half + half.mul_f64(random as f64 / 1024.0)
}

/// Reads a `Retry-After` field: seconds or an HTTP date (RFC 9110, section 10.2.3).
pub(super) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, retry_after: Option<Duration>) -> RegistryError {
        let (host, what, detail) = Default::default();
        RegistryError::Status { host, what, status, detail, retry_after }
    }

    #[test]
    fn pauses_grow_to_a_bound_and_end() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(
            RetryPolicy { retries: 4, initial: ms(100), max: ms(300) },
            RequestMetrics::default(),
        );
        for full in [100, 200, 300, 300] {
            let pause = backoff.pause(&status(503, None)).unwrap();
            assert!(pause >= ms(full) / 2 && pause <= ms(full), "{pause:?} of {full}");
        }
        assert_eq!(backoff.pause(&status(503, None)), None);
        backoff.progressed();
        assert!(backoff.pause(&status(503, None)).is_some());
    }

    #[test]
    fn only_what_may_pass_is_tried_again_and_the_host_is_obeyed() {
        let second = Duration::from_secs(1);
        let policy = RetryPolicy { retries: 9, initial: second, max: second };
        let mut backoff = Backoff::new(policy, RequestMetrics::default());
        assert_eq!(backoff.pause(&status(404, None)), None);
        assert_eq!(backoff.pause(&status(400, None)), None);
        assert_eq!(backoff.pause(&status(429, Some(7 * second))), Some(7 * second));
        assert_eq!(backoff.pause(&status(429, Some(9999 * second))), Some(RETRY_AFTER_MOST));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        let read = |text| parse_retry_after(text, now);
        assert_eq!(read(" 120 "), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(read("Tue, 06 Nov 1984 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
    }
}
