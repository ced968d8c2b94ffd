//! One layer, from the first byte that arrives to the last file that is written.
//!
//! Two stages, each a thread, with a bounded queue between them; the unpacker has its own writer
//! threads behind it, and the hashes are made by the threads of [`crate::hashing`], which all
//! layers share. Nothing waits for the whole of anything:
//!
//! ```text
//! BlobReader ─▶ decoder ──(fixed set of buffers)──▶ unpacker ─▶ writers
//!        ╰─▶ blob's hash ╰─▶ archive's hash
//! ```
//!
//! Whole frames that [`compression::Pool`] has decoded come in buffers of their own.
//!
//! The hashes are made beside the way, not on it: they are a third of a layer's work. A layer is
//! whole only when both digests have been compared; until then its tree is staged and nobody can
//! see it. When a stage fails, its queue closes and the other stops; the error that is told is the
//! one nearest to the cause: a decoder that chokes on bytes which turn out to be the wrong ones is
//! a mismatch of digests, so the blob is hashed to its end first.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::PullError;
use super::buffers::{BUFFER_BYTES, BUFFERS, Buffers};
use super::keep::Sink;
use super::trees::{StagedImage, StoreError};
use crate::archive::Source;
use crate::budget::Budget;
use crate::compression::{self, Arrival, CompressionError, Decoded, Pieces, Resources};
use crate::erofs::BlockSize;
use crate::fetch::{BlobReader, FetchError};
use crate::hashing::{HashStream, Hashers};
use crate::image::{BlobDigest, Compression, DiffId, ImageLayer};
use crate::sys::priority::Priority;
use crate::timeline::{LayerRecorder, Phase, Stall};
use crate::unpack::{self, ImageLabel, Summary, UnpackError};

/// Compressed bytes that have left the window of their fetch and wait to be hashed, at most.
const BLOB_BYTES_UNHASHED: usize = 4 << 20;

/// Bytes of a decoder's own state, its window apart.
const DECODER_BYTES: u64 = 1 << 20;

/// The zstd window that every layer has room for: what BuildKit makes at its default level, and the
/// `zstd` tool up to level 19. (`zstd -3` has 2 MiB, gzip 32 KiB.)
pub(super) const ORDINARY_WINDOW_BYTES: u64 = 8 << 20;

/// Buffers of the smallest layer. The unpacker keeps a batch that spans 1 MiB and the small file
/// after it, which lie in four buffers at most, and a hash that waits for a partner a quarter of
/// all: two are left for the decoder to go on with.
const BUFFERS_LEAST: usize = 8;

/// Compressed bytes of a layer that its serial work takes in a second, about: only their ratio
/// matters, to tell which layer has most before it. (Measured with gzip -6 and zstd -3.)
pub(super) fn serial_bytes_per_second(compression: Compression) -> u64 {
    match compression {
        Compression::Gzip => 146_000_000,
        Compression::Zstd => 230_000_000,
        Compression::None => 1_000_000_000,
    }
}

/// What the stages of a layer may hold between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Footprint {
    buffers: usize,
    blob_unhashed: usize,
}

impl Footprint {
    /// For a layer of `size` compressed bytes: a small one is over before it fills much, and many
    /// of them are in work at once.
    pub(super) fn of(size: u64) -> Self {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        Self {
            buffers: size.div_ceil(BUFFER_BYTES / 2).clamp(BUFFERS_LEAST, BUFFERS),
            blob_unhashed: size.clamp(1, BLOB_BYTES_UNHASHED),
        }
    }

    /// Uncompressed bytes that wait to be hashed: half of the buffers, so that a hash that waits for
    /// a partner never keeps the decoder from going on.
    fn archive_unhashed(self) -> usize {
        self.buffers * BUFFER_BYTES / 2
    }

    /// What a layer in work takes of the memory budget beside the window of its fetch: the buffers,
    /// what waits for the blob's hash, and the decoder with its window. What a stream of several
    /// frames holds beside that is borrowed by `compression` itself.
    pub(super) fn bytes(self, compression: Compression, window_bytes: u64) -> u64 {
        let queues = (self.buffers * BUFFER_BYTES + self.blob_unhashed) as u64;
        let window = if compression == Compression::Zstd { window_bytes } else { 0 };
        queues + DECODER_BYTES + window
    }
}

