//! What this host and its link can do, measured with a layer of an image.
//!
//! A part of the layer is fetched over one connection and then over many; what came is decompressed and
//! hashed by one thread, and the disk is given a large file and many small ones. All but the first is done three times, by
//! turns, and the medians count: a host that others are on is not as fast in one second as in the next. From them follow the rates
//! of the model (`docs/model.md`, [`super::costs`]): what one core takes in when it does all of the chain, and
//! what the chain takes in when its stages have a thread each. How much slower containerd's own decoders are
//! is not measured, but taken from what was measured once.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::runtime::Handle;

use crate::budget::Budget;
use crate::compression::{self, CompressionError, Decoded, Pieces, Resources};
use crate::fetch::{FetchError, Fetcher, Limits};
use crate::hashing::Hasher;
use crate::image::{BlobDigest, Compression, Reference};
use crate::model::{Profile, Rates};
use crate::registry::Registry;
use crate::sys::processors::Processors;
use crate::timeline::LayerRecorder;
use crate::units::{Rate, Seconds, Size};
use crate::unpack::UnpackError;

use super::costs::Costs;
use super::median;
use super::written::{self, Written};

/// How often each work is measured.
const ROUNDS: usize = 3;

/// Bytes that are fetched for a rate, at most, and seconds, where what is decompressed is there by then.
const FETCHED_BYTES_MOST: u64 = 256 << 20;
const FETCHED_SECONDS_MOST: f64 = 4.0;

/// Compressed bytes that are kept and decompressed, at most.
const SAMPLE_BYTES_MOST: usize = 64 << 20;

/// Connections of the second fetch; hoistd's own number for an image.
const CONNECTIONS: u32 = 20;

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
    /// Files cannot be made there.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
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
    /// The format of the layers that will be pulled: what `hoist convert` makes of it, say.
    pub pulled: Compression,
    /// A directory on the disk that layers will lie on.
    pub directory: PathBuf,
    /// Cores of this host.
    pub cores: u32,
    /// Whether hoistd's layers become images here, and not files.
    pub images: bool,
}

/// Bytes and seconds of a fetch.
struct Fetched {
    rate: f64,
    first_byte: f64,
    /// Seconds of this host's processors for a byte, whoever used them: a registry or a proxy on it, too.
    busy: f64,
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
    let mut sample = one.sample.clone();
    if probe.pulled != probe.compression {
        let (_, out) = probe.decompress(probe.compression, &sample)?;
        sample = recompressed(&out, probe.pulled).map_err(|source| CalibrateError::Decompress {
            blob: probe.blob,
            source: CompressionError::Input(source),
        })?;
    }
    let rounds: Vec<Round> = (0..ROUNDS).map(|_| probe.round(&sample)).collect::<Result<_, _>>()?;
    let usual = |of: fn(&Round) -> f64| median(rounds.iter().map(of).collect()).unwrap_or(0.0);
    let costs = Costs {
        compression: probe.pulled,
        fetch: usual(|round| round.many.busy),
        decompress: usual(|round| round.decompress),
        expansion: usual(|round| round.expansion),
        hash: usual(|round| round.hash),
        write: usual(|round| round.written.byte),
        file: usual(|round| round.written.file),
        plain_file: usual(|round| round.written.plain_file),
    };
    let link = Seen {
        one: one.rate,
        many: usual(|round| round.many.rate),
        first_byte: usual(|round| round.many.first_byte).min(one.first_byte),
        disk: usual(|round| round.written.disk),
    };
    Ok(probe.profile(name, &link, &costs))
}

/// What was measured once, one work after the other.
struct Round {
    many: Fetched,
    decompress: f64,
    expansion: f64,
    hash: f64,
    written: Written,
}

/// What is no cost of a core: bytes a second over one connection, over many and onto the disk, and seconds before the first.
struct Seen {
    one: f64,
    many: f64,
    first_byte: f64,
    disk: f64,
}

