//! The words of the OCI image specification as types; no I/O.
//!
//! Three digests are easily confused, and confusing them is *the* bug of this field, so each is a
//! type: [`BlobDigest`] names compressed bytes in a registry, [`DiffId`] the uncompressed tar
//! archive of a layer, [`ChainId`] a stack of layers.

mod digest;
mod error;
mod layer;
mod manifest;
mod plan;
mod platform;
mod reference;
#[cfg(test)]
mod tests;

pub use digest::{BlobDigest, ChainId, DiffId, DigestError, Sha256};
pub use error::ManifestError;
pub use layer::{Compression, LayerKind};
pub use manifest::{Descriptor, INDEX_DEPTH, ManifestOrIndex, select_platform};
pub use plan::{ImageLayer, ImagePlan, NamedDocument, parse_config};
pub use platform::{Platform, check_platform};
pub use reference::{Reference, ReferenceError};
