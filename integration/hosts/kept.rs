//! `pull.content_store = "keep"`: what needs the compressed blobs of a pulled image has them.

use std::path::Path;

use super::*;
use harness::Registry;
use harness::containerd::{Containerd, REFERENCE};

/// The configuration of a hoistd that keeps blobs in the containerd at `socket`.
fn keep(socket: &Path) -> String {
    format!("[pull]\ncontent_store = \"keep\"\n[cri]\ncontainerd = \"{}\"\n", socket.display())
}

/// A figure of the daemon.
fn figure(hoistd: &harness::Hoistd, name: &str) -> u64 {
    let text =
        must(Command::new("curl").args(["-s", &format!("http://{}/metrics", hoistd.address())]));
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().unwrap()
}

/// The layers of an image that a registry has whole, by the manifest that it serves.
fn layers_in(registry: &Registry, image: &str) -> Vec<String> {
    let url = |part: &str| format!("http://{}/v2/{part}", registry.address());
    let (name, tag) = image.split_once(':').unwrap();
    let document = |reference: &str| -> serde_json::Value {
        let accept =
            ["oci.image.index.v1", "oci.image.manifest.v1", "docker.distribution.manifest.v2"];
        let accept = accept.map(|kind| format!("application/vnd.{kind}+json")).join(",");
        let mut get = Command::new("curl");
        get.args(["-sf", "-H", &format!("Accept: {accept}")]);
        serde_json::from_str(&must(get.arg(url(&format!("{name}/manifests/{reference}"))))).unwrap()
    };
    let mut manifest = document(tag);
    // What BuildKit makes is in an index, beside how it was made.
    if let Some(image) = manifest.pointer("/manifests/0/digest") {
        manifest = document(image.as_str().unwrap());
    }
    let layers = manifest["layers"].as_array().unwrap_or_else(|| panic!("{manifest}")).iter();
    layers
        .map(|layer| {
            let digest = layer["digest"].as_str().unwrap().to_owned();
            let blob = url(&format!("{name}/blobs/{digest}"));
            let mut get = Command::new("bash");
            let got = must(get.args([
                "-c",
                "set -o pipefail; curl -sf \"$1\" | sha256sum",
                "bash",
                &blob,
            ]));
            assert!(digest.ends_with(got.split(' ').next().unwrap()), "{digest}: {got}");
            digest
        })
        .collect()
}

/// Without the registry that they came from, a pulled image is saved, pushed, built upon; then it goes, blobs and all.
#[test]
fn docker_saves_and_pushes_what_hoist_pulled() {
    let test = "Docker with hoist and its content store";
    let Some(programs) = docker_programs(test) else { return };
    let Some(mut house) = House::open(test) else { return };
    let home = house.scratch.path().join("d");
    let hoistd = house.hoistd(&keep(&home.join("containerd.sock")));
    let mut docker = Docker::new(programs, &home);
    let done = docker.hoist(&hoistd, &["install", "docker", "--yes"]);
    assert!(done.status.success(), "{}", text(&done));
    docker.start();
    let python = house.registry.image("python:gzip");
    let layers = layers_in(&house.registry, "python:gzip");
    docker.docker(&["pull", "--quiet", &python]);
    let content = docker.content().join("\n");
    assert_eq!(hoistd.trees(), layers.len(), "hoist pulled: {}", hoistd.log());
    for layer in &layers {
        assert!(content.contains(layer), "{layer} is not in {content}\n{}", hoistd.log());
    }
    assert_eq!(figure(&hoistd, "hoist_kept_layers_total{result=\"written\"}"), layers.len() as u64);
    // Somebody else's garbage is collected, and these are not.
    docker.docker(&["system", "prune", "--force"]);

    house.registry.crash();
    let other = house.empty_registry();
    let pushed = |image: &str, name: &str| {
        let there = other.image(name);
        docker.docker(&["tag", image, &there]);
        docker.docker(&["push", "--quiet", &there]);
        docker.docker(&["rmi", &there]);
        layers_in(&other, name)
    };
    assert_eq!(pushed(&python, "pushed:v1"), layers);
    let archive = house.scratch.path().join("saved.tar").display().to_string();
    docker.docker(&["save", "-o", &archive, &python]);
    let saved = must(Command::new("tar").args(["-tf", &archive]));
    for layer in &layers {
        let layer = layer.strip_prefix("sha256:").unwrap();
        assert!(saved.contains(layer), "{layer} is not in {saved}");
    }
    built(&house, &docker, &python);
    let both = pushed("built", "built:v1");
    assert!(both.len() == layers.len() + 1 && both.starts_with(&layers), "{both:?}");

    docker.docker(&["rmi", "--force", "built", &python]);
    docker.docker(&["builder", "prune", "--all", "--force"]);
    docker.docker(&["system", "prune", "--all", "--force"]);
    let left = || {
        let content = docker.content().join("\n");
        layers.iter().filter(|layer| content.contains(*layer)).count()
    };
    eventually("the blobs go with the image", || left() == 0, || docker.content().join("\n"));
}

