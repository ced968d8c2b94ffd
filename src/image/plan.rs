//! The layers of one image on one platform, joined from its manifest and its configuration.

use serde::Deserialize;

use super::error::ManifestError;
use super::manifest::{Descriptor, ManifestOrIndex};
use super::{BlobDigest, ChainId, Compression, DiffId, LayerKind};

/// One layer of an image, with all of its names.
#[derive(Clone, Debug)]
pub struct ImageLayer {
    /// The blob in the registry.
    pub blob: BlobDigest,
    /// The blob's size in bytes.
    pub size: u64,
    /// The media type as the manifest has it.
    pub media_type: String,
    /// The uncompressed archive.
    pub diff_id: DiffId,
    /// The stack up to and with this layer.
    pub chain_id: ChainId,
}

impl ImageLayer {
    /// What the media type says.
    pub fn kind(&self) -> LayerKind {
        LayerKind::of_media_type(&self.media_type)
    }

    /// How it is compressed; `None` for a layer that hoist cannot unpack.
    pub fn compression(&self) -> Option<Compression> {
        match self.kind() {
            LayerKind::Tar(compression) => Some(compression),
            LayerKind::Foreign | LayerKind::Unknown => None,
        }
    }
}

/// An index, a manifest or a configuration, byte for byte, under its names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedDocument {
    /// What it is.
    pub media_type: String,
    /// The digest of `bytes`.
    pub digest: BlobDigest,
    /// As the registry served it.
    pub bytes: bytes::Bytes,
}

/// The layers of one image on one platform, lowest first.
#[derive(Clone, Debug)]
pub struct ImagePlan {
    /// The manifest's digest.
    pub manifest: BlobDigest,
    /// The layers, lowest first.
    pub layers: Vec<ImageLayer>,
}

impl ImagePlan {
    /// Reads it out of an image's documents, of which the manifest and the configuration are the last two.
    ///
    /// # Errors
    /// Where they are not what they should be.
    pub fn of_documents(documents: &[NamedDocument]) -> Result<Self, ManifestError> {
        let lacks = || ManifestError::MediaType("fewer than two documents".to_owned());
        let [.., manifest, config] = documents else { return Err(lacks()) };
        match ManifestOrIndex::parse(Some(&manifest.media_type), &manifest.bytes)? {
            ManifestOrIndex::Manifest { layers, .. } => {
                Self::new(manifest.digest, layers, &parse_config(&config.bytes)?)
            }
            ManifestOrIndex::Index(_) => Err(ManifestError::MediaType(manifest.media_type.clone())),
        }
    }

    /// Joins a manifest's layers with the DiffIDs of its configuration.
    ///
    /// # Errors
    /// Where the two do not have the same number of layers.
    pub fn new(
        manifest: BlobDigest,
        layers: Vec<Descriptor>,
        diff_ids: &[DiffId],
    ) -> Result<Self, ManifestError> {
        if layers.len() != diff_ids.len() {
            return Err(ManifestError::LayerCount {
                layers: layers.len(),
                diff_ids: diff_ids.len(),
            });
        }
        let chain = ChainId::of_stack(diff_ids);
        let layers =
            layers.into_iter().zip(diff_ids).zip(chain).map(|((layer, &diff_id), chain_id)| {
                let Descriptor { media_type, digest, size } = layer;
                ImageLayer { blob: digest, size, media_type, diff_id, chain_id }
            });
        Ok(Self { manifest, layers: layers.collect() })
    }
}

/// Reads the DiffIDs out of an image configuration (config.md, `rootfs.diff_ids`).
///
/// # Errors
/// Where it is no image configuration, or a DiffID is no SHA-256 digest.
pub fn parse_config(json: &[u8]) -> Result<Vec<DiffId>, ManifestError> {
    #[derive(Deserialize)]
    struct Config {
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        #[serde(default)]
        diff_ids: Vec<String>,
    }
    let config: Config = serde_json::from_slice(json)
        .map_err(|source| ManifestError::Json { what: "configuration", source })?;
    config.rootfs.diff_ids.iter().map(|text| Ok(text.parse()?)).collect()
}
