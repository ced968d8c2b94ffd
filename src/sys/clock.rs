//! Whether the machine's clock is kept right.

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