impl Probe {
    /// All works but the fetch over one connection, with these compressed bytes.
    fn round(&self, sample: &[Bytes]) -> Result<Round, CalibrateError> {
        let many = self.fetch(CONNECTIONS)?;
        let (decompress, out) = self.decompress(self.pulled, sample)?;
        let expansion = length(&out) / length(sample).max(1.0);
        drop(out);
        let hash = hash(sample);
        let disk = |source| CalibrateError::Disk { path: self.directory.clone(), source };
        let home = self.directory.join(format!(".hoist-calibrate-{}", std::process::id()));
        std::fs::create_dir(&home).map_err(disk)?;
        let written = written::measure(&home, self.images);
        // Whatever came of it; what stays is only a directory with a name that says whose it is.
        let _ = std::fs::remove_dir_all(&home);
        Ok(Round { many, decompress, expansion, hash, written: written? })
    }

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
        let (began, before) = (Instant::now(), Processors::now());
        let mut reader = fetcher.image().start(&self.runtime, blob, self.size, recorder);
        let (mut bytes, mut kept, mut sample) = (0, 0, Vec::new());
        let wanted = if connections == 1 { SAMPLE_BYTES_MOST } else { 0 };
        let mut first = None;
        while let Some(piece) = reader.next().map_err(failed)? {
            first.get_or_insert_with(|| began.elapsed().as_secs_f64());
            bytes += piece.len() as u64;
            if kept < wanted {
                kept += piece.len();
                // Copied: the piece's memory is the fetch's, and is waited for.
                sample.push(Bytes::copy_from_slice(&piece));
            }
            let late = kept >= wanted && began.elapsed().as_secs_f64() >= FETCHED_SECONDS_MOST;
            if late || bytes >= FETCHED_BYTES_MOST {
                break;
            }
        }
        let (first_byte, all) = (first.unwrap_or(0.0), began.elapsed().as_secs_f64());
        let share = before.busy_share(&Processors::now()).unwrap_or(0.0);
        #[allow(clippy::cast_precision_loss, reason = "a few hundred megabytes")]
        let bytes = bytes as f64;
        let busy = share * all * f64::from(self.cores) / bytes.max(1.0);
        Ok(Fetched { rate: bytes / (all - first_byte).max(1e-6), first_byte, busy, sample })
    }

    /// Seconds of one thread for a compressed byte, and what came out, as far as that is kept.
    fn decompress(
        &self,
        compression: Compression,
        sample: &[Bytes],
    ) -> Result<(f64, Vec<Bytes>), CalibrateError> {
        let failed = |source| CalibrateError::Decompress { blob: self.blob, source };
        let mut left = VecDeque::from(sample.to_vec());
        let pieces: Box<dyn Pieces + Send> = Box::new(move || Ok::<_, io::Error>(left.pop_front()));
        let mut decoder =
            compression::decoder(compression, pieces, Resources::serial()).map_err(failed)?;
        let (mut out, mut seconds) = (Vec::new(), 0.0);
        // One for all, as in a pull: the first touch of fresh memory is no part of decompressing.
        let mut buffer = vec![0; 256 << 10];
        loop {
            let began = Instant::now();
            let read = decoder.read(&mut buffer);
            seconds += began.elapsed().as_secs_f64();
            match read {
                Ok(Decoded::Filled(count)) => out.push(Bytes::copy_from_slice(&buffer[..count])),
                Ok(Decoded::Piece(piece)) => out.push(piece),
                Ok(Decoded::End) => break,
                // A sample ends in the middle.
                Err(_) if !out.is_empty() => break,
                Err(error) => return Err(failed(error)),
            }
        }
        Ok((seconds.max(1e-6) / length(sample).max(1.0), out))
    }

    fn profile(&self, name: &str, seen: &Seen, costs: &Costs) -> Profile {
        #[allow(clippy::cast_precision_loss, reason = "a few megabytes")]
        let piece = Size(self.chunk_bytes as f64);
        let rates = Rates {
            download: Rate::measured(seen.one.max(seen.many)),
            // One that is as fast as many is not what limits.
            per_connection: (seen.one < seen.many * 0.9).then(|| Rate::measured(seen.one)),
            connections: CONNECTIONS,
            cores: self.cores.max(1),
            disk: Some(Rate::measured(seen.disk)),
            latency: Seconds((seen.first_byte * 1e3).round() / 1e3),
            piece,
            ..costs.rates()
        };
        Profile { name: name.to_owned(), models: costs.others(), rates }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a few hundred megabytes")]
fn length(pieces: &[Bytes]) -> f64 {
    pieces.iter().map(Bytes::len).sum::<usize>() as f64
}

/// The same in another format, at its usual level and in one piece.
fn recompressed(pieces: &[Bytes], compression: Compression) -> io::Result<Vec<Bytes>> {
    let blob = match compression {
        Compression::None => return Ok(pieces.to_vec()),
        Compression::Zstd => {
            let mut encoder = zstd::Encoder::new(Vec::new(), 3)?;
            pieces.iter().try_for_each(|piece| encoder.write_all(piece))?;
            encoder.finish()?
        }
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            pieces.iter().try_for_each(|piece| encoder.write_all(piece))?;
            encoder.finish()?
        }
    };
    Ok(super::pieces(blob.into()).collect())
}

/// Seconds of SHA-256 for a byte, where two streams are hashed at once, as in a pull.
fn hash(sample: &[Bytes]) -> f64 {
    let [mut one, mut other] = [Hasher::default(), Hasher::default()];
    let began = Instant::now();
    for piece in sample {
        Hasher::update_both([&mut one, &mut other], [piece, piece]);
    }
    let _ = (one.finish(), other.finish());
    began.elapsed().as_secs_f64() / 2.0 / length(sample).max(1.0)
}
