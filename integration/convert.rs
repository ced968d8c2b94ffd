//! Real images through `hoist convert`, and back through containerd and its overlayfs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;
mod tree;

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
