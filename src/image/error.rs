//! Why an image's documents cannot be used.

use super::DigestError;

/// Why a manifest, index or configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of the form that the specification gives.
    #[error("{what} cannot be read: {source}")]
    Json {
        /// "manifest", "index" or "configuration".
        what: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A digest in it is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// Manifest and configuration name different numbers of layers.
    #[error("the manifest has {layers} layers and the configuration {diff_ids} DiffIDs")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// DiffIDs of the configuration.
        diff_ids: usize,
    },
    /// The index has nothing for the platform.
    #[error("the index has no manifest for {wanted}; it has {offered}")]
    NoPlatform {
        /// The platform that was asked for.
        wanted: String,
        /// Those that the index offers.
        offered: String,
    },
    /// There is no index to choose from, and the one image is for another platform.
    #[error(
        "the image is for {offered} and for nothing else, and {wanted} was asked for; without a platform it is \
         taken as it is"
    )]
    OtherPlatform {
        /// The platform that was asked for.
        wanted: String,
        /// What the image's configuration says.
        offered: String,
    },
    /// A schema 1 manifest, or anything else that is neither manifest nor index.
    #[error("media type {0:?} is neither an image manifest nor an index")]
    MediaType(String),
    /// A platform that is not `os/arch[/variant]`.
    #[error("{0:?} is not a platform: expected os/arch or os/arch/variant, such as linux/amd64")]
    Platform(String),
    /// A size that is negative or larger than can be.
    #[error("size {size} of {digest} is impossible")]
    Size {
        /// The blob.
        digest: String,
        /// What the descriptor says.
        size: i64,
    },
}

impl ManifestError {
    /// An index that leads to nothing but indexes.
    pub fn endless() -> Self {
        Self::MediaType("an index of indexes without end".to_owned())
    }
}
