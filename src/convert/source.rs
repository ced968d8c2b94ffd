//! Images by their names, wherever they are, as configurations and streams of layers.

use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use serde_json::{Map, Value};
use sha2::Digest as _;
use tokio::runtime::Handle;

use super::ConvertError;
use super::produce::Written;
use super::progress::Progress;
use crate::compression::Pieces;
use crate::containerd::{Address, Containerd};
use crate::fetch::{Fetcher, ImageFetcher};
use crate::image::{
    BlobDigest, Compression, Descriptor, DiffId, ImagePlan, LayerKind, ManifestError,
    ManifestOrIndex, Platform, Sha256, parse_config, select_platform,
};
use crate::layout::{DOCUMENT_BYTES_MOST, Layout, Staging};
use crate::registry::{Reference, Registry};
use crate::timeline::LayerRecorder;

/// Indexes within indexes that are followed.
const INDEX_DEPTH: usize = 3;

/// Where an image is or goes, in the words of containers/image (containers-transports(5)).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// In a registry.
    Registry(Reference),
    /// In an OCI image layout: the directory and the tag.
    Directory(PathBuf, Option<String>),
    /// In an archive of an OCI image layout: the file and the tag.
    Archive(PathBuf, Option<String>),
    /// In an archive of `docker save`: the file and the image's name. Only to read.
    Docker(PathBuf, Option<String>),
    /// In containerd, by its name there. Only to read.
    Containerd(String),
}

impl FromStr for Place {
    type Err = ConvertError;

