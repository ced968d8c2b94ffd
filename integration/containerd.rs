//! Pulls through real containerds, 1.6 and 2.x, from a real registry: what they leave behind has to be what containerd's
//! own overlayfs leaves behind, entry by entry, and nothing else.

mod harness;
mod tree;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use harness::containerd::{NAMESPACE, REFERENCE, eventually};
use harness::{Containerd, Generation, Hoistd, House, Registry, must, prepare, skipped};

#[path = "containerd/bake.rs"]
mod bake;
#[path = "containerd/beside.rs"]
mod beside;
#[path = "containerd/depth.rs"]
mod depth;
#[path = "containerd/images.rs"]
mod images;
#[path = "containerd/keychain.rs"]
mod keychain;
#[path = "containerd/mapped.rs"]
mod mapped;
#[path = "containerd/prefetch.rs"]
mod prefetch;
#[path = "containerd/second.rs"]
mod second;
#[path = "containerd/space.rs"]
mod space;

/// The forms of an image's layers, and what hoist makes of them.
const FORMS: [(&str, &str); 5] = [
    ("gzip", "overlay"),
    ("none", "overlay"),
    ("zstd", "overlay"),
    ("gzip", "erofs"),
    ("zstd", "erofs"),
];

/// A house with both daemons; the fields go in this order, containerd first.
struct Bench {
    containerd: Containerd,
    hoistd: Hoistd,
    house: House,
}

fn bench(generation: Generation, test: &str) -> Option<Bench> {
    bench_with(generation, test, "")
}

fn bench_with(generation: Generation, test: &str, extra: &str) -> Option<Bench> {
    let house = House::open(test)?;
    let hoistd = house.hoistd(extra);
    let containerd = house.containerd(generation, &hoistd, test)?;
    Some(Bench { containerd, hoistd, house })
}

impl Bench {
    /// Restarts hoistd with another backend, if it has one, and waits until containerd has found it again: it waits some
    /// seconds between attempts, and fails calls meanwhile.
    fn set_backend(&mut self, backend: &str) {
        if self.hoistd.set_backend(backend) {
            self.wait_for_hoistd();
        }
    }

    fn wait_for_hoistd(&self) {
        // Only a call that hoistd has to answer tells.
        let snapshot = ["snapshot", "--snapshotter", "hoist"];
        let prepare = [&snapshot[..], &["prepare", "is-it-there"]].concat();
        let answers = || self.containerd.answers(&prepare);
        eventually("containerd has found hoistd again", answers, || self.hoistd.log());
        self.containerd.ctr(NAMESPACE, &[&snapshot[..], &["rm", "is-it-there"]].concat());
    }

    /// Compares the merged view and every layer's own directory with what overlayfs made of the same image.
    fn compare(&self, expected_image: &str, image: &str, began: SystemTime) {
        let expected = self.containerd.mount(REFERENCE, "overlayfs", expected_image, "expected");
        let found = self.containerd.mount(NAMESPACE, "hoist", image, "found");
        assert_eq!(expected.layers.len(), found.layers.len(), "{image}");
        let pairs = expected.layers.iter().zip(&found.layers);
        for (number, (one, other)) in pairs.rev().enumerate() {
            let entries = tree::compare(one, other, began);
            let entries =
                entries.unwrap_or_else(|told| panic!("layer {number} of {image}: {told}"));
            assert!(entries > 1, "layer {number} of {image} is empty");
        }
        let entries = tree::compare(&expected.target, &found.target, began);
        let entries = entries.unwrap_or_else(|told| panic!("{image}: {told}"));
        let least = if image.contains("/npm:") { 30_000 } else { 5_000 };
        assert!(entries > least, "{image} has {entries} entries only: something is not in it");
    }

    /// No layer of the image is in containerd's content store: hoist fetched them, and wrote no blob.
    fn assert_not_downloaded(&self, image: &str) {
        let content: BTreeSet<String> = self.containerd.content(NAMESPACE).into_iter().collect();
        let layers = self.containerd.layers(NAMESPACE, image);
        assert!(!layers.is_empty());
        let found: Vec<_> = layers.iter().filter(|layer| content.contains(*layer)).collect();
        assert!(found.is_empty(), "containerd downloaded {found:?} of {image} itself");
    }

    /// What is there, for the text of a failure.
    fn state(&self) -> String {
        format!("hoistd stores {:?}\n{}", self.hoistd.stored(), self.containerd.inventory())
    }

    /// Removes the last image and waits until hoistd stores nothing any more.
    fn remove(&self, image: &str) {
        assert!(!self.hoistd.stored().is_empty(), "nothing is stored while {image} is there");
        self.containerd.remove(image);
        let gone = || self.hoistd.stored().is_empty();
        eventually("everything is gone from hoistd's root", gone, || self.state());
        assert_eq!(self.hoistd.mounted(), Vec::<PathBuf>::new(), "a mount stays");
    }

