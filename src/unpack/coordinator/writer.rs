//! What the writer threads do, and how they live.

use std::sync::Arc;

use bytes::Bytes;
use nix::sys::stat::{Mode, umask};

use crate::budget::rate::RateLimit;
use crate::timeline::{Blocked, LayerRecorder, Phase};
use crate::unpack::files::{Item, LargeFile, Rules, What};
use crate::unpack::queue::Queue;
use crate::unpack::{Room, wait_to_write};

/// What a small entry takes on disk beside its bytes, about.
const ITEM_SPACE_BYTES: u64 = 4096;

/// What a writer does next.
pub(super) enum Job {
    Batch(Vec<Item>),
    Piece { file: Arc<LargeFile>, offset: u64, bytes: Bytes },
}

impl Job {
    /// What it writes.
    fn bytes(&self) -> u64 {
        let of_item = |item: &Item| match &item.what {
            What::File { pieces, .. } => pieces.iter().map(|(_, piece)| piece.len() as u64).sum(),
            _ => 0,
        };
        match self {
            Self::Batch(items) => items.iter().map(of_item).sum(),
            Self::Piece { bytes, .. } => bytes.len() as u64,
        }
    }

    /// What it takes on disk beside these, about: a small file has a block, and an inode in another.
    fn space_beside(&self) -> u64 {
        match self {
            Self::Batch(items) => ITEM_SPACE_BYTES * items.len() as u64,
            Self::Piece { .. } => 0,
        }
    }
}

/// A writer's life.
pub(super) fn write(
    queue: &Queue<Job>,
    rules: Rules,
    bounds: (&RateLimit, &Room),
    recorder: &LayerRecorder,
) {
    // The umask belongs to the whole process, unless a thread parts from it. Where it may not,
    // modes are set one by one.
    let own_umask = nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).is_ok();
    if own_umask {
        umask(Mode::empty());
    }
    let blocked = Blocked::of(recorder);
    queue.work(|job| {
        let bytes = job.bytes();
        wait_to_write(bounds, (bytes, bytes + job.space_beside()), &blocked)?;
        let _busy = (recorder.time(Phase::Write), blocked.counting());
        match job {
            Job::Batch(items) => {
                for mut item in items {
                    item.attributes.set_mode |= !own_umask;
                    item.make(rules)?;
                }
            }
            Job::Piece { file, offset, bytes } => file.write(offset, &bytes, rules)?,
        }
        recorder.bytes(Phase::Write, bytes);
        Ok(())
    });
}

/// Sends the writers home when it is dropped.
pub(super) struct Leave<'a>(pub(super) &'a Queue<Job>);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
