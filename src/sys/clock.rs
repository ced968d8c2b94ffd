//! The machine's clock: whether it is kept right, and what it says in words for programs.

use std::time::{SystemTime, UNIX_EPOCH};

/// What `adjtimex(2)` returns for a clock that nothing keeps right.
const TIME_ERROR: i32 = 5;

/// Whether the kernel says that something keeps its clock right; `None` where it does not tell.
#[allow(unsafe_code, reason = "a system call that nix does not have")]
pub fn is_synchronised() -> Option<bool> {
    // SAFETY: all zero is a valid value of this structure of integers, and asks for nothing to be changed (`modes` is 0).
    let mut time: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives as long as the call, which fills it in.
    let state = unsafe { libc::adjtimex(&raw mut time) };
    (state >= 0).then_some(state != TIME_ERROR)
}

/// A time in UTC and whole seconds, as containerd's labels and HTML have it (RFC 3339); the epoch for what is
/// before it.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    prost_types::Timestamp { seconds, nanos: 0 }.to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_as_containerd_reads_them() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_709_251_200), "2024-03-01T00:00:00Z");
        assert_eq!(at(4_102_444_800), "2100-01-01T00:00:00Z");
    }
}