    /// Every layer is an image, and one that the format's own tool finds no fault with.
    fn check_images(&self) {
        let images = self.hoistd.images();
        assert_eq!(images.len(), self.hoistd.trees(), "{:?}", self.hoistd.stored());
        assert!(!images.is_empty());
        for image in images {
            // Reads every inode and every byte; says what is wrong by its end.
            let Some(fsck) = self.house.erofs_utils("fsck.erofs") else {
                return skipped("containerd", "no erofs-utils in the test bed");
            };
            must(Command::new(fsck).arg("--extract").arg(&image));
        }
    }

    /// One image in one form: pulled, compared, removed.
    fn pull_compare_remove(
        &self,
        image: &str,
        (form, backend): (&str, &str),
        by_cri: bool,
        began: SystemTime,
    ) {
        let name = self.house.registry.image(&format!("{image}:{form}"));
        if by_cri {
            self.containerd.pull_by_cri(&name);
        } else {
            self.containerd.pull(&name);
        }
        self.assert_not_downloaded(&name);
        let reference = self.house.registry.image(&format!("{image}:gzip"));
        self.compare(&reference, &name, began);
        match backend {
            "erofs" => self.check_images(),
            _ => assert_eq!(self.hoistd.images(), Vec::<PathBuf>::new()),
        }
        self.remove(&name);
    }
}

/// The whole way for one image: overlayfs once, then hoist with each form of the layers.
fn trees_are_equal(generation: Generation, image: &str) {
    let test = format!("{image} through containerd {generation:?}");
    let began = SystemTime::now() - Duration::from_secs(2);
    let first = format!("[pull]\nbackend = \"{}\"", FORMS[0].1);
    let Some(mut bench) = bench_with(generation, &test, &first) else {
        return;
    };
    bench.containerd.pull_reference(&bench.house.registry.image(&format!("{image}:gzip")));
    for (form, backend) in FORMS {
        bench.set_backend(backend);
        bench.pull_compare_remove(image, (form, backend), false, began);
    }
    // 1.6 has been asked through CRI all the time.
    if generation == Generation::Two {
        for (form, backend) in [("zstd", "erofs"), ("gzip", "erofs"), ("none", "overlay")] {
            bench.set_backend(backend);
            bench.pull_compare_remove(image, (form, backend), true, began);
        }
    }
}

#[test]
fn odd_entries_are_as_overlayfs_has_them_on_1() {
    trees_are_equal(Generation::One, "odd");
}

#[test]
fn odd_entries_are_as_overlayfs_has_them_on_2() {
    trees_are_equal(Generation::Two, "odd");
}

#[test]
fn a_python_image_is_as_overlayfs_has_it_on_1() {
    trees_are_equal(Generation::One, "python");
}

#[test]
fn a_python_image_is_as_overlayfs_has_it_on_2() {
    trees_are_equal(Generation::Two, "python");
}

/// Some twenty-six thousand files of packages that people use, as npm lays them out.
fn an_npm_tree_is_equal(generation: Generation) {
    let test = format!("an npm tree through containerd {generation:?}");
    // The registry's storage is the test bed's, so that the image is there for a registry that runs.
    match prepare("npm") {
        Some(_) => trees_are_equal(generation, "npm"),
        None => skipped(&test, "no packages could be had from the npm registry (see above)"),
    }
}

#[test]
fn an_npm_tree_is_as_overlayfs_has_it_on_1() {
    an_npm_tree_is_equal(Generation::One);
}

#[test]
fn an_npm_tree_is_as_overlayfs_has_it_on_2() {
    an_npm_tree_is_equal(Generation::Two);
}

/// A container starts on an image that containerd never downloaded, and computes with what is in it.
fn a_container_runs(generation: Generation) {
    let test = format!("a container on containerd {generation:?}");
    let Some(bench) = bench(generation, &test) else {
        return;
    };
    let image = bench.house.registry.image("python:zstd");
    bench.containerd.pull(&image);
    bench.assert_not_downloaded(&image);
    let program = "import numpy; print('sum', int(numpy.arange(1000).sum())); open('/tmp/written', 'w').write('x')";
    let said = bench.containerd.run("hoist", &image, "one", &["/usr/bin/python3", "-c", program]);
    assert_eq!(said.trim(), "sum 499500");
    let release = bench.containerd.run("hoist", &image, "two", &["cat", "/etc/debian_version"]);
    assert!(release.starts_with("12."), "{release:?}");
    bench.remove(&image);
}

#[test]
fn a_container_runs_on_1() {
    a_container_runs(Generation::One);
}

#[test]
fn a_container_runs_on_2() {
    a_container_runs(Generation::Two);
}

