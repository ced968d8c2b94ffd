//! What can be wished of a conversion.

use std::path::PathBuf;

use super::arrange::Dedupe;
use super::place::Place;
use super::plan::Wish;
use super::produce::Codec;
use super::puller::Puller;
use crate::archive::LayerPath;
use crate::image::{Compression, Platform};

/// What is wished of a conversion.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the files are cut into layers.
    pub layers: Wish,
    /// Who will pull the result.
    pub puller: Puller,
    /// An image whose layers stay as they are where the source begins with them.
    pub base: Option<Place>,
    /// How these are compressed.
    pub codec: Codec,
    /// Which equal files become one.
    pub dedupe: Dedupe,
    /// Paths that come first in their layers, in this order.
    pub order: Vec<LayerPath>,
    /// Whether the result is read again and compared with the source before it is published.
    pub verify: bool,
    /// One platform of an index; `None` for all.
    pub platform: Option<Platform>,
    /// Threads that read, compress and write.
    pub threads: usize,
    /// Where the result waits on its way to a registry; it needs room for one compressed copy.
    pub scratch: PathBuf,
}

impl Options {
    /// The options that the result depends on, as its annotation has them.
    pub(super) fn shown(&self) -> String {
        let layers = match &self.layers {
            Wish::Best => format!("best for {}", self.puller.model),
            Wish::Keep => "kept".to_owned(),
            Wish::Equal(count) => count.to_string(),
            Wish::Sizes(sizes) => {
                sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
            }
            Wish::Most(most) => format!("at most {most}"),
        };
        let Codec { compression, level } = self.codec;
        let (compression, dedupe) = (compression.as_str(), self.dedupe.as_str());
        let ordered = if self.order.is_empty() { "" } else { " order=given" };
        let base = self.base.as_ref().map(|base| format!(" base={base}")).unwrap_or_default();
        format!(
            "layers={layers} compression={compression} level={level} dedupe={dedupe}{ordered}{base}"
        )
    }
}

/// The level that is taken where none is given: gzip's own default, and for zstd the first of its
/// levels that finds much more than its own default, 3, and is decoded about as fast: an npm tree has
/// 0.945 of the size (docs/performance.md, "Sizes").
pub fn default_level(compression: Compression) -> i32 {
    match compression {
        Compression::None => 0,
        Compression::Gzip => 6,
        Compression::Zstd => 5,
    }
}
