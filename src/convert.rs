//! Images in, images out: the same files in layers that pull faster.
//!
//! The way of an image: its layers are read at once, each to its end, so that the final file
//! system stands in memory (`tree`) and the contents in a compressed file of our own (`spool`).
//! What is hidden is not written again; equal files become hard links, files are dealt out to
//! layers (`plan`, pure) and put in order (`arrange`), and the layers are written as independent
//! frames by all cores (`produce`). Then the result is read again, from the bytes that were
//! written, and compared with the source entry by entry (`compare`). Only then it is published.
//!
//! Memory grows with the number of files, not with what they hold: some hundred bytes a file,
//! besides a few megabytes a thread. Temporary disk is one compressed copy beside the result.

use std::path::Path;
use std::sync::Arc;

use crate::image::{BlobDigest, Platform};
use crate::layout::Staging;
use crate::model::Prediction;

mod analyze;
mod arrange;
mod base;
mod compare;
mod deliver;
mod document;
mod error;
mod header;
mod options;
mod place;
mod plan;
mod produce;
mod progress;
mod puller;
mod read;
mod recompress;
mod source;
mod spool;
mod task;
mod tree;
mod written;

pub use analyze::{Analysis, DirectoryFacts, Duplicate, LayerFacts, Remedy, analyze};
pub use arrange::Dedupe;
pub use compare::Difference;
pub use error::ConvertError;
pub use options::{Options, default_level};
pub use place::Place;
pub use plan::{LAYERS_MOST, Unit, Wish};
pub use produce::Codec;
pub use progress::{Phase, Planned, Progress};
pub use puller::Puller;
pub use source::Reach;
pub use written::Written;

use base::put_on_base;
use deliver::Parcel;
use read::read_all;
use task::Task;
use tree::Tree;

/// One platform's image, before and after.
#[derive(Clone, Debug)]
pub struct Converted {
    /// The platform, as far as the source says it.
    pub platform: Option<Platform>,
    /// The new manifest.
    pub manifest: BlobDigest,
    /// The new layers, the lowest first.
    pub layers: Vec<Written>,
    /// The compressed bytes that were expected of each.
    pub planned: Vec<u64>,
    /// How a pull of the source is expected to go.
    pub before: Prediction,
    /// And one of the result, by the sizes that came out.
    pub after: Prediction,
    /// Layers of the source.
    pub source_layers: usize,
    /// Their compressed bytes.
    pub source_bytes: u64,
    /// Names in the file system.
    pub entries: usize,
    /// Bytes of content that no container could see and that were dropped.
    pub hidden_bytes: u64,
    /// Bytes of content that became hard links.
    pub deduplicated_bytes: u64,
}

/// The result of a conversion.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the destination's name leads to: a manifest, or an index.
    pub digest: BlobDigest,
    /// The images, one unless it is an index.
    pub images: Vec<Converted>,
}

/// Rewrites `source` as `destination`. Blocks; not to be called from a task.
///
/// # Errors
/// Where the source cannot be read or is not what its manifest says, the options cannot be had, or
/// the destination cannot be written. Then the destination is as it was before.
pub fn convert(
    source: &Place,
    destination: &Place,
    options: &Options,
    reach: &Reach,
    progress: &Arc<Progress>,
) -> Result<Outcome, ConvertError> {
    let room = deliver::waiting_room(destination, &options.scratch)?;
    progress.enter(Phase::Resolve, 0);
    let opened = source::open(source, options.platform.as_ref(), reach)?;
    let sizes = opened.images.iter().flat_map(|image| &image.layers).map(|layer| layer.size);
    let source_bytes = sizes.sum();
    let to_registry = matches!(destination, Place::Registry(_));
    rewrite(opened, destination, &room, options, reach, progress)
        .map_err(|error| error.or_full(&room, source_bytes, to_registry))
}

/// As [`convert`], with what is made kept in `room` until it is whole.
fn rewrite(
    opened: source::Opened,
    destination: &Place,
    room: &Path,
    options: &Options,
    reach: &Reach,
    progress: &Arc<Progress>,
) -> Result<Outcome, ConvertError> {
    let staging = Arc::new(Staging::new(room)?);
    let mut images = Vec::new();
    let mut descriptors = Vec::new();
    let mut parcel = Parcel::default();
    for mut image in opened.images {
        let kept = match &options.base {
            Some(base) => put_on_base(&mut image, base, &staging, reach)?,
            None => 0,
        };
        let task = Task { image: &image, kept, options, staging: &staging, progress };
        let (converted, mut descriptor) = task.convert(&mut parcel)?;
        if let Some(platform) = &image.platform {
            descriptor["platform"] = platform.clone();
        }
        images.push(converted);
        descriptors.push(descriptor);
    }
    let descriptor = if opened.is_index {
        let mut index = serde_json::json!({ "schemaVersion": 2, "mediaType": document::INDEX, "manifests": descriptors });
        if let Some(digest) = opened.digest {
            index["annotations"] = serde_json::json!({ "dev.hoist.source.digest": digest });
        }
        let bytes = index.to_string();
        document::descriptor(document::INDEX, staging.put(bytes.as_bytes())?, bytes.len())
    } else {
        descriptors.pop().expect("an image that is no index is one image")
    };
    progress.check()?;
    progress.enter(Phase::Publish, 0);
    let staging = Arc::into_inner(staging).expect("nobody reads the result any more");
    deliver::deliver(staging, destination, &descriptor, &parcel, reach, progress)?;
    let digest = descriptor["digest"].as_str().and_then(|text| text.parse().ok());
    Ok(Outcome { digest: digest.expect("it was just written"), images })
}

/// What differs between the final file systems of two images on one platform. Blocks.
///
/// # Errors
/// Where one of them cannot be read, or is not what its manifest says.
pub fn diff(
    places: [&Place; 2],
    platform: &Platform,
    threads: usize,
    reach: &Reach,
    progress: &Arc<Progress>,
) -> Result<Vec<Difference>, ConvertError> {
    let mut trees = Vec::new();
    for place in places {
        progress.enter(Phase::Resolve, 0);
        let opened = source::open(place, Some(platform), reach)?;
        let layers = &opened.images.first().expect("one platform is one image").layers;
        progress.enter(Phase::Read, layers.iter().map(|layer| layer.size).sum());
        trees.push(Tree::of_layers(read_all(layers, None, threads, progress)?.0)?);
    }
    Ok(compare::compare(&trees[0], &trees[1], Dedupe::Off))
}

#[cfg(test)]
mod tests;
