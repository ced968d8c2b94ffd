//! `floor --hosts-dir DIR --into DIR IMAGE`: what each of a pull's four works costs alone, as JSON.
//!
//! Every puller has to fetch the blobs, hash them and what they hold, decompress them, and write the files. Here each is
//! done by itself with hoist's own rooms, on the blobs and the machine of a bench's run, so that the sum of the parts can
//! be held against the whole:
//!
//! - **fetch**: all layers at once by ranges, as a pull does, and forgotten as they arrive.
//! - **decompress** and **hash**: one layer after the other on one thread, timed piece by piece (512 KiB, as in a pull);
//!   the hash is of the compressed and of the uncompressed bytes, each in a pair with itself and counted as half of that.
//! - **write**: the archive's entries into files, from memory, by as many writers as there are cores. Then once `syncfs`.
//! - **write_image**: the same into an EROFS image, which is removed again before the files are made.
//!
//! Seconds are of the wall and of all of this process's threads (`cpu`), bytes are what went into the work.

#![allow(clippy::print_stdout, reason = "a program for the bench, which reads its standard output")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use hoist::budget::Budget;
use hoist::compression::{Decoded, Resources, decoder};
use hoist::fetch::{BlobReader, Fetcher, ImageFetcher, Limits};
use hoist::hashing::Hasher;
use hoist::image::{ImageLayer, ImagePlan, Platform, Reference};
use hoist::pull::{Start, parse_reference, resolve};
use hoist::registry::{Registry, Settings};
use hoist::timeline::LayerRecorder;
use hoist::unpack::{ImageLabel, Options, unpack, unpack_image};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::runtime::Handle;

/// Bytes of one buffer between a pull's stages.
const PIECE_BYTES: usize = 512 << 10;

/// hoistd's default budget, in bytes.
const BUDGET_BYTES: u64 = 256 << 20;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What each of a pull's four works costs alone.
#[derive(Parser)]
struct Arguments {
    /// containerd's certs.d.
    #[arg(long)]
    hosts_dir: PathBuf,
    /// An empty directory on the file system to be measured.
    #[arg(long)]
    into: PathBuf,
    /// The image's reference.
    image: String,
}

/// What a work took.
#[derive(Serialize, Default, Clone, Copy)]
struct Cost {
    /// Seconds of the wall.
    wall: f64,
    /// Seconds of all threads.
    cpu: f64,
    /// Bytes that went in.
    bytes: u64,
}

impl Cost {
    fn add(&mut self, other: Self) {
        self.wall += other.wall;
        self.cpu += other.cpu;
        self.bytes += other.bytes;
    }
}

/// What is printed.
#[derive(Serialize, Default)]
struct Report {
    image: String,
    cores: usize,
    layers: usize,
    entries: u64,
    /// Bytes of all blobs.
    compressed: u64,
    /// Bytes of all archives.
    unpacked: u64,
    fetch: Cost,
    hash: Cost,
    decompress: Cost,
    write: Cost,
    write_image: Cost,
    /// Seconds that `syncfs` takes afterwards; no part of the floor, as no puller waits for it.
    sync: f64,
}

/// A clock of processor time, of this thread or of the whole process.
fn cpu(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Runs `work` on `bytes` bytes and says what it took of `clock`.
fn measured<T>(clock: ClockId, bytes: u64, work: impl FnOnce() -> T) -> (T, Cost) {
    let (began, before) = (Instant::now(), cpu(clock));
    let result = work();
    let spent = cpu(clock).saturating_sub(before);
    let cost = Cost { wall: began.elapsed().as_secs_f64(), cpu: spent.as_secs_f64(), bytes };
    (result, cost)
}

/// An image in the registry.
struct Image {
    registry: Registry,
    fetcher: Fetcher,
    reference: Reference,
    plan: ImagePlan,
}

impl Image {
    fn find(runtime: &Handle, arguments: &Arguments) -> Outcome<Self> {
        let hosts_dirs = vec![arguments.hosts_dir.clone()];
        let registry = Registry::new(Settings { hosts_dirs, ..Settings::default() })?;
        let budget = Budget::new(BUDGET_BYTES);
        let fetcher = Fetcher::new(registry.clone(), budget, Limits::default());
        let reference = parse_reference(&arguments.image)?;
        let platform = Platform::host();
        let found = resolve(&registry, &reference, &Start::Reference, &platform);
        let plan = runtime.block_on(found)?.plan;
        Ok(Self { registry, fetcher, reference, plan })
    }

    fn reader(&self, runtime: &Handle, of: &ImageFetcher, layer: &ImageLayer) -> BlobReader {
        let blob = self.registry.blob(&self.reference, layer.blob, layer.size);
        of.start(runtime, blob, layer.size, Arc::new(LayerRecorder::detached()))
    }

    fn bytes(&self) -> u64 {
        self.plan.layers.iter().map(|layer| layer.size).sum()
    }

    /// Fetches all layers at once and forgets them.
    fn fetch(&self, runtime: &Handle) -> Outcome<()> {
        let fetcher = self.fetcher.image();
        std::thread::scope(|scope| {
            let read = |layer| {
                let mut reader = self.reader(runtime, &fetcher, layer);
                move || -> Outcome<()> {
                    while reader.next()?.is_some() {}
                    Ok(())
                }
            };
            let readers: Vec<_> =
                self.plan.layers.iter().map(|layer| scope.spawn(read(layer))).collect();
            readers
                .into_iter()
                .try_for_each(|reader| reader.join().map_err(|_| "a reader panicked")?)
        })
    }

    /// A layer's blob in memory.
    fn blob(&self, runtime: &Handle, layer: &ImageLayer) -> Outcome<Bytes> {
        let mut reader = self.reader(runtime, &self.fetcher.image(), layer);
        let mut blob = Vec::with_capacity(usize::try_from(layer.size)?);
        while let Some(piece) = reader.next()? {
            blob.extend_from_slice(&piece);
        }
        Ok(blob.into())
    }
}

/// `whole` in pieces, without copying.
fn pieces(whole: Bytes) -> impl Iterator<Item = Bytes> {
    (0..whole.len())
        .step_by(PIECE_BYTES)
        .map(move |at| whole.slice(at..whole.len().min(at + PIECE_BYTES)))
}

/// Decompresses a blob, hashes both forms, and returns the archive. What memory for the archive costs is not counted.
fn decode(layer: &ImageLayer, blob: Bytes, report: &mut Report) -> Outcome<Bytes> {
    let compression = layer.compression().ok_or("a layer that hoist does not unpack")?;
    let mut hash = Twins::default();
    for piece in pieces(blob.clone()) {
        report.hash.add(hash.update(&piece));
    }
    verify(hash, &layer.blob.to_string())?;

    report.decompress.bytes += blob.len() as u64;
    let mut source = pieces(blob);
    let mut decoder =
        decoder(compression, Box::new(move || Ok(source.next())), Resources::serial())?;
    let (mut archive, mut hash) = (Vec::new(), Twins::default());
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let fill = || -> Outcome<usize> {
            let mut filled = 0;
            while filled < buffer.len() {
                match decoder.read(&mut buffer[filled..])? {
                    Decoded::Filled(count) => filled += count,
                    Decoded::Piece(_) => return Err("a serial decoder has no pieces".into()),
                    Decoded::End => break,
                }
            }
            Ok(filled)
        };
        let (filled, cost) = measured(ClockId::ThreadCPUTime, 0, fill);
        report.decompress.add(cost);
        let piece = match filled? {
            0 => break,
            filled => &buffer[..filled],
        };
        report.hash.add(hash.update(piece));
        archive.extend_from_slice(piece);
    }
    verify(hash, &layer.diff_id.to_string())?;
    Ok(archive.into())
}

