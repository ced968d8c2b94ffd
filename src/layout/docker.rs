//! What `docker save` writes: `manifest.json` beside configurations and layers.

use serde::Deserialize;

use super::{Layout, LayoutError};

/// An image in an archive of `docker save`.
#[derive(Debug)]
pub struct DockerImage {
    /// The image configuration, as it is.
    pub config: Vec<u8>,
    /// The layers' names in the archive, lowest first.
    pub layers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Layout {
    /// The image with this name; without one, the only one there is.
    ///
    /// # Errors
    /// Where the archive is none of `docker save`, or the image is not in it.
    pub fn docker_image(&self, tag: Option<&str>) -> Result<DockerImage, LayoutError> {
        let manifest = self.json("manifest.json")?;
        let mut all: Vec<Saved> = serde_json::from_value(manifest)
            .map_err(|error| self.form(format!("manifest.json cannot be read: {error}")))?;
        let names: Vec<_> =
            all.iter().flat_map(|i| i.repo_tags.iter().flatten().cloned()).collect();
        if let Some(tag) = tag {
            all.retain(|image| image.repo_tags.iter().flatten().any(|name| name == tag));
        }
        let (1, Some(image)) = (all.len(), all.pop()) else {
            return Err(LayoutError::NoTag {
                path: self.at.clone(),
                wanted: tag.unwrap_or("without a name").to_owned(),
                offered: names.join(", "),
            });
        };
        let config = self.read(&image.config)?.ok_or_else(|| LayoutError::Missing {
            path: self.at.clone(),
            name: image.config.clone(),
        })?;
        Ok(DockerImage { config, layers: image.layers })
    }
}
