//! From an image reference to the list of its layers.

use std::sync::Arc;
use std::time::Duration;

use super::PullError;
use crate::image::{
    BlobDigest, ImagePlan, ManifestOrIndex, Platform, parse_config, select_platform,
};
use crate::registry::{Document, Reference, Registry};

/// The most bytes of an image configuration that are read: configurations of real images have
/// kilobytes; containerd's own bound for such documents is 8 MiB.
const CONFIG_MAX_BYTES: u64 = 8 << 20;

/// Indexes within indexes that are followed; more is a loop or an attack.
const INDEX_DEPTH: usize = 3;

/// Which manifest to begin with.
#[derive(Clone, Debug)]
pub enum Start {
    /// What the reference names.
    Reference,
    /// This one, of the reference's repository.
    Digest(BlobDigest),
}

/// Asks the registry for manifest and configuration, and joins them. Says beside it how long it took
/// to answer the registry's challenges.
///
/// # Errors
/// Where the registry does not serve them, or they are not an image for `platform`.
pub async fn resolve(
    registry: &Registry,
    reference: &Reference,
    start: &Start,
    platform: &Platform,
) -> Result<(ImagePlan, Duration), PullError> {
    let image = || reference.to_string();
    let refused = |source| PullError::Registry { image: image(), source: Arc::new(source) };
    let unusable = |source| PullError::Manifest { image: image(), source: Arc::new(source) };
    let mut document = match start {
        Start::Reference => registry.manifest(reference).await,
        Start::Digest(digest) => registry.manifest_by_digest(reference, *digest).await,
    }
    .map_err(refused)?;
    let mut authorizing = Duration::ZERO;
    for _ in 0..INDEX_DEPTH {
        authorizing += document.authorizing;
        let Document { bytes, digest, content_type, .. } = &document;
        match ManifestOrIndex::parse(content_type.as_deref(), bytes).map_err(unusable)? {
            ManifestOrIndex::Manifest { config, layers } => {
                let max = config.size.min(CONFIG_MAX_BYTES);
                let config =
                    registry.small_blob(reference, config.digest, max).await.map_err(refused)?;
                let diff_ids = parse_config(&config).map_err(unusable)?;
                let plan = ImagePlan::new(*digest, layers, &diff_ids).map_err(unusable)?;
                return Ok((plan, authorizing));
            }
            ManifestOrIndex::Index(entries) => {
                let chosen = select_platform(&entries, platform).map_err(unusable)?.digest;
                document = registry.manifest_by_digest(reference, chosen).await.map_err(refused)?;
            }
        }
    }
    Err(unusable(crate::image::ManifestError::MediaType(
        "an index of indexes without end".to_owned(),
    )))
}
