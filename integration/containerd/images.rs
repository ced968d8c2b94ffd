//! Layers that are EROFS images, under containers: what a crash, a reboot and the end of an image leave of them.

use std::process::Command;

use super::harness::containerd::eventually;
use super::harness::{Generation, must};
use super::{PathBuf, bench_with};

const EROFS: &str = "[pull]\nbackend = \"erofs\"";

#[test]
fn containers_keep_their_layers_and_nothing_stays_of_them() {
    let Some(mut bench) = bench_with(Generation::Two, "images under containers", EROFS) else {
        return;
    };
    let image = bench.house.registry.image("python:zstd");
    bench.containerd.pull(&image);
    bench.assert_not_downloaded(&image);
    assert_eq!(bench.hoistd.mounted().len(), 4, "one for each layer");
    bench.containerd.begin(&image, "long");
    let program = "import numpy; print(int(numpy.arange(1000).sum()))";
    let sum = |bench: &super::Bench, exec: &str| {
        bench.containerd.within("long", exec, &["/usr/bin/python3", "-c", program])
    };

    // kill -9 while it runs: nothing happens to it, and all is found again.
    bench.hoistd.crash_and_restart();
    assert_eq!(sum(&bench, "one").trim(), "499500");
    bench.wait_for_hoistd();
    assert_eq!(bench.hoistd.mounted().len(), 4, "not mounted a second time");
    let other = bench.containerd.run("hoist", &image, "two", &["cat", "/etc/debian_version"]);
    assert!(other.starts_with("12."), "{other:?}");

    // As after a reboot: no mount is there when hoistd starts. (The container would not be there either.)
    bench.hoistd.crash();
    for point in bench.hoistd.mounted() {
        must(Command::new("umount").arg("--lazy").arg(point));
    }
    assert_eq!(sum(&bench, "two").trim(), "499500", "its overlay holds the images");
    bench.hoistd.start_again();
    assert_eq!(bench.hoistd.mounted().len(), 4);
    bench.wait_for_hoistd();
    let other = bench.containerd.run("hoist", &image, "three", &["cat", "/etc/debian_version"]);
    assert!(other.starts_with("12."), "{other:?}");

    // Files over images: `tree` shares its lowest layer with `python`.
    bench.set_backend("overlay");
    let tree = bench.house.registry.image("tree:gzip");
    bench.containerd.pull(&tree);
    assert_eq!((bench.hoistd.trees(), bench.hoistd.images().len()), (5, 4));
    let other = bench.containerd.run("hoist", &tree, "four", &["cat", "/etc/debian_version"]);
    assert!(other.starts_with("12."), "{other:?}");
    bench.containerd.remove(&tree);
    eventually("tree's own layer is gone", || bench.hoistd.trees() == 4, || bench.state());

    // The image goes; what the container needs stays until it goes too.
    bench.containerd.remove(&image);
    assert_eq!(sum(&bench, "three").trim(), "499500");
    bench.containerd.end("long");
    // Removing what is gone already collects what is left.
    let collected = || {
        bench.containerd.answers(&["content", "prune", "references"]);
        bench.hoistd.stored().is_empty()
    };
    eventually("everything is gone", collected, || bench.state());
    assert_eq!(bench.hoistd.mounted(), Vec::<PathBuf>::new());
}
