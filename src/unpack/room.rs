//! What has to stay free of the file system that layers are written to.
//!
//! A full disk takes more than the pull that filled it: containers that write, containerd's own
//! database, hoist's. So a pull that would not leave enough is refused before it begins, and one that
//! turns out to need more is stopped while there is still room. How large a layer is when it is
//! unpacked no manifest says; it is at least as large as it is compressed, nearly always, and what it
//! had become when it was stopped is remembered, so that trying again does not fill the disk again.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::image::DiffId;
use crate::sys::space::Space;

/// After so many bytes it is looked again: seldom enough to cost nothing, and small beside what has
/// to stay free. Less than that cannot be kept free.
const LOOK_BYTES: u64 = 8 << 20;

/// What [`MinFree::Auto`] asks for at most.
const AUTO_BYTES_MOST: u64 = 2 << 30;

/// Layers whose sizes are remembered, before the memory starts anew.
const REMEMBERED_MOST: usize = 4096;

/// How much has to stay free.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MinFree {
    /// A twentieth of the file system, at most 2 GiB.
    #[default]
    Auto,
    /// So many bytes.
    Bytes(u64),
    /// Of the file system's size, in hundredths.
    Percent(u8),
}

impl MinFree {
    /// The least that can be kept free, in bytes, but for nothing at all.
    pub const LEAST_BYTES: u64 = LOOK_BYTES;

    /// In bytes, of a file system of that size. A share of a small one is rounded up to what can be kept free.
    pub fn bytes(self, size_bytes: u64) -> u64 {
        match self {
            Self::Auto => (size_bytes / 20).clamp(Self::LEAST_BYTES, AUTO_BYTES_MOST),
            Self::Bytes(bytes) => bytes,
            Self::Percent(0) => 0,
            Self::Percent(percent) => {
                (size_bytes / 100 * u64::from(percent)).max(Self::LEAST_BYTES)
            }
        }
    }
}

/// Too little is free.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "no room on the file system of {}: {available_bytes} bytes are free, {min_free_bytes} of them have to stay \
     free (limits.min_free), and the pull needs {} {needed_bytes}{}; remove images, give it a larger volume, or lower \
     limits.min_free, and pull again",
    path.display(),
    if *begun { "more than the" } else { "at least" },
    if *begun { " that one of its layers has asked for" } else { "" }
)]
pub struct NoRoom {
    /// Where.
    pub path: PathBuf,
    /// What is free there.
    pub available_bytes: u64,
    /// What has to stay free.
    pub min_free_bytes: u64,
    /// What the pull needs, as far as that is known.
    pub needed_bytes: u64,
    /// It was being written already.
    pub begun: bool,
}

/// The file system that layers are written to. Clones share what they count; the default one is
/// without bounds.
#[derive(Clone, Debug, Default)]
pub struct Room(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    min_free: MinFree,
    look: fn(&Path) -> io::Result<Space>,
    /// Since it was looked last.
    written: AtomicU64,
    unpacked: Mutex<HashMap<DiffId, u64>>,
}

impl Room {
    /// The file system that `path` is on.
    pub fn of(path: &Path, min_free: MinFree) -> Self {
        Self::seen_by(Space::of, path, min_free)
    }

    pub(super) fn seen_by(
        look: fn(&Path) -> io::Result<Space>,
        path: &Path,
        min_free: MinFree,
    ) -> Self {
        let (written, unpacked) = Default::default();
        let path = path.to_owned();
        Self(Some(Arc::new(Inner { path, min_free, look, written, unpacked })))
    }

    /// What a layer is expected to take, in bytes: what it was known to take, or its compressed size.
    pub fn expected(&self, diff_id: DiffId, size: u64) -> u64 {
        let Some(inner) = &self.0 else { return size };
        inner.unpacked().get(&diff_id).map_or(size, |&known| known.max(size))
    }

    /// Remembers that a layer takes so many bytes, or more.
    pub fn takes(&self, diff_id: DiffId, bytes: u64) {
        let Some(inner) = &self.0 else { return };
        let mut unpacked = inner.unpacked();
        if unpacked.len() >= REMEMBERED_MOST {
            unpacked.clear();
        }
        let known = unpacked.entry(diff_id).or_default();
        *known = bytes.max(*known);
    }

    /// Whether a pull may begin that is expected to write so many bytes.
    ///
    /// # Errors
    /// It would leave too little. Where the file system does not tell, nothing is refused.
    pub fn admit(&self, needed_bytes: u64) -> Result<(), NoRoom> {
        let Some(inner) = self.0.as_ref().filter(|_| needed_bytes > 0) else { return Ok(()) };
        inner.check(needed_bytes, needed_bytes, false)
    }

