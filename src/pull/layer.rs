//! One layer, from the first byte that arrives to the last file that is written.
//!
//! Four stages, each a thread, with bounded queues between them; the unpacker has its own writer
//! threads behind it. Nothing waits for the whole of anything:
//!
//! ```text
//! BlobReader ─▶ blob hash ─▶ decoder ─▶ DiffID hash ─▶ unpacker ─▶ writers
//!              (pieces as    (fixed set of buffers, see `buffers`;
//!               they came)    whole frames have buffers of their own)
//! ```
//!
//! The hashes run beside the decoder, not behind it, because they are a third to a half of a
//! layer's work. A layer is whole only when both digests have been compared; until then its tree
//! is staged and nobody can see it. When a stage fails, its queues close and the others stop; the
//! error that is told is the one nearest to the cause: a decoder that chokes on bytes which turn
//! out to be the wrong ones is a mismatch of digests, so the blob is hashed to its end first.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sha2::Digest as _;

use super::PullError;
use super::buffers::{BUFFER_BYTES, BUFFERS, Buffers};
use super::trees::StoreError;
use crate::archive::Source;
use crate::compression::{self, Arrival, CompressionError, Decoded, Pieces, Resources};
use crate::fetch::{BlobReader, FetchError};
use crate::image::{BlobDigest, Compression, DiffId, ImageLayer, Sha256};
use crate::timeline::{LayerRecorder, Phase};
use crate::unpack::{self, Summary, UnpackError};

/// Compressed pieces between the blob's hash and the decoder.
const QUEUED_PIECES: usize = 16;

/// Bytes of a decoder's own state, its window apart.
const DECODER_BYTES: u64 = 1 << 20;

/// The zstd window that every layer has room for: what BuildKit makes at its default level, and the
/// `zstd` tool up to level 19. (`zstd -3` has 2 MiB, gzip 32 KiB.)
pub(super) const ORDINARY_WINDOW_BYTES: u64 = 8 << 20;

/// What a layer in work takes of the memory budget beside the window of its fetch: the buffers,
/// the queue of pieces (a piece is at most as large as an HTTP client's read buffer, 256 KiB), and
/// the decoder with its window. What a stream of several frames holds beside that is borrowed by
/// `compression` itself.
pub(super) fn bytes(compression: Compression, window_bytes: u64) -> u64 {
    let queues = (BUFFERS * BUFFER_BYTES + QUEUED_PIECES * 256 * 1024) as u64;
    let window = if compression == Compression::Zstd { window_bytes } else { 0 };
    queues + DECODER_BYTES + window
}

/// What is needed to make a layer's tree.
pub(super) struct Work {
    pub(super) layer: ImageLayer,
    pub(super) compression: Compression,
    pub(super) resources: Resources,
    pub(super) reader: BlobReader,
    pub(super) dest: PathBuf,
    pub(super) unpack: unpack::Options,
    pub(super) recorder: Arc<LayerRecorder>,
}

/// Makes a layer's tree. Blocks; call it on a thread for blocking work.
///
/// # Errors
/// Whatever failed first in the order of a byte's way; `dest` then holds a part of the tree.
pub(super) fn run(work: Work) -> Result<Summary, PullError> {
    let Work { layer, compression, resources, reader, dest, unpack, recorder } = work;
    let recorder = &*recorder;
    let bad_data = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (to_decoder, pieces) = sync_channel(QUEUED_PIECES);
        let (to_diff, decoded) = sync_channel(BUFFERS);
        let (to_unpack, archive) = sync_channel(BUFFERS);
        let blob =
            spawn(scope, "hoist-blob", move || hash_blob(reader, &to_decoder, bad_data, recorder))?;
        let decoder = spawn(scope, "hoist-decode", move || {
            let decoded = decode(compression, resources, pieces, &to_diff, recorder);
            let is_bad = decoded.as_ref().is_err_and(CompressionError::is_bad_data);
            bad_data.store(is_bad, Relaxed);
            decoded
        })?;
        let diff =
            spawn(scope, "hoist-diff", move || hash_archive(&decoded, &to_unpack, recorder))?;

        let mut source = Archive(archive);
        let unpacked = unpack::unpack(&mut source, &dest, &unpack, recorder);
        if unpacked.is_ok() {
            // Bytes after the end of the archive belong to its digest.
            while source.0.recv().is_ok() {}
        } else {
            bad_data.store(true, Relaxed);
        }
        drop(source);
        let ended = Ended {
            blob: joined(blob, &layer, "the blob's hash")?,
            decoder: joined(decoder, &layer, "the decoder")?,
            diff: joined(diff, &layer, "the archive's hash")?,
            unpacked,
        };
        ended.judge(&layer)
    })
}

fn spawn<'scope, 'env, T: Send + 'scope>(
    scope: &'scope std::thread::Scope<'scope, 'env>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<std::thread::ScopedJoinHandle<'scope, T>, PullError> {
    std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work).map_err(|error| {
        PullError::from(StoreError::Io {
            doing: "start a thread for a layer".to_owned(),
            source: error,
        })
    })
}

fn joined<T>(
    handle: std::thread::ScopedJoinHandle<'_, T>,
    layer: &ImageLayer,
    what: &'static str,
) -> Result<T, PullError> {
    handle.join().map_err(|_| PullError::Internal { layer: layer.blob, what })
}

