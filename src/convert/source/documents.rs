//! From a name's first document to the images that it leads to: indexes followed, manifests and
//! configurations read.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::runtime::Handle;

use super::{From, Image, Layer, Opened, Reach};
use crate::containerd::Containerd;
use crate::convert::{ConvertError, Place};
use crate::fetch::ImageFetcher;
use crate::image::{
    BlobDigest, Compression, Descriptor, INDEX_DEPTH, ImagePlan, LayerKind, ManifestError,
    ManifestOrIndex, Platform, Reference, parse_config, select_platform,
};
use crate::layout::{DOCUMENT_BYTES_MOST, Layout};

/// Where manifests and configurations come from.
pub(super) enum Documents {
    Containerd(Handle, Containerd),
    Layout(Arc<Layout>),
    Registry(Reach, Reference, ImageFetcher),
}

pub(super) struct Finder<'a> {
    pub(super) place: &'a Place,
    pub(super) documents: Documents,
}

impl Finder<'_> {
    fn unusable(&self) -> impl Fn(ManifestError) -> ConvertError {
        let image = self.place.to_string();
        move |source| ConvertError::Manifest { image: image.clone(), source: Box::new(source) }
    }

    pub(super) fn manifest(&self, digest: BlobDigest) -> Result<Vec<u8>, ConvertError> {
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

    pub(super) fn find(
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
        Err(unusable(ManifestError::endless()))
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
pub(super) fn docker(
    place: &Place,
    layout: Layout,
    tag: Option<&str>,
) -> Result<Opened, ConvertError> {
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
