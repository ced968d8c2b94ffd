//! Images that are on a host before anybody needs them: `hoist prefetch` into a real containerd, without the registry
//! afterwards, over restarts and removals, and back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::harness::containerd::{NAMESPACE, eventually};
use super::harness::{Generation, cri};
use super::{Bench, bench};

impl Bench {
    /// `hoist`, about this containerd.
    fn hoist(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoist"));
        command.arg("--config").arg(self.hoistd.config()).args(arguments);
        command.env("CONTAINERD_ADDRESS", self.containerd.socket());
        command.env("CONTAINERD_NAMESPACE", NAMESPACE).stdin(Stdio::null());
        command
    }

    fn hoist_ends(&self, arguments: &[&str]) -> Output {
        self.hoist(arguments).output().unwrap()
    }

    /// The JSON that a command prints.
    fn told(&self, arguments: &[&str]) -> Value {
        let output = self.hoist_ends(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}\n{}", self.hoistd.log());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn pinned(&self) -> Vec<String> {
        let pins = self.told(&["prefetch", "--list", "--json"]);
        let images = pins.as_array().unwrap().iter();
        images.map(|pin| pin["image"].as_str().unwrap().to_owned()).collect()
    }

    fn knows(&self, image: &str) -> bool {
        let list = self.containerd.ctr(NAMESPACE, &["image", "ls", "-q"]);
        list.lines().any(|name| name == image)
    }
}

fn states(report: &Value) -> Vec<&str> {
    let layers = report["layers"].as_array().unwrap().iter();
    layers.map(|layer| layer["state"]["is"].as_str().unwrap()).collect()
}

const RELEASE: &[&str] = &["cat", "/etc/debian_version"];

/// The registry is gone, hoistd was killed and started again, and a container starts. Then it is let go.
fn a_prefetched_image_needs_no_registry(generation: Generation) {
    let test = format!("prefetch on containerd {generation:?}");
    let Some(mut bench) = bench(generation, &test) else {
        return;
    };
    let image = bench.house.registry.image("python:gzip");
    let reports = bench.told(&["prefetch", "--json", &image]);
    assert_eq!(states(&reports[0]), ["done"; 4], "{reports}");
    assert_eq!(bench.hoistd.trees(), 4);
    bench.assert_not_downloaded(&image);
    assert_eq!(bench.pinned(), [image.clone()]);

    bench.house.registry.crash();
    bench.hoistd.crash_and_restart();
    bench.wait_for_hoistd();
    let release = bench.containerd.run("hoist", &image, "offline", RELEASE);
    assert!(release.starts_with("12."), "{release:?}");
    // For CRI too it is an image that is there: the kubelet does not pull it, and does not collect it.
    let status = || cri::image(&bench.containerd.socket(), &image).unwrap();
    eventually("CRI knows the image", || status().is_some(), || bench.containerd.inventory());
    if generation == Generation::Two {
        eventually("it is pinned", || status().unwrap().pinned, || format!("{:?}", status()));
    }

    let removed = bench.told(&["prefetch", "--release", "--json", &image]);
    assert_eq!(removed[0]["removed"], true, "{removed}");
    assert_eq!(bench.pinned(), Vec::<String>::new());
    assert!(!bench.knows(&image));
    let gone = || bench.hoistd.stored().is_empty();
    eventually("its bytes are free", gone, || bench.state());
    let again = bench.hoist_ends(&["prefetch", "--release", &image]);
    assert_eq!(again.status.code(), Some(3), "{again:?}");
}

#[test]
fn a_prefetched_image_needs_no_registry_on_1() {
    a_prefetched_image_needs_no_registry(Generation::One);
}

#[test]
fn a_prefetched_image_needs_no_registry_on_2() {
    a_prefetched_image_needs_no_registry(Generation::Two);
}

