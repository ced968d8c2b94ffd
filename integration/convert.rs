//! Real images through `hoist convert`, and back through containerd and its overlayfs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "convert/calibrate.rs"]
mod calibrate;
#[path = "convert/platforms.rs"]
mod platforms;
#[path = "convert/pullers.rs"]
mod pullers;
#[path = "convert/push.rs"]
mod push;

mod harness;
mod tree;

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use harness::containerd::REFERENCE;
use harness::{Generation, House, must};

/// The source pulled by containerd, and the result imported into it, mounted side by side.
#[test]
fn containerd_shows_the_same_files_of_source_and_result() {
    let name = "containerd_shows_the_same_files_of_source_and_result";
    let Some(house) = House::open(name) else { return };
    let hoistd = house.hoistd("");
    let Some(containerd) = house.containerd(Generation::Two, &hoistd, name) else { return };
    let began = SystemTime::now();
    let config = house.scratch.path().join("hoist.toml");
    std::fs::write(&config, "").unwrap();
    for (number, image) in IMAGES.iter().enumerate() {
        let image = house.registry.image(image);
        let archive = house.scratch.path().join(format!("{number}.tar"));
        let result = format!("result.example/converted:{number}");
        let destination = format!("oci-archive:{}:{result}", archive.display());
        // Without links of its own: the comparison counts them.
        must(
            Command::new(env!("CARGO_BIN_EXE_hoist"))
                .args(["--config".as_ref(), config.as_os_str()])
                .args([
                    "convert",
                    &image,
                    &destination,
                    "--layers",
                    "3",
                    "--dedupe",
                    "off",
                    "--quiet",
                ]),
        );
        containerd.pull_reference(&image);
        let path = archive.display().to_string();
        let import = ["image", "import", "--snapshotter", "overlayfs", "--all-platforms=false"];
        containerd.ctr(REFERENCE, &[&import[..], &[&path]].concat());
        let source = containerd.mount(REFERENCE, "overlayfs", &image, &format!("s{number}"));
        let converted = containerd.mount(REFERENCE, "overlayfs", &result, &format!("c{number}"));
        let compared = tree::compare_images(&source.target, &converted.target, began);
        let entries = compared.unwrap_or_else(|difference| panic!("{image}: {difference}"));
        assert!(entries > 10, "{image} has only {entries} entries");
    }
}

/// Every odd entry, and a stack whose layers hide, replace and link.
const IMAGES: [&str; 2] = ["odd:gzip", "tree:gzip"];

/// `hoist` with an empty configuration.
fn hoist(house: &House, arguments: &[&str]) -> Command {
    let config = house.scratch.path().join("hoist.toml");
    std::fs::write(&config, "").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hoist"));
    command.args(["--config".as_ref(), config.as_os_str()]).args(arguments);
    command.env("TMPDIR", house.scratch.path());
    command
}

fn same(expected: &Path, found: &Path, began: SystemTime, what: &str) {
    let compared = tree::compare_images(expected, found, began);
    let entries = compared.unwrap_or_else(|difference| panic!("{what}: {difference}"));
    assert!(entries > 1000, "{what} has only {entries} entries");
}

/// An image that containerd pulled itself is read from its content store.
#[test]
fn containerds_own_images_are_a_source() {
    let name = "containerds_own_images_are_a_source";
    let Some(house) = House::open(name) else { return };
    let hoistd = house.hoistd("");
    let Some(containerd) = house.containerd(Generation::Two, &hoistd, name) else { return };
    let image = house.registry.image("odd:gzip");
    containerd.pull_reference(&image);
    let socket = containerd.socket().display().to_string();
    let its = ["--containerd-address", &socket, "--containerd-namespace", REFERENCE, "--quiet"];
    let source = format!("containerd:{image}");
    let result = format!("oci:{}", house.scratch.path().join("layout").display());
    must(hoist(&house, &["convert", &source, &result, "--dedupe", "off"]).args(its));
    must(hoist(&house, &["diff", &source, &result]).args(its));
    must(hoist(&house, &["diff", &image, &result]).args(its));
    let missing =
        hoist(&house, &["convert", "containerd:no/such:image", &result]).args(its).output();
    let missing = missing.unwrap();
    let text = String::from_utf8_lossy(&missing.stderr);
    assert_eq!(missing.status.code(), Some(3), "{text}");
    assert!(text.contains("no/such:image") && text.contains(REFERENCE), "{text}");
}

/// A disk that is full at the destination: said, and nothing is left on it. In memory, and ext4 on a file, which has
/// promised its blocks before they are written.
#[test]
fn a_full_disk_is_said_and_left_clean() {
    let Some(house) = House::open("a_full_disk_is_said_and_left_clean") else { return };
    let image = house.registry.image("debian:gzip");
    let home = house.scratch.path();
    let file = home.join("small.ext4");
    must(Command::new("truncate").args(["-s", "24M"]).arg(&file));
    must(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&file));
    let disks =
        [("memory", ["-t", "tmpfs", "-o", "size=4m"]), ("ext4", ["-t", "ext4", "-o", "loop"])];
    for ((name, options), device) in disks.into_iter().zip([Path::new("tmpfs"), &file]) {
        let disk = home.join(name);
        std::fs::create_dir(&disk).unwrap();
        must(Command::new("mount").args(options).arg(device).arg(&disk));
        let left = || {
            let entries = std::fs::read_dir(&disk).unwrap().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.filter(|name| name != "lost+found").collect::<Vec<_>>()
        };
        for destination in ["oci:LAYOUT:full", "oci-archive:LAYOUT.tar:full"] {
            let path = disk.join("layout").display().to_string();
            let result = destination.replace("LAYOUT", &path);
            let output = hoist(&house, &["convert", &image, &result, "--quiet"]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{name}: {text}");
            for word in ["No space left on device", "a destination that has it"] {
                assert!(text.contains(word), "{name}: {text}");
            }
            assert!(text.contains(&disk.display().to_string()), "{name}: {text}");
            assert_eq!(left(), [""; 0], "{name}: {text}");
        }
        must(Command::new("umount").arg(&disk));
    }
}