    fn from_str(name: &str) -> Result<Self, ConvertError> {
        let refuse =
            |reason: &str| ConvertError::Name { name: name.to_owned(), reason: reason.to_owned() };
        let file = |rest: &str| {
            let (path, tag) = rest.split_once(':').map_or((rest, None), |(p, t)| (p, Some(t)));
            if path.is_empty() || tag == Some("") {
                return Err(refuse("a path or a tag is empty"));
            }
            Ok((PathBuf::from(path), tag.map(str::to_owned)))
        };
        match name.split_once(':') {
            Some(("oci", rest)) => file(rest).map(|(path, tag)| Self::Directory(path, tag)),
            Some(("oci-archive", rest)) => file(rest).map(|(path, tag)| Self::Archive(path, tag)),
            Some(("containerd", "")) => Err(refuse("a name is empty")),
            Some(("containerd", rest)) => Ok(Self::Containerd(rest.to_owned())),
            Some(("docker-archive", rest)) => file(rest).map(|(path, tag)| Self::Docker(path, tag)),
            _ => {
                let name = name.strip_prefix("docker://").unwrap_or(name);
                name.parse()
                    .map(Self::Registry)
                    .map_err(|error: crate::registry::ParseError| refuse(&error.to_string()))
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path, tag) = match self {
            Self::Registry(reference) => return reference.fmt(f),
            Self::Containerd(name) => return write!(f, "containerd:{name}"),
            Self::Directory(path, tag) => ("oci", path, tag),
            Self::Archive(path, tag) => ("oci-archive", path, tag),
            Self::Docker(path, tag) => ("docker-archive", path, tag),
        };
        write!(f, "{transport}:{}", path.display())?;
        tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

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
        let mut next: Next = match &self.from {
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
        };
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

/// Where manifests and configurations come from.
enum Documents {
    Containerd(Handle, Containerd),
    Layout(Arc<Layout>),
    Registry(Reach, Reference, ImageFetcher),
}

struct Finder<'a> {
    place: &'a Place,
    documents: Documents,
}

impl Finder<'_> {
    fn unusable(&self) -> impl Fn(ManifestError) -> ConvertError {
        let image = self.place.to_string();
        move |source| ConvertError::Manifest { image: image.clone(), source: Box::new(source) }
    }

    fn manifest(&self, digest: BlobDigest) -> Result<Vec<u8>, ConvertError> {
        match &self.documents {
            Documents::Containerd(runtime, containerd) => {
                Ok(runtime.block_on(containerd.document(digest, DOCUMENT_BYTES_MOST))?)
            }
            Documents::Layout(layout) => Ok(layout.document(digest)?),
            Documents::Registry(reach, reference, _) => {
                let asked = reach.registry.manifest_by_digest(reference, digest);
                Ok(reach.runtime.block_on(asked)?.bytes.to_vec())
            }
        }
    }

    fn find(
        &self,
        digest: BlobDigest,
        content_type: Option<&str>,
        first: Vec<u8>,
        platform: Option<&Platform>,
    ) -> Result<Opened, ConvertError> {
        let unusable = self.unusable();
        let (mut at, mut bytes, mut content_type) = (digest, first, content_type);
        for _ in 0..INDEX_DEPTH {
            let document = ManifestOrIndex::parse(content_type, &bytes).map_err(&unusable)?;
            content_type = None;
            let entries = match document {
                ManifestOrIndex::Manifest { config, layers } => {
                    let image = self.image(at, &bytes, &config, layers, None)?;
                    return Ok(Opened {
                        images: vec![image],
                        is_index: false,
                        digest: Some(digest),
                    });
                }
                ManifestOrIndex::Index(entries) => entries,
            };
            if let Some(platform) = platform {
                at = select_platform(&entries, platform).map_err(&unusable)?.digest;
                bytes = self.manifest(at)?;
                continue;
            }
            let index: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let mut images = Vec::new();
            for (entry, _) in entries {
                let bytes = self.manifest(entry.digest)?;
                let media_type = Some(entry.media_type.as_str());
                let parsed = ManifestOrIndex::parse(media_type, &bytes).map_err(&unusable)?;
                let ManifestOrIndex::Manifest { config, layers } = parsed else {
                    return Err(unusable(ManifestError::MediaType("an index in an index".into())));
                };
                let named = index["manifests"].as_array().into_iter().flatten();
                let mut named = named.filter(|m| m["digest"] == entry.digest.to_string());
                let platform = named.next().map(|m| m["platform"].clone()).filter(|p| !p.is_null());
                images.push(self.image(entry.digest, &bytes, &config, layers, platform)?);
            }
            if images.is_empty() {
                return Err(unusable(ManifestError::MediaType("an index without images".into())));
            }
            return Ok(Opened { images, is_index: true, digest: Some(digest) });
        }
        Err(unusable(ManifestError::MediaType("an index of indexes without end".to_owned())))
    }

    fn image(
        &self,
        manifest: BlobDigest,
        bytes: &[u8],
        config: &Descriptor,
        layers: Vec<Descriptor>,
        platform: Option<Value>,
    ) -> Result<Image, ConvertError> {
        let unusable = self.unusable();
        let config = match &self.documents {
            Documents::Containerd(..) => self.manifest(config.digest)?,
            Documents::Layout(layout) => layout.document(config.digest)?,
            Documents::Registry(reach, reference, _) => {
                let most = config.size.min(DOCUMENT_BYTES_MOST);
                let asked = reach.registry.small_blob(reference, config.digest, most);
                reach.runtime.block_on(asked)?.to_vec()
            }
        };
        let diff_ids = parse_config(&config).map_err(&unusable)?;
        let plan = ImagePlan::new(manifest, layers, &diff_ids).map_err(&unusable)?;
        let from = || match &self.documents {
            Documents::Containerd(runtime, containerd) => {
                From::Containerd(runtime.clone(), containerd.clone())
            }
            Documents::Layout(layout) => From::Blob(Arc::clone(layout)),
            Documents::Registry(reach, reference, fetcher) => {
                From::Registry(reach.clone(), reference.clone(), fetcher.clone())
            }
        };
        let layers = plan.layers.into_iter().map(|layer| {
            let name = layer.blob.to_string();
            let LayerKind::Tar(compression) = layer.kind() else {
                return Err(ConvertError::Unsupported {
                    layer: name,
                    media_type: layer.media_type,
                });
            };
            let (digest, size, diff_id) = (Some(layer.blob), layer.size, layer.diff_id);
            Ok(Layer { name, digest, size, compression, diff_id, keep: None, from: from() })
        });
        let layers = layers.collect::<Result<_, _>>()?;
        let manifest_json: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let annotations = manifest_json["annotations"].as_object().cloned().unwrap_or_default();
        Ok(Image { manifest: Some(manifest), config, annotations, platform, layers })
    }
}

/// An image of `docker save`, whose layers have no digests but those of their archives.
fn docker(place: &Place, layout: Layout, tag: Option<&str>) -> Result<Opened, ConvertError> {
    let found = layout.docker_image(tag)?;
    let unusable =
        |source| ConvertError::Manifest { image: place.to_string(), source: Box::new(source) };
    let diff_ids = parse_config(&found.config).map_err(unusable)?;
    if diff_ids.len() != found.layers.len() {
        let (layers, diff_ids) = (found.layers.len(), diff_ids.len());
        return Err(unusable(ManifestError::LayerCount { layers, diff_ids }));
    }
    let layout = Arc::new(layout);
    let layers = found.layers.into_iter().zip(diff_ids).map(|(name, diff_id)| {
        let missing = || {
            let reason = format!("the archive does not have the layer {name}");
            ConvertError::Name { name: place.to_string(), reason }
        };
        let mut member = layout.member(&name)?.ok_or_else(missing)?;
        let size = member.left();
        let first = member.next_piece().map_err(|e| ConvertError::of_layer(&name, e))?;
        let compression = sniff(&first.unwrap_or_default());
        let from = From::Member(Arc::clone(&layout), name.clone());
        Ok(Layer { name, digest: None, size, compression, diff_id, keep: None, from })
    });
    let layers = layers.collect::<Result<_, ConvertError>>()?;
    let image = Image {
        manifest: None,
        config: found.config,
        annotations: Map::new(),
        platform: None,
        layers,
    };
    Ok(Opened { images: vec![image], is_index: false, digest: None })
}

/// `docker load` takes compressed layers too, whatever their names say.
fn sniff(first: &[u8]) -> Compression {
    match first {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_shown() {
        for (name, shown) in [
            ("oci:a/b", "oci:a/b"),
            ("oci:/a:v1", "oci:/a:v1"),
            ("oci-archive:a.tar", "oci-archive:a.tar"),
            ("docker-archive:a.tar:x:1", "docker-archive:a.tar:x:1"),
            ("containerd:registry.example/a:v1", "containerd:registry.example/a:v1"),
            ("registry.example/a/b:v1", "registry.example/a/b:v1"),
            ("docker://registry.example/a/b:v1", "registry.example/a/b:v1"),
        ] {
            assert_eq!(name.parse::<Place>().unwrap().to_string(), shown);
        }
        for name in ["containerd:", "oci:", "oci::x", "oci:a:", "registry.example/a@sha256:x", ""] {
            let error = name.parse::<Place>().unwrap_err().to_string();
            assert!(error.contains("expected registry.example"), "{error}");
        }
    }
}
