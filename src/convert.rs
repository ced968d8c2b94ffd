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

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::archive::LayerPath;
use crate::image::{BlobDigest, Compression, Platform};
use crate::layout::Staging;

mod arrange;
mod compare;
mod document;
mod error;
mod header;
mod plan;
mod produce;
mod progress;
mod read;
mod source;
mod spool;
mod tree;

pub use arrange::Dedupe;
pub use compare::Difference;
pub use error::ConvertError;
pub use plan::{LAYERS_MOST, LayerPlan, Unit, Wish, plan};
pub use produce::{Codec, Written};
pub use progress::{Phase, Progress};
pub use source::{Place, Reach};

use read::{ReadLayer, read_layer};
use source::{Image, Layer};
use spool::{Spool, SpoolWriter};
use tree::Tree;

/// What is wished of a conversion.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the files are cut into layers.
    pub layers: Wish,
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
}

impl Options {
    /// The options that the result depends on, as its annotation has them.
    fn shown(&self) -> String {
        let layers = match &self.layers {
            Wish::Default => "default".to_owned(),
            Wish::Equal(count) => count.to_string(),
            Wish::Sizes(sizes) => {
                sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
            }
            Wish::Most(most) => format!("at most {most}"),
        };
        let Codec { compression, level } = self.codec;
        let (compression, dedupe) = (compression.as_str(), self.dedupe.as_str());
        let ordered = if self.order.is_empty() { "" } else { " order=given" };
        format!("layers={layers} compression={compression} level={level} dedupe={dedupe}{ordered}")
    }
}

