//! What the thread that calls has done: how long it ran, and how long it waited for a processor.

use std::fs::File;
use std::marker::PhantomData;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// The thread that made it, which alone can ask.
#[derive(Debug)]
pub struct OwnThread {
    /// `/proc/thread-self/schedstat`, kept open: it is asked some hundred times a second.
    schedstat: Option<File>,
    _of_one_thread: PhantomData<*const ()>,
}

/// A thread's clocks at one moment; two of them make a span.
#[derive(Clone, Copy, Debug)]
pub struct ThreadTimes {
    at: Instant,
    ran: Duration,
    queued: Duration,
}

impl OwnThread {
    /// The calling thread.
    pub fn new() -> Self {
        let schedstat = File::open("/proc/thread-self/schedstat").ok();
        Self { schedstat, _of_one_thread: PhantomData }
    }

    /// The clocks now; two system calls, about a microsecond.
    pub fn times(&self) -> ThreadTimes {
        // It can only fail for a clock that does not exist.
        let ran =
            clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Into::into);
        ThreadTimes { at: Instant::now(), ran, queued: self.queued().unwrap_or_default() }
    }

    /// How long it has waited for a processor; `None` where the kernel does not count that.
    fn queued(&self) -> Option<Duration> {
        // Three numbers of at most twenty digits.
        let mut line = [0; 64];
        let read = self.schedstat.as_ref()?.read_at(&mut line, 0).ok()?;
        parse(std::str::from_utf8(&line[..read]).ok()?)
    }
}

impl Default for OwnThread {
    fn default() -> Self {
        Self::new()
    }
}

impl ThreadTimes {
    /// How much of the time until `later` the thread neither ran nor waited for a processor: it
    /// waited for something else. Never more than the time itself.
    pub fn blocked(&self, later: &Self) -> Duration {
        let all = later.at.saturating_duration_since(self.at);
        let ran = later.ran.saturating_sub(self.ran);
        all.saturating_sub(ran).saturating_sub(later.queued.saturating_sub(self.queued))
    }
}

/// The second number of a line of `schedstat` (the kernel's sched-stats.rst): nanoseconds in a run queue.
fn parse(line: &str) -> Option<Duration> {
    line.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_schedstat_is_read() {
        assert_eq!(parse("81936 1575662 12\n"), Some(Duration::from_nanos(1_575_662)));
        assert_eq!(parse("81936\n"), None);
        assert_eq!(parse(""), None);
    }

    /// However busy the machine is: a thread that sleeps is in no queue.
    #[test]
    fn sleep_is_blocked_and_work_is_not() {
        let own = OwnThread::new();
        let (awake, asked) = (own.times(), Duration::from_millis(60));
        std::thread::sleep(asked);
        let slept = own.times();
        // The kernel's clocks are read one after the other.
        assert!(awake.blocked(&slept) > asked * 9 / 10, "{awake:?} {slept:?}");
        let mut digest = 1_u64;
        while own.times().ran < slept.ran + asked {
            digest = digest.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        }
        let worked = own.times();
        let all = worked.at - slept.at;
        assert!(slept.blocked(&worked) <= all - asked, "{digest}: {slept:?} {worked:?}");
    }
}
