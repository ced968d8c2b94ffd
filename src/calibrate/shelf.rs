//! The images that a served registry has: one platform of each, by its name, with the blobs where they lie.
//!
//! An OCI layout is served from where it is. An image of another registry is copied to this host first,
//! since nobody could tell that registry's speed from the link's otherwise.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;

use super::experiment::ServedLayer;
use crate::fetch::{FetchError, Fetcher};
use crate::hashing::Hasher;
use crate::image::{
    BlobDigest, Descriptor, INDEX_DEPTH, ManifestError, ManifestOrIndex, Platform, Reference,
    select_platform,
};
use crate::layout::{DOCUMENT_BYTES_MOST, Layout, LayoutError, Member, Staging};
use crate::registry::{Registry, RegistryError};
use crate::timeline::LayerRecorder;

/// Why an image cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// It lies in a layout that cannot be read.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Its registry does not give it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Its documents cannot be used.
    #[error("{image}: {source}")]
    Manifest {
        /// What was asked for.
        image: String,
        /// What is wrong.
        source: ManifestError,
    },
    /// A layer does not arrive.
    #[error("blob {blob}: {source}")]
    Fetch {
        /// The layer.
        blob: BlobDigest,
        /// What the fetch says.
        source: Box<FetchError>,
    },
    /// A layer is not what its digest says.
    #[error("the registry serves other bytes for {expected}, with the digest {actual}")]
    Mismatch {
        /// What the manifest names.
        expected: BlobDigest,
        /// What came.
        actual: BlobDigest,
    },
    /// The copy cannot be written.
    #[error("copying {blob}: {source}")]
    Copy {
        /// The blob.
        blob: BlobDigest,
        /// What the operating system says.
        source: io::Error,
    },
    /// Two images would have one name.
    #[error("two images would be served as {0}; give one of them another tag or directory")]
    Twice(String),
}

/// A manifest as it is served.
#[derive(Clone, Debug)]
pub struct Document {
    /// What its bytes have.
    pub digest: BlobDigest,
    /// Its media type.
    pub media_type: String,
    /// The bytes.
    pub bytes: Bytes,
    /// Its layers, the lowest first.
    pub layers: Vec<ServedLayer>,
}

/// Images by their names.
#[derive(Default)]
pub struct Shelf {
    /// By repository and tag.
    images: BTreeMap<(String, String), Document>,
    blobs: HashMap<BlobDigest, (u64, Home)>,
}

/// Where a blob lies.
#[derive(Clone)]
enum Home {
    Layout(Arc<Layout>),
    Copy(Arc<Staging>),
}

/// The way to a registry whose images are copied.
pub struct Source<'a> {
    /// The client.
    pub registry: &'a Registry,
    /// Who fetches layers.
    pub fetcher: &'a Fetcher,
    /// Where its requests run.
    pub runtime: &'a Handle,
    /// The directory that copies are made in; they go with the [`Shelf`].
    pub scratch: &'a Path,
}

/// The digest, media type and bytes of a document.
type Found = (BlobDigest, Option<String>, Bytes);

impl Shelf {
    /// Adds the image `tag` of a layout as `repository`, by that tag or `latest`.
    ///
    /// # Errors
    /// Where the layout does not have it for `platform`, or another image has the name.
    pub fn add_layout(
        &mut self,
        layout: Layout,
        tag: Option<&str>,
        repository: &str,
        platform: &Platform,
    ) -> Result<String, ShelfError> {
        let layout = Arc::new(layout);
        let digest = layout.resolve(tag)?;
        let first = (digest, None, layout.document(digest)?.into());
        let image = format!("{repository}:{}", tag.unwrap_or("latest"));
        let follow = |digest| Ok((digest, None, layout.document(digest)?.into()));
        let (document, config) = chosen(&image, first, platform, follow)?;
        for (digest, size) in blobs(&document, &config) {
            // Missing ones are told now and not to a puller.
            drop(layout.blob(digest)?);
            self.blobs.insert(digest, (size, Home::Layout(Arc::clone(&layout))));
        }
        self.name(repository, tag.unwrap_or("latest"), document)
    }

    /// Copies an image of a registry and adds it under the name that it has there. Blocks.
    ///
    /// # Errors
    /// Where the registry does not give it, there is no room for it, or another image has the name.
    pub fn add_registry(
        &mut self,
        reference: &Reference,
        source: &Source<'_>,
        platform: &Platform,
    ) -> Result<String, ShelfError> {
        let (registry, runtime) = (source.registry, source.runtime);
        let first = runtime.block_on(registry.manifest(reference))?;
        let first = (first.digest, first.content_type, first.bytes);
        let follow = |digest| {
            let found = runtime.block_on(registry.manifest_by_digest(reference, digest))?;
            Ok((digest, found.content_type, found.bytes))
        };
        let (document, config) = chosen(&reference.to_string(), first, platform, follow)?;
        let staging = Arc::new(Staging::new(source.scratch)?);
        let most = config.size.min(DOCUMENT_BYTES_MOST);
        let bytes = runtime.block_on(registry.small_blob(reference, config.digest, most))?;
        staging.put(&bytes)?;
        for layer in &document.layers {
            copy(reference, source, *layer, &staging)?;
        }
        for (digest, size) in blobs(&document, &config) {
            self.blobs.insert(digest, (size, Home::Copy(Arc::clone(&staging))));
        }
        self.name(reference.repository(), reference.tag().unwrap_or("latest"), document)
    }

