//! The way of a byte from the registry up to the unpacker: fetched, hashed, decoded, hashed again.
//!
//! The decoder pulls: it asks its [`Feed`] for compressed bytes, which gives each of them to the
//! blob's hash as well, and to whoever keeps the blob. What it decodes goes to the archive's hash and
//! into the unpacker's queue.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::buffers::{BUFFER_BYTES, Buffers};
use super::footprint::Footprint;
use super::keep::Sink;
use crate::compression::{self, Arrival, CompressionError, Decoded, Pieces, Resources};
use crate::fetch::{BlobReader, FetchError};
use crate::hashing::{HashStream, Hashed, Hashers};
use crate::image::{BlobDigest, Compression, DiffId};
use crate::timeline::{LayerRecorder, Phase, Stall};

/// The way of a byte up to the unpacker.
pub(super) struct Stage<'a> {
    feed: Arc<Mutex<Feed>>,
    archive: HashStream,
    recorder: &'a LayerRecorder,
    footprint: Footprint,
}

impl<'a> Stage<'a> {
    /// For a blob that comes from `reader` and goes to `keep` too, where that is wanted.
    pub(super) fn new(
        reader: BlobReader,
        keep: Option<Sink>,
        hashers: &Hashers,
        footprint: Footprint,
        recorder: &'a Arc<LayerRecorder>,
    ) -> Self {
        let hash = hashers.stream(footprint.blob_unhashed, hashed(recorder));
        let (waited, error, noted) = (Duration::ZERO, None, Arc::clone(recorder));
        let feed = Feed { reader, hash, keep, waited, error, recorder: noted };
        let archive = hashers.stream(footprint.archive_unhashed(), hashed(recorder));
        Self { feed: Arc::new(Mutex::new(feed)), archive, recorder, footprint }
    }

    /// Decodes the blob and hashes both sides. Where the decoder or the unpacker fails because of
    /// what the bytes are, the rest is hashed all the same, to say whether they are the right
    /// bytes; where they are `unwanted` for another reason, it is not even fetched.
    pub(super) fn run(
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

/// How the stage up to the decoder ended.
pub(super) struct Upstream {
    /// `None` where the rest of the blob was not worth fetching.
    pub(super) blob: Result<Option<BlobDigest>, FetchError>,
    pub(super) decoder: Result<(), CompressionError>,
    /// `None` where the decoder did not come to the end.
    pub(super) diff: Option<DiffId>,
}

/// Notes in `recorder` what is hashed.
fn hashed(recorder: &Arc<LayerRecorder>) -> Hashed {
    let recorder = Arc::clone(recorder);
    Box::new(move |from, busy, bytes| {
        recorder.spent(Phase::Hash, from, from + busy);
        recorder.bytes(Phase::Hash, bytes);
    })
}

/// The blob on its way into the decoder and into its hash.
struct Feed {
    reader: BlobReader,
    hash: HashStream,
    /// Where the compressed bytes go too.
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