/// What a layer becomes.
pub(super) enum Dest {
    /// Files in this directory.
    Files(PathBuf),
    /// An EROFS image.
    Image {
        staged: StagedImage,
        /// Names and metadata are paid for from here, beside what the layer has reserved.
        budget: Budget,
    },
}

/// What is needed to make a layer's tree.
pub(super) struct Work {
    pub(super) layer: ImageLayer,
    pub(super) compression: Compression,
    pub(super) resources: Resources,
    pub(super) reader: BlobReader,
    /// Where the compressed bytes go too.
    pub(super) keep: Option<Sink>,
    pub(super) hashers: Hashers,
    pub(super) dest: Dest,
    pub(super) unpack: unpack::Options,
    pub(super) recorder: Arc<LayerRecorder>,
}

/// Makes a layer's tree. Blocks; call it on a thread for blocking work.
///
/// # Errors
/// Whatever failed first in the order of a byte's way; `dest` then holds a part of the tree.
pub(super) fn run(work: Work) -> Result<Summary, PullError> {
    let Work { layer, compression, resources, reader, keep, hashers, dest, unpack, recorder } =
        work;
    let unwanted = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let footprint = Footprint::of(layer.size);
        let (to_unpack, archive) = sync_channel(footprint.buffers);
        let blob = hashers.stream(footprint.blob_unhashed, hashed(&recorder));
        let stage = Stage {
            feed: Arc::new(Mutex::new(Feed {
                reader,
                hash: blob,
                keep,
                waited: Duration::ZERO,
                error: None,
                recorder: Arc::clone(&recorder),
            })),
            archive: hashers.stream(footprint.archive_unhashed(), hashed(&recorder)),
            recorder: &recorder,
            footprint,
        };
        let span = tracing::Span::current();
        let run = move || span.in_scope(|| stage.run(compression, resources, &to_unpack, unwanted));
        let stage = std::thread::Builder::new().name("hoist-decode".to_owned());
        let stage = stage.spawn_scoped(scope, run).map_err(not_started)?;

        let mut source = Archive { pieces: archive, recorder: &recorder };
        let mut make = || match &dest {
            Dest::Files(root) => unpack::unpack(&mut source, root, &unpack, &recorder),
            Dest::Image { staged, budget } => {
                let (label, budget) = (label(&layer, staged.block), Some(budget));
                unpack::unpack_image(&mut source, &staged.path, label, &unpack, budget, &recorder)
            }
        };
        let unpacked = match unpack.priority {
            usual if usual.is_usual() => make(),
            lower => yielding(lower, make)?,
        };
        match &unpacked {
            // Bytes after the end of the archive belong to its digest.
            Ok(_) => while source.pieces.recv().is_ok() {},
            // Here they are of no use, whatever they are.
            Err(error) => {
                unwanted.store(error.is_of_the_host() || error.is_of_the_image(), Relaxed);
            }
        }
        drop(source);
        let panicked = |_| PullError::Internal { layer: layer.blob, what: "its decoder" };
        Ended { decoded: stage.join().map_err(panicked)?, unpacked }.judge(&layer)
    })
}

/// Runs `make` on a thread that has this priority: the one that calls is lent by the runtime, and a
/// thread cannot rise again.
fn yielding(
    priority: Priority,
    make: impl FnOnce() -> Result<Summary, UnpackError> + Send,
) -> Result<Result<Summary, UnpackError>, PullError> {
    let span = tracing::Span::current();
    let run = move || {
        if let Err(error) = priority.take() {
            tracing::warn!(%error, "layers are written with the usual priority");
        }
        span.in_scope(make)
    };
    let thread = std::thread::Builder::new().name("hoist-unpack".to_owned());
    std::thread::scope(|scope| {
        let thread = thread.spawn_scoped(scope, run).map_err(not_started)?;
        Ok(thread.join().unwrap_or(Err(UnpackError::Panicked)))
    })
}

