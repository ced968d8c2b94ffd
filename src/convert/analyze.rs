//! What is in an image, what of it nobody sees, and what a pull would gain from a conversion.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::arrange::{self, Arranged, Dedupe, Wanted};
use super::base::Above;
use super::header::Item;
use super::plan::{Aim, LayerPlan, Wish};
use super::read::{ReadLayer, read_all};
use super::task::as_it_was;
use super::tree::{InodeId, Node, Tree};
use super::{ConvertError, Phase, Place, Progress, Puller, Reach, puller, source};
use crate::archive::LayerPath;
use crate::image::{BlobDigest, Compression, Platform};
use crate::model::{Load, Model};

/// zstd -3 beside gzip -6: of two layers measured, one became 5.5 % smaller and the other 31 %.
const ZSTD_OF_GZIP: f64 = 0.945;

/// Directories and duplicates that are named.
const NAMED_MOST: usize = 15;

/// How deep directories are told apart.
const DEPTH: usize = 3;

/// A layer, as it is.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LayerFacts {
    /// Its blob; of `docker save`, its archive.
    pub digest: BlobDigest,
    /// `gzip`, `zstd` or `none`.
    pub compression: &'static str,
    /// Bytes of the blob.
    pub size: u64,
    /// Bytes of the archive.
    pub archive_bytes: u64,
    /// Entries.
    pub entries: u64,
    /// Bytes of content that no container sees, since later layers hide them.
    pub hidden_bytes: u64,
}

/// A directory with all that is below it, hard links counted once.
#[derive(Clone, Debug, serde::Serialize)]
pub struct DirectoryFacts {
    /// Its path.
    pub path: String,
    /// Bytes of content.
    pub bytes: u64,
    /// Files.
    pub files: u64,
}

/// Files that are the same in all that counts.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Duplicate {
    /// One of them.
    pub path: String,
    /// How many there are.
    pub count: u64,
    /// Bytes that hard links would save.
    pub saved_bytes: u64,
}

/// What could be done, and what the model expects of it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Remedy {
    /// In words.
    pub what: &'static str,
    /// What to run; DESTINATION is for whoever runs it to name.
    pub command: String,
    /// Seconds that a pull would take.
    pub seconds: f64,
    /// Compressed bytes to be fetched.
    pub bytes: u64,
}

/// An image, looked at.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Analysis {
    /// The image.
    pub image: String,
    /// Who is taken to pull it.
    pub model: Model,
    /// Its layers, lowest first.
    pub layers: Vec<LayerFacts>,
    /// The largest directories.
    pub directories: Vec<DirectoryFacts>,
    /// Those that cost most.
    pub duplicates: Vec<Duplicate>,
    /// Names in the final file system.
    pub entries: usize,
    /// Bytes that a container sees.
    pub content_bytes: u64,
    /// Bytes that none sees.
    pub hidden_bytes: u64,
    /// Bytes that hard links would save.
    pub duplicate_bytes: u64,
    /// Seconds that a pull is expected to take now.
    pub seconds: f64,
    /// What could be done, the most effective first.
    pub remedies: Vec<Remedy>,
}

/// Reads an image to its end and says what there is to say.
///
/// # Errors
/// Where it cannot be read or is not what its manifest says.
pub fn analyze(
    place: &Place,
    platform: &Platform,
    puller: &Puller,
    threads: usize,
    reach: &Reach,
    progress: &Arc<Progress>,
) -> Result<Analysis, ConvertError> {
    progress.enter(Phase::Resolve, 0);
    let opened = source::open(place, Some(platform), reach)?;
    let image = opened.images.first().expect("one platform is one image");
    progress.enter(Phase::Read, image.layers.iter().map(|layer| layer.size).sum());
    let (read, _) = read_all(&image.layers, None, threads, progress)?;
    let ratios = read.iter().map(|layer| (layer.blob_bytes, layer.archive_bytes)).collect();
    let content = |layer: &ReadLayer| -> u64 {
        layer.entries.iter().filter_map(|found| found.content).map(|content| content.size).sum()
    };
    let contents: Vec<u64> = read.iter().map(content).collect();
    let written: Vec<super::Written> = read.iter().zip(&image.layers).map(as_it_was).collect();
    let mut tree = Tree::of_layers(read)?;
    let walked = tree.walk();
    let visible = visible(&tree, &walked, contents.len());
    let layers =
        written.iter().zip(contents.iter().zip(&visible)).map(|(layer, (all, seen))| LayerFacts {
            digest: layer.digest,
            compression: layer.compression.as_str(),
            size: layer.size,
            archive_bytes: layer.archive_bytes,
            entries: layer.entries,
            hidden_bytes: all - seen,
        });
    let layers: Vec<LayerFacts> = layers.collect();
    let marker = tree.marker();
    let arranged = arrange::arrange(&Wanted {
        tree: &tree,
        walked: &walked,
        ratios: &ratios,
        wish: &Wish::Best,
        aim: Aim { puller, kept: &[], compression: Compression::Zstd },
        dedupe: Dedupe::Strict,
        order: &[],
        above: &Above::default(),
        marker,
    })?;
    let was = written.iter().max_by_key(|layer| layer.size);
    let was = was.map_or(Compression::None, |layer| layer.compression);
    let smaller = if was == Compression::Gzip { ZSTD_OF_GZIP } else { 1.0 };
    let now: Vec<Load> = written.iter().map(puller::load).collect();
    let kept: Vec<Load> =
        now.iter().map(|load| Load { bytes: load.bytes * smaller, ..load.clone() }).collect();
    let cut = cut(&arranged, smaller);
    let told = Told { image: place.to_string(), puller, was };
    Ok(Analysis {
        image: place.to_string(),
        model: puller.model,
        layers,
        directories: directories(&tree, &walked),
        duplicates: duplicates(&tree, &walked),
        entries: walked.len(),
        content_bytes: visible.iter().sum(),
        hidden_bytes: contents.iter().sum::<u64>() - visible.iter().sum::<u64>(),
        duplicate_bytes: arranged.deduplicated,
        seconds: puller.predict(&now, was).seconds,
        remedies: told.remedies(&now, &kept, &cut),
    })
}

