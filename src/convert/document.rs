//! The documents of a new image: configuration, manifest, index.
//!
//! What an image says of itself is kept. What is about layers is made to agree with the new ones:
//! the DiffIDs are theirs, the history keeps every line of the source's, now as lines without a
//! layer, and gets one line for each new layer.

use serde_json::{Map, Value, json};

use super::source::Image;
use super::written::Written;
use crate::compression::frame_table::ANNOTATION;
use crate::image::{BlobDigest, Compression, Platform};

/// Media types (OCI image specification, media-types.md).
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What the annotations of hoist begin with.
const OWN: &str = "dev.hoist.";

fn layer_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "application/vnd.oci.image.layer.v1.tar",
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    }
}

/// The configuration for `layers`; `None` where the source's is no object.
pub(super) fn config(source: &[u8], layers: &[Written]) -> Option<Vec<u8>> {
    let mut config: Map<String, Value> = serde_json::from_slice(source).ok()?;
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
    config.insert("rootfs".to_owned(), json!({ "type": "layers", "diff_ids": diff_ids }));
    let created = config.get("created").cloned();
    let mut history = config.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
    // The lines of the layers that are kept, at the bottom, still have theirs.
    let mut kept = layers.iter().filter(|layer| layer.kept).count();
    for line in &mut history {
        if kept > 0 && line["empty_layer"] != true {
            kept -= 1;
        } else {
            line["empty_layer"] = true.into();
        }
    }
    for (number, _) in layers.iter().enumerate().filter(|(_, layer)| !layer.kept) {
        let by = format!("hoist convert: layer {} of {}", number + 1, layers.len());
        let mut line = json!({ "created_by": by });
        if let Some(created) = &created {
            line["created"] = created.clone();
        }
        history.push(line);
    }
    config.insert("history".to_owned(), history.into());
    serde_json::to_vec(&config).ok()
}

/// The manifest for `layers`.
pub(super) fn manifest(
    image: &Image,
    config: (BlobDigest, usize),
    layers: &[Written],
    options: &str,
) -> Value {
    let mut annotations = image.annotations.clone();
    annotations.retain(|key, _| !key.starts_with(OWN));
    if let Some(source) = image.manifest {
        annotations.insert(format!("{OWN}source.digest"), source.to_string().into());
    }
    annotations.insert(format!("{OWN}version"), env!("CARGO_PKG_VERSION").into());
    annotations.insert(format!("{OWN}options"), options.into());
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| {
            let mut one = json!({
                "mediaType": layer_type(layer.compression), "digest": layer.digest, "size": layer.size,
            });
            if let Some(frames) = layer.frames {
                one["annotations"] = json!({ ANNOTATION: frames.to_string() });
            }
            one
        })
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": config.0, "size": config.1 },
        "layers": layers,
        "annotations": annotations,
    })
}

/// How an index names a manifest.
pub(super) fn descriptor(media_type: &str, digest: BlobDigest, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

/// The platform that a configuration is for.
pub(super) fn platform(config: &[u8]) -> Option<Platform> {
    serde_json::from_slice(config).ok()
}
