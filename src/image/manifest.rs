//! Manifests, indexes and configurations: from JSON to the list of layers of one platform.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::{BlobDigest, ChainId, Compression, DiffId, DigestError, LayerKind};

/// Why a manifest, index or configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of the form that the specification gives.
    #[error("{what} cannot be read: {source}")]
    Json {
        /// "manifest", "index" or "configuration".
        what: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A digest in it is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// Manifest and configuration name different numbers of layers.
    #[error("the manifest has {layers} layers and the configuration {diff_ids} DiffIDs")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// DiffIDs of the configuration.
        diff_ids: usize,
    },
    /// The index has nothing for the platform.
    #[error("the index has no manifest for {wanted}; it has {offered}")]
    NoPlatform {
        /// The platform that was asked for.
        wanted: String,
        /// Those that the index offers.
        offered: String,
    },
    /// A schema 1 manifest, or anything else that is neither manifest nor index.
    #[error("media type {0:?} is neither an image manifest nor an index")]
    MediaType(String),
    /// A platform that is not `os/arch[/variant]`.
    #[error("{0:?} is not a platform: expected os/arch or os/arch/variant, such as linux/amd64")]
    Platform(String),
    /// A size that is negative or larger than can be.
    #[error("size {size} of {digest} is impossible")]
    Size {
        /// The blob.
        digest: String,
        /// What the descriptor says.
        size: i64,
    },
}

/// Indexes within indexes that are followed; more is a loop or an attack ([`ManifestError::endless`]).
pub const INDEX_DEPTH: usize = 3;

impl ManifestError {
    /// An index that leads to nothing but indexes.
    pub fn endless() -> Self {
        Self::MediaType("an index of indexes without end".to_owned())
    }
}

/// `os/arch[/variant]`, as the OCI image index and containerd write it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct Platform {
    /// Operating system, as Go's GOOS.
    pub os: String,
    /// Processor architecture, as Go's GOARCH.
    pub architecture: String,
    /// Variant of the processor, `v7` or `v8`.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform that this program runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Whether an image for `offered` runs here. An absent variant fits every variant, and arm64
    /// has `v8` as its default (containerd, `platforms/database.go`).
    fn accepts(&self, offered: &Self) -> bool {
        let variant = |p: &Self| match (p.architecture.as_str(), p.variant.as_deref()) {
            ("arm64", Some("v8") | None) => None,
            (_, variant) => variant.map(str::to_owned),
        };
        self.os == offered.os
            && self.architecture == offered.architecture
            && (variant(self).is_none() || variant(self) == variant(offered))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = ManifestError;

    fn from_str(text: &str) -> Result<Self, ManifestError> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, architecture, variant @ ..]
                if variant.len() < 2 && parts.iter().all(|part| !part.is_empty()) =>
            {
                Ok(Self {
                    os: (*os).to_owned(),
                    architecture: (*architecture).to_owned(),
                    variant: variant.first().map(|v| (*v).to_owned()),
                })
            }
            _ => Err(ManifestError::Platform(text.to_owned())),
        }
    }
}

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
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Raw {
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
        let raw: Raw = serde_json::from_slice(json)
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

/// One layer of an image, with all of its names.
#[derive(Clone, Debug)]
pub struct ImageLayer {
    /// The blob in the registry.
    pub blob: BlobDigest,
    /// The blob's size in bytes.
    pub size: u64,
    /// The media type as the manifest has it.
    pub media_type: String,
    /// The uncompressed archive.
    pub diff_id: DiffId,
    /// The stack up to and with this layer.
    pub chain_id: ChainId,
}

impl ImageLayer {
    /// What the media type says.
    pub fn kind(&self) -> LayerKind {
        LayerKind::of_media_type(&self.media_type)
    }

    /// How it is compressed; `None` for a layer that hoist cannot unpack.
    pub fn compression(&self) -> Option<Compression> {
        match self.kind() {
            LayerKind::Tar(compression) => Some(compression),
            LayerKind::Foreign | LayerKind::Unknown => None,
        }
    }
}

/// An index, a manifest or a configuration, byte for byte, under its names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedDocument {
    /// What it is.
    pub media_type: String,
    /// The digest of `bytes`.
    pub digest: BlobDigest,
    /// As the registry served it.
    pub bytes: bytes::Bytes,
}

/// The layers of one image on one platform, lowest first.
#[derive(Clone, Debug)]
pub struct ImagePlan {
    /// The manifest's digest.
    pub manifest: BlobDigest,
    /// The layers, lowest first.
    pub layers: Vec<ImageLayer>,
}