fn not_started(source: io::Error) -> PullError {
    StoreError::Io { doing: "start a layer's thread".to_owned(), source }.into()
}

/// The image of a layer is named by its DiffID; what no entry gives a time has that of the pull, as
/// in files.
fn label(layer: &ImageLayer, block: BlockSize) -> ImageLabel {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&layer.diff_id.0.as_bytes()[..16]);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ImageLabel { uuid, seconds: since.as_secs(), block }
}

/// Notes in `recorder` what is hashed.
fn hashed(recorder: &Arc<LayerRecorder>) -> crate::hashing::Hashed {
    let recorder = Arc::clone(recorder);
    Box::new(move |from, busy, bytes| {
        recorder.spent(Phase::Hash, from, from + busy);
        recorder.bytes(Phase::Hash, bytes);
    })
}

/// How the stages ended.
struct Ended {
    decoded: Upstream,
    unpacked: Result<Summary, UnpackError>,
}

/// How the stage up to the decoder ended.
struct Upstream {
    /// `None` where the rest of the blob was not worth fetching.
    blob: Result<Option<BlobDigest>, FetchError>,
    decoder: Result<(), CompressionError>,
    /// `None` where the decoder did not come to the end.
    diff: Option<DiffId>,
}

impl Ended {
    /// The summary, if everything is as the image says; else the error nearest to the cause.
    fn judge(self, layer: &ImageLayer) -> Result<Summary, PullError> {
        let Self { decoded, unpacked } = self;
        let blob = layer.blob;
        match decoded.blob {
            Err(FetchError::Cancelled) => return Err(PullError::Cancelled),
            Err(error) => return Err(PullError::Fetch { layer: blob, source: Arc::new(error) }),
            Ok(Some(actual)) if actual != blob => {
                return Err(PullError::BlobMismatch { expected: blob, actual });
            }
            Ok(_) => {}
        }
        decoded
            .decoder
            .map_err(|error| PullError::Decompress { layer: blob, source: Arc::new(error) })?;
        let summary =
            unpacked.map_err(|error| PullError::Unpack { layer: blob, source: Arc::new(error) })?;
        match decoded.diff {
            Some(actual) if actual == layer.diff_id => Ok(summary),
            Some(actual) => {
                Err(PullError::DiffIdMismatch { layer: blob, expected: layer.diff_id, actual })
            }
            None => Err(PullError::Internal { layer: blob, what: "the archive's hash" }),
        }
    }
}

/// The blob on its way into the decoder and into its hash.
struct Feed {
    reader: BlobReader,
    hash: HashStream,
    keep: Option<Sink>,
    /// Time that the decoder waited for bytes.
    waited: Duration,
    /// Why no more bytes come.
    error: Option<FetchError>,
    recorder: Arc<LayerRecorder>,
}

impl Feed {
    fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let from = Instant::now();
        let piece = self.reader.next()?;
        self.recorder.stalled(Stall::Bytes, from);
        if let Some(piece) = &piece {
            let from = Instant::now();
            self.hash.push(piece.clone());
            self.recorder.stalled(Stall::Hash, from);
            if let Some(keep) = &self.keep {
                keep.push(piece.clone());
            }
        }
        self.waited += from.elapsed();
        Ok(piece)
    }

    /// The next bytes if they are there.
    fn ready(&mut self) -> Result<Arrival, FetchError> {
        match self.reader.is_ready() {
            false => Ok(Arrival::Later),
            true => Ok(self.next()?.map_or(Arrival::End, Arrival::Piece)),
        }
    }

    /// The digest of the whole blob, which is read to its end where somebody `wants` that.
    fn end(mut self, wants: bool) -> Result<Option<BlobDigest>, FetchError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if !wants {
            return Ok(None);
        }
        while self.next()?.is_some() {}
        let from = Instant::now();
        let digest = self.hash.finish();
        self.recorder.stalled(Stall::Hash, from);
        Ok(Some(BlobDigest(digest)))
    }
}

fn locked(feed: &Mutex<Feed>) -> MutexGuard<'_, Feed> {
    feed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The decoder's input.
