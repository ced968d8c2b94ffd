//! What this host and its link can do, measured with a layer of an image.
//!
//! A part of the layer is fetched over one connection and then over many; what came is decompressed and
//! hashed by one thread, and the disk is given a large file and many small ones. From that follow the rates
//! of the model (`docs/model.md`): what one core takes in when it does all of the chain, and what the chain
//! takes in when its stages have a thread each. How much slower containerd's own decoders are is not
//! measured, but taken from what was measured once.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::budget::Budget;
use crate::compression::{self, CompressionError, Decoded, Pieces, Resources};
use crate::fetch::{FetchError, Fetcher, Limits};
use crate::hashing::Hasher;
use crate::image::{BlobDigest, Compression};
use crate::model::{Deviation, Model, Profile, Rates};
use crate::registry::{Reference, Registry};
use crate::timeline::LayerRecorder;
use crate::units::{Rate, Seconds, Size};

/// Bytes that are fetched for a rate, at most: some seconds on a usual link.
const FETCHED_BYTES_MOST: u64 = 256 << 20;

/// Compressed bytes that are kept and decompressed, at most.
const SAMPLE_BYTES_MOST: usize = 64 << 20;

/// What the disk gets to write: more than its own cache of some megabytes.
const WRITTEN_BYTES: usize = 256 << 20;

/// Small files that are made, of [`SMALL_BYTES`] each.
const SMALL_FILES: u32 = 4_000;
const SMALL_BYTES: usize = 1024;

/// Connections of the second fetch; hoistd's own number for an image.
const CONNECTIONS: u32 = 20;

/// What one core of containerd 2.1 takes in beside one core of hoist: Go's gzip, its zstd
/// (`two-cores-gzip` and `two-cores-zstd` in [`Profile::named`]).
pub(super) const GO_GZIP: f64 = 41.0 / 107.0;
pub(super) const GO_ZSTD: f64 = 91.0 / 115.0;

