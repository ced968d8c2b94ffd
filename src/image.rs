//! The words of the OCI image specification as types; no I/O.
//!
//! Three digests are easily confused, and confusing them is *the* bug of this field, so each is a
//! type: [`BlobDigest`] names compressed bytes in a registry, [`DiffId`] the uncompressed tar
//! archive of a layer, [`ChainId`] a stack of layers.

mod digest;
mod layer;
mod manifest;

pub use digest::{BlobDigest, ChainId, DiffId, DigestError, Sha256};
pub use layer::{Compression, LayerKind};
pub use manifest::{
    Descriptor, INDEX_DEPTH, ImageLayer, ImagePlan, ManifestError, ManifestOrIndex, NamedDocument,
    Platform, parse_config, select_platform,
};
