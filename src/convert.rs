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
use crate::model::{Load, Prediction};

mod analyze;
mod arrange;
mod base;
mod compare;
mod deliver;
mod document;
mod error;
mod header;
mod plan;
mod produce;
mod progress;
mod puller;
mod read;
mod recompress;
mod source;
mod spool;
mod tree;

pub use analyze::{Analysis, DirectoryFacts, Duplicate, LayerFacts, Remedy, analyze};
pub use arrange::Dedupe;
pub use compare::Difference;
pub use error::ConvertError;
pub use plan::{LAYERS_MOST, Unit, Wish};
pub use produce::{Codec, Written};
pub use progress::{Phase, Progress};
pub use puller::Puller;
pub use source::{Place, Reach};

use arrange::Wanted;
use base::Above;
use deliver::Parcel;
use plan::Aim;
use read::{ReadLayer, read_layer};
use source::{Image, Layer};
use spool::{Spool, SpoolWriter};
use tree::Tree;

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
    fn shown(&self) -> String {
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
    let staging = Arc::new(Staging::new(&room)?);
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

/// Has the lowest layers of `image` come from `base`, as far as they are the same archives, and be kept
/// while they are read. Returns how many.
fn put_on_base(
    image: &mut Image,
    base: &Place,
    staging: &Arc<Staging>,
    reach: &Reach,
) -> Result<usize, ConvertError> {
    let platform = document::platform(&image.config).unwrap_or_else(Platform::host);
    let opened = source::open(base, Some(&platform), reach)?;
    let below = opened.images.into_iter().next().expect("one platform is one image").layers;
    let pairs = image.layers.iter_mut().zip(below);
    let mut kept = 0;
    for (own, below) in pairs.take_while(|(own, below)| own.diff_id == below.diff_id) {
        if below.digest.is_some() {
            *own = below;
        } else if own.digest.is_none() {
            break;
        }
        own.keep = Some(Arc::clone(staging));
        kept += 1;
    }
    if kept == 0 {
        let reason = "the image does not begin with its layers, so none of them can be kept";
        return Err(ConvertError::Base { base: base.to_string(), reason });
    }
    Ok(kept)
}

/// What is done with one platform's image.
struct Task<'a> {
    image: &'a Image,
    /// Layers at the bottom that stay as they are.
    kept: usize,
    options: &'a Options,
    staging: &'a Arc<Staging>,
    progress: &'a Arc<Progress>,
}

/// New layers, and what is to be said of them.
struct Made {
    layers: Vec<Written>,
    planned: Vec<u64>,
    /// The source's layers as the model sees them.
    source: Vec<Load>,
    config: Vec<u8>,
    entries: usize,
    hidden_bytes: u64,
    deduplicated_bytes: u64,
}

