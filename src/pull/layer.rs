//! One layer, from the first byte that arrives to the last file that is written.
//!
//! Two stages, each a thread, with a bounded queue between them: up to the decoder (`decode`), and
//! the unpacker, which has its own writer threads behind it. The hashes are made by the threads of
//! [`crate::hashing`], which all layers share. Nothing waits for the whole of anything:
//!
//! ```text
//! BlobReader ─▶ decoder ──(fixed set of buffers)──▶ unpacker ─▶ writers
//!        ╰─▶ blob's hash ╰─▶ archive's hash
//! ```
//!
//! Whole frames that [`compression::Pool`](crate::compression::Pool) has decoded come in buffers of their own.
//!
//! The hashes are made beside the way, not on it: they are a third of a layer's work. A layer is
//! whole only when both digests have been compared; until then its tree is staged and nobody can
//! see it. When a stage fails, its queue closes and the other stops; the error that is told is the
//! one nearest to the cause: a decoder that chokes on bytes which turn out to be the wrong ones is
//! a mismatch of digests, so the blob is hashed to its end first.

use std::any::Any;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::PullError;
use super::caught::panicked;
use super::decode::{Stage, Upstream};
use super::footprint::Footprint;
use super::keep::Sink;
use super::trees::{StagedImage, StoreError};
use crate::archive::Source;
use crate::budget::Budget;
use crate::compression::Resources;
use crate::erofs::BlockSize;
use crate::fetch::{BlobReader, FetchError};
use crate::hashing::Hashers;
use crate::image::{Compression, ImageLayer};
use crate::sys::priority::Priority;
use crate::timeline::{LayerRecorder, Stall};
use crate::unpack::{self, ImageLabel, Summary, UnpackError};

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
        let stage = Stage::new(reader, keep, &hashers, footprint, &recorder);
        let span = tracing::Span::current();
        let run = move || span.in_scope(|| stage.run(compression, resources, &to_unpack, unwanted));
        let stage = std::thread::Builder::new().name("hoist-decode".to_owned());
        let stage = stage.spawn_scoped(scope, run).map_err(not_started)?;

        let mut source = Archive { pieces: archive, recorder: &recorder };
        let unpacked = dest.fill(&mut source, &layer, &unpack, &recorder)?;
        match &unpacked {
            // Bytes after the end of the archive belong to its digest.
            Ok(_) => while source.pieces.recv().is_ok() {},
            // Here they are of no use, whatever they are.
            Err(error) => {
                unwanted.store(error.is_of_the_host() || error.is_of_the_image(), Relaxed);
            }
        }
        drop(source);
        let decoder = |payload: Box<dyn Any + Send>| {
            panicked(format!("layer {}: its decoder", layer.blob), &*payload)
        };
        Ended { decoded: stage.join().map_err(decoder)?, unpacked }.judge(&layer)
    })
}

impl Dest {
    /// Unpacks `layer` from `source`, with the priority that `options` say.
    fn fill(
        &self,
        source: &mut Archive<'_>,
        layer: &ImageLayer,
        options: &unpack::Options,
        recorder: &LayerRecorder,
    ) -> Result<Result<Summary, UnpackError>, PullError> {
        let mut make = || match self {
            Self::Files(root) => unpack::unpack(source, root, options, recorder),
            Self::Image { staged, budget } => {
                let (label, budget) = (label(layer, staged.block), Some(budget));
                unpack::unpack_image(source, &staged.path, label, options, budget, recorder)
            }
        };
        match options.priority {
            usual if usual.is_usual() => Ok(make()),
            lower => yielding(lower, make),
        }
    }
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
        Ok(thread.join().unwrap_or_else(|payload| Err(UnpackError::panicked(&*payload))))
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

/// How the stages ended.
struct Ended {
    decoded: Upstream,
    unpacked: Result<Summary, UnpackError>,
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