/// Bytes of content that a container sees, by the layer that they came with.
fn visible(tree: &Tree, walked: &[(LayerPath, InodeId)], layers: usize) -> Vec<u64> {
    let mut visible = vec![0; layers];
    let mut seen = HashSet::new();
    for (_, id) in walked.iter().filter(|(_, id)| seen.insert(*id)) {
        if let Node::File(content) = &tree.inode(*id).node {
            visible[tree.inode(*id).layer] += content.size;
        }
    }
    visible
}

/// The layers of a new cut, each `smaller` by so much than the source's compression would have it.
#[allow(clippy::cast_precision_loss, reason = "sizes of layers are below 2^53")]
fn cut(arranged: &Arranged, smaller: f64) -> Vec<Load> {
    let layers = arranged.plans.iter().zip(&arranged.layers);
    let load = |(plan, items): (&LayerPlan, &Vec<Item>)| Load {
        bytes: plan.compressed as f64 * smaller,
        unpacked: plan.bytes as f64,
        files: items.len() as f64,
        extract: None,
    };
    layers.map(load).collect()
}

struct Told<'a> {
    image: String,
    puller: &'a Puller,
    was: Compression,
}

impl Told<'_> {
    fn remedies(&self, now: &[Load], kept: &[Load], cut: &[Load]) -> Vec<Remedy> {
        let Self { image, puller, was } = self;
        let model = puller.model;
        let hoist = Puller { model: Model::Hoist, profile: puller.profile.clone() };
        let remedy = |what, command, by: &Puller, loads: &[Load], compression| Remedy {
            what,
            command,
            seconds: by.predict(loads, compression).seconds,
            bytes: bytes(loads),
        };
        let convert = |options: &str| format!("hoist convert {image} DESTINATION{options}");
        let mut all = vec![
            remedy(
                "zstd instead of gzip, the same layers",
                convert(" --keep-layers"),
                puller,
                kept,
                Compression::Zstd,
            ),
            remedy(
                "hidden bytes and duplicates dropped, cut by the model, zstd",
                convert(&format!(" --target {model}")),
                puller,
                cut,
                Compression::Zstd,
            ),
        ];
        if *was == Compression::Zstd {
            // There is nothing to be gained by it.
            all.remove(0);
        }
        if model != Model::Hoist {
            let install = "systemctl enable --now hoistd  # README.md, \"Installing on a host\"";
            let install = install.to_owned();
            all.push(remedy("hoistd pulls it as it is", install, &hoist, now, *was));
            let both = convert(" --target hoist") + "  # and hoistd on the hosts";
            all.push(remedy("hoistd pulls it converted", both, &hoist, cut, Compression::Zstd));
        }
        all.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        all
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes are positive and below 2^53"
)]
fn bytes(loads: &[Load]) -> u64 {
    loads.iter().map(|load| load.bytes).sum::<f64>() as u64
}

fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

fn directories(tree: &Tree, walked: &[(LayerPath, InodeId)]) -> Vec<DirectoryFacts> {
    let mut sums: BTreeMap<Vec<u8>, (u64, u64)> = BTreeMap::new();
    let mut seen = HashSet::new();
    for (path, id) in walked.iter().filter(|(_, id)| seen.insert(*id)) {
        let Node::File(content) = &tree.inode(*id).node else { continue };
        let slashes = path.as_bytes().iter().enumerate().filter(|(_, byte)| **byte == b'/');
        for (at, _) in slashes.take(DEPTH) {
            let (bytes, files) = sums.entry(path.as_bytes()[..at].to_vec()).or_default();
            *bytes += content.size;
            *files += 1;
        }
    }
    let facts =
        |(path, (bytes, files)): (Vec<u8>, _)| DirectoryFacts { path: shown(&path), bytes, files };
    let mut all: Vec<DirectoryFacts> = sums.into_iter().map(facts).collect();
    all.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.path.cmp(&b.path)));
    all.truncate(NAMED_MOST);
    all
}

fn duplicates(tree: &Tree, walked: &[(LayerPath, InodeId)]) -> Vec<Duplicate> {
    let (groups, _) = arrange::groups(tree, walked, Dedupe::Strict, &Above::default());
    let ids: HashMap<&LayerPath, InodeId> = walked.iter().map(|(path, id)| (path, *id)).collect();
    let mut all: Vec<Duplicate> = groups
        .iter()
        .filter_map(|group| {
            let files: HashSet<InodeId> = group.names.iter().map(|name| ids[name]).collect();
            let again = (files.len() as u64).checked_sub(1).filter(|&again| again > 0)?;
            let saved_bytes = again * arrange::size(tree, group.inode);
            let path = shown(group.names[0].as_bytes());
            Some(Duplicate { path, count: again + 1, saved_bytes })
        })
        .collect();
    all.sort_by(|a, b| b.saved_bytes.cmp(&a.saved_bytes).then_with(|| a.path.cmp(&b.path)));
    all.truncate(NAMED_MOST);
    all
}