impl Task<'_> {
    /// Makes the image and its documents; what is to be delivered goes into `parcel`.
    fn convert(&self, parcel: &mut Parcel) -> Result<(Converted, serde_json::Value), ConvertError> {
        let made = match self.options.layers {
            Wish::Keep => self.recompressed()?,
            _ => self.rearranged()?,
        };
        let config = (self.staging.put(&made.config)?, made.config.len());
        let shown = self.options.shown();
        let manifest = document::manifest(self.image, config, &made.layers, &shown);
        let bytes = manifest.to_string();
        let digest = self.staging.put(bytes.as_bytes())?;
        parcel.blobs.push((config.0, config.1 as u64));
        parcel.blobs.extend(made.layers.iter().map(|layer| (layer.digest, layer.size)));
        parcel.manifests.push(digest);
        let origins = self.image.layers[..self.kept].iter();
        parcel.origins.extend(origins.filter_map(|l| Some((l.digest?, l.repository()?.clone()))));
        let loads: Vec<Load> = made.layers.iter().map(puller::load).collect();
        let was = self.image.layers.iter().max_by_key(|layer| layer.size);
        let was = was.map_or(Compression::None, |layer| layer.compression);
        let puller = &self.options.puller;
        let converted = Converted {
            platform: document::platform(&self.image.config),
            manifest: digest,
            before: puller.predict(&made.source, was),
            after: puller.predict(&loads, self.options.codec.compression),
            layers: made.layers,
            planned: made.planned,
            source_layers: self.image.layers.len(),
            source_bytes: self.source_bytes(),
            entries: made.entries,
            hidden_bytes: made.hidden_bytes,
            deduplicated_bytes: made.deduplicated_bytes,
        };
        Ok((converted, document::descriptor(document::MANIFEST, digest, bytes.len())))
    }

    fn source_bytes(&self) -> u64 {
        self.image.layers.iter().map(|layer| layer.size).sum()
    }

    /// The same archives, compressed anew.
    fn recompressed(&self) -> Result<Made, ConvertError> {
        let Self { image, options, staging, progress, .. } = *self;
        progress.enter(Phase::Read, self.source_bytes());
        let (codec, threads) = (options.codec, options.threads);
        let layers = recompress::recompress(&image.layers, codec, threads, staging, progress)?;
        if options.verify {
            // Every layer is read to its end, where its DiffID is checked.
            progress.enter(Phase::Verify, layers.iter().map(|layer| layer.size).sum());
            let staged: Vec<Layer> = layers.iter().map(|l| Layer::staged(staging, l)).collect();
            read_all(&staged, None, threads, progress)?;
        }
        let source = layers.iter().zip(&image.layers);
        Ok(Made {
            planned: image.layers.iter().map(|layer| layer.size).collect(),
            source: source
                .map(|(l, own)| puller::load(&Written { size: own.size, ..*l }))
                .collect(),
            config: image.config.clone(),
            entries: layers.iter().map(|l| usize::try_from(l.entries).unwrap_or(0)).sum(),
            hidden_bytes: 0,
            deduplicated_bytes: 0,
            layers,
        })
    }

    /// The same files in other layers.
    fn rearranged(&self) -> Result<Made, ConvertError> {
        let Self { image, kept, options, staging, progress } = *self;
        progress.enter(Phase::Read, self.source_bytes());
        let directory = Some(staging.directory());
        let (layers, spools) = read_all(&image.layers, directory, options.threads, progress)?;
        let ratios = layers.iter().map(|layer| (layer.blob_bytes, layer.archive_bytes)).collect();
        let read: Vec<Written> = layers.iter().zip(&image.layers).map(as_it_was).collect();
        let source: Vec<Load> = read.iter().map(puller::load).collect();
        let (mut tree, mut base) = (Tree::default(), Tree::default());
        for (number, layer) in layers.into_iter().enumerate() {
            tree.apply(layer)?;
            if number + 1 == kept {
                base = tree.clone();
            }
        }
        let walked = tree.walk();
        let above = if kept > 0 { Above::of(&tree, &walked, &base) } else { Above::default() };
        let marker = tree.marker();
        let codec = options.codec;
        let mut arranged = arrange::arrange(&Wanted {
            tree: &tree,
            walked: &walked,
            ratios: &ratios,
            wish: &options.layers,
            aim: Aim {
                puller: &options.puller,
                kept: &source[..kept],
                compression: codec.compression,
            },
            dedupe: options.dedupe,
            order: &options.order,
            above: &above,
            marker,
        })?;
        if kept > 0 && arranged.layers.iter().all(Vec::is_empty) {
            // The base is all there is.
            arranged.layers.clear();
            arranged.plans.clear();
        }
        progress.enter(Phase::Write, arranged.plans.iter().map(|layer| layer.bytes).sum());
        let new = &arranged.layers;
        let written =
            produce::produce(&tree, new, &spools, codec, options.threads, staging, progress)?;
        drop(spools);
        let layers: Vec<Written> = read[..kept].iter().copied().chain(written).collect();
        if options.verify {
            self.verify(&tree, &layers)?;
        }
        let config = document::config(&image.config, &layers).ok_or_else(|| {
            let reason = "its configuration is no JSON object".to_owned();
            ConvertError::Name { name: "the image".to_owned(), reason }
        })?;
        let planned = layers[..kept].iter().map(|layer| layer.size);
        let planned = planned.chain(arranged.plans.iter().map(|plan| plan.compressed)).collect();
        let written = base.content_bytes + arranged.content + arranged.deduplicated;
        Ok(Made {
            layers,
            planned,
            source,
            config,
            entries: walked.len(),
            hidden_bytes: tree.content_bytes.saturating_sub(written),
            deduplicated_bytes: arranged.deduplicated,
        })
    }

    /// Reads the written layers again and compares what they make with `tree`.
    fn verify(&self, tree: &Tree, written: &[Written]) -> Result<(), ConvertError> {
        let Self { options, staging, progress, .. } = *self;
        progress.enter(Phase::Verify, written.iter().map(|layer| layer.size).sum());
        let layers: Vec<Layer> = written.iter().map(|l| Layer::staged(staging, l)).collect();
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
}

/// A layer of the source in the words of those that are written.
fn as_it_was((read, layer): (&ReadLayer, &Layer)) -> Written {
    Written {
        // Only layers that have one are kept, and of others nobody asks.
        digest: layer.digest.unwrap_or(BlobDigest(layer.diff_id.0)),
        size: layer.size,
        diff_id: layer.diff_id,
        archive_bytes: read.archive_bytes,
        entries: read.entries.len() as u64,
        compression: layer.compression,
        frames: None,
        kept: true,
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