/// The same without Docker: exported and pushed, and gone with the image.
fn containerd_exports(generation: Generation) {
    let test = format!("containerd {generation:?} with its content store kept");
    let Some(mut house) = House::open(&test) else { return };
    let socket = house.scratch.path().join(generation.short()).join("containerd.sock");
    let hoistd = house.hoistd(&keep(&socket));
    let Some(containerd) = house.containerd(generation, &hoistd, &test) else { return };
    assert_eq!(containerd.socket(), socket);
    let (python, tree) = (house.registry.image("python:zstd"), house.registry.image("tree:zstd"));
    containerd.pull(&python);
    // Garbage is collected, whatever namespace it was in.
    containerd.pull_reference(&tree);
    containerd.ctr(REFERENCE, &["image", "rm", "--sync", &tree]);
    let layers = containerd.layers(NAMESPACE, &python);
    let content = containerd.content(NAMESPACE);
    assert!(layers.iter().all(|layer| content.contains(layer)), "{content:?}\n{}", hoistd.log());
    let listed = containerd.ctr(NAMESPACE, &["content", "ls"]);
    for layer in &layers {
        let line = listed.lines().find(|line| line.starts_with(layer.as_str())).unwrap();
        assert!(line.contains("containerd.io/distribution.source.127.0.0.1=python"), "{line}");
        assert!(line.contains("containerd.io/uncompressed=sha256:"), "{line}");
    }

    house.registry.crash();
    let archive = house.scratch.path().join("exported.tar").display().to_string();
    let mut export = vec!["images", "export"];
    if generation == Generation::Two {
        // The transfer service may lose the end of a stream, and say nothing (containerd's pull request 12968).
        export.push("--local");
    }
    export.extend([archive.as_str(), &python]);
    containerd.ctr(NAMESPACE, &export);
    let exported = must(Command::new("tar").args(["-tf", &archive]));
    for layer in &layers {
        let layer = layer.strip_prefix("sha256:").unwrap();
        assert!(exported.contains(layer), "{layer} is not in {exported}");
    }
    is_pushed_whole(&house, &containerd, &python, &layers);
    containerd.remove_names();
    go_with_the_image(&containerd, &layers);
}

/// The image goes to a registry that has nothing yet.
fn is_pushed_whole(house: &House, containerd: &Containerd, image: &str, layers: &[String]) {
    let other = house.empty_registry();
    let there = other.image("pushed:v1");
    containerd.ctr(NAMESPACE, &["images", "push", "--plain-http", &there, image]);
    assert_eq!(layers_in(&other, "pushed:v1"), layers);
}

fn go_with_the_image(containerd: &Containerd, layers: &[String]) {
    let left = || layers.iter().any(|layer| containerd.content(NAMESPACE).contains(layer));
    eventually("the blobs go with the image", || !left(), || containerd.inventory());
}

#[test]
fn containerd_exports_what_hoist_pulled_on_1() {
    containerd_exports(Generation::One);
}

#[test]
fn containerd_exports_what_hoist_pulled_on_2() {
    containerd_exports(Generation::Two);
}

/// Ahead of time they come with the pull, once; of layers that were there before the pull, too.
fn a_prefetch_keeps_blobs(generation: Generation) {
    let test = format!("prefetch into containerd {generation:?} with its content store kept");
    let Some(mut house) = House::open(&test) else { return };
    let socket = house.scratch.path().join(generation.short()).join("containerd.sock");
    let hoistd = house.hoistd(&keep(&socket));
    let Some(containerd) = house.containerd(generation, &hoistd, &test) else { return };
    let prefetch = |arguments: &[&str]| {
        let mut hoist = Command::new(env!("CARGO_BIN_EXE_hoist"));
        hoist.arg("--config").arg(hoistd.config());
        must(hoist.args(["prefetch", "--namespace", NAMESPACE]).args(arguments));
    };
    let (python, tree) = (house.registry.image("python:gzip"), house.registry.image("tree:gzip"));
    prefetch(&["--quiet", &python]);
    // It shares a layer with the other, in another repository.
    prefetch(&["--quiet", &tree]);
    for image in [&python, &tree] {
        let stored = containerd.ctr(NAMESPACE, &["content", "ls"]);
        for (layer, size) in containerd.layer_sizes(NAMESPACE, image) {
            let line = stored.lines().find(|line| line.starts_with(&layer));
            let line = line.unwrap_or_else(|| panic!("{layer} is not in {stored}"));
            assert!(line.contains("containerd.io/distribution.source.127.0.0.1="), "{line}");
            assert_eq!(house.registry.sent(&layer), size, "{layer} of {image} was fetched once");
        }
    }

    house.registry.crash();
    let layers = containerd.layers(NAMESPACE, &python);
    is_pushed_whole(&house, &containerd, &python, &layers);
    prefetch(&["--release", &python, &tree]);
    go_with_the_image(&containerd, &layers);
}

#[test]
fn a_prefetch_keeps_blobs_on_1() {
    a_prefetch_keeps_blobs(Generation::One);
}

#[test]
fn a_prefetch_keeps_blobs_on_2() {
    a_prefetch_keeps_blobs(Generation::Two);
}

/// A content store that cannot be had costs nobody his container, and is not kept quiet.
#[test]
fn a_missing_content_store_is_told_and_the_image_runs() {
    let test = "a content store that is not there";
    let Some(house) = House::open(test) else { return };
    let hoistd = house.hoistd(&keep(Path::new("/nonexistent/containerd.sock")));
    let Some(containerd) = house.containerd(Generation::Two, &hoistd, test) else { return };
    let python = house.registry.image("python:gzip");
    containerd.pull(&python);
    assert_eq!(containerd.layers(NAMESPACE, &python).len(), hoistd.trees());
    let log = hoistd.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(told.len(), 1, "one line an image: {log}");
    for word in
        ["python:gzip", "/nonexistent/containerd.sock", "cri.containerd", "ctr content fetch"]
    {
        assert!(told[0].contains(word), "{word} is not in {}", told[0]);
    }
    assert!(figure(&hoistd, "hoist_kept_layers_total{result=\"failed\"}") >= 1);
}
