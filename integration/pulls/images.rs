//! Images for these tests.

use std::io::Write as _;

use super::faulty_registry::{FaultyRegistry, Reply};
use hoist::image::{DiffId, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer as a builder makes it.
pub(crate) struct Layer {
    media_type: String,
    pub(crate) blob: Vec<u8>,
    pub(crate) diff_id: DiffId,
}

/// An archive of files.
pub(crate) fn tar(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Bytes that nothing makes smaller.
pub(crate) fn noise(name: &str, bytes: usize) -> Vec<u8> {
    (0..bytes.div_ceil(32))
        .flat_map(|i| *Sha256::of(format!("{name}{i}").as_bytes()).as_bytes())
        .take(bytes)
        .collect()
}

/// Letters without words: an inflater has work with each of them.
pub(crate) fn letters(name: &str, bytes: usize) -> Vec<u8> {
    noise(name, bytes).into_iter().map(|byte| b'0' + byte % 64).collect()
}

impl Layer {
    /// A layer of `archive` as `none`, `gzip` or `zstd`.
    pub(crate) fn new(form: &str, archive: &[u8]) -> Self {
        let blob = match form {
            "gzip" => {
                let level = flate2::Compression::default();
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(archive).unwrap();
                encoder.finish().unwrap()
            }
            "zstd" => zstd::encode_all(archive, 1).unwrap(),
            _ => archive.to_vec(),
        };
        let media_type = if form == "none" { TAR.to_owned() } else { format!("{TAR}+{form}") };
        Self { media_type, blob, diff_id: DiffId(Sha256::of(archive)) }
    }

    /// One file of these bytes.
    pub(crate) fn of(form: &str, name: &str, content: Vec<u8>) -> Self {
        Self::new(form, &tar([(name.to_owned(), content)]))
    }
}

/// Pushes an image and gives its reference.
pub(crate) fn push(server: &FaultyRegistry, tag: &str, layers: &[Layer]) -> String {
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
    let config =
        serde_json::json!({ "rootfs": { "type": "layers", "diff_ids": diff_ids } }).to_string();
    let size = config.len();
    let config =
        serde_json::json!({ "mediaType": "c", "digest": server.blob(config), "size": size });
    let layers = layers.iter().map(|layer| {
        let digest = server.blob(layer.blob.clone());
        serde_json::json!({ "mediaType": layer.media_type, "digest": digest, "size": layer.blob.len() })
    });
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers.collect::<Vec<_>>(),
    });
    server.manifest(tag, MANIFEST, manifest.to_string());
    format!("{}/some/image:{tag}", server.host)
}

/// From now on a registry's layers stand still after half a megabyte.
pub(crate) fn stall_in_layers(server: &FaultyRegistry) {
    server.script(|request, reply| {
        let layer = request.is_blob() && reply.body.len() > 10_000;
        if layer { Reply { stall_after: Some(500_000), ..reply } } else { reply }
    });
}
