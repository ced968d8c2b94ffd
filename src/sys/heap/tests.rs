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
        let told = alone.args(["--exact", name]).env(ALONE, "1").output().expect("it runs again");
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
