//! Images by their names, wherever they are, as configurations and streams of layers.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use serde_json::{Map, Value};
use sha2::Digest as _;
use tokio::runtime::Handle;

use super::progress::Progress;
use super::written::Written;
use super::{ConvertError, Place};
use crate::compression::Pieces;
use crate::containerd::{Address, Containerd};
use crate::fetch::{Fetcher, ImageFetcher};
use crate::image::{BlobDigest, Compression, DiffId, Platform, Reference, Sha256};
use crate::layout::{Layout, Staging};
use crate::registry::Registry;
use crate::timeline::LayerRecorder;

mod documents;

use documents::{Documents, Finder, docker};

/// The way to registries.
#[derive(Clone)]
pub struct Reach {
    /// The client.
    pub registry: Registry,
    /// Who fetches blobs, within a budget.
    pub fetcher: Fetcher,
    /// Where its requests run.
    pub runtime: Handle,
    /// Whose images `containerd:` means.
    pub containerd: Address,
}

/// An image that can be read, for every platform that was asked for.
pub(super) struct Opened {
    /// The images; one unless it is an index.
    pub(super) images: Vec<Image>,
    /// Whether it is an index, and all of its platforms were asked for.
    pub(super) is_index: bool,
    /// The digest of what the name leads to; none for `docker save`.
    pub(super) digest: Option<BlobDigest>,
}

/// One image of one platform.
pub(super) struct Image {
    /// The manifest's digest; none for `docker save`.
    pub(super) manifest: Option<BlobDigest>,
    /// The image configuration, as it is.
    pub(super) config: Vec<u8>,
    /// The manifest's annotations.
    pub(super) annotations: Map<String, Value>,
    /// The platform as the index has it.
    pub(super) platform: Option<Value>,
    /// The layers, lowest first.
    pub(super) layers: Vec<Layer>,
}

/// A layer that can be read.
pub(super) struct Layer {
    /// For messages.
    pub(super) name: String,
    /// Its blob's digest, where a manifest names one.
    pub(super) digest: Option<BlobDigest>,
    /// Its blob's size in bytes.
    pub(super) size: u64,
    pub(super) compression: Compression,
    pub(super) diff_id: DiffId,
    /// Where its blob is to be kept as it is while it is read.
    pub(super) keep: Option<Arc<Staging>>,
    from: From,
}

enum From {
    Member(Arc<Layout>, String),
    Blob(Arc<Layout>),
    Staging(Arc<Staging>),
    Registry(Reach, Reference, ImageFetcher),
    Containerd(Handle, Containerd),
}

impl Layer {
    /// A layer that was just written and is not published yet.
    pub(super) fn staged(staging: &Arc<Staging>, written: &Written) -> Self {
        let Written { digest, size, compression, diff_id, .. } = *written;
        let from = From::Staging(Arc::clone(staging));
        let (name, digest, keep) = (digest.to_string(), Some(digest), None);
        Self { name, digest, size, compression, diff_id, keep, from }
    }

    /// The repository that has it, where it comes from a registry.
    pub(super) fn repository(&self) -> Option<&Reference> {
        match &self.from {
            From::Registry(_, reference, _) => Some(reference),
            _ => None,
        }
    }

    /// Its compressed bytes. Who reads them to the end gets an error there if they are not those
    /// that the manifest names.
    pub(super) fn open(
        &self,
        progress: &Arc<Progress>,
    ) -> Result<Box<dyn Pieces + Send>, ConvertError> {
        let mut next = self.pieces(progress)?;
        let (name, digest, size) = (self.name.clone(), self.digest, self.size);
        let progress = Arc::clone(progress);
        let (mut hasher, mut taken) = (sha2::Sha256::new(), 0);
        let mut copy = self.keep.as_ref().map(Copy::new).transpose()?;
        let mismatch = move |what, expected: String, actual: String| {
            let layer = name.clone();
            std::io::Error::other(ConvertError::Mismatch { layer, what, expected, actual })
        };
        Ok(Box::new(move || {
            progress.check().map_err(std::io::Error::other)?;
            let piece = next()?;
            if let Some(piece) = &piece {
                taken += piece.len() as u64;
                progress.add(piece.len() as u64);
                hasher.update(piece);
                if let Some(copy) = &mut copy {
                    copy.file.write_all(piece)?;
                }
            }
            if taken > size || (piece.is_none() && taken < size) {
                let actual =
                    if taken > size { format!("more than {size}") } else { taken.to_string() };
                return Err(mismatch("the size", size.to_string(), actual));
            }
            if piece.is_none()
                && let Some(expected) = digest
            {
                let actual = BlobDigest(Sha256::from_bytes(hasher.clone().finalize().into()));
                if actual != expected {
                    return Err(mismatch("the digest", expected.to_string(), actual.to_string()));
                }
                if let Some(copy) = copy.take() {
                    copy.staging.keep(&copy.name, expected, size).map_err(std::io::Error::other)?;
                }
            }
            Ok(piece)
        }))
    }

