//! A layout with an image in it, converted, and told back into the model.

use std::fs;

use serde_json::json;

use super::stack::{Model, Put, Seen, archive, model, parents, told_back};
use super::*;
use crate::image::{DiffId, Sha256};
use crate::layout::Layout;
use crate::registry::{Registry, Settings};

/// Publishes layers as `oci:DIR:source`, every second one compressed with gzip.
pub(super) fn publish(dir: &Path, layers: &[Vec<Put>]) {
    publish_as("source", dir, layers);
}

pub(super) fn publish_as(tag: &str, dir: &Path, layers: &[Vec<Put>]) {
    let staging = Staging::new(dir).unwrap();
    let (mut diff_ids, mut descriptors) = (Vec::new(), Vec::new());
    for (number, layer) in layers.iter().enumerate() {
        let archive = archive(layer);
        diff_ids.push(DiffId(Sha256::of(&archive)));
        let (blob, kind) = if number % 2 == 0 {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut gzip, &archive).unwrap();
            (gzip.finish().unwrap(), "tar+gzip")
        } else {
            (archive, "tar")
        };
        let digest = staging.put(&blob).unwrap();
        let media_type = format!("application/vnd.oci.image.layer.v1.{kind}");
        descriptors.push(json!({ "mediaType": media_type, "digest": digest, "size": blob.len() }));
    }
    let history: Vec<_> = layers.iter().map(|_| json!({ "created_by": "a test" })).collect();
    let config = json!({ "os": "linux", "architecture": "amd64", "config": { "Env": ["A=b"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids }, "history": history })
    .to_string();
    let config = json!({ "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": staging.put(config.as_bytes()).unwrap(), "size": config.len() });
    let manifest = json!({ "schemaVersion": 2, "mediaType": document::MANIFEST,
        "config": config, "layers": descriptors })
    .to_string();
    let digest = staging.put(manifest.as_bytes()).unwrap();
    let descriptor = document::descriptor(document::MANIFEST, digest, manifest.len());
    staging.publish(dir, &descriptor, Some(tag)).unwrap();
}

pub(super) fn decompressed(layer: &serde_json::Value, blob: Vec<u8>) -> Vec<u8> {
    match layer["mediaType"].as_str().unwrap().rsplit_once('+').map(|(_, c)| c) {
        Some("zstd") => zstd::decode_all(blob.as_slice()).unwrap(),
        Some("gzip") => {
            let mut raw = Vec::new();
            let mut gzip = flate2::read::MultiGzDecoder::new(blob.as_slice());
            std::io::Read::read_to_end(&mut gzip, &mut raw).unwrap();
            raw
        }
        _ => blob,
    }
}

pub(super) struct Bench {
    pub(super) home: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    pub(super) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { home: tempfile::tempdir().unwrap(), runtime }
    }

    pub(super) fn place(&self, tag: &str) -> Place {
        Place::Directory(self.home.path().to_owned(), Some(tag.to_owned()))
    }

    pub(super) fn reach(&self) -> Reach {
        let registry = Registry::new(Settings::default()).unwrap();
        let budget = crate::budget::Budget::new(64 << 20);
        let fetcher = crate::fetch::Fetcher::new(registry.clone(), budget, Default::default());
        let runtime = self.runtime.handle().clone();
        Reach { registry, fetcher, runtime, containerd: Default::default() }
    }

    pub(super) fn convert(&self, tag: &str, options: &Options) -> Result<Outcome, ConvertError> {
        let progress = Arc::new(Progress::default());
        convert(&self.place("source"), &self.place(tag), options, &self.reach(), &progress)
    }

    /// The documents of an image: manifest and configuration.
    pub(super) fn documents(&self, tag: &str) -> [serde_json::Value; 2] {
        let layout = Layout::open_directory(self.home.path()).unwrap();
        let read = |digest| -> serde_json::Value {
            serde_json::from_slice(&layout.document(digest).unwrap()).unwrap()
        };
        let manifest = read(layout.resolve(Some(tag)).unwrap());
        let config = read(manifest["config"]["digest"].as_str().unwrap().parse().unwrap());
        [manifest, config]
    }

    /// The layers of an image: descriptor and blob.
    pub(super) fn blobs(&self, tag: &str) -> Vec<(serde_json::Value, Vec<u8>)> {
        let layers = self.documents(tag)[0]["layers"].as_array().unwrap().clone();
        let blob = |layer: serde_json::Value| {
            let digest = layer["digest"].as_str().unwrap().trim_start_matches("sha256:");
            let blob = fs::read(self.home.path().join("blobs/sha256").join(digest)).unwrap();
            (layer, blob)
        };
        layers.into_iter().map(blob).collect()
    }

    /// What an image is by the rules of the model, whiteouts and all. Files of these tests have one byte
    /// throughout, so that archives can be told back.
    pub(super) fn applied(&self, tag: &str) -> Model {
        let mut layers = Vec::new();
        for (layer, blob) in self.blobs(tag) {
            let raw = decompressed(&layer, blob);
            let mut archive = tar::Archive::new(raw.as_slice());
            let puts = archive.entries().unwrap().map(|entry| told_back(entry.unwrap()));
            layers.push(puts.collect::<Vec<_>>());
        }
        let counts: Vec<_> = layers.iter().map(Vec::len).collect();
        let model = model(&mut layers);
        assert_eq!(layers.iter().map(Vec::len).collect::<Vec<_>>(), counts, "all can be applied");
        model
    }

    /// What an image is, by unpacking its layers one over the other: no whiteouts are known, and
    /// hard links have to be to something in the same layer.
    pub(super) fn unpacked(&self, tag: &str) -> Model {
        let layout = Layout::open_directory(self.home.path()).unwrap();
        let manifest = layout.document(layout.resolve(Some(tag)).unwrap()).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let (mut all, mut files) = (Model::new(), 0);
        for layer in manifest["layers"].as_array().unwrap() {
            let digest = layer["digest"].as_str().unwrap().trim_start_matches("sha256:");
            let blob = fs::read(self.home.path().join("blobs/sha256").join(digest)).unwrap();
            let raw = decompressed(layer, blob);
            let mut own = Model::new();
            let mut archive = tar::Archive::new(raw.as_slice());
            for entry in archive.entries().unwrap() {
                let mut entry = entry.unwrap();
                let path = entry.path().unwrap().to_str().unwrap().trim_end_matches('/').to_owned();
                assert!(!path.contains(".wh."), "{path}");
                assert!(
                    parents(&path).all(|parent| own.contains_key(parent)),
                    "{path} has all of its parents before it"
                );
                assert_eq!(entry.header().mtime().unwrap() % 7, 0, "{path}");
                let mode = entry.header().mode().unwrap();
                let target = entry.link_name().unwrap().map(|t| t.to_str().unwrap().to_owned());
                let seen = match entry.header().entry_type() {
                    tar::EntryType::Directory => Seen::Directory(mode),
                    tar::EntryType::Symlink => Seen::Symlink(target.unwrap()),
                    tar::EntryType::Link => own[&target.unwrap()].clone(),
                    _ => {
                        files += 1;
                        let mut content = Vec::new();
                        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
                        Seen::File(mode, content, files)
                    }
                };
                let before = own.insert(path.clone(), seen);
                assert!(before.is_none(), "{path} twice in a layer");
            }
            for (path, seen) in own {
                let before = all.insert(path.clone(), seen.clone());
                assert!(
                    before.is_none_or(|before| before == seen),
                    "{path} differs between layers"
                );
            }
        }
        all
    }
}
