//! One platform's image: read, rearranged or only compressed anew, written, and compared with what it was.

use std::sync::Arc;

use super::arrange::{self, Arranged, Wanted};
use super::base::Above;
use super::deliver::Parcel;
use super::plan::{Aim, Wish};
use super::produce;
use super::progress::{Phase, Planned, Progress};
use super::read::{ReadLayer, read_all};
use super::source::{Image, Layer};
use super::tree::Tree;
use super::written::Written;
use super::{ConvertError, Converted, Options, compare, document, puller, recompress};
use crate::image::{BlobDigest, Compression};
use crate::layout::Staging;
use crate::model::{Load, Prediction};

/// What is done with one platform's image.
pub(super) struct Task<'a> {
    pub(super) image: &'a Image,
    /// Layers at the bottom that stay as they are.
    pub(super) kept: usize,
    pub(super) options: &'a Options,
    pub(super) staging: &'a Arc<Staging>,
    pub(super) progress: &'a Arc<Progress>,
}

/// New layers, and what is to be said of them.
struct Made {
    layers: Vec<Written>,
    planned: Vec<u64>,
    /// How a pull of the source is expected to go.
    before: Prediction,
    config: Vec<u8>,
    entries: usize,
    hidden_bytes: u64,
    deduplicated_bytes: u64,
}

impl Task<'_> {
    /// Makes the image and its documents; what is to be delivered goes into `parcel`.
    pub(super) fn convert(
        &self,
        parcel: &mut Parcel,
    ) -> Result<(Converted, serde_json::Value), ConvertError> {
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
        let puller = &self.options.puller;
        let converted = Converted {
            platform: document::platform(&self.image.config),
            manifest: digest,
            before: made.before,
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
        let source: Vec<Load> =
            source.map(|(l, own)| puller::load(&Written { size: own.size, ..*l })).collect();
        Ok(Made {
            planned: image.layers.iter().map(|layer| layer.size).collect(),
            before: self.before(&source),
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
        let plan = self.plan(&arranged, &source);
        // Before the long work begins.
        progress.tell(plan.clone());
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
        let written = base.content_bytes + arranged.content + arranged.deduplicated;
        Ok(Made {
            layers,
            planned: plan.layers,
            before: plan.before,
            config,
            entries: walked.len(),
            hidden_bytes: tree.content_bytes.saturating_sub(written),
            deduplicated_bytes: arranged.deduplicated,
        })
    }

    /// What is about to be written.
    #[allow(clippy::cast_precision_loss, reason = "sizes of layers are below 2^53")]
    fn plan(&self, arranged: &Arranged, source: &[Load]) -> Planned {
        let new = arranged.plans.iter().zip(&arranged.layers).map(|(plan, items)| Load {
            bytes: plan.compressed as f64,
            unpacked: plan.bytes as f64,
            files: items.len() as f64,
            extract: None,
        });
        let loads: Vec<Load> = source[..self.kept].iter().cloned().chain(new).collect();
        let kept = self.image.layers[..self.kept].iter().map(|layer| layer.size);
        Planned {
            layers: kept.chain(arranged.plans.iter().map(|plan| plan.compressed)).collect(),
            before: self.before(source),
            after: self.options.puller.predict(&loads, self.options.codec.compression),
        }
    }

    /// How a pull of the source is expected to go, whose largest layer says how all are compressed.
    fn before(&self, source: &[Load]) -> Prediction {
        let largest = self.image.layers.iter().max_by_key(|layer| layer.size);
        let compression = largest.map_or(Compression::None, |layer| layer.compression);
        self.options.puller.predict(source, compression)
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
pub(super) fn as_it_was((read, layer): (&ReadLayer, &Layer)) -> Written {
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
