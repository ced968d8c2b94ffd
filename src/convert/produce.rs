//! Writes new layers, with all cores, to the same bytes whatever their number.
//!
//! A layer's archive is cut into frames before anything is written: their lengths follow from the
//! entries alone. A frame is made from nothing but its own entries (headers, contents out of the
//! spool, compression), so threads make frames of all layers at once, in a fixed order of work.
//! What is made is hashed and written in the order of the layer: each thread waits for its frame's
//! turn with the frame in hand. Frames in hand are as many as threads, which bounds the memory, and
//! the thread with the earliest frame never waits, so that none waits for ever.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use sha2::Digest as _;

use super::ConvertError;
use super::header::{self, Item};
use super::progress::Progress;
use super::spool::{Spool, SpoolReader, Spot};
use super::tree::{Node, Tree};
use super::written::Written;
use crate::compression::frame_table::{FrameEntry, FrameTable, FrameTableRef};
use crate::compression::seek_table::{Entry, SeekTable};
use crate::image::{BlobDigest, Compression, DiffId, Sha256};
use crate::layout::Staging;

/// Uncompressed bytes of a frame: small enough that a layer has work for many cores, large enough
/// that its beginning costs no compression worth speaking of.
pub(super) const FRAME_BYTES: u64 = 4 << 20;

/// Zeros at the end of an archive.
const END_BYTES: u64 = 2 * header::BLOCK;

/// How new layers are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Codec {
    /// The format.
    pub compression: Compression,
    /// Its level; for zstd 1 to 22, for gzip 1 to 9.
    pub level: i32,
}

/// Part of an item's bytes: header, content, padding.
struct Part {
    item: usize,
    range: Range<u64>,
}

/// Cuts a layer into frames, at the borders of files where that can be.
fn frames(tree: &Tree, items: &[Item]) -> io::Result<Vec<Vec<Part>>> {
    let (mut frames, mut current, mut filled) = (Vec::new(), Vec::new(), 0);
    for (item, entry) in items.iter().enumerate() {
        let length = header::render(entry, tree.inode(entry.inode))?.len() as u64
            + content(tree, entry).map_or(0, |(_, size)| size.next_multiple_of(header::BLOCK));
        if filled + length > FRAME_BYTES && filled > 0 {
            frames.push(std::mem::take(&mut current));
            filled = 0;
        }
        let mut at = 0;
        while at < length {
            let end = length.min(at + FRAME_BYTES);
            current.push(Part { item, range: at..end });
            if end < length {
                frames.push(std::mem::take(&mut current));
            } else {
                // A large item begins a frame, so its last part has one for itself until now.
                filled += end - at;
            }
            at = end;
        }
    }
    // The last frame has the archive's end, even where it has nothing else.
    frames.push(current);
    Ok(frames)
}

fn content(tree: &Tree, item: &Item) -> Option<(Spot, u64)> {
    match &tree.inode(item.inode).node {
        Node::File(content) if item.link.is_none() => Some((content.spot, content.size)),
        _ => None,
    }
}

/// The uncompressed bytes of a frame.
fn render(
    tree: &Tree,
    items: &[Item],
    parts: &[Part],
    reader: &mut SpoolReader<'_>,
) -> io::Result<Vec<u8>> {
    let length: u64 = parts.iter().map(|part| part.range.end - part.range.start).sum();
    let length = usize::try_from(length + END_BYTES).map_err(io::Error::other)?;
    let mut out = Vec::with_capacity(length);
    for Part { item, range } in parts {
        let item = &items[*item];
        let head = header::render(item, tree.inode(item.inode))?;
        let head_bytes = head.len() as u64;
        let end = out.len() as u64 + range.end - range.start;
        if range.start < head_bytes {
            // Frames are much larger than headers: one is never cut.
            let from = usize::try_from(range.start).map_err(io::Error::other)?;
            let to = usize::try_from(range.end.min(head_bytes)).map_err(io::Error::other)?;
            out.extend_from_slice(&head[from..to]);
        }
        if let Some((spot, size)) = content(tree, item) {
            let from = range.start.saturating_sub(head_bytes).min(size);
            let to = range.end.saturating_sub(head_bytes).min(size);
            let spot = Spot { offset: spot.offset + from, ..spot };
            reader.read(spot, to - from, &mut out)?;
        }
        out.resize(usize::try_from(end).map_err(io::Error::other)?, 0);
    }
    Ok(out)
}

