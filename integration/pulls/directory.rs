//! `hoist pull --to` where there is not enough room: refused, stopped or at the end of the disk, and nothing is left.

use std::process::Command;

use super::daemon::blocking;
use super::faulty_registry::FaultyRegistry;
use super::images::{Layer, noise, push, tar};

/// Size of the file system that is pulled to.
const DISK: &str = "24m";

/// What a pull to a small file system of its own said, its exit code, and what is left there.
struct Ended {
    said: String,
    code: String,
    left: String,
}

fn pull(image: &str, min_free: &str) -> Ended {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("hoist.toml");
    std::fs::write(&config, format!("[limits]\nmin_free = \"{min_free}\"\n")).unwrap();
    let disk = home.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    // In a mount namespace, with which the file system goes.
    let script = format!(
        "mount --make-rprivate / && mount -t tmpfs -o size={DISK} none \"$1\" && \
         \"$2\" --config \"$3\" pull \"$4\" --quiet --to \"$1/to\"; echo \"code $?\"; \
         echo \"left $(ls -A \"$1\") $(df --output=used \"$1\" | tail -n 1)\""
    );
    let mut shell = Command::new("unshare");
    shell.env_remove("HOIST_CONFIG").args(["--mount", "sh", "-c", &script, "sh"]).arg(&disk);
    let output = shell.arg(env!("CARGO_BIN_EXE_hoist")).arg(&config).arg(image).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let line = |word: &str| {
        let line = told.lines().find_map(|line| line.strip_prefix(word));
        line.unwrap_or_else(|| panic!("no {word} in {told}")).trim().to_owned()
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ended { said, code: line("code "), left: line("left ") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_has_no_room_says_so_and_leaves_nothing() {
    let server = FaultyRegistry::start().await;
    let small = push(&server, "small", &[Layer::of("zstd", "file", noise("s", 1 << 20))]);
    let large = push(&server, "large", &[Layer::of("zstd", "file", noise("l", 30 << 20))]);
    // A layer that is small until it is unpacked, over one that is there by then.
    let file = noise("g", 100_000).repeat(10);
    let grows = tar((0..40).map(|n| (format!("directory/file{n}"), file.clone())));
    let layers = [Layer::of("gzip", "below", noise("b", 2 << 20)), Layer::new("zstd", &grows)];
    let grows = push(&server, "grows", &layers);
    blocking(move || {
        let fits = pull(&small, "8MiB");
        assert_eq!((&*fits.code, &fits.left[..2]), ("0", "to"), "{}", fits.said);
        for (image, min_free, says) in [
            (&large, "auto", &["needs at least 31", "limits.min_free", "disk/to"][..]),
            // More than is written between two looks.
            (&grows, "12MiB", &["needs more than the", "12582912 of them have to stay free"]),
            (&grows, "0B", &["No space left on device", "nothing of the pull is left"]),
            (&large, "90%", &["needs at least 31", "limits.min_free"]),
        ] {
            let ended = pull(image, min_free);
            assert_eq!((&*ended.code, &*ended.left), ("1", "0"), "{min_free}: {}", ended.said);
            for word in says {
                assert!(ended.said.contains(word), "{min_free}: {word} is not in {}", ended.said);
            }
        }
    })
    .await;
}