/// One platform's image, before and after.
#[derive(Clone, Debug)]
pub struct Converted {
    /// The platform, as far as the source says it.
    pub platform: Option<Platform>,
    /// The new manifest.
    pub manifest: BlobDigest,
    /// The new layers, the lowest first.
    pub layers: Vec<Written>,
    /// What the plan said of them.
    pub planned: Vec<LayerPlan>,
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
    let parent = match destination {
        Place::Directory(path, _) => path.clone(),
        Place::Archive(path, _) => beside(path),
        Place::Docker(..) | Place::Registry(_) => {
            return Err(ConvertError::Name {
                name: destination.to_string(),
                reason: "hoist writes oci: and oci-archive: only; `skopeo copy` takes them on from there".to_owned(),
            });
        }
    };
    progress.enter(Phase::Resolve, 0);
    let opened = source::open(source, options.platform.as_ref(), reach)?;
    let staging = Arc::new(Staging::new(&parent)?);
    let mut images = Vec::new();
    let mut descriptors = Vec::new();
    for image in &opened.images {
        let (converted, mut descriptor) = convert_image(image, options, &staging, progress)?;
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
    match destination {
        Place::Directory(path, tag) => staging.publish(path, &descriptor, tag.as_deref())?,
        Place::Archive(path, tag) => staging.publish_archive(path, &descriptor, tag.as_deref())?,
        Place::Docker(..) | Place::Registry(_) => unreachable!("refused above"),
    }
    let digest = descriptor["digest"].as_str().and_then(|text| text.parse().ok());
    Ok(Outcome { digest: digest.expect("it was just written"), images })
}

/// The directory that a file is in.
fn beside(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn convert_image(
    image: &Image,
    options: &Options,
    staging: &Arc<Staging>,
    progress: &Arc<Progress>,
) -> Result<(Converted, serde_json::Value), ConvertError> {
    let source_bytes = image.layers.iter().map(|layer| layer.size).sum();
    progress.enter(Phase::Read, source_bytes);
    let (layers, spools) =
        read_all(&image.layers, Some(staging.directory()), options.threads, progress)?;
    let ratios = layers.iter().map(|layer| (layer.blob_bytes, layer.archive_bytes)).collect();
    let tree = Tree::of_layers(layers)?;
    let arranged =
        arrange::arrange(&tree, &ratios, &options.layers, options.dedupe, &options.order)?;
    let planned: u64 = arranged.plans.iter().map(|layer| layer.bytes).sum();
    progress.enter(Phase::Write, planned);
    let (codec, threads) = (options.codec, options.threads);
    let written =
        produce::produce(&tree, &arranged.layers, &spools, codec, threads, staging, progress)?;
    drop(spools);
    if options.verify {
        verify(&tree, &written, options, staging, progress)?;
    }
    let config = document::config(&image.config, &written).ok_or_else(|| {
        let reason = "its configuration is no JSON object".to_owned();
        ConvertError::Name { name: "the image".to_owned(), reason }
    })?;
    let config = (staging.put(&config)?, config.len());
    let compression = codec.compression;
    let manifest = document::manifest(image, config, &written, compression, &options.shown());
    let bytes = manifest.to_string();
    let digest = staging.put(bytes.as_bytes())?;
    let converted = Converted {
        platform: document::platform(&image.config),
        manifest: digest,
        layers: written,
        planned: arranged.plans,
        source_layers: image.layers.len(),
        source_bytes,
        entries: tree.walk().len(),
        hidden_bytes: tree.content_bytes - arranged.content - arranged.deduplicated,
        deduplicated_bytes: arranged.deduplicated,
    };
    Ok((converted, document::descriptor(document::MANIFEST, digest, bytes.len())))
}

/// Reads the written layers again and compares what they make with `tree`.
fn verify(
    tree: &Tree,
    written: &[Written],
    options: &Options,
    staging: &Arc<Staging>,
    progress: &Arc<Progress>,
) -> Result<(), ConvertError> {
    progress.enter(Phase::Verify, written.iter().map(|layer| layer.size).sum());
    let compression = options.codec.compression;
    let staged = |l: &Written| Layer::staged(staging, l.digest, l.size, compression, l.diff_id);
    let layers: Vec<Layer> = written.iter().map(staged).collect();
    let (layers, _) = read_all(&layers, None, options.threads, progress)?;
    let result = Tree::of_layers(layers)?;
    let differences = compare::compare(tree, &result, options.dedupe);
    match differences.first() {
        None => Ok(()),
        Some(first) => {
            Err(ConvertError::Differs { count: differences.len(), first: first.to_string() })
        }
    }
}

/// Reads layers at once, with `threads` threads; contents go to spools in `directory`, if any.
fn read_all(
    layers: &[Layer],
    directory: Option<&Path>,
    threads: usize,
    progress: &Arc<Progress>,
) -> Result<(Vec<ReadLayer>, Vec<Spool>), ConvertError> {
    // The largest first, so that none of them is begun when the others have ended.
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_key(|&at| (std::cmp::Reverse(layers[at].size), at));
    let next = AtomicUsize::new(0);
    let thread = || {
        let mut done = Vec::new();
        while let Some(&at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut spool = directory.map(|dir| SpoolWriter::new(dir, at)).transpose()?;
            let read = read_layer(&layers[at], at, spool.as_mut(), progress)?;
            let failed = ConvertError::disk("writing", Path::new("a temporary file"));
            let spool = spool.map(SpoolWriter::finish).transpose().map_err(failed)?;
            done.push((at, read, spool));
        }
        Ok(done)
    };
    let ended: Vec<Result<Vec<_>, ConvertError>> = std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..threads.clamp(1, layers.len().max(1))).map(|_| scope.spawn(thread)).collect();
        all.into_iter().map(|thread| thread.join().expect("a reader does not panic")).collect()
    });
    let mut all = Vec::new();
    for done in ended {
        all.extend(done?);
    }
    all.sort_by_key(|(at, ..)| *at);
    let (mut read, mut spools) = (Vec::new(), Vec::new());
    for (_, layer, spool) in all {
        read.push(layer);
        spools.extend(spool);
    }
    Ok((read, spools))
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

/// The level that is taken where none is given: zstd's own default, and gzip's.
pub fn default_level(compression: Compression) -> i32 {
    match compression {
        Compression::None => 0,
        Compression::Gzip => 6,
        Compression::Zstd => 3,
    }
}

#[cfg(test)]
mod tests;
