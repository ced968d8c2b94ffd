//! Manifests and indexes, out of their JSON.

use serde::Deserialize;

use super::BlobDigest;
use super::error::ManifestError;
use super::platform::Platform;

/// Indexes within indexes that are followed; more is a loop or an attack ([`ManifestError::endless`]).
pub const INDEX_DEPTH: usize = 3;

/// A descriptor: what a manifest says of a blob (OCI image specification, descriptor.md).
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// The media type as it stands there.
    pub media_type: String,
    /// The blob's name.
    pub digest: BlobDigest,
    /// The blob's size in bytes.
    pub size: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: i64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: std::collections::HashMap<String, String>,
}

impl RawDescriptor {
    fn parse(self) -> Result<Descriptor, ManifestError> {
        let digest = self.digest.parse()?;
        let size = u64::try_from(self.size)
            .map_err(|_| ManifestError::Size { digest: self.digest, size: self.size })?;
        Ok(Descriptor { media_type: self.media_type, digest, size })
    }
}

/// Both documents at once: which of the fields are there tells the one from the other.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
}

/// What a registry answers for a reference: one image, or an index of several.
#[derive(Debug)]
pub enum ManifestOrIndex {
    /// An image manifest: its configuration and its layers, lowest first.
    Manifest {
        /// The image configuration's descriptor.
        config: Descriptor,
        /// The layers' descriptors, lowest first.
        layers: Vec<Descriptor>,
    },
    /// An index: manifests with their platforms.
    Index(Vec<(Descriptor, Option<Platform>)>),
}

impl ManifestOrIndex {
    /// Reads `json`; `content_type` decides where the document itself has no `mediaType`.
    ///
    /// # Errors
    /// Where it is neither an image manifest nor an index, or not readable as one.
    pub fn parse(content_type: Option<&str>, json: &[u8]) -> Result<Self, ManifestError> {
        Self::parse_named(content_type, json).map(|(document, _)| document)
    }

    /// The same, with its media type: its own word, else `content_type`.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_named(
        content_type: Option<&str>,
        json: &[u8],
    ) -> Result<(Self, Option<String>), ManifestError> {
        let raw: RawDocument = serde_json::from_slice(json)
            .map_err(|source| ManifestError::Json { what: "manifest", source })?;
        let media_type = raw.media_type.or_else(|| content_type.map(str::to_owned));
        // The structure decides, not the media type: a document with both is an attack
        // (CVE-2021-41190), and containerd refuses it too.
        let document = match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) if raw.schema_version == 2 => Self::Manifest {
                config: config.parse()?,
                layers: layers.into_iter().map(RawDescriptor::parse).collect::<Result<_, _>>()?,
            },
            (None, None, Some(manifests)) => {
                let usable = manifests.into_iter().filter(|m| {
                    // Attestations of BuildKit stand in an index beside the images.
                    !m.annotations.contains_key("vnd.docker.reference.type")
                });
                let parsed = usable.map(|mut m| {
                    let platform = m.platform.take();
                    m.parse().map(|descriptor| (descriptor, platform))
                });
                Self::Index(parsed.collect::<Result<_, _>>()?)
            }
            _ => return Err(ManifestError::MediaType(media_type.unwrap_or_default())),
        };
        Ok((document, media_type))
    }
}

/// Picks the manifest of `platform` out of an index, the first that fits.
///
/// # Errors
/// Where none fits; the error lists what is there.
pub fn select_platform<'a>(
    index: &'a [(Descriptor, Option<Platform>)],
    platform: &Platform,
) -> Result<&'a Descriptor, ManifestError> {
    let fits = |p: &Option<Platform>| p.as_ref().is_some_and(|p| platform.accepts(p));
    let unnamed = |p: &Option<Platform>| p.is_none();
    let found =
        index.iter().find(|(_, p)| fits(p)).or_else(|| index.iter().find(|(_, p)| unnamed(p)));
    found.map(|(descriptor, _)| descriptor).ok_or_else(|| ManifestError::NoPlatform {
        wanted: platform.to_string(),
        offered: index
            .iter()
            .filter_map(|(_, p)| p.as_ref().map(ToString::to_string))
            .collect::<Vec<_>>()
            .join(", "),
    })
}
