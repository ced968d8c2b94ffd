//! A host whose file systems cannot be written, but for hoistd's root and the directory of its sockets.

use super::daemon::{Daemon, blocking, configure};
use super::faulty_registry::FaultyRegistry;
use super::images::{Layer, noise, push};

/// Two mounts of their own that stay writable, and all others read-only.
const NAMESPACE: &str = r#"
for writable in root run; do mount --bind "$0/$writable" "$0/$writable"; done
cut -d ' ' -f 5 /proc/self/mountinfo | sort -u | while read -r point; do
    case $point in "$0/root" | "$0/run") ;; *) mount -o remount,bind,ro "$point" 2>/dev/null || : ;; esac
done
for place in / /tmp /var /run /etc /dev "$0"; do
    ! touch "$place/hoist-was-here" 2>/dev/null || { echo "$place can be written" >&2; exit 1; }
done
true"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hoistd_pulls_on_a_host_that_is_read_only_but_for_its_root() {
    let server = FaultyRegistry::start().await;
    let layers = [
        Layer::of("gzip", "one", noise("one", 300_000)),
        Layer::of("zstd", "two", noise("two", 3 << 20)),
    ];
    let image = push(&server, "v1", &layers);
    blocking(move || {
        let mut daemon = Daemon::start_where("", &serde_json::json!({}), Vec::new(), |home| {
            for directory in ["root", "run"] {
                std::fs::create_dir(home.join(directory)).unwrap();
            }
            std::fs::write(home.join("namespace"), NAMESPACE).unwrap();
            configure(home, "/hoist.sock", "/run/hoist.sock");
            configure(home, "/control.sock", "/run/control.sock");
        });
        daemon.told(&["pull", "--snapshots", "--quiet", &image]);
        assert!(daemon.told(&["ls"]).contains("2 layers"), "{}", daemon.told(&["ls"]));
        // The record of the pull is on disk, and what stands is found again.
        daemon.crash_and_restart();
        assert!(daemon.told(&["pulls"]).contains(&image));
        assert!(daemon.told(&["ls"]).contains("2 layers"), "{}", daemon.log());
        for word in ["Read-only", "read-only", "WARN", "ERROR"] {
            assert!(!daemon.log().contains(word), "{}", daemon.log());
        }
    })
    .await;
}