/// How the stages ended.
struct Ended {
    blob: Result<Option<BlobDigest>, FetchError>,
    decoder: Result<(), CompressionError>,
    diff: Option<DiffId>,
    unpacked: Result<Summary, UnpackError>,
}

impl Ended {
    /// The summary, if everything is as the image says; else the error nearest to the cause.
    fn judge(self, layer: &ImageLayer) -> Result<Summary, PullError> {
        let blob = layer.blob;
        match self.blob {
            Err(FetchError::Cancelled) => return Err(PullError::Cancelled),
            Err(error) => return Err(PullError::Fetch { layer: blob, source: Arc::new(error) }),
            Ok(Some(actual)) if actual != blob => {
                return Err(PullError::BlobMismatch { expected: blob, actual });
            }
            Ok(_) => {}
        }
        self.decoder
            .map_err(|error| PullError::Decompress { layer: blob, source: Arc::new(error) })?;
        let summary = self
            .unpacked
            .map_err(|error| PullError::Unpack { layer: blob, source: Arc::new(error) })?;
        match self.diff {
            Some(actual) if actual == layer.diff_id => Ok(summary),
            Some(actual) => {
                Err(PullError::DiffIdMismatch { layer: blob, expected: layer.diff_id, actual })
            }
            None => Err(PullError::Internal { layer: blob, what: "the archive's hash" }),
        }
    }
}

/// Hashes compressed bytes and passes them on. Where the decoder has gone because of what the
/// bytes are, the rest is hashed all the same, to say whether they are the right bytes; where it
/// has gone for another reason, there is no answer.
fn hash_blob(
    mut reader: BlobReader,
    to_decoder: &SyncSender<Bytes>,
    bad_data: &AtomicBool,
    recorder: &LayerRecorder,
) -> Result<Option<BlobDigest>, FetchError> {
    let mut hasher = sha2::Sha256::new();
    let mut open = true;
    while let Some(piece) = reader.next()? {
        {
            let _busy = recorder.time(Phase::Hash);
            hasher.update(&piece);
        }
        recorder.bytes(Phase::Hash, piece.len() as u64);
        open = open && to_decoder.send(piece).is_ok();
        if !open && !bad_data.load(Relaxed) {
            return Ok(None);
        }
    }
    Ok(Some(BlobDigest(Sha256::from_bytes(hasher.finalize().into()))))
}

/// The decoder's input, with a clock for the time that it waits.
struct Arriving {
    pieces: Receiver<Bytes>,
    waited: Arc<std::sync::atomic::AtomicU64>,
}

impl Pieces for Arriving {
    fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        let from = Instant::now();
        let piece = self.pieces.recv().ok();
        let waited = u64::try_from(from.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waited.fetch_add(waited, Relaxed);
        Ok(piece)
    }

    fn ready_piece(&mut self) -> io::Result<Arrival> {
        Ok(match self.pieces.try_recv() {
            Ok(piece) => Arrival::Piece(piece),
            Err(TryRecvError::Empty) => Arrival::Later,
            Err(TryRecvError::Disconnected) => Arrival::End,
        })
    }
}

fn decode(
    compression: Compression,
    resources: Resources,
    pieces: Receiver<Bytes>,
    to_diff: &SyncSender<Bytes>,
    recorder: &LayerRecorder,
) -> Result<(), CompressionError> {
    let waited = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let input = Box::new(Arriving { pieces, waited: Arc::clone(&waited) });
    let mut decoder = compression::decoder(compression, input, resources)?;
    let buffers = Buffers::new();
    loop {
        let mut loan = buffers.take();
        let from = Instant::now();
        waited.store(0, Relaxed);
        let (mut filled, mut piece, mut ended) = (0, None, false);
        while filled < BUFFER_BYTES && piece.is_none() && !ended {
            match decoder.read(&mut loan.space()[filled..])? {
                Decoded::Filled(count) => filled += count,
                Decoded::Piece(bytes) => piece = Some(bytes),
                Decoded::End => ended = true,
            }
        }
        // The wait is taken off the front: what is left is how long the decoder worked.
        recorder.spent(
            Phase::Decompress,
            from + Duration::from_nanos(waited.load(Relaxed)) + decoder.take_waited(),
            Instant::now(),
        );
        let decoded = filled + piece.as_ref().map_or(0, Bytes::len);
        recorder.bytes(Phase::Decompress, decoded as u64);
        let whole = (filled > 0).then(|| loan.freeze(filled));
        for bytes in whole.into_iter().chain(piece) {
            if to_diff.send(bytes).is_err() {
                return Ok(());
            }
        }
        if ended {
            return Ok(());
        }
    }
}

/// Hashes the archive and passes it on; `None` where the unpacker has gone.
fn hash_archive(
    decoded: &Receiver<Bytes>,
    to_unpack: &SyncSender<Bytes>,
    recorder: &LayerRecorder,
) -> Option<DiffId> {
    let mut hasher = sha2::Sha256::new();
    for piece in decoded {
        {
            let _busy = recorder.time(Phase::Hash);
            hasher.update(&piece);
        }
        recorder.bytes(Phase::Hash, piece.len() as u64);
        to_unpack.send(piece).ok()?;
    }
    Some(DiffId(Sha256::from_bytes(hasher.finalize().into())))
}

/// The unpacker's input.
struct Archive(Receiver<Bytes>);

impl Source for Archive {
    fn next_bytes(&mut self) -> io::Result<Option<Bytes>> {
        Ok(self.0.recv().ok())
    }
}
