//! What the processors have done: this process's share, and the machine's.

use std::io::Read as _;

use nix::sys::resource::{UsageWho, getrusage};

/// Counters since the start of the process or of the machine; two of them make a span.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Processors {
    /// Processor seconds of all threads of this process, user and system.
    pub process_seconds: f64,
    /// Clock ticks of all processors in which they did something; `None` where `/proc` is not there.
    pub busy_ticks: Option<u64>,
    /// Clock ticks of all processors.
    pub all_ticks: u64,
}

impl Processors {
    /// The counters now. Reads the first line of `/proc/stat` (proc(5)); tens of microseconds.
    pub fn now() -> Self {
        let seconds = |time: nix::sys::time::TimeVal| {
            #[allow(clippy::cast_precision_loss, reason = "seconds of a process fit in 53 bits")]
            let seconds = time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
            seconds
        };
        // It can only fail for a `who` that does not exist.
        let process_seconds = getrusage(UsageWho::RUSAGE_SELF)
            .map_or(0.0, |usage| seconds(usage.user_time()) + seconds(usage.system_time()));
        let (busy_ticks, all_ticks) = stat().map_or((None, 0), |(busy, all)| (Some(busy), all));
        Self { process_seconds, busy_ticks, all_ticks }
    }

    /// The share of all processors' time, 0 to 1, in which they did something between `self` and
    /// `later`; `None` where that is not known or no tick has passed.
    #[allow(clippy::cast_precision_loss, reason = "ticks of a pull fit in 53 bits")]
    pub fn busy_share(&self, later: &Self) -> Option<f64> {
        let busy = later.busy_ticks?.checked_sub(self.busy_ticks?)?;
        let all = later.all_ticks.checked_sub(self.all_ticks).filter(|&all| all > 0)?;
        Some((busy as f64 / all as f64).min(1.0))
    }
}

/// Processors that this process may use: affinity and control groups count.
pub fn usable() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn stat() -> Option<(u64, u64)> {
    // The first line has ten numbers; the lines after it are of no interest and may be many.
    let mut line = [0; 256];
    let read = std::fs::File::open("/proc/stat").ok()?.read(&mut line).ok()?;
    parse(std::str::from_utf8(&line[..read]).ok()?)
}

/// Busy and all ticks of the line `cpu  user nice system idle iowait irq softirq steal guest …`.
/// Waiting for a disk (`iowait`) is not busy; what the hypervisor took (`steal`) is.
fn parse(text: &str) -> Option<(u64, u64)> {
    let numbers = text.lines().next()?.strip_prefix("cpu ")?;
    // Guest time is within user time already.
    let ticks: Vec<u64> =
        numbers.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let idle = ticks.get(3)? + ticks.get(4).unwrap_or(&0);
    let all = ticks.iter().sum::<u64>();
    Some((all - idle, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_stat_is_read() {
        assert_eq!(parse("cpu  10 1 5 100 20 2 3 4 9 9\ncpu0 1 1"), Some((25, 145)));
        assert_eq!(parse("intr 1 2"), None);
    }

    #[test]
    fn work_is_seen() {
        let before = Processors::now();
        let mut digest = crate::sys::processors::usable() as u64;
        while Processors::now().process_seconds < before.process_seconds + 0.03 {
            digest = digest.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        }
        let after = Processors::now();
        assert!(after.process_seconds > before.process_seconds, "{digest}");
        let share = before.busy_share(&after);
        assert!(share.is_none_or(|share| share > 0.0 && share <= 1.0), "{share:?}");
    }
}