    /// The same, from where they are, unchecked.
    fn pieces(&self, progress: &Arc<Progress>) -> Result<Next, ConvertError> {
        Ok(match &self.from {
            From::Member(layout, name) => {
                let missing = || crate::layout::LayoutError::Missing {
                    path: PathBuf::new(),
                    name: name.clone(),
                };
                let mut member = layout.member(name)?.ok_or_else(missing)?;
                Box::new(move || member.next_piece())
            }
            From::Blob(layout) => {
                let mut member =
                    layout.blob(self.digest.expect("a layout's layers have digests"))?;
                Box::new(move || member.next_piece())
            }
            From::Staging(staging) => {
                let mut member = staging.open(self.digest.expect("written layers have digests"))?;
                Box::new(move || member.next_piece())
            }
            From::Containerd(runtime, containerd) => {
                let digest = self.digest.expect("containerd's layers have digests");
                let (runtime, mut reading) =
                    (runtime.clone(), runtime.block_on(containerd.blob(digest))?);
                Box::new(move || {
                    let piece = runtime.block_on(reading.next());
                    piece.map_err(|error| std::io::Error::other(ConvertError::from(error)))
                })
            }
            From::Registry(reach, reference, fetcher) => {
                let digest = self.digest.expect("a registry's layers have digests");
                let blob = reach.registry.blob(reference, digest, self.size);
                let recorder = Arc::new(LayerRecorder::detached());
                let mut reader = fetcher.start(&reach.runtime, blob, self.size, recorder);
                progress.watch(reader.canceller());
                Box::new(move || {
                    let failed =
                        |source| ConvertError::Fetch { blob: digest, source: Box::new(source) };
                    reader.next().map_err(|error| std::io::Error::other(failed(error)))
                })
            }
        })
    }
}

/// A blob that is written down while it is read.
struct Copy {
    staging: Arc<Staging>,
    file: std::fs::File,
    name: String,
}

impl Copy {
    fn new(staging: &Arc<Staging>) -> Result<Self, ConvertError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("kept-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let file = staging.create(&name)?;
        Ok(Self { staging: Arc::clone(staging), file, name })
    }
}

type Next = Box<dyn FnMut() -> std::io::Result<Option<Bytes>> + Send>;

/// Opens the image at `place`: for `platform`, or for all that it has.
///
/// # Errors
/// Where it is not there, cannot be read, or has nothing for the platform.
pub(super) fn open(
    place: &Place,
    platform: Option<&Platform>,
    reach: &Reach,
) -> Result<Opened, ConvertError> {
    match place {
        Place::Containerd(name) => {
            let containerd = reach.runtime.block_on(Containerd::connect(&reach.containerd))?;
            let digest = reach.runtime.block_on(containerd.image(name))?;
            let documents = Documents::Containerd(reach.runtime.clone(), containerd);
            let finder = Finder { place, documents };
            let first = finder.manifest(digest)?;
            // It pulls one platform of an index unless it is told otherwise.
            let host = Platform::host();
            finder.find(digest, None, first, Some(platform.unwrap_or(&host)))
        }
        Place::Docker(path, tag) => docker(place, Layout::open_archive(path)?, tag.as_deref()),
        Place::Directory(path, tag) => {
            let layout = Arc::new(Layout::open_directory(path)?);
            let digest = layout.resolve(tag.as_deref())?;
            let first = layout.document(digest)?;
            Finder { place, documents: Documents::Layout(layout) }
                .find(digest, None, first, platform)
        }
        Place::Archive(path, tag) => {
            let layout = Arc::new(Layout::open_archive(path)?);
            let digest = layout.resolve(tag.as_deref())?;
            let first = layout.document(digest)?;
            Finder { place, documents: Documents::Layout(layout) }
                .find(digest, None, first, platform)
        }
        Place::Registry(reference) => {
            let document = reach.runtime.block_on(reach.registry.manifest(reference))?;
            let fetcher = reach.fetcher.image();
            let documents = Documents::Registry(reach.clone(), reference.clone(), fetcher);
            let (digest, first) = (document.digest, document.bytes.to_vec());
            Finder { place, documents }.find(
                digest,
                document.content_type.as_deref(),
                first,
                platform,
            )
        }
    }
}