/// A stream's hash, made twice at once: a pull hashes streams in pairs, so one of them costs half of this.
#[derive(Default)]
struct Twins([Hasher; 2]);

impl Twins {
    fn update(&mut self, piece: &[u8]) -> Cost {
        let [one, other] = &mut self.0;
        let work = || Hasher::update_both([one, other], [piece, piece]);
        let (_, cost) = measured(ClockId::ThreadCPUTime, piece.len() as u64, work);
        Cost { wall: cost.wall / 2.0, cpu: cost.cpu / 2.0, ..cost }
    }
}

fn verify(hash: Twins, digest: &str) -> Outcome<()> {
    let [hash, _] = hash.0;
    let found = hash.finish().to_string();
    if found == digest { Ok(()) } else { Err(format!("{found} came instead of {digest}").into()) }
}

/// Writes an archive as an image, which does not stay.
fn write_image(archive: Bytes, dest: &Path, report: &mut Report) -> Outcome<()> {
    let (bytes, recorder) = (archive.len() as u64, LayerRecorder::detached());
    let mut source = pieces(archive);
    let mut source = move || Ok(source.next());
    let (label, options) = (ImageLabel::default(), Options::default());
    let work = || unpack_image(&mut source, dest, label, &options, None, &recorder);
    let (written, cost) = measured(ClockId::ProcessCPUTime, bytes, work);
    written?;
    report.write_image.add(cost);
    Ok(fs::remove_file(dest)?)
}

/// Writes an archive's entries below `dest`.
fn write(archive: Bytes, dest: &Path, report: &mut Report) -> Outcome<()> {
    fs::create_dir(dest)?;
    let (bytes, recorder) = (archive.len() as u64, LayerRecorder::detached());
    let mut source = pieces(archive);
    let mut source = move || Ok(source.next());
    let work = || unpack(&mut source, dest, &Options::default(), &recorder);
    let (summary, cost) = measured(ClockId::ProcessCPUTime, bytes, work);
    report.entries += summary?.entries;
    report.write.add(cost);
    Ok(())
}

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let image = Image::find(runtime.handle(), &arguments)?;
    let mut report = Report {
        image: arguments.image.clone(),
        cores: std::thread::available_parallelism()?.get(),
        layers: image.plan.layers.len(),
        compressed: image.bytes(),
        ..Report::default()
    };
    let fetch = || image.fetch(runtime.handle());
    let (fetched, cost) = measured(ClockId::ProcessCPUTime, image.bytes(), fetch);
    fetched?;
    report.fetch = cost;
    for (number, layer) in image.plan.layers.iter().enumerate() {
        let blob = image.blob(runtime.handle(), layer)?;
        let archive = decode(layer, blob, &mut report)?;
        report.unpacked += archive.len() as u64;
        write_image(archive.clone(), &arguments.into.join("image"), &mut report)?;
        write(archive, &arguments.into.join(number.to_string()), &mut report)?;
    }
    let (synced, cost) = measured(ClockId::ProcessCPUTime, 0, || -> Outcome<()> {
        Ok(rustix::fs::syncfs(fs::File::open(&arguments.into)?)?)
    });
    synced?;
    report.sync = cost.wall;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
