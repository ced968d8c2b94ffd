//! What `hoist` says of pulls by `hoistd` that fail.

use super::daemon::{Daemon, blocking};
use super::faulty_registry::{FaultyRegistry, Reply};
use super::images::{Layer, noise, push};

/// The exit codes are those of a pull that `hoist` does itself, and a pull that never came to a layer has no bottleneck.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_keeps_its_kind_on_its_way_from_hoistd() {
    let server = FaultyRegistry::start().await;
    let image = push(&server, "v1", &[Layer::of("zstd", "one", noise("one", 10_000))]);
    let (missing, secret) = (image.replace(":v1", ":v2"), image.replace(":v1", ":secret"));
    server.script(|request, reply| {
        if request.path.ends_with("/secret") {
            return Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"r\"");
        }
        reply
    });
    blocking(move || {
        let daemon = Daemon::start("", &serde_json::json!({}));
        let cases: [(&[&str], i32, &str); 5] = [
            (&[&missing], 3, "does not have manifest v2"),
            (&[&secret], 4, "no credentials"),
            (&["127.0.0.1:1/x:y"], 5, "refused"),
            (&["Bad//x"], 2, "is not an image reference"),
            (&[&image, "--platform", "linux"], 2, "is not a platform"),
        ];
        for (arguments, code, word) in cases {
            let output = daemon.hoist(&[&["pull", "--snapshots", "--quiet"], arguments].concat());
            let err = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
            assert!(err.starts_with("hoist: hoistd: ") && err.contains(word), "{err}");
        }
        for show in [&["pulls", "1"][..], &["pulls", "show", "1"]] {
            let told = daemon.told(show);
            assert!(
                told.contains("failed") && told.contains("does not have manifest v2"),
                "{told}"
            );
            for word in ["Bottleneck", "LAYER", "critical path"] {
                assert!(!told.contains(word), "{word}: {told}");
            }
        }
    })
    .await;
}