    /// Whether a file of so many bytes may be given its blocks at once, of a layer that has come to `layer_bytes` with it.
    ///
    /// # Errors
    /// It would leave too little.
    pub(super) fn reserve(&self, bytes: u64, layer_bytes: u64) -> Result<(), NoRoom> {
        self.0.as_ref().map_or(Ok(()), |inner| inner.check(layer_bytes, bytes, true))
    }

    /// Notes that so many bytes are about to be written of a layer that has written `before`.
    ///
    /// # Errors
    /// Too little is free.
    pub(super) fn write(&self, bytes: u64, before: u64) -> Result<(), NoRoom> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let written = inner.written.fetch_add(bytes, Relaxed) + bytes;
        if written < LOOK_BYTES {
            return Ok(());
        }
        inner.written.fetch_sub(written.min(LOOK_BYTES), Relaxed);
        inner.check(before + bytes, 0, true)
    }
}

impl Inner {
    fn unpacked(&self) -> std::sync::MutexGuard<'_, HashMap<DiffId, u64>> {
        self.unpacked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether enough is left when `to_come` bytes more are taken.
    fn check(&self, needed_bytes: u64, to_come: u64, begun: bool) -> Result<(), NoRoom> {
        let Ok(Space { size_bytes, available_bytes }) = (self.look)(&self.path) else {
            return Ok(());
        };
        let min_free_bytes = self.min_free.bytes(size_bytes);
        if available_bytes.saturating_sub(to_come) >= min_free_bytes {
            return Ok(());
        }
        let path = self.path.clone();
        Err(NoRoom { path, available_bytes, min_free_bytes, needed_bytes, begun })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Sha256;

    const MIB: u64 = 1 << 20;

    fn half_full(_: &Path) -> io::Result<Space> {
        Ok(Space { size_bytes: 1000 * MIB, available_bytes: 500 * MIB })
    }

    fn room(min_free: MinFree) -> Room {
        Room::seen_by(half_full, Path::new("/r"), min_free)
    }

    #[test]
    fn what_has_to_stay_free() {
        assert_eq!(MinFree::Auto.bytes(8 << 30), (8 << 30) / 20);
        assert_eq!(MinFree::Auto.bytes(1 << 40), 2 << 30);
        assert_eq!(MinFree::Percent(5).bytes(1000 * MIB), 50 * MIB);
        // Of a small file system so much that it can be kept.
        assert_eq!(MinFree::Percent(5).bytes(100 * MIB), LOOK_BYTES);
        assert_eq!(MinFree::Auto.bytes(100 * MIB), LOOK_BYTES);
        assert_eq!(MinFree::Percent(0).bytes(100 * MIB), 0);
        assert_eq!(MinFree::Bytes(7).bytes(1000), 7);
    }

    #[test]
    fn a_pull_is_refused_that_would_not_leave_enough() {
        let room = room(MinFree::Percent(10));
        assert_eq!(room.admit(399 * MIB), Ok(()));
        let told = room.admit(401 * MIB).unwrap_err().to_string();
        for figure in [500 * MIB, 100 * MIB, 401 * MIB] {
            assert!(told.contains(&figure.to_string()), "{told}");
        }
        assert!(told.contains("/r") && told.contains("limits.min_free"), "{told}");
        assert_eq!(Room::default().admit(u64::MAX), Ok(()));
        // Layers that are there already need nothing, however full the disk is.
        assert_eq!(self::room(MinFree::Bytes(600 * MIB)).admit(0), Ok(()));
    }

    #[test]
    fn writing_ends_when_too_little_is_left() {
        let room = room(MinFree::Bytes(600 * MIB));
        assert_eq!(room.write(LOOK_BYTES - 1, 0), Ok(()), "not looked yet");
        let error = room.write(1, LOOK_BYTES - 1).unwrap_err();
        assert_eq!((error.begun, error.needed_bytes), (true, LOOK_BYTES));
        assert_eq!(room.write(1, 0), Ok(()), "not before so much more");
        let enough = self::room(MinFree::Bytes(500 * MIB));
        assert_eq!(enough.write(100 * LOOK_BYTES, 0), Ok(()));
    }

    #[test]
    fn what_a_layer_takes_is_remembered() {
        let (room, layer) = (room(MinFree::Auto), DiffId(Sha256::of(b"layer")));
        assert_eq!(room.expected(layer, 10), 10);
        room.takes(layer, 70);
        room.takes(layer, 30);
        assert_eq!(room.clone().expected(layer, 10), 70);
        assert_eq!(room.expected(layer, 100), 100);
        assert_eq!(room.expected(DiffId(Sha256::of(b"other")), 10), 10);
    }
}