/// Makes frames of one format. Each can be decompressed alone.
pub(super) struct Compressor {
    codec: Codec,
    zstd: zstd::bulk::Compressor<'static>,
}

impl Compressor {
    pub(super) fn new(codec: Codec) -> io::Result<Self> {
        let level = if codec.compression == Compression::Zstd { codec.level } else { 1 };
        Ok(Self { codec, zstd: zstd::bulk::Compressor::new(level)? })
    }

    fn compress(&mut self, raw: &[u8]) -> io::Result<Vec<u8>> {
        match self.codec.compression {
            Compression::None => Ok(raw.to_vec()),
            Compression::Zstd => self.zstd.compress(raw),
            Compression::Gzip => {
                let level = flate2::Compression::new(self.codec.level.unsigned_abs());
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(raw)?;
                encoder.finish()
            }
        }
    }
}

/// A frame, made.
pub(super) struct Made {
    raw: Vec<u8>,
    compressed: Vec<u8>,
    entry: FrameEntry,
}

impl Compressor {
    pub(super) fn make(&mut self, raw: Vec<u8>) -> io::Result<Made> {
        let compressed = self.compress(&raw)?;
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(io::Error::other);
        let entry = FrameEntry {
            compressed: length(&compressed)?,
            decompressed: length(&raw)?,
            digest: Sha256::of(&compressed),
        };
        Ok(Made { raw, compressed, entry })
    }
}

/// A layer being written.
pub(super) struct Sink {
    state: Mutex<SinkState>,
    turn: Condvar,
    name: String,
}

struct SinkState {
    /// The frame that is to be written next.
    next: usize,
    out: BufWriter<File>,
    blob: sha2::Sha256,
    archive: sha2::Sha256,
    size: u64,
    archive_bytes: u64,
    table: FrameTable,
}

impl SinkState {
    /// Ends a layer in zstd with its two tables: ours, and the seekable format's.
    fn write_tables(&mut self) -> io::Result<FrameTableRef> {
        let table = self.table.to_bytes().map_err(io::Error::other)?;
        let (offset, size) = (self.size, table.len() as u64);
        let mut seek = SeekTable::new(false);
        let frames = self.table.entries.iter().map(|e| (e.compressed, e.decompressed));
        let own = u32::try_from(size).map_err(io::Error::other)?;
        for (compressed, decompressed) in frames.chain([(own, 0)]) {
            let entry = Entry { compressed, decompressed, checksum: 0 };
            seek.push(entry).map_err(io::Error::other)?;
        }
        for bytes in [&table, &seek.to_bytes()] {
            self.blob.update(bytes);
            self.out.write_all(bytes)?;
            self.size += bytes.len() as u64;
        }
        Ok(FrameTableRef { offset, size, digest: Sha256::of(&table) })
    }
}

impl Sink {
    /// A layer that is written into the file `name` of `staging`.
    pub(super) fn new(staging: &Staging, name: String) -> Result<Self, ConvertError> {
        let out = BufWriter::with_capacity(1 << 20, staging.create(&name)?);
        let new = sha2::Sha256::new;
        let state = SinkState {
            next: 0,
            out,
            blob: new(),
            archive: new(),
            size: 0,
            archive_bytes: 0,
            table: FrameTable::default(),
        };
        Ok(Self { state: Mutex::new(state), turn: Condvar::new(), name })
    }

    /// Makes the layer whole, with `entries` names in it, and has `staging` keep it.
    pub(super) fn finish(
        self,
        compression: Compression,
        entries: u64,
        staging: &Staging,
    ) -> Result<Written, ConvertError> {
        let failed = || ConvertError::disk("writing layers in", staging.directory());
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let tables = compression == Compression::Zstd;
        let frames = tables.then(|| state.write_tables()).transpose().map_err(failed())?;
        let SinkState { mut out, blob, archive, size, archive_bytes, .. } = state;
        out.flush().map_err(failed())?;
        let digest = BlobDigest(Sha256::from_bytes(blob.finalize().into()));
        let diff_id = DiffId(Sha256::from_bytes(archive.finalize().into()));
        staging.keep(&self.name, digest, size)?;
        Ok(Written {
            digest,
            size,
            diff_id,
            archive_bytes,
            entries,
            compression,
            frames,
            kept: false,
        })
    }

