//! Why a layer or an image could not be pulled.

use std::sync::Arc;

use crate::compression::CompressionError;
use crate::fetch::FetchError;
use crate::image::{BlobDigest, DiffId, ManifestError};
use crate::pull::trees::StoreError;
use crate::registry::RegistryError;
use crate::unpack::{NoRoom, UnpackError};

/// Why a layer or an image could not be pulled. Cheap to clone: everybody who waits for a job gets
/// the same answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The image reference is none.
    #[error("{reference:?} is not an image reference: {reason}")]
    Reference {
        /// What was given.
        reference: String,
        /// What the parser says.
        reason: String,
    },
    /// Manifest or configuration could not be had.
    #[error("{image}: {source}")]
    Registry {
        /// The image.
        image: String,
        /// What the registry client says.
        source: Arc<RegistryError>,
    },
    /// Manifest or configuration could not be used.
    #[error("{image}: {source}")]
    Manifest {
        /// The image.
        image: String,
        /// What is wrong with it.
        source: Arc<ManifestError>,
    },
    /// The layer that was asked for is not one of the image's.
    #[error("{image} has no layer {layer} with the ChainID {chain_id}")]
    NoSuchLayer {
        /// The image.
        image: String,
        /// The blob that was asked for.
        layer: BlobDigest,
        /// The stack that was asked for.
        chain_id: String,
    },
    /// A media type that hoist cannot unpack.
    #[error("layer {layer} has the media type {media_type:?}, which hoist does not unpack")]
    Unsupported {
        /// The layer.
        layer: BlobDigest,
        /// Its media type.
        media_type: String,
    },
    /// The layer's bytes could not be fetched.
    #[error("layer {layer}: {source}")]
    Fetch {
        /// The layer.
        layer: BlobDigest,
        /// What the fetch says.
        source: Arc<FetchError>,
    },
    /// The compressed bytes are not those that the manifest names.
    #[error(
        "layer {expected}: the registry served other bytes, with the digest {actual}; nothing of it was kept"
    )]
    BlobMismatch {
        /// What the manifest says.
        expected: BlobDigest,
        /// What was served.
        actual: BlobDigest,
    },
    /// The archive is not the one that the configuration names.
    #[error(
        "layer {layer}: its archive has the DiffID {actual} and the image configuration says {expected}; nothing of it was kept"
    )]
    DiffIdMismatch {
        /// The layer.
        layer: BlobDigest,
        /// What the configuration says.
        expected: DiffId,
        /// What came out.
        actual: DiffId,
    },
    /// The layer cannot be decompressed.
    #[error("layer {layer}: {source}")]
    Decompress {
        /// The layer.
        layer: BlobDigest,
        /// What the decoder says.
        source: Arc<CompressionError>,
    },
    /// The layer cannot be unpacked.
    #[error("layer {layer}: {source}")]
    Unpack {
        /// The layer.
        layer: BlobDigest,
        /// What the unpacker says.
        source: Arc<UnpackError>,
    },
    /// Too little would stay free.
    #[error("{image}: {source}")]
    NoRoom {
        /// The image.
        image: String,
        /// What there is, and what would be needed.
        source: NoRoom,
    },
    /// The place where layers are kept failed.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// A thread or task of the pull ended without an answer.
    #[error(
        "layer {layer}: {what} ended unexpectedly; this is a defect of hoist, the log has more"
    )]
    Internal {
        /// The layer.
        layer: BlobDigest,
        /// Which part.
        what: &'static str,
    },
    /// A thread or task of the pull panicked.
    #[error("{what} panicked: {said}; this is a defect of hoist, please report it with the log")]
    Panicked {
        /// Which part, and of which layer or image.
        what: String,
        /// Its words.
        said: String,
    },
    /// Nobody waited for it any more.
    #[error("the pull was cancelled")]
    Cancelled,
}

impl PullError {
    /// What [`PullError::kind`] says of failures; that nobody waited any more is none.
    pub const KINDS: [&'static str; 13] = [
        "reference",
        "registry",
        "manifest",
        "no_such_layer",
        "unsupported",
        "fetch",
        "blob_mismatch",
        "diff_id_mismatch",
        "decompress",
        "unpack",
        "no_space",
        "store",
        "internal",
    ];

    /// Whether the bytes were not what the image promises. Such a pull fails; it is never left to
    /// another way of pulling.
    pub fn is_integrity(&self) -> bool {
        match self {
            Self::BlobMismatch { .. } | Self::DiffIdMismatch { .. } => true,
            // Too large a window is not the image's fault; containerd may have room for it.
            Self::Decompress { source, .. } => source.is_bad_data(),
            Self::Fetch { source, .. } => source.is_integrity(),
            Self::Unpack { source, .. } => source.is_bad_archive(),
            _ => false,
        }
    }

    /// Whether the disk is full, or as full as it may be. Another way of pulling would fill it too.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoRoom { .. } => true,
            Self::Unpack { source, .. } => source.is_no_space(),
            Self::Store(source) => source.is_no_space(),
            _ => false,
        }
    }

    /// Whether a part of the pull panicked, wherever that came up.
    fn is_panic(&self) -> bool {
        match self {
            Self::Panicked { .. } => true,
            Self::Fetch { source, .. } => matches!(**source, FetchError::Panicked { .. }),
            Self::Unpack { source, .. } => matches!(**source, UnpackError::Panicked { .. }),
            _ => false,
        }
    }

    /// The word for it in metrics' labels; one of a fixed few.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoRoom { .. } => "no_space",
            _ if self.is_no_space() => "no_space",
            _ if self.is_panic() => "internal",
            Self::Reference { .. } => "reference",
            Self::Registry { .. } => "registry",
            Self::Manifest { .. } => "manifest",
            Self::NoSuchLayer { .. } => "no_such_layer",
            Self::Unsupported { .. } => "unsupported",
            Self::Fetch { .. } => "fetch",
            Self::BlobMismatch { .. } => "blob_mismatch",
            Self::DiffIdMismatch { .. } => "diff_id_mismatch",
            Self::Decompress { .. } => "decompress",
            Self::Unpack { .. } => "unpack",
            Self::Store(_) => "store",
            Self::Internal { .. } | Self::Panicked { .. } => "internal",
            Self::Cancelled => "cancelled",
        }
    }
}

impl From<StoreError> for PullError {
    fn from(source: StoreError) -> Self {
        Self::Store(Arc::new(source))
    }
}
