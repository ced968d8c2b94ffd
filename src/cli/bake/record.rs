//! What was baked, in files beside the layers:
//!
//! ```text
//! ROOT/baked/manifest.json     the images, their layers, and the digest of each listing
//! ROOT/baked/DIFFID-TREE.zst   what stands in a layer, entry by entry (crate::listing), in zstd
//! ```
//!
//! The manifest is written last and replaced in one step: listings of an attempt that ended early belong to
//! none, and go with the next.

use std::collections::HashSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::fs::{self, File};
use std::io::{self, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::super::error::CliError;
use crate::control::Pin;
use crate::image::Sha256;
use crate::listing;

/// The form that this program writes.
const VERSION: u32 = 1;

/// Listings are ten times smaller at this level, at a hundredth of what hashing the layer costs.
const LEVEL: i32 = 3;

/// What was baked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Baked {
    pub(super) version: u32,
    /// The hoist that baked it.
    pub(super) hoist: String,
    /// Seconds since 1970.
    pub(super) baked_at: u64,
    pub(super) images: Vec<BakedImage>,
}

/// An image, by its place and by what its name leads to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct BakedImage {
    pub(super) image: String,
    pub(super) namespace: String,
    pub(super) containerd: String,
    pub(super) digest: String,
    /// Lowest first.
    pub(super) layers: Vec<BakedLayer>,
}

/// A layer, and its listing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct BakedLayer {
    pub(super) diff_id: String,
    /// The number of its tree.
    pub(super) tree: i64,
    pub(super) listing: String,
    /// Of the listing as it lies there.
    pub(super) listing_digest: String,
    pub(super) entries: u64,
    /// In its files.
    pub(super) bytes: u64,
}

impl Baked {
    /// Every layer once, however many images have it.
    pub(super) fn layers(&self) -> impl Iterator<Item = &BakedLayer> {
        let layers = self.images.iter().flat_map(|image| &image.layers);
        layers.map(|layer| (layer.tree, layer)).collect::<BTreeMap<_, _>>().into_values()
    }
}

/// Where it lies.
pub(super) fn directory(root: &Path) -> PathBuf {
    root.join("baked")
}

/// Reads what was baked.
pub(super) fn read(root: &Path) -> Result<Baked, CliError> {
    let path = directory(root).join("manifest.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(source) => return Err(CliError::NotBaked { path, source }),
    };
    let wrong = |reason: String| CliError::Baked { path: path.clone(), reason };
    let baked: Baked = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    if baked.version != VERSION {
        return Err(wrong(format!(
            "version {} is not known to this hoist, which writes {VERSION}; bake again",
            baked.version
        )));
    }
    Ok(baked)
}

/// Notes what the pinned images are. Reads every byte of them; blocks as long.
pub(super) fn write(root: &Path, pins: &[Pin]) -> Result<Baked, CliError> {
    let directory = directory(root);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CliError::Write { path, source }
    };
    fs::create_dir_all(&directory).map_err(failed(&directory))?;
    let mut noted = BTreeMap::new();
    for layer in pins.iter().flat_map(|pin| &pin.trees) {
        if let Entry::Vacant(place) = noted.entry(layer.tree) {
            place.insert(note(&directory, &layer.diff_id, layer.tree, &layer.path)?);
        }
    }
    let images = pins.iter().map(|pin| BakedImage {
        image: pin.image.clone(),
        namespace: pin.namespace.clone(),
        containerd: pin.containerd.clone(),
        digest: pin.digest.clone(),
        layers: pin.trees.iter().filter_map(|layer| noted.get(&layer.tree).cloned()).collect(),
    });
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let baked = Baked {
        version: VERSION,
        hoist: env!("CARGO_PKG_VERSION").to_owned(),
        baked_at: since.as_secs(),
        images: images.collect(),
    };
    let text = serde_json::to_vec_pretty(&baked).expect("strings and numbers");
    let path = directory.join("manifest.json");
    replace(&path, &text).map_err(failed(&path))?;
    // Machine images are often made by stopping the machine hard.
    nix::unistd::syncfs(File::open(&directory).map_err(failed(&directory))?)
        .map_err(|errno| failed(&directory)(errno.into()))?;
    sweep(&directory, &baked);
    Ok(baked)
}

fn note(directory: &Path, diff_id: &str, tree: i64, path: &str) -> Result<BakedLayer, CliError> {
    let hex = diff_id.rsplit(':').next().unwrap_or(diff_id);
    let name = format!("{hex}-{tree}.zst");
    let mut packed = Vec::new();
    let broken = |source| CliError::Write { path: directory.join(&name), source };
    let mut encoder = zstd::Encoder::new(&mut packed, LEVEL).map_err(broken)?;
    let noted = listing::note(Path::new(path), &mut encoder)?;
    encoder.finish().map_err(broken)?;
    replace(&directory.join(&name), &packed).map_err(broken)?;
    Ok(BakedLayer {
        diff_id: diff_id.to_owned(),
        tree,
        listing: name.clone(),
        listing_digest: Sha256::of(&packed).to_string(),
        entries: noted.entries,
        bytes: noted.bytes,
    })
}

/// A layer's listing, to be read; one that is damaged itself is told.
pub(super) fn listing(
    root: &Path,
    layer: &BakedLayer,
) -> Result<impl io::BufRead + use<>, CliError> {
    let path = directory(root).join(&layer.listing);
    let wrong = |reason: String| CliError::Baked { path: path.clone(), reason };
    let packed = fs::read(&path).map_err(|error| wrong(error.to_string()))?;
    if Sha256::of(&packed).to_string() != layer.listing_digest {
        return Err(wrong("the listing is damaged itself; bake again".to_owned()));
    }
    let decoder = zstd::Decoder::new(io::Cursor::new(packed)).map_err(|e| wrong(e.to_string()))?;
    Ok(BufReader::new(decoder))
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let mut file = File::create(&aside)?;
    file.write_all(bytes)?;
    fs::rename(&aside, path)
}

/// Removes what belongs to no manifest any more.
fn sweep(directory: &Path, baked: &Baked) {
    let mut kept: HashSet<_> = baked.layers().map(|layer| layer.listing.as_str()).collect();
    kept.insert("manifest.json");
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !kept.contains(&*entry.file_name().to_string_lossy()) {
            // It takes some kilobytes and hurts nobody.
            let _ = fs::remove_file(entry.path());
        }
    }
}