/// Whoever removes the image from containerd: its layers stay, and a pull brings documents alone.
fn layers_stay_whoever_removes_the_image(generation: Generation) {
    let test = format!("pins on containerd {generation:?}");
    let Some(mut bench) = bench(generation, &test) else {
        return;
    };
    let image = bench.house.registry.image("python:zstd");
    bench.told(&["prefetch", "--json", &image]);
    let trees = bench.hoistd.trees();
    assert_eq!(trees, 4);
    if generation == Generation::Two {
        bench.containerd.ctr(NAMESPACE, &["image", "prune", "--all"]);
    } else {
        bench.containerd.remove(&image);
    }
    eventually("containerd has removed it", || !bench.knows(&image), || bench.state());
    bench.containerd.remove_everything();
    let only_trees = || bench.hoistd.stored().len() == trees;
    eventually("containerd has collected its snapshots", only_trees, || bench.state());
    bench.hoistd.crash_and_restart();
    bench.wait_for_hoistd();
    assert_eq!(bench.hoistd.trees(), trees);

    bench.containerd.pull(&image);
    bench.assert_not_downloaded(&image);
    let pulls = bench.told(&["pulls", "--json"]);
    assert_eq!(states(&pulls[0]), ["shared"; 4], "{}", pulls[0]);
    let release = bench.containerd.run("hoist", &image, "again", RELEASE);
    assert!(release.starts_with("12."), "{release:?}");

    // Somebody else has pulled it since: it is theirs.
    let released = bench.told(&["prefetch", "--release", "--json", &image]);
    assert_eq!(released[0]["removed"], false, "{released}");
    assert!(bench.knows(&image));
    bench.remove(&image);
}

#[test]
fn layers_stay_whoever_removes_the_image_on_1() {
    layers_stay_whoever_removes_the_image(Generation::One);
}

#[test]
fn layers_stay_whoever_removes_the_image_on_2() {
    layers_stay_whoever_removes_the_image(Generation::Two);
}

/// A container that runs keeps its image when the pin goes.
#[test]
fn a_release_takes_nothing_from_a_container() {
    let Some(bench) = bench(Generation::Two, "release under a container") else {
        return;
    };
    let image = bench.house.registry.image("odd:gzip");
    bench.told(&["prefetch", "--json", "--for", "1h", &image]);
    let pins = bench.told(&["prefetch", "--list", "--json"]);
    assert!(pins[0]["expires_at"].as_u64().unwrap() > pins[0]["pinned_at"].as_u64().unwrap());
    bench.containerd.begin(&image, "user");
    let released = bench.told(&["prefetch", "--release", "--json", &image]);
    assert_eq!(released[0]["removed"], false, "{released}");
    assert_eq!(released[0]["containers"].as_array().unwrap().len(), 1, "{released}");
    let release = bench.containerd.within("user", "look", RELEASE);
    assert!(release.starts_with("12."), "{release:?}");
    bench.containerd.end("user");
    bench.remove(&image);
}

/// A pin ends at its time, and the image with it.
#[test]
fn a_pin_ends_at_its_time() {
    let Some(bench) = bench(Generation::Two, "pins with an end") else {
        return;
    };
    let image = bench.house.registry.image("odd:gzip");
    bench.told(&["prefetch", "--json", "--for", "1s", &image]);
    eventually("it is released", || bench.pinned().is_empty(), || bench.hoistd.log());
    eventually("its bytes are free", || bench.hoistd.stored().is_empty(), || bench.state());
    assert!(!bench.knows(&image));
}

/// Ctrl-C in the middle: nothing of it stays, and it is said. What cannot be is told by its exit code.
#[test]
fn what_does_not_end_leaves_nothing() {
    let Some(bench) = bench(Generation::Two, "an interrupted prefetch") else {
        return;
    };
    let image = bench.house.registry.image("python:gzip");
    let mut command = bench.hoist(&["prefetch", &image]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("a layer is under way", || bench.hoistd.trees() > 0, || bench.hoistd.log());
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(errors.contains("what was half done is removed"), "{errors}");
    let nothing = || bench.hoistd.stored().is_empty();
    eventually("nothing of it stays", nothing, || bench.state());
    assert!(!bench.knows(&image));
    assert_eq!(bench.pinned(), Vec::<String>::new());

    let missing = bench.hoist_ends(&["prefetch", &bench.house.registry.image("python:none-such")]);
    assert_eq!(missing.status.code(), Some(3), "{missing:?}");
    let nowhere = ["prefetch", "--containerd-address", "/nowhere.sock", &image];
    let nowhere = bench.hoist_ends(&nowhere);
    assert_eq!(nowhere.status.code(), Some(5), "{nowhere:?}");
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("/nowhere.sock"), "{nowhere:?}");
}
