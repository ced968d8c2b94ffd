//! Real images, cut for each target and read by each puller: every pair of image and target, of target and puller, and of
//! image and puller comes once, not every triple.

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use crate::harness::containerd::{Containerd, NAMESPACE, REFERENCE};
use crate::harness::{Generation, House, must};
use crate::{hoist, same};

/// A base system, a tree of small files, and a Python environment with whiteouts.
const IMAGES: [&str; 3] = ["debian", "tree", "python"];

const TARGETS: [&str; 4] = ["containerd", "containerd-parallel", "hoist", "fargate"];

#[derive(Clone, Copy, Debug)]
enum Puller {
    /// containerd 1.6 with overlayfs.
    First,
    /// containerd 2.x with overlayfs.
    Second,
    /// skopeo into a layout, and umoci out of it.
    Copied,
    Hoistd,
}

const PULLERS: [Puller; 4] = [Puller::Second, Puller::First, Puller::Hoistd, Puller::Copied];

/// Pushed into a registry for every target, and read by all that read images. A container of each image runs.
///
/// What has been compared is removed, or the disk would hold 16 trees and their blobs at the end.
#[test]
fn whoever_pulls_the_result_has_the_same_files() {
    let name = "whoever_pulls_the_result_has_the_same_files";
    let Some(house) = House::open(name) else { return };
    let hoistd = house.hoistd("");
    let Some(second) = house.containerd(Generation::Two, &hoistd, name) else { return };
    let Some(first) = house.containerd(Generation::One, &hoistd, name) else { return };
    let results = house.empty_registry();
    let bench = Bench { house: &house, first: &first, second: &second, began: SystemTime::now() };
    for (row, image) in IMAGES.into_iter().enumerate() {
        let source = house.registry.image(&format!("{image}:gzip"));
        second.pull_reference(&source);
        let expected = second.mount(REFERENCE, "overlayfs", &source, &format!("source-{image}"));
        for (column, target) in TARGETS.into_iter().enumerate() {
            let result = results.image(&format!("{image}:{target}"));
            let told = bench.convert(&source, &result, target);
            assert!(told.contains("is expected to take"), "{told}");
            // The pair of target and puller that no image comes to is the first one's, the smallest.
            let also = (row == 0).then_some(IMAGES.len());
            for step in std::iter::once(0).chain(also) {
                let puller = PULLERS[(row + column + step) % PULLERS.len()];
                bench.compare(puller, &result, &expected.target, &format!("{image}-{target}"));
            }
        }
        let result = results.image(&format!("{image}:hoist"));
        second.pull(&result);
        let said = second.run("hoist", &result, image, &["sh", "-c", "echo $((6 * 7))"]);
        assert_eq!(said.trim(), "42", "{image}");
        drop(expected);
        second.remove_reference(&source);
        second.remove(&result);
    }
}

/// Only recompressed, and in very many layers.
#[test]
fn kept_layers_and_a_hundred_of_them_are_pulled() {
    let name = "kept_layers_and_a_hundred_of_them_are_pulled";
    let Some(house) = House::open(name) else { return };
    let hoistd = house.hoistd("");
    let Some(second) = house.containerd(Generation::Two, &hoistd, name) else { return };
    let began = SystemTime::now();
    let (results, source) = (house.empty_registry(), house.registry.image("python:gzip"));
    let result = results.image("python:kept");
    must(&mut hoist(&house, &["convert", &source, &result, "--keep-layers", "--quiet"]));
    second.pull_reference(&source);
    second.pull_reference(&result);
    let expected = second.mount(REFERENCE, "overlayfs", &source, "source");
    let found = second.mount(REFERENCE, "overlayfs", &result, "kept");
    same(&expected.target, &found.target, began, "kept");
    hoistd_makes_a_hundred_layers(&house, &second, &source, &results.image("python:many"));
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

struct Bench<'a> {
    house: &'a House,
    first: &'a Containerd,
    second: &'a Containerd,
    began: SystemTime,
}

impl Bench<'_> {
    fn convert(&self, source: &str, result: &str, target: &str) -> String {
        // Without links of its own: the comparison counts them. What comes out is compared below, not by itself too.
        // Fargate's in gzip, for registries that want it.
        let mut arguments = vec!["convert", source, result, "--target", target];
        arguments.extend(["--dedupe", "off", "--no-verify", "--quiet"]);
        if target == "fargate" {
            arguments.extend(["--compression", "gzip", "--level", "1", "--max-layer-size", "40MB"]);
        }
        must(&mut hoist(self.house, &arguments))
    }

    fn compare(&self, puller: Puller, result: &str, expected: &Path, name: &str) {
        let (began, what) = (self.began, format!("{name} by {puller:?}"));
        let point = format!("{name}-{puller:?}");
        let by_overlayfs = |containerd: &Containerd| {
            containerd.pull_reference(result);
            let found = containerd.mount(REFERENCE, "overlayfs", result, &point);
            same(expected, &found.target, began, &what);
            drop(found);
            containerd.remove_reference(result);
        };
        match puller {
            Puller::First => by_overlayfs(self.first),
            Puller::Second => by_overlayfs(self.second),
            Puller::Hoistd => {
                self.second.pull(result);
                let found = self.second.mount(NAMESPACE, "hoist", result, &point);
                same(expected, &found.target, began, &what);
                drop(found);
                self.second.remove(result);
            }
            Puller::Copied => self.copied(result, expected, &what, &point),
        }
    }

    /// umoci of Debian 12 knows no zstd, so skopeo decompresses our frames and makes gzip of them on the way.
    fn copied(&self, result: &str, expected: &Path, what: &str, name: &str) {
        let at = |part: &str| self.house.scratch.path().join(format!("{name}-{part}"));
        let (layout, bundle) = (at("layout"), at("bundle"));
        let (from, to) = (format!("docker://{result}"), format!("oci:{}:copied", layout.display()));
        let options = ["--insecure-policy", "copy", "--src-tls-verify=false"];
        let gzip = ["--dest-compress-format", "gzip", "--dest-compress-level", "1"];
        must(Command::new("skopeo").args(options).args(gzip).args([&from, &to]));
        let image = format!("{}:copied", layout.display());
        must(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle));
        let (unpacked, wanted) = (listed(&bundle.join("rootfs")), listed(expected));
        assert!(wanted.len() > 1000, "{}", wanted.len());
        let other = unpacked.iter().zip(&wanted).find(|(a, b)| a != b);
        assert!(
            unpacked == wanted,
            "{what}: {} and {} files, {other:?}",
            unpacked.len(),
            wanted.len()
        );
        for path in [layout, bundle] {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
}

/// What there is below a root. umoci makes device nodes and owners, too; what it makes of times of directories is its own.
fn listed(root: &Path) -> Vec<String> {
    let find = ["-mindepth", "1", "-not", "-type", "d", "-printf", "%P %y %m %U %G %s %T@ %l\n"];
    let found = must(Command::new("find").arg(root).args(find));
    let mut lines: Vec<String> = found.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}
