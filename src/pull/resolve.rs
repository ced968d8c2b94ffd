//! From an image reference to the list of its layers.

use std::sync::Arc;
use std::time::Duration;

use super::PullError;
use crate::image::{
    BlobDigest, INDEX_DEPTH, ImagePlan, ManifestError, ManifestOrIndex, NamedDocument, Platform,
    Reference, check_platform, parse_config, select_platform,
};
use crate::registry::{Document, Registry};

/// The most bytes of an image configuration that are read: configurations of real images have
/// kilobytes; containerd's own bound for such documents is 8 MiB.
const CONFIG_MAX_BYTES: u64 = 8 << 20;

/// Which manifest to begin with.
#[derive(Clone, Debug)]
pub enum Start {
    /// What the reference names; where that is no index, whatever its platform is.
    Reference,
    /// What the reference names, and nothing for another platform than was asked for.
    ReferenceFor,
    /// This one, of the reference's repository.
    Digest(BlobDigest),
}

impl Start {
    /// What a reference names; whether a platform was asked for.
    pub fn named(for_platform: bool) -> Self {
        if for_platform { Self::ReferenceFor } else { Self::Reference }
    }
}

/// An image, as its registry has it now.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Its layers.
    pub plan: ImagePlan,
    /// What its name leads to: an index if there is one, the manifest, the configuration.
    pub documents: Vec<NamedDocument>,
    /// How long it took to answer the registry's challenges.
    pub authorizing: Duration,
}

/// Asks the registry for manifest and configuration, and joins them.
///
/// # Errors
/// Where the registry does not serve them, or they are not an image for `platform`.
pub async fn resolve(
    registry: &Registry,
    reference: &Reference,
    start: &Start,
    platform: &Platform,
) -> Result<Resolved, PullError> {
    let image = || reference.to_string();
    let refused = |source| PullError::Registry { image: image(), source: Arc::new(source) };
    let unusable = |source| PullError::Manifest { image: image(), source: Arc::new(source) };
    let mut document = match start {
        Start::Reference | Start::ReferenceFor => registry.manifest(reference).await,
        Start::Digest(digest) => registry.manifest_by_digest(reference, *digest).await,
    }
    .map_err(refused)?;
    let mut authorizing = Duration::ZERO;
    let mut documents = Vec::new();
    for _ in 0..INDEX_DEPTH {
        authorizing += document.authorizing;
        let Document { bytes, digest, content_type, .. } = &document;
        let parsed = ManifestOrIndex::parse_named(content_type.as_deref(), bytes);
        let (parsed, media_type) = parsed.map_err(unusable)?;
        let media_type = media_type.unwrap_or_default();
        documents.push(NamedDocument { media_type, digest: *digest, bytes: bytes.clone() });
        match parsed {
            ManifestOrIndex::Manifest { config, layers } => {
                let max = config.size.min(CONFIG_MAX_BYTES);
                let bytes =
                    registry.small_blob(reference, config.digest, max).await.map_err(refused)?;
                if matches!(start, Start::ReferenceFor) && documents.len() == 1 {
                    check_platform(&bytes, platform).map_err(unusable)?;
                }
                let diff_ids = parse_config(&bytes).map_err(unusable)?;
                let plan = ImagePlan::new(*digest, layers, &diff_ids).map_err(unusable)?;
                let (media_type, digest) = (config.media_type, config.digest);
                documents.push(NamedDocument { media_type, digest, bytes });
                return Ok(Resolved { plan, documents, authorizing });
            }
            ManifestOrIndex::Index(entries) => {
                let chosen = select_platform(&entries, platform).map_err(unusable)?.digest;
                document = registry.manifest_by_digest(reference, chosen).await.map_err(refused)?;
            }
        }
    }
    Err(unusable(ManifestError::endless()))
}
