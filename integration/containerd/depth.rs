//! Deep images: more layers than containerd's label names (some 56) and than fit into one page of mount options.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::Command;

use hoist::image::Sha256;

use super::harness::{Generation, Registry, must};
use super::{Bench, bench};

/// Layers above that of Debian.
const LAYERS: usize = 100;

/// Adds a layer to each image of an OCI layout whose one file says which it is.
fn deepen(layout: &Path) {
    let read = |path: &Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let blob =
        |digest: &str| layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let write = |bytes: &[u8]| {
        let digest = Sha256::of(bytes).to_string();
        std::fs::write(blob(&digest), bytes).unwrap();
        (digest, bytes.len())
    };
    let index_file = layout.join("index.json");
    let mut index = read(&index_file);
    let mut manifest = read(&blob(index["manifests"][0]["digest"].as_str().unwrap()));
    let mut config = read(&blob(manifest["config"]["digest"].as_str().unwrap()));
    for number in 1..=LAYERS {
        let mut archive = tar::Builder::new(Vec::new());
        let content = format!("layer {number}\n");
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        let name = format!("deep/{number:03}");
        archive.append_data(&mut header, name, content.as_bytes()).unwrap();
        let (digest, size) = write(&archive.into_inner().unwrap());
        config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(digest.as_str().into());
        let history = serde_json::json!({ "created_by": format!("layer {number}") });
        config["history"].as_array_mut().unwrap().push(history);
        manifest["layers"].as_array_mut().unwrap().push(serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size,
        }));
    }
    let (digest, size) = write(config.to_string().as_bytes());
    manifest["config"]["digest"] = digest.into();
    manifest["config"]["size"] = size.into();
    let (digest, size) = write(manifest.to_string().as_bytes());
    index["manifests"][0]["digest"] = digest.into();
    index["manifests"][0]["size"] = size.into();
    std::fs::write(&index_file, index.to_string()).unwrap();
}

/// Pushes the deep image to a registry and gives its name.
fn push(bench: &Bench, registry: &Registry) -> String {
    let layout = bench.house.scratch.path().join("layout");
    let copied = format!("oci:{}:deep", layout.display());
    let copy = |options: [&str; 2], from: &str, to: &str| {
        must(
            Command::new("skopeo")
                .args(["--insecure-policy", "copy"])
                .args(options)
                .args([from, to]),
        )
    };
    let debian = format!("docker://{}", bench.house.registry.image("debian:gzip"));
    copy(["--src-tls-verify=false", "--quiet"], &debian, &copied);
    deepen(&layout);
    let image = registry.image("deep:v1");
    copy(["--dest-tls-verify=false", "--quiet"], &copied, &format!("docker://{image}"));
    image
}

fn a_container_runs_on_a_hundred_layers(generation: Generation) {
    let test = format!("a container of a hundred layers on containerd {generation:?}");
    let Some(mut bench) = bench(generation, &test) else {
        return;
    };
    let registry = bench.house.empty_registry();
    let image = push(&bench, &registry);
    for backend in ["overlay", "erofs"] {
        bench.set_backend(backend);
        bench.containerd.pull(&image);
        bench.assert_not_downloaded(&image);
        assert_eq!(bench.hoistd.trees(), LAYERS + 1, "{backend}");
        let images = if backend == "erofs" { LAYERS + 1 } else { 0 };
        assert_eq!(bench.hoistd.images().len(), images, "{backend}");
        // The lowest layer, a middle one and the highest, by one program that is in the lowest itself.
        let files = ["cat", "/etc/debian_version", "/deep/050", "/deep/100"];
        let said = bench.containerd.run("hoist", &image, backend, &files);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 3, "{backend}: {said:?}");
        assert!(lines[0].starts_with("12."), "{backend}: {said:?}");
        assert_eq!(lines[1..], ["layer 50", "layer 100"], "{backend}");
        let count = "ls /deep | wc -l";
        let said = bench.containerd.run("hoist", &image, "all", &["sh", "-c", count]);
        assert_eq!(said.trim(), LAYERS.to_string(), "{backend}: every layer is seen");
        bench.remove(&image);
    }
}

#[test]
fn a_container_runs_on_a_hundred_layers_on_1() {
    a_container_runs_on_a_hundred_layers(Generation::One);
}

#[test]
fn a_container_runs_on_a_hundred_layers_on_2() {
    a_container_runs_on_a_hundred_layers(Generation::Two);
}
