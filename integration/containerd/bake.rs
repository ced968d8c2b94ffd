//! Images that are part of a machine image: baked by `hoist bake`, found whole at the next start, or told and mended.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::harness::containerd::{NAMESPACE, eventually};
use super::harness::{Generation, must};
use super::prefetch::RELEASE;
use super::{Bench, bench_with};

/// What `hoist bake --verify` finds wrong, and its exit code.
fn verify(bench: &Bench, more: &[&str]) -> (Option<i32>, Value) {
    let output = bench.hoist_ends(&[&["bake", "--verify", "--json"], more].concat());
    let report = serde_json::from_slice(&output.stdout);
    let report: Value = report.unwrap_or_else(|_| panic!("{output:?}\n{}", bench.hoistd.log()));
    (output.status.code(), report)
}

fn good(bench: &Bench, more: &[&str]) {
    let (code, report) = verify(bench, more);
    assert_eq!((code, &report["wrong"]), (Some(0), &serde_json::json!([])), "{report}");
}

/// The one file that is told.
fn spoiled(bench: &Bench, more: &[&str]) -> String {
    let (code, report) = verify(bench, more);
    assert_eq!(code, Some(1), "{report}");
    let paths = report["wrong"].as_array().unwrap().iter().filter_map(|f| f["path"].as_str());
    let paths: Vec<_> = paths.collect();
    assert!(!paths.is_empty(), "{report}");
    paths[0].to_owned()
}

/// Where the layer with this file has it.
fn find(bench: &Bench, file: &str) -> PathBuf {
    let trees = fs::read_dir(bench.hoistd.root().join("trees")).unwrap();
    let mut paths = trees.map(|tree| tree.unwrap().path().join("fs").join(file));
    paths.find(|path| path.exists()).unwrap_or_else(|| panic!("no layer has {file}"))
}

/// Changes a byte of a file and leaves its time, as a disk would.
fn damage(path: &Path, at: u64) {
    let before = fs::metadata(path).unwrap().modified().unwrap();
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(b"\xa5\x5a damaged \xa5\x5a").unwrap();
    file.set_modified(before).unwrap();
}

/// Baked with a hoistd of the command's own; the next start finds all of it, and what is lost or damaged is named and
/// mended.
fn what_is_baked_is_whole_at_boot(generation: Generation) {
    let test = format!("bake on containerd {generation:?}");
    let Some(mut bench) = bench_with(generation, &test, "[pull]\nbackend = \"overlay\"") else {
        return;
    };
    let image = bench.house.registry.image("odd:gzip");
    let nothing = bench.hoist_ends(&["bake", "--verify"]);
    assert_eq!(nothing.status.code(), Some(3), "{nothing:?}");
    bench.hoistd.crash();
    let baked = bench.told(&["bake", "--json", &image]);
    assert_eq!(baked["images"][0]["image"], image.as_str(), "{baked}");
    assert!(std::os::unix::net::UnixStream::connect(bench.hoistd.socket()).is_err(), "it stays");

    bench.hoistd.start_again();
    bench.wait_for_hoistd();
    good(&bench, &[]);
    good(&bench, &["--full"]);
    let release = bench.containerd.run("hoist", &image, "baked", RELEASE);
    assert!(release.starts_with("12."), "{release:?}");

    // The image is lost, the registry is gone: what is kept here is enough.
    bench.containerd.remove_everything();
    eventually("containerd has removed it", || !bench.knows(&image), || bench.state());
    let (code, report) = verify(&bench, &[]);
    assert_eq!(code, Some(1), "{report}");
    assert!(report["wrong"][0]["what"].as_str().unwrap().contains(NAMESPACE), "{report}");
    good(&bench, &["--repair"]);
    good(&bench, &[]);
    let release = bench.containerd.run("hoist", &image, "restored", RELEASE);
    assert!(release.starts_with("12."), "{release:?}");

    // One byte: only who reads finds it.
    let file = "etc/debian_version";
    damage(&find(&bench, file), 0);
    let told = spoiled(&bench, &["--full"]);
    assert_eq!(told, file);
    good(&bench, &["--repair", "--full"]);
    // A file that is gone shows at once.
    fs::remove_file(find(&bench, file)).unwrap();
    assert!(["etc", file].contains(&&*spoiled(&bench, &[])));
    good(&bench, &["--repair"]);
    let release = bench.containerd.run("hoist", &image, "mended", RELEASE);
    assert!(release.starts_with("12."), "{release:?}");
}

#[test]
fn what_is_baked_is_whole_at_boot_on_1() {
    what_is_baked_is_whole_at_boot(Generation::One);
}

#[test]
fn what_is_baked_is_whole_at_boot_on_2() {
    what_is_baked_is_whole_at_boot(Generation::Two);
}

/// A layer that is an image is read through its mount, so that a damaged file has a name there too.
#[test]
fn damage_in_a_layers_image_is_named() {
    let test = "bake of layers that are images";
    let Some(mut bench) = bench_with(Generation::Two, test, "[pull]\nbackend = \"erofs\"") else {
        return;
    };
    let image = bench.house.registry.image("python:gzip");
    bench.told(&["bake", "--json", &image]);
    good(&bench, &["--full"]);
    let layer = bench.hoistd.images().into_iter().max_by_key(|path| path.metadata().unwrap().len());
    let layer = layer.unwrap();
    damage(&layer, layer.metadata().unwrap().len() / 2);
    // What was read before is in the kernel's memory: a boot takes the mounts away, and with them that.
    bench.hoistd.crash();
    for point in bench.hoistd.mounted() {
        must(Command::new("umount").arg(point));
    }
    bench.hoistd.start_again();
    bench.wait_for_hoistd();
    let told = spoiled(&bench, &["--full"]);
    assert!(layer.with_file_name("fs").join(&told).exists(), "{told}");
    good(&bench, &["--full", "--repair"]);
}