impl ImagePlan {
    /// Reads it out of an image's documents, of which the manifest and the configuration are the last two.
    ///
    /// # Errors
    /// Where they are not what they should be.
    pub fn of_documents(documents: &[NamedDocument]) -> Result<Self, ManifestError> {
        let lacks = || ManifestError::MediaType("fewer than two documents".to_owned());
        let [.., manifest, config] = documents else { return Err(lacks()) };
        match ManifestOrIndex::parse(Some(&manifest.media_type), &manifest.bytes)? {
            ManifestOrIndex::Manifest { layers, .. } => {
                Self::new(manifest.digest, layers, &parse_config(&config.bytes)?)
            }
            ManifestOrIndex::Index(_) => Err(ManifestError::MediaType(manifest.media_type.clone())),
        }
    }

    /// Joins a manifest's layers with the DiffIDs of its configuration.
    ///
    /// # Errors
    /// Where the two do not have the same number of layers.
    pub fn new(
        manifest: BlobDigest,
        layers: Vec<Descriptor>,
        diff_ids: &[DiffId],
    ) -> Result<Self, ManifestError> {
        if layers.len() != diff_ids.len() {
            return Err(ManifestError::LayerCount {
                layers: layers.len(),
                diff_ids: diff_ids.len(),
            });
        }
        let chain = ChainId::of_stack(diff_ids);
        let layers =
            layers.into_iter().zip(diff_ids).zip(chain).map(|((layer, &diff_id), chain_id)| {
                let Descriptor { media_type, digest, size } = layer;
                ImageLayer { blob: digest, size, media_type, diff_id, chain_id }
            });
        Ok(Self { manifest, layers: layers.collect() })
    }
}

/// Reads the DiffIDs out of an image configuration (config.md, `rootfs.diff_ids`).
///
/// # Errors
/// Where it is no image configuration, or a DiffID is no SHA-256 digest.
pub fn parse_config(json: &[u8]) -> Result<Vec<DiffId>, ManifestError> {
    #[derive(Deserialize)]
    struct Config {
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        #[serde(default)]
        diff_ids: Vec<String>,
    }
    let config: Config = serde_json::from_slice(json)
        .map_err(|source| ManifestError::Json { what: "configuration", source })?;
    config.rootfs.diff_ids.iter().map(|text| Ok(text.parse()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn manifest(layers: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{A}","size":7}},"layers":[{layers}]}}"#
        )
    }

    #[test]
    fn a_manifest_and_its_configuration_become_a_plan() {
        let json = manifest(&format!(
            r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{B}","size":9}}"#
        ));
        let ManifestOrIndex::Manifest { layers, config } =
            ManifestOrIndex::parse(None, json.as_bytes()).unwrap()
        else {
            panic!("not a manifest")
        };
        assert_eq!(config.size, 7);
        let diff_ids = parse_config(
            format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{A}"]}}}}"#).as_bytes(),
        )
        .unwrap();
        let plan = ImagePlan::new(A.parse().unwrap(), layers.clone(), &diff_ids).unwrap();
        assert_eq!(plan.layers[0].blob.to_string(), B);
        assert_eq!(plan.layers[0].chain_id.to_string(), A);
        assert_eq!(plan.layers[0].compression(), Some(Compression::Gzip));
        let error = ImagePlan::new(A.parse().unwrap(), layers, &[]).unwrap_err();
        assert_eq!(error.to_string(), "the manifest has 1 layers and the configuration 0 DiffIDs");
    }

    #[test]
    fn a_document_that_is_both_is_refused() {
        let json = format!(
            r#"{{"schemaVersion":2,"manifests":[],"config":{{"digest":"{A}","size":1}},"layers":[]}}"#
        );
        assert!(matches!(
            ManifestOrIndex::parse(None, json.as_bytes()),
            Err(ManifestError::MediaType(_))
        ));
        assert!(matches!(
            ManifestOrIndex::parse(
                None,
                manifest(&format!(r#"{{"digest":"{B}","size":-1}}"#)).as_bytes()
            ),
            Err(ManifestError::Size { .. })
        ));
    }

    #[test]
    fn the_platform_is_chosen_and_attestations_are_not() {
        let json = format!(
            r#"{{"schemaVersion":2,"manifests":[
              {{"digest":"{A}","size":1,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}},
              {{"digest":"{B}","size":2,"platform":{{"os":"linux","architecture":"amd64"}}}},
              {{"digest":"{A}","size":3,"platform":{{"os":"unknown","architecture":"unknown"}},
                "annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}}}]}}"#
        );
        let ManifestOrIndex::Index(index) = ManifestOrIndex::parse(None, json.as_bytes()).unwrap()
        else {
            panic!("not an index")
        };
        let pick = |p: &str| select_platform(&index, &p.parse().unwrap());
        assert_eq!(pick("linux/amd64").unwrap().size, 2);
        assert_eq!(pick("linux/arm64").unwrap().size, 1);
        let error = pick("linux/s390x").unwrap_err().to_string();
        assert_eq!(
            error,
            "the index has no manifest for linux/s390x; it has linux/arm64/v8, linux/amd64"
        );
        assert!("linux".parse::<Platform>().is_err());
    }
}
