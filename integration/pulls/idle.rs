//! What a `hoistd` keeps when its pulls have ended: little memory, and no reason to wake up.

use std::time::{Duration, Instant};

use super::daemon::{Daemon, blocking};
use super::faulty_registry::FaultyRegistry;
use super::harness::process::status;
use super::images::{Layer, noise, push};

/// What an idle daemon may have of memory that is no file's. (With the pages of its program the packaged one has to stay below
/// 20 MiB; this build's program is several times as large.)
const ANONYMOUS_KIB_MOST: u64 = 6 << 10;

/// Longer than it takes to come to rest, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long nothing may happen.
const STILL: Duration = Duration::from_secs(6);

fn kib(daemon: &Daemon, name: &str) -> u64 {
    status(&format!("/proc/{}/status", daemon.id()), name).expect("the daemon runs")
}

/// How often any of its threads went to sleep or was made to give way, by thread.
fn switches(daemon: &Daemon) -> Vec<(String, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap();
    let mut found: Vec<_> = tasks
        .filter_map(|task| {
            let file = format!("{}/status", task.ok()?.path().display());
            let count = status(&file, "voluntary_ctxt_switches")?;
            Some((file, count))
        })
        .collect();
    found.sort();
    found
}

/// Waits until `what` is so.
fn until(what: &str, daemon: &Daemon, so: impl Fn() -> bool) {
    let began = Instant::now();
    while !so() {
        let [rss, anonymous] = ["VmRSS", "RssAnon"].map(|name| kib(daemon, name));
        assert!(
            began.elapsed() < PATIENCE,
            "{what}: not so; {rss} KiB resident, {anonymous} anonymous, {:?}\n{}",
            switches(daemon),
            daemon.log()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_pull_memory_is_given_back_and_nothing_wakes_up() {
    let server = FaultyRegistry::start().await;
    let layers: Vec<_> = (0..8)
        .map(|n| {
            let (form, name) = (["gzip", "zstd"][n % 2], format!("file{n}"));
            Layer::of(form, &name, noise(&name, 12 << 20))
        })
        .collect();
    let image = push(&server, "v1", &layers);
    drop(layers);
    blocking(move || {
        let daemon = Daemon::start("", &serde_json::json!({}));
        let before = kib(&daemon, "RssAnon");
        daemon.told(&["pull", "--snapshots", "--quiet", &image]);
        let pulled = kib(&daemon, "RssAnon");
        // Else there would be nothing to see below.
        assert!(pulled > 2 * ANONYMOUS_KIB_MOST, "{before} KiB before, {pulled} after the pull");
        until("memory is given back", &daemon, || kib(&daemon, "RssAnon") < ANONYMOUS_KIB_MOST);
        until("nothing wakes up", &daemon, || {
            let before = switches(&daemon);
            std::thread::sleep(STILL);
            switches(&daemon) == before
        });
        // Metrics, lists and the next pull are there as ever.
        assert!(daemon.body("/metrics").contains("hoist_"));
    })
    .await;
}
