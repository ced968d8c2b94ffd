//! Real images through `hoist convert`, and back through containerd and its overlayfs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "convert/push.rs"]
mod push;

mod harness;
mod tree;

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use harness::containerd::{Containerd, NAMESPACE, REFERENCE};
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

/// Pushed into a registry for every puller, and read by all that read images: containerd 1.6 and 2.x with overlayfs,
/// hoistd, skopeo and umoci. A container of it runs.
#[test]
fn whoever_pulls_the_result_has_the_same_files() {
    let name = "whoever_pulls_the_result_has_the_same_files";
    let Some(house) = House::open(name) else { return };
    let hoistd = house.hoistd("");
    let Some(second) = house.containerd(Generation::Two, &hoistd, name) else { return };
    let Some(first) = house.containerd(Generation::One, &hoistd, name) else { return };
    let began = SystemTime::now();
    let source = house.registry.image("python:gzip");
    second.pull_reference(&source);
    let expected = second.mount(REFERENCE, "overlayfs", &source, "source");
    let results = house.empty_registry();
    let variants: [(&str, &[&str]); 5] = [
        ("containerd", &["--target", "containerd", "--layers", "3"]),
        ("parallel", &["--target", "containerd-parallel", "--compression", "gzip", "--level", "1"]),
        ("hoist", &["--target", "hoist"]),
        ("fargate", &["--target", "fargate", "--max-layer-size", "40MB"]),
        ("kept", &["--keep-layers"]),
    ];
    for (variant, options) in variants {
        let result = results.image(&format!("python:{variant}"));
        let mut arguments = vec!["convert", &source, &result, "--quiet"];
        arguments.extend(options);
        if variant != "kept" {
            // Without links of its own: the comparison counts them.
            arguments.extend(["--dedupe", "off"]);
        }
        let told = must(&mut hoist(&house, &arguments));
        assert!(told.contains("is expected to take"), "{told}");
        second.pull_reference(&result);
        let found = second.mount(REFERENCE, "overlayfs", &result, variant);
        same(&expected.target, &found.target, began, variant);
    }
    let result = results.image("python:containerd");
    first.pull_reference(&result);
    let found = first.mount(REFERENCE, "overlayfs", &result, "first");
    same(&expected.target, &found.target, began, "containerd 1.6");
    second.pull(&result);
    let found = second.mount(NAMESPACE, "hoist", &result, "hoisted");
    same(&expected.target, &found.target, began, "hoistd");
    let said = second.run("hoist", &result, "python", &["python3", "-c", "print(6 * 7)"]);
    assert_eq!(said.trim(), "42");
    hoistd_makes_a_hundred_layers(&house, &second, &source, &results.image("python:many"));
    let layout = house.scratch.path().join("layout");
    let copied = format!("oci:{}:copied", layout.display());
    // umoci of Debian 12 knows no zstd.
    let from = format!("docker://{}", results.image("python:parallel"));
    must(Command::new("skopeo").args([
        "--insecure-policy",
        "copy",
        "--src-tls-verify=false",
        &from,
        &copied,
    ]));
    let bundle = house.scratch.path().join("bundle");
    let image = format!("{}:copied", layout.display());
    must(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle));
    // umoci makes device nodes and owners, too; what it makes of times of directories is its own.
    let listed = |root: &Path| {
        let find =
            ["-mindepth", "1", "-not", "-type", "d", "-printf", "%P %y %m %U %G %s %T@ %l\n"];
        let mut lines: Vec<String> =
            must(Command::new("find").arg(root).args(find)).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let (unpacked, wanted) = (listed(&bundle.join("rootfs")), listed(&expected.target));
    assert!(wanted.len() > 1000, "{}", wanted.len());
    let other = unpacked.iter().zip(&wanted).find(|(a, b)| a != b);
    assert!(unpacked == wanted, "{} and {} files, {other:?}", unpacked.len(), wanted.len());
}

/// containerd's label of an image's layers ends at 4,096 bytes, some 56 digests: hoistd has to know better.
fn hoistd_makes_a_hundred_layers(house: &House, second: &Containerd, source: &str, result: &str) {
    let options = ["--layers", "100", "--dedupe", "off", "--no-verify", "--quiet"];
    must(&mut hoist(house, &[&["convert", source, result], &options[..]].concat()));
    second.pull(result);
    let (layers, content) = (second.layers(NAMESPACE, result), second.content(NAMESPACE));
    assert!(layers.len() > 90, "{} layers", layers.len());
    let left: Vec<_> = layers.iter().filter(|layer| content.contains(layer)).collect();
    assert!(left.is_empty(), "{} of {} layers were left to containerd", left.len(), layers.len());
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
    let image = house.registry.image("tree:gzip");
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

/// A disk that is full at the destination: said, and nothing is left on it.
#[test]
fn a_full_disk_is_said_and_left_clean() {
    let Some(house) = House::open("a_full_disk_is_said_and_left_clean") else { return };
    let disk = house.scratch.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    must(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&disk));
    let image = house.registry.image("python:gzip");
    let result = format!("oci:{}:full", disk.join("layout").display());
    let output = hoist(&house, &["convert", &image, &result, "--quiet"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("No space left on device"), "{text}");
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 0, "{text}");
    must(Command::new("umount").arg(&disk));
}

/// What is measured is a profile that the other commands take, and nothing of it stays on the disk.
#[test]
fn a_calibrated_profile_is_taken_by_the_others() {
    let Some(house) = House::open("a_calibrated_profile_is_taken_by_the_others") else { return };
    let (image, disk) = (house.registry.image("python:gzip"), house.scratch.path().join("disk"));
    std::fs::create_dir(&disk).unwrap();
    let profile = house.scratch.path().join("profile.toml").display().to_string();
    let directory = disk.display().to_string();
    must(&mut hoist(
        &house,
        &["calibrate", "--image", &image, "--dir", &directory, "-o", &profile],
    ));
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 0);
    let read = std::fs::read_to_string(&profile).unwrap();
    let read = hoist::model::Profile::parse(&read).unwrap();
    let rates = &read.rates;
    assert!(rates.extract.0 > 1e5 && rates.download.0 > 1e5 && rates.per_file.0 > 0.0, "{read:?}");
    let told = must(&mut hoist(&house, &["simulate", &image, "--profile", &profile, "--json"]));
    assert!(told.contains("calibrated with"), "{told}");
    let analyze = ["analyze", &image, "--profile", &profile, "--target", "fargate", "--quiet"];
    let page = house.scratch.path().join("page.html").display().to_string();
    let told = must(hoist(&house, &analyze).args(["--html", &page]));
    for word in ["hoist convert", "--target fargate", "Largest directories", "/usr"] {
        assert!(told.contains(word), "{word} in {told}");
    }
    assert!(std::fs::read_to_string(&page).unwrap().contains("<code>hoist convert"));
}
