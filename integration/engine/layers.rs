//! Layers as builders make them, and images of them in a registry.

use std::io::Write as _;

use hoist::image::{BlobDigest, DiffId, ImagePlan, Sha256};

use super::faulty_registry::FaultyRegistry;

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer as a builder makes it; what is pushed may be told to lie.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) media_type: String,
    pub(super) blob: Vec<u8>,
    pub(super) diff_id: DiffId,
    /// What the manifest says of it, where that is not the truth.
    pub(super) size: Option<u64>,
}

pub(super) fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
        }
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl Layer {
    pub(super) fn new(form: &str, archive: &[u8]) -> Self {
        let blob = match form {
            "gzip" => gzip(archive),
            "zstd" => zstd::encode_all(archive, 3).unwrap(),
            _ => archive.to_vec(),
        };
        let media_type = if form == "none" { TAR.to_owned() } else { format!("{TAR}+{form}") };
        Self { media_type, blob, diff_id: DiffId(Sha256::of(archive)), size: None }
    }

    /// A layer whose blob is what somebody else makes of the archive.
    pub(super) fn made(form: &str, archive: &[u8], blob: Vec<u8>) -> Self {
        let media_type = format!("{TAR}+{form}");
        Self { media_type, blob, diff_id: DiffId(Sha256::of(archive)), size: None }
    }

    /// Its content is large and compresses badly.
    pub(super) fn large(form: &str, name: &str, bytes: usize) -> Self {
        let noise: Vec<u8> = (0..bytes.div_ceil(32))
            .flat_map(|i| *Sha256::of(format!("{name}{i}").as_bytes()).as_bytes())
            .take(bytes)
            .collect();
        Self::new(form, &tar(&[(name, &noise)]))
    }
}

/// Pushes an image and says how its layers are asked for.
pub(super) fn push(server: &FaultyRegistry, tag: &str, layers: &[Layer]) -> ImagePlan {
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
    let config =
        serde_json::json!({ "rootfs": { "type": "layers", "diff_ids": diff_ids } }).to_string();
    let config_size = config.len();
    let config = server.blob(config);
    let described = layers.iter().map(|layer| {
        let digest = server.blob(layer.blob.clone());
        let size = layer.size.unwrap_or(layer.blob.len() as u64);
        serde_json::json!({ "mediaType": layer.media_type, "digest": digest, "size": size })
    });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
        "layers": described.collect::<Vec<_>>(),
    });
    let digest = server.manifest(tag, MANIFEST, manifest.to_string());
    let layers = layers.iter().map(|layer| hoist::image::Descriptor {
        media_type: layer.media_type.clone(),
        digest: BlobDigest(Sha256::of(&layer.blob)),
        size: layer.blob.len() as u64,
    });
    ImagePlan::new(digest, layers.collect(), &diff_ids).unwrap()
}