/// Why a host could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum CalibrateError {
    /// The layer does not arrive.
    #[error("blob {blob}: {source}")]
    Fetch {
        /// The layer.
        blob: BlobDigest,
        /// What the fetch says.
        source: Box<FetchError>,
    },
    /// It is too small to measure anything with.
    #[error(
        "the largest layer has {size} bytes, which are too few to measure with; take an image with one of at least {least}"
    )]
    Small {
        /// Its bytes.
        size: u64,
        /// What it should have.
        least: u64,
    },
    /// It cannot be decompressed.
    #[error("blob {blob}: {source}")]
    Decompress {
        /// The layer.
        blob: BlobDigest,
        /// What the decoder says.
        source: CompressionError,
    },
    /// The disk refuses.
    #[error("writing in {}: {source}", path.display())]
    Disk {
        /// The directory.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

/// The smallest layer that says anything: 8 MiB.
const LAYER_BYTES_LEAST: u64 = 8 << 20;

/// What is measured with.
#[derive(Clone)]
pub struct Probe {
    /// The way to the registry.
    pub registry: Registry,
    /// What fetches may hold.
    pub budget: Budget,
    /// Bytes of a request.
    pub chunk_bytes: u64,
    /// Where requests run.
    pub runtime: Handle,
    /// The image.
    pub reference: Reference,
    /// Its largest layer.
    pub blob: BlobDigest,
    /// That layer's bytes.
    pub size: u64,
    /// Its format.
    pub compression: Compression,
    /// A directory on the disk that layers will lie on.
    pub directory: PathBuf,
    /// Cores of this host.
    pub cores: u32,
}

/// Bytes and seconds of a fetch.
struct Fetched {
    rate: f64,
    first_byte: f64,
    sample: Vec<Bytes>,
}

/// Measures, and names the result `name`. Takes some seconds and blocks; not to be called from a task.
///
/// # Errors
/// Where the layer does not arrive or is too small, or the disk refuses.
pub fn calibrate(probe: &Probe, name: &str) -> Result<Profile, CalibrateError> {
    if probe.size < LAYER_BYTES_LEAST {
        return Err(CalibrateError::Small { size: probe.size, least: LAYER_BYTES_LEAST });
    }
    let one = probe.fetch(1)?;
    let many = probe.fetch(CONNECTIONS)?;
    let (decoded, expansion) = probe.decompress(&one.sample)?;
    let hashed = hash(&one.sample);
    let disk = |source| CalibrateError::Disk { path: probe.directory.clone(), source };
    let home = probe.directory.join(format!(".hoist-calibrate-{}", std::process::id()));
    std::fs::create_dir(&home).map_err(disk)?;
    let written = write(&home);
    // Whatever came of it; what stays is only a directory with a name that says whose it is.
    let _ = std::fs::remove_dir_all(&home);
    let written = written.map_err(disk)?;
    Ok(profile(name, probe, [&one, &many], decoded, expansion, hashed, &written))
}

impl Probe {
    fn fetch(&self, connections: u32) -> Result<Fetched, CalibrateError> {
        let failed = |source| CalibrateError::Fetch { blob: self.blob, source: Box::new(source) };
        let count = connections as usize;
        let limits = Limits {
            chunk_bytes: self.chunk_bytes,
            per_image: count,
            per_host: count,
            global: count,
        };
        let fetcher = Fetcher::new(self.registry.clone(), self.budget.clone(), limits);
        let blob = self.registry.blob(&self.reference, self.blob, self.size);
        let recorder = Arc::new(LayerRecorder::detached());
        let began = Instant::now();
        let mut reader = fetcher.image().start(&self.runtime, blob, self.size, recorder);
        let (mut bytes, mut kept, mut sample) = (0, 0, Vec::new());
        let mut first = None;
        while let Some(piece) = reader.next().map_err(failed)? {
            first.get_or_insert_with(|| began.elapsed().as_secs_f64());
            bytes += piece.len() as u64;
            if kept < SAMPLE_BYTES_MOST && connections == 1 {
                kept += piece.len();
                // Copied: the piece's memory is the fetch's, and is waited for.
                sample.push(Bytes::copy_from_slice(&piece));
            }
            if bytes >= FETCHED_BYTES_MOST {
                break;
            }
        }
        let first_byte = first.unwrap_or(0.0);
        let seconds = (began.elapsed().as_secs_f64() - first_byte).max(1e-6);
        #[allow(clippy::cast_precision_loss, reason = "a few hundred megabytes")]
        let rate = bytes as f64 / seconds;
        Ok(Fetched { rate, first_byte, sample })
    }

    /// Compressed bytes a second of one thread, and bytes that a compressed one becomes.
    #[allow(clippy::cast_precision_loss, reason = "a few hundred megabytes")]
    fn decompress(&self, sample: &[Bytes]) -> Result<(f64, f64), CalibrateError> {
        let failed = |source| CalibrateError::Decompress { blob: self.blob, source };
        let all: u64 = sample.iter().map(|piece| piece.len() as u64).sum();
        let mut left = VecDeque::from(sample.to_vec());
        let pieces: Box<dyn Pieces + Send> = Box::new(move || Ok::<_, io::Error>(left.pop_front()));
        let mut decoder =
            compression::decoder(self.compression, pieces, Resources::serial()).map_err(failed)?;
        let (mut buffer, mut out, began) = (vec![0; 256 << 10], 0_u64, Instant::now());
        loop {
            match decoder.read(&mut buffer) {
                Ok(Decoded::Filled(count)) => out += count as u64,
                Ok(Decoded::Piece(piece)) => out += piece.len() as u64,
                Ok(Decoded::End) => break,
                // A sample ends in the middle.
                Err(_) if out > 0 => break,
                Err(error) => return Err(failed(error)),
            }
        }
        let seconds = began.elapsed().as_secs_f64().max(1e-6);
        Ok((all as f64 / seconds, out as f64 / all.max(1) as f64))
    }
}

/// Bytes a second of SHA-256 on one thread.
#[allow(clippy::cast_precision_loss, reason = "a few hundred megabytes")]
fn hash(sample: &[Bytes]) -> f64 {
    let (mut hasher, began) = (Hasher::default(), Instant::now());
    sample.iter().for_each(|piece| hasher.update(piece));
    let _ = hasher.finish();
    let all: usize = sample.iter().map(Bytes::len).sum();
    all as f64 / began.elapsed().as_secs_f64().max(1e-6)
}

struct Written {
    /// Bytes a second into the page cache, and onto the disk.
    cache: f64,
    disk: f64,
    /// Seconds of a small file.
    file: f64,
}

#[allow(clippy::cast_precision_loss, reason = "a few hundred megabytes")]
fn write(home: &Path) -> io::Result<Written> {
    let block = vec![7_u8; 1 << 20];
    let began = Instant::now();
    let mut file = File::create(home.join("large"))?;
    for _ in 0..WRITTEN_BYTES / block.len() {
        file.write_all(&block)?;
    }
    let cached = began.elapsed().as_secs_f64().max(1e-6);
    file.sync_data()?;
    let synced = began.elapsed().as_secs_f64().max(1e-6);
    let began = Instant::now();
    for number in 0..SMALL_FILES {
        File::create(home.join(number.to_string()))?.write_all(&block[..SMALL_BYTES])?;
    }
    let file = began.elapsed().as_secs_f64() / f64::from(SMALL_FILES);
    let bytes = WRITTEN_BYTES as f64;
    Ok(Written { cache: bytes / cached, disk: bytes / synced, file })
}

fn profile(
    name: &str,
    probe: &Probe,
    [one, many]: [&Fetched; 2],
    decoded: f64,
    expansion: f64,
    hashed: f64,
    written: &Written,
) -> Profile {
    // Seconds for a compressed byte, stage by stage; both the blob and the archive are hashed.
    let stages = [1.0 / decoded, (1.0 + expansion) / hashed, expansion / written.cache];
    let per_core = 1.0 / stages.iter().sum::<f64>();
    let extract = 1.0 / stages.into_iter().fold(0.0, f64::max);
    let go = if probe.compression == Compression::Gzip { GO_GZIP } else { GO_ZSTD };
    #[allow(clippy::cast_precision_loss, reason = "a few megabytes")]
    let piece = Size(probe.chunk_bytes as f64);
    let rates = Rates {
        download: Rate::measured(one.rate.max(many.rate)),
        // One that is as fast as many is not what limits.
        per_connection: (one.rate < many.rate * 0.9).then(|| Rate::measured(one.rate)),
        connections: CONNECTIONS,
        extract: Rate::measured(extract),
        per_core: Some(Rate::measured(per_core.min(extract))),
        cores: probe.cores.max(1),
        per_file: Seconds((written.file * 1e6).round() / 1e6),
        disk: Some(Rate::measured(written.disk)),
        latency: Seconds((one.first_byte.min(many.first_byte) * 1e3).round() / 1e3),
        piece,
        ..Rates::default()
    };
    Profile { name: name.to_owned(), rates, models: others_slower(per_core * go) }
}

/// What is said of pullers that are not hoistd: so many compressed bytes a second, for a layer and for a core.
pub(super) fn others_slower(rate: f64) -> BTreeMap<Model, Deviation> {
    let slower = Rate::measured(rate);
    let other = Deviation { extract: Some(slower), per_core: Some(slower), per_file: None };
    let others = Model::ALL.into_iter().filter(|model| *model != Model::Hoist);
    others.map(|model| (model, other.clone())).collect()
}
