//! What an image runs on.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::error::ManifestError;

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
    pub(super) fn accepts(&self, offered: &Self) -> bool {
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

/// Whether an image that no index names is one for `platform`; a configuration that does not say what it is for (config.md
/// requires it) is believed to be.
///
/// # Errors
/// It is for another one.
pub fn check_platform(config: &[u8], platform: &Platform) -> Result<(), ManifestError> {
    match serde_json::from_slice::<Platform>(config) {
        Ok(offered) if !platform.accepts(&offered) => Err(ManifestError::OtherPlatform {
            wanted: platform.to_string(),
            offered: offered.to_string(),
        }),
        _ => Ok(()),
    }
}
