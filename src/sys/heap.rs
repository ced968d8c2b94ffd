//! What the C library's heap keeps of memory that has been freed.
//!
//! glibc gives free memory back by itself only at the end of a heap, and after the buffers of a pull there
//! is always something small left behind them: a daemon would keep its largest pull's memory for as long
//! as it lives.

/// Has all threads allocate from one heap, of which [`give_back`] gives all back that is free. By itself glibc makes one for each
/// thread, up to eight a core, and malloc_trim(3) leaves the free end of all but the first as it is: what a pull freed last
/// would stay, once for each. Threads have to wait for each other here, but seldom and shortly: small pieces come from a
/// cache of each thread's own, and a pull uses its large buffers again and again. To be called before there are threads.
pub fn one_for_all() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    one_arena();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "a function of the C library that nix does not have")]
fn one_arena() {
    // SAFETY: it takes two integers, and changes for threads to come how many heaps there may be (mallopt(3)). Where it is
    // refused (it is not, for this value) all goes on as before.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives whole pages of free memory of the heap back to the kernel. Takes milliseconds for each hundred megabytes, in which a
/// thread that allocates waits. Where the C library is not glibc nothing is done: there is nothing to ask.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    trim();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "a function of the C library that nix does not have")]
fn trim() {
    // SAFETY: it takes an integer and touches free memory only, under the arenas' own locks (malloc_trim(3): MT-Safe). 0: no
    // room is kept at the end of the main heap.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Memory of this process that is no file's, in KiB.
    fn anonymous_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("it is ours");
        let line =
            status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux says so");
        line.trim()
            .strip_suffix(" kB")
            .and_then(|kilobytes| kilobytes.parse().ok())
            .expect("a number of kB")
    }

    /// Says to the process below that it is alone.
    const ALONE: &str = "HOIST_TEST_ALONE";

    /// In a process of its own: what other tests take meanwhile would count here.
    #[test]
    fn memory_between_what_is_in_use_is_given_back() {
        const PIECE_BYTES: usize = 64 << 10;
        const PIECES: usize = 1024;
        if std::env::var_os(ALONE).is_none() {
            let name = "sys::heap::tests::memory_between_what_is_in_use_is_given_back";
            let own = std::env::current_exe().expect("it runs");
            let mut alone = std::process::Command::new(own);
            let told =
                alone.args(["--exact", name]).env(ALONE, "1").output().expect("it runs again");
            let said = String::from_utf8_lossy(&told.stdout);
            assert!(told.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        // Small enough to lie in the heap; what stays in use behind them keeps it from shrinking.
        let (large, small): (Vec<_>, Vec<_>) =
            (0..PIECES).map(|n| (vec![1_u8; PIECE_BYTES], vec![n as u8; 100])).unzip();
        drop(large);
        let before = anonymous_kib();
        give_back();
        let freed = before.saturating_sub(anonymous_kib());
        assert!(freed > (PIECES * PIECE_BYTES / 1024 / 2) as u64, "{freed} of {before} KiB");
        assert!(small.iter().enumerate().all(|(n, piece)| piece[0] == n as u8));
    }
}
