//! How many connections a host is worth: found by trying, as long as it is pulled from.
//!
//! It begins with a few and takes one more for each answer while all are in use (twice as many
//! after a round trip). Then it goes by what arrives: as long as all connections are in use it
//! measures the rate over a span and takes a quarter more; where that brings less than a quarter of
//! what it should, it goes back, rests for some spans and tries again. Answers that take much longer
//! than the quickest, without more bytes for it, mean that requests queue at the host: fewer are
//! made. A 429 or 503 halves the number, once for all requests that were under way by then. While
//! connections are left over (the decoders or the disk are the limit) nothing is learned and nothing
//! changes.
//!
//! Pure: the clock comes in.

use std::time::{Duration, Instant};

/// Connections to begin with.
const START: usize = 4;

/// How long bytes are counted for a rate: many pieces of many connections.
const SPAN: Duration = Duration::from_millis(250);

/// Spans until the next try after one that brought nothing.
const REST_SPANS: u32 = 8;

/// The share of the proportional gain that is worth more connections.
const WORTH: f64 = 0.25;

/// How much longer than the quickest answer is a queue, with what a busy machine adds by itself.
const QUEUED_FACTOR: u32 = 2;
const QUEUED_LEAST: Duration = Duration::from_millis(40);

/// The number of connections for one host.
#[derive(Debug)]
pub(super) struct Pace {
    limit: usize,
    most: usize,
    starting: bool,
    /// When the host refused last.
    refused: Option<Instant>,
    quickest: Option<Duration>,
    /// The connections and the rate that the next span is compared with.
    before: Option<(usize, f64)>,
    rest: u32,
    span: Span,
}

/// What is counted of a span.
#[derive(Debug, Default)]
struct Span {
    began: Option<Instant>,
    bytes: u64,
    answers: u32,
    waited: Duration,
    /// All connections were in use at some time.
    full: bool,
}

impl Pace {
    /// For a host to which there may be `most` connections.
    pub(super) fn new(most: usize) -> Self {
        Self {
            limit: START.min(most),
            most,
            starting: true,
            refused: None,
            quickest: None,
            before: None,
            rest: 0,
            span: Span::default(),
        }
    }

    /// The connections that there may be now.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Notes that all of them are in use.
    pub(super) fn full(&mut self) {
        self.span.full = true;
    }

    /// Notes the answer to a request.
    pub(super) fn answered(&mut self, asked: Instant, now: Instant) {
        let waited = now.saturating_duration_since(asked);
        self.quickest = Some(self.quickest.map_or(waited, |quickest| quickest.min(waited)));
        self.span.answers += 1;
        self.span.waited += waited;
        if self.starting && self.span.full {
            self.limit = (self.limit + 1).min(self.most);
        }
    }

    /// Notes that the host wants to be left alone, in answer to a request made at `asked`.
    pub(super) fn refused(&mut self, asked: Instant, now: Instant) {
        if self.refused.is_some_and(|refused| asked < refused) {
            return;
        }
        self.limit = (self.limit / 2).max(1);
        self.refused = Some(now);
        self.starting = false;
        self.before = None;
        self.rest = REST_SPANS;
        self.span = Span::default();
    }

    /// Notes bytes that have arrived.
    pub(super) fn arrived(&mut self, bytes: u64, now: Instant) {
        let began = *self.span.began.get_or_insert(now);
        self.span.bytes += bytes;
        let elapsed = now.saturating_duration_since(began);
        if elapsed >= SPAN {
            let span = std::mem::take(&mut self.span);
            if span.full {
                let rate = span.bytes as f64 / elapsed.as_secs_f64();
                let queues = self.queues(&span);
                self.learn(rate, queues);
            }
        }
    }

    fn queues(&self, span: &Span) -> bool {
        let (Some(quickest), true) = (self.quickest, span.answers > 0) else { return false };
        span.waited / span.answers > quickest * QUEUED_FACTOR + QUEUED_LEAST
    }

    fn learn(&mut self, rate: f64, queues: bool) {
        match self.before {
            Some((fewer, slower)) if self.limit > fewer => {
                let more = self.limit as f64 / fewer as f64 - 1.0;
                if rate / slower - 1.0 >= more * WORTH {
                    self.before = Some((self.limit, rate));
                    self.grow();
                } else {
                    self.starting = false;
                    self.limit = fewer;
                    self.rest = REST_SPANS;
                }
            }
            _ => {
                self.before = Some((self.limit, rate));
                if queues {
                    self.starting = false;
                    self.limit -= if self.limit > 1 { self.limit.div_ceil(8) } else { 0 };
                    self.rest = REST_SPANS;
                } else if self.rest > 0 {
                    self.rest -= 1;
                } else {
                    self.grow();
                }
            }
        }
    }

