//! A container whose users are others on the host: containerd says so with labels, and the layers are mounted shifted.

use std::os::unix::fs::MetadataExt as _;

use super::*;

/// The container's root on the host, and how many users there are.
const FIRST: u32 = 100_000;
const MAP: &str = "0:100000:65536";

/// What `ctr` is told to begin a container that sleeps.
fn run<'a>(image: &'a str, name: &'a str) -> [&'a str; 13] {
    [
        "run",
        "--detach",
        "--snapshotter",
        "hoist",
        "--uidmap",
        MAP,
        "--gidmap",
        MAP,
        "--remap-labels",
        image,
        name,
        "sleep",
        "600",
    ]
}

#[test]
fn a_container_in_a_user_namespace_sees_its_files_as_its_own() {
    let test = "a container with mapped users";
    let Some(bench) = bench_with(Generation::Two, test, "[pull]\nbackend = \"overlay\"\n") else {
        return;
    };
    let image = bench.house.registry.image("odd:gzip");
    bench.containerd.pull(&image);
    bench.assert_not_downloaded(&image);
    let (containerd, name) = (&bench.containerd, bench.containerd.container("mapped"));
    containerd.ctr(NAMESPACE, &run(&image, &name));
    let script = "cat /proc/self/uid_map && id -u && stat -c %u:%g / /etc/passwd && \
                  echo own >/written && stat -c %u:%g /written && rm /etc/issue";
    let told = containerd.within("mapped", "look", &["sh", "-c", script]);
    let words: Vec<&str> = told.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0", "0:0", "0:0", "0:0"], "{told}");
    // On the host it is another user's, and the shared layer is as it was.
    let stored = bench.hoistd.stored();
    let find = |part: &str| {
        stored.iter().map(|path| path.join("fs").join(part)).find(|path| path.exists())
    };
    let written = find("written").expect("the container wrote it").metadata().unwrap();
    assert_eq!((written.uid(), written.gid()), (FIRST, FIRST));
    let shared = find("etc/passwd").expect("it is in a layer").metadata().unwrap();
    assert_eq!((shared.uid(), shared.gid()), (0, 0));
    // Beside it, one whose users are the host's.
    let plain = containerd.run("hoist", &image, "plain", &["stat", "-c", "%u", "/etc/issue"]);
    assert_eq!(plain.trim(), "0");
    containerd.end("mapped");
    bench.remove(&image);
}

/// containerd shifts the directory in which the layers are mounted, and none of the mounts.
#[test]
fn over_layers_that_are_images_mapped_users_are_refused_with_the_way_out() {
    let test = "a container with mapped users over images";
    let Some(bench) = bench_with(Generation::Two, test, "[pull]\nbackend = \"erofs\"\n") else {
        return;
    };
    let image = bench.house.registry.image("odd:gzip");
    bench.containerd.pull(&image);
    let name = bench.containerd.container("mapped");
    let told = bench.containerd.refuses(NAMESPACE, &run(&image, &name));
    for word in ["mapped users", "EROFS image", "pull.backend = \"overlay\""] {
        assert!(told.contains(word), "{word} is not in {told}");
    }
    let plain = bench.containerd.run("hoist", &image, "plain", &["stat", "-c", "%u", "/etc/issue"]);
    assert_eq!(plain.trim(), "0");
    bench.remove(&image);
}