struct Arriving(Arc<Mutex<Feed>>);

impl Arriving {
    /// Asks the feed; its error is kept there, and a word of it goes to the decoder.
    fn ask<T>(&self, ask: impl FnOnce(&mut Feed) -> Result<T, FetchError>) -> io::Result<T> {
        let mut feed = locked(&self.0);
        ask(&mut feed).map_err(|error| {
            let told = io::Error::other(error.to_string());
            feed.error = Some(error);
            told
        })
    }
}

impl Pieces for Arriving {
    fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        self.ask(Feed::next)
    }

    fn ready_piece(&mut self) -> io::Result<Arrival> {
        self.ask(Feed::ready)
    }
}

/// The way of a byte up to the unpacker.
struct Stage<'a> {
    feed: Arc<Mutex<Feed>>,
    archive: HashStream,
    recorder: &'a LayerRecorder,
    footprint: Footprint,
}

impl Stage<'_> {
    /// Decodes the blob and hashes both sides. Where the decoder or the unpacker fails because of
    /// what the bytes are, the rest is hashed all the same, to say whether they are the right
    /// bytes; where they are `unwanted` for another reason, it is not even fetched.
    fn run(
        mut self,
        compression: Compression,
        resources: Resources,
        to_unpack: &SyncSender<Bytes>,
        unwanted: &AtomicBool,
    ) -> Upstream {
        let decoded = self.decode(compression, resources, to_unpack);
        let diff = matches!(decoded, Ok(true)).then(|| DiffId(self.archive.finish()));
        // The decoder, which had the other reference, is gone.
        let feed = Arc::into_inner(self.feed).expect("nobody else has the feed");
        let feed = feed.into_inner().unwrap_or_else(PoisonError::into_inner);
        let suspect = decoded.as_ref().err().is_none_or(CompressionError::is_bad_data);
        let blob = feed.end(suspect && !unwanted.load(Relaxed));
        Upstream { blob, decoder: decoded.map(drop), diff }
    }

    /// Decodes until the end, or until nobody takes the archive any more: `false`.
    fn decode(
        &mut self,
        compression: Compression,
        resources: Resources,
        to_unpack: &SyncSender<Bytes>,
    ) -> Result<bool, CompressionError> {
        let input = Box::new(Arriving(Arc::clone(&self.feed)));
        let mut decoder = compression::decoder(compression, input, resources)?;
        let buffers = Buffers::new(self.footprint.buffers);
        loop {
            let mut loan = buffers.take();
            let from = Instant::now();
            locked(&self.feed).waited = Duration::ZERO;
            let (mut filled, mut piece, mut ended) = (0, None, false);
            while filled < BUFFER_BYTES && piece.is_none() && !ended {
                match decoder.read(&mut loan.space()[filled..])? {
                    Decoded::Filled(count) => filled += count,
                    Decoded::Piece(bytes) => piece = Some(bytes),
                    Decoded::End => ended = true,
                }
            }
            // The wait is taken off the front: what is left is how long the decoder worked.
            let from = from + locked(&self.feed).waited + decoder.take_waited();
            self.recorder.spent(Phase::Decompress, from, Instant::now());
            let whole = (filled > 0).then(|| loan.freeze(filled));
            for bytes in whole.into_iter().chain(piece) {
                self.recorder.bytes(Phase::Decompress, bytes.len() as u64);
                let from = Instant::now();
                self.archive.push(bytes.clone());
                self.recorder.stalled(Stall::Hash, from);
                if to_unpack.send(bytes).is_err() {
                    return Ok(false);
                }
            }
            if ended {
                return Ok(true);
            }
        }
    }
}

/// The unpacker's input.
struct Archive<'a> {
    pieces: Receiver<Bytes>,
    recorder: &'a LayerRecorder,
}

impl Source for Archive<'_> {
    fn next_bytes(&mut self) -> io::Result<Option<Bytes>> {
        let from = Instant::now();
        let piece = self.pieces.recv().ok();
        self.recorder.stalled(Stall::Archive, from);
        Ok(piece)
    }
}