    fn grow(&mut self) {
        self.limit = (self.limit + self.limit.div_ceil(4)).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: f64 = 1e6;

    /// A host with so many bytes a second on one connection and in all, seen on a made-up clock.
    struct Host {
        connection: f64,
        all: f64,
        first_byte: Duration,
        /// Answers queue beyond so many requests at once.
        serves: usize,
    }

    impl Host {
        /// Pulls for `seconds` with as many connections as there may be; the limits at the end of
        /// each span.
        fn pull(&self, pace: &mut Pace, clock: &mut Instant, seconds: f64) -> Vec<usize> {
            let step = Duration::from_millis(50);
            let mut limits = Vec::new();
            for n in 0..(seconds / step.as_secs_f64()) as usize {
                let connections = pace.limit();
                pace.full();
                let queue = (connections.max(self.serves) - self.serves) as u32;
                pace.answered(*clock, *clock + self.first_byte * (1 + queue));
                *clock += step;
                let rate = (self.connection * connections as f64).min(self.all);
                pace.arrived((rate * step.as_secs_f64()) as u64, *clock);
                if n % 5 == 4 {
                    limits.push(pace.limit());
                }
            }
            limits
        }
    }

    const STORE: Host = Host {
        connection: 80.0 * MB,
        all: 500.0 * MB,
        first_byte: Duration::from_millis(30),
        serves: 1000,
    };

    #[test]
    fn it_grows_while_the_rate_grows_and_stays_near_what_is_enough() {
        let (mut pace, mut clock) = (Pace::new(64), Instant::now());
        assert_eq!(pace.limit(), START);
        let limits = STORE.pull(&mut pace, &mut clock, 20.0);
        // Seven fill the link.
        let late = &limits[limits.len() / 2..];
        assert!(late.iter().all(|limit| (7..=16).contains(limit)), "{limits:?}");
        let wide = Host { all: 5000.0 * MB, ..STORE };
        let mut pace = Pace::new(48);
        let limits = wide.pull(&mut pace, &mut clock, 10.0);
        assert_eq!(*limits.last().unwrap(), 48, "the configuration's bound: {limits:?}");
    }

    #[test]
    fn it_does_not_grow_for_nothing() {
        // One connection fills it.
        let near = Host { connection: 1250.0 * MB, all: 1250.0 * MB, ..STORE };
        let (mut pace, mut clock) = (Pace::new(64), Instant::now());
        pace.starting = false;
        let limits = near.pull(&mut pace, &mut clock, 20.0);
        assert!(limits.iter().all(|&limit| limit <= START + 1), "{limits:?}");
    }

    #[test]
    fn a_refusal_halves_it_once_for_all_that_were_under_way() {
        let (mut pace, clock) = (Pace::new(64), Instant::now());
        let ms = Duration::from_millis;
        pace.limit = 32;
        for n in 0..32 {
            pace.refused(clock, clock + ms(50 + n));
        }
        assert_eq!(pace.limit(), 16);
        pace.refused(clock + ms(60), clock + ms(99));
        assert_eq!(pace.limit(), 8);
        for n in 0..9 {
            pace.refused(clock + ms(1000 * (n + 1)), clock + ms(1000 * (n + 1)));
        }
        assert_eq!(pace.limit(), 1, "there is always one");
    }

    #[test]
    fn it_recovers_from_a_refusal_after_a_rest() {
        let (mut pace, mut clock) = (Pace::new(16), Instant::now());
        let wide = Host { all: 5000.0 * MB, ..STORE };
        pace.limit = 16;
        pace.refused(clock, clock);
        let rest = SPAN.as_secs_f64() * f64::from(REST_SPANS);
        let limits = wide.pull(&mut pace, &mut clock, rest);
        assert!(limits.iter().all(|&limit| limit == 8), "{limits:?}");
        assert_eq!(*wide.pull(&mut pace, &mut clock, 5.0).last().unwrap(), 16);
    }

    #[test]
    fn answers_that_queue_mean_fewer_requests() {
        // More requests bring no more bytes and later answers.
        let tired = Host { connection: 80.0 * MB, all: 320.0 * MB, serves: 6, ..STORE };
        let (mut pace, mut clock) = (Pace::new(64), Instant::now());
        pace.starting = false;
        pace.quickest = Some(tired.first_byte);
        pace.limit = 40;
        let limits = tired.pull(&mut pace, &mut clock, 60.0);
        let late = &limits[limits.len() / 2..];
        assert!(late.iter().all(|&limit| limit <= 12), "{limits:?}");
    }

    #[test]
    fn nothing_is_learned_while_connections_are_left_over() {
        let (mut pace, clock) = (Pace::new(64), Instant::now());
        for n in 1..100 {
            let now = clock + Duration::from_millis(100 * n);
            pace.answered(now, now);
            pace.arrived(1 << 20, now);
        }
        assert_eq!(pace.limit(), START);
    }
}