    fn name(
        &mut self,
        repository: &str,
        tag: &str,
        document: Document,
    ) -> Result<String, ShelfError> {
        let shown = format!("{repository}:{tag}");
        let before = self.images.insert((repository.to_owned(), tag.to_owned()), document);
        if before.is_some() { Err(ShelfError::Twice(shown)) } else { Ok(shown) }
    }

    /// The names and what they lead to.
    pub fn images(&self) -> impl Iterator<Item = (String, &Document)> {
        self.images.iter().map(|((name, tag), document)| (format!("{name}:{tag}"), document))
    }

    /// The manifest that `reference`, a tag or a digest, is in `repository`, and the image's name.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<(String, &Document)> {
        let own = self.images.iter().filter(|((name, _), _)| name == repository);
        let mut found = own.filter(|((_, tag), document)| {
            tag == reference || document.digest.to_string() == reference
        });
        found.next().map(|((name, tag), document)| (format!("{name}:{tag}"), document))
    }

    /// The bytes of a blob, where there is one.
    pub fn size(&self, digest: BlobDigest) -> Option<u64> {
        self.blobs.get(&digest).map(|(size, _)| *size)
    }

    /// A part of a blob.
    ///
    /// # Errors
    /// Where it cannot be read any more.
    pub fn open(
        &self,
        digest: BlobDigest,
        range: Range<u64>,
    ) -> Result<Option<Member>, LayoutError> {
        let Some((_, home)) = self.blobs.get(&digest) else { return Ok(None) };
        let member = match home {
            Home::Layout(layout) => layout.blob(digest)?,
            Home::Copy(staging) => staging.open(digest)?,
        };
        Ok(Some(member.part(range)))
    }
}

/// Configuration and layers of an image, with their sizes.
fn blobs(document: &Document, config: &Descriptor) -> Vec<(BlobDigest, u64)> {
    let layers = document.layers.iter().map(|layer| (layer.digest, layer.size));
    layers.chain([(config.digest, config.size)]).collect()
}

/// The manifest for `platform` that `first` is or leads to, and its configuration.
fn chosen(
    image: &str,
    first: Found,
    platform: &Platform,
    follow: impl Fn(BlobDigest) -> Result<Found, ShelfError>,
) -> Result<(Document, Descriptor), ShelfError> {
    let unusable = |source| ShelfError::Manifest { image: image.to_owned(), source };
    let (mut digest, mut content_type, mut bytes) = first;
    for _ in 0..INDEX_DEPTH {
        let parsed = ManifestOrIndex::parse_named(content_type.as_deref(), &bytes);
        let (parsed, media_type) = parsed.map_err(unusable)?;
        match parsed {
            ManifestOrIndex::Manifest { config, layers } => {
                let oci = || "application/vnd.oci.image.manifest.v1+json".to_owned();
                let layers = layers.iter();
                let layers =
                    layers.map(|l| ServedLayer { digest: l.digest, size: l.size }).collect();
                let media_type = media_type.unwrap_or_else(oci);
                return Ok((Document { digest, media_type, bytes, layers }, config));
            }
            ManifestOrIndex::Index(entries) => {
                let next = select_platform(&entries, platform).map_err(unusable)?.digest;
                (digest, content_type, bytes) = follow(next)?;
            }
        }
    }
    Err(unusable(ManifestError::endless()))
}

/// Fetches a layer into `staging`.
fn copy(
    reference: &Reference,
    source: &Source<'_>,
    layer: ServedLayer,
    staging: &Staging,
) -> Result<(), ShelfError> {
    let ServedLayer { digest, size } = layer;
    let blob = source.registry.blob(reference, digest, size);
    let recorder = Arc::new(LayerRecorder::detached());
    let mut reader = source.fetcher.image().start(source.runtime, blob, size, recorder);
    let (mut file, mut hasher) = (staging.create("arriving")?, Hasher::default());
    let fetched = |source| ShelfError::Fetch { blob: digest, source: Box::new(source) };
    while let Some(piece) = reader.next().map_err(fetched)? {
        hasher.update(&piece);
        file.write_all(&piece).map_err(|source| ShelfError::Copy { blob: digest, source })?;
    }
    let actual = BlobDigest(hasher.finish());
    if actual != digest {
        return Err(ShelfError::Mismatch { expected: digest, actual });
    }
    Ok(staging.keep("arriving", digest, size)?)
}