/// `python` has four layers and `tree` two, the lowest of both being the same.
fn shared_layers_are_stored_once(generation: Generation) {
    let test = format!("shared layers on containerd {generation:?}");
    let Some(bench) = bench(generation, &test) else {
        return;
    };
    let [python, tree] =
        ["python:gzip", "tree:zstd"].map(|image| bench.house.registry.image(image));
    bench.containerd.pull(&python);
    assert_eq!(bench.hoistd.trees(), 4);
    // Compressed otherwise, so another blob: the content is what counts.
    bench.containerd.pull(&tree);
    assert_eq!(bench.hoistd.trees(), 5);
    bench.containerd.remove(&python);
    let only_tree = || bench.hoistd.trees() == 2;
    eventually("what only python had is gone", only_tree, || bench.state());
    let release = bench.containerd.run("hoist", &tree, "one", &["cat", "/etc/debian_version"]);
    assert!(release.starts_with("12."), "{release:?}");
    bench.remove(&tree);
}

#[test]
fn shared_layers_are_stored_once_on_1() {
    shared_layers_are_stored_once(Generation::One);
}

#[test]
fn shared_layers_are_stored_once_on_2() {
    shared_layers_are_stored_once(Generation::Two);
}

/// Where hoistd finds no registry and containerd does, containerd pulls, and the image is as good.
fn containerd_pulls_what_hoistd_cannot(generation: Generation) {
    let test = format!("fallback on containerd {generation:?}");
    let began = SystemTime::now() - Duration::from_secs(2);
    let Some(bench) = bench(generation, &test) else {
        return;
    };
    let image = Registry::hidden_image("odd:gzip");
    bench.containerd.pull_reference(&bench.house.registry.image("odd:gzip"));
    bench.containerd.pull(&image);
    let content = bench.containerd.content(NAMESPACE);
    let layers = bench.containerd.layers(NAMESPACE, &image);
    assert!(
        layers.iter().all(|layer| content.contains(layer)),
        "hoistd reached the hidden registry"
    );
    assert!(
        bench.hoistd.log().contains(Registry::ALIAS),
        "the log does not say what was not reached"
    );
    bench.compare(&bench.house.registry.image("odd:gzip"), &image, began);
    bench.remove(&image);
}

#[test]
fn containerd_pulls_what_hoistd_cannot_on_1() {
    containerd_pulls_what_hoistd_cannot(Generation::One);
}

#[test]
fn containerd_pulls_what_hoistd_cannot_on_2() {
    containerd_pulls_what_hoistd_cannot(Generation::Two);
}

/// `ctr` of 1.6 sends no labels: containerd unpacks into an ordinary snapshotter, and a container runs on that.
#[test]
fn without_labels_hoist_is_an_ordinary_snapshotter() {
    let began = SystemTime::now() - Duration::from_secs(2);
    let Some(bench) = bench(Generation::One, "ctr without labels") else {
        return;
    };
    let image = bench.house.registry.image("odd:gzip");
    bench.containerd.pull_reference(&image);
    bench.containerd.pull_by_ctr(&image);
    assert_eq!(bench.hoistd.trees(), 0, "hoistd was told of a layer");
    bench.compare(&image, &image, began);
    let release = bench.containerd.run("hoist", &image, "plain", &["cat", "/etc/debian_version"]);
    assert!(release.starts_with("12."), "{release:?}");
    bench.remove(&image);
}

/// With `on_error = "fail"` nobody pulls behind the operator's back.
#[test]
fn a_pull_fails_where_that_is_asked_for() {
    let Some(bench) = bench_with(Generation::Two, "on_error = fail", "[pull]\non_error = \"fail\"")
    else {
        return;
    };
    let image = Registry::hidden_image("odd:gzip");
    let pulled =
        bench.containerd.begin_pull(&image).join().expect("the pulling thread does not panic");
    let told = pulled.expect_err("the registry cannot be reached by hoistd");
    assert!(told.contains(Registry::ALIAS), "{told}");
}

/// Fifty times the daemon is killed somewhere in a pull; then a pull succeeds and its tree is whole.
#[test]
fn a_daemon_killed_fifty_times_still_pulls() {
    let began = SystemTime::now() - Duration::from_secs(2);
    let Some(mut bench) = bench(Generation::Two, "kill -9") else {
        return;
    };
    let image = bench.house.registry.image("tree:zstd");
    let reference = bench.house.registry.image("tree:gzip");
    bench.containerd.pull_reference(&reference);
    // Spread over the whole pull and a little beyond; multiples of a prime, so that no two moments are alike.
    for round in 0..50_u64 {
        bench.wait_for_hoistd();
        let pull = bench.containerd.begin_pull(&image);
        std::thread::sleep(Duration::from_millis(20 + round * 379 % 2500));
        bench.hoistd.crash_and_restart();
        // It may have ended well, or badly: what counts is what comes after.
        let _ = pull.join().expect("the pulling thread does not panic");
        if round % 10 == 9 {
            bench.wait_for_hoistd();
            bench.containerd.pull(&image);
            bench.compare(&reference, &image, began);
            bench.containerd.remove(&image);
        }
    }
    bench.wait_for_hoistd();
    bench.containerd.pull(&image);
    bench.compare(&reference, &image, began);
    let kept: Vec<PathBuf> = bench.hoistd.stored();
    assert!(!kept.is_empty());
    bench.remove(&image);
}