    /// Wakes whoever waits for a turn that will not come, after a flag was set that says so.
    pub(super) fn wake(&self) {
        // Taken, so that nobody is between looking at the flag and waiting.
        drop(self.lock());
        self.turn.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, SinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a frame when its turn has come; false where it will not, since another thread failed.
    pub(super) fn write(&self, frame: usize, made: &Made, stop: &AtomicBool) -> io::Result<bool> {
        let mut state = self.lock();
        while state.next != frame {
            if stop.load(Ordering::SeqCst) {
                return Ok(false);
            }
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.archive.update(&made.raw);
        state.blob.update(&made.compressed);
        state.out.write_all(&made.compressed)?;
        state.size += made.compressed.len() as u64;
        state.archive_bytes += made.raw.len() as u64;
        state.table.entries.push(made.entry);
        state.next += 1;
        drop(state);
        self.turn.notify_all();
        Ok(true)
    }
}

/// What all threads share.
struct Work<'a> {
    tree: &'a Tree,
    layers: &'a [Vec<Item>],
    frames: Vec<Vec<Vec<Part>>>,
    /// Layer and frame, in the order in which they are begun.
    jobs: Vec<(usize, usize)>,
    next: AtomicUsize,
    stop: AtomicBool,
    sinks: Vec<Sink>,
    codec: Codec,
    progress: &'a Progress,
}

/// Writes `layers` as blobs into `staging`, with `threads` threads.
///
/// # Errors
/// Where the disk refuses, an entry cannot be put into an archive, or the conversion is cancelled.
pub(super) fn produce(
    tree: &Tree,
    layers: &[Vec<Item>],
    spools: &[Spool],
    codec: Codec,
    threads: usize,
    staging: &Staging,
    progress: &Progress,
) -> Result<Vec<Written>, ConvertError> {
    let failed = || ConvertError::disk("writing layers in", staging.directory());
    let frames: Vec<_> = layers
        .iter()
        .map(|items| frames(tree, items))
        .collect::<Result<_, _>>()
        .map_err(failed())?;
    let mut jobs: Vec<(usize, usize)> = frames
        .iter()
        .enumerate()
        .flat_map(|(layer, frames)| (0..frames.len()).map(move |frame| (layer, frame)))
        .collect();
    jobs.sort_by_key(|&(layer, frame)| (frame, layer));
    let sinks = (0..layers.len())
        .map(|number| Sink::new(staging, format!("layer-{number}")))
        .collect::<Result<_, _>>()?;
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = Work { tree, layers, frames, jobs, next, stop, sinks, codec, progress };
    let ended: Vec<Result<(), ConvertError>> = std::thread::scope(|scope| {
        let start = || scope.spawn(|| work.thread(spools).inspect_err(|_| work.stop()));
        let all: Vec<_> = (0..threads.max(1)).map(|_| start()).collect();
        all.into_iter().map(|thread| thread.join().expect("a writer does not panic")).collect()
    });
    ended.into_iter().collect::<Result<(), _>>()?;
    let finish = |(sink, items): (Sink, &Vec<Item>)| {
        sink.finish(codec.compression, items.len() as u64, staging)
    };
    work.sinks.into_iter().zip(layers).map(finish).collect()
}

impl Work<'_> {
    fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.sinks.iter().for_each(Sink::wake);
    }

    fn thread(&self, spools: &[Spool]) -> Result<(), ConvertError> {
        let failed =
            |source| ConvertError::Disk { what: "writing", path: "a new layer".into(), source };
        let mut reader = SpoolReader::new(spools).map_err(failed)?;
        let mut compressor = Compressor::new(self.codec).map_err(failed)?;
        while let Some(&(layer, frame)) = self.jobs.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            self.progress.check()?;
            let parts = &self.frames[layer][frame];
            let mut raw =
                render(self.tree, &self.layers[layer], parts, &mut reader).map_err(failed)?;
            if frame + 1 == self.frames[layer].len() {
                let end = raw.len() + usize::try_from(END_BYTES).unwrap_or(0);
                raw.resize(end, 0);
            }
            let made = compressor.make(raw).map_err(failed)?;
            if !self.sinks[layer].write(frame, &made, &self.stop).map_err(failed)? {
                return Ok(());
            }
            self.progress.add(made.raw.len() as u64);
        }
        Ok(())
    }
}
