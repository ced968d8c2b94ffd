//! How long those who make a layer's files were kept by the disk, measured and not inferred.
//!
//! A writer that is busy may compute or wait: an archive of many small files keeps a processor busy
//! with names and metadata, and `write(2)` copies into the page cache until the kernel makes whoever
//! dirties pages wait for the disk. So a thread's time is taken apart by the kernel's own counters:
//! what is neither running, nor waiting for a processor, nor one of the waits that are counted for
//! themselves, was a wait inside a system call on files.

use std::cell::Cell;

use super::{LayerRecorder, Stall};
use crate::sys::threads::{OwnThread, ThreadTimes};

/// What one thread that makes files counts its waits with.
#[derive(Debug)]
pub struct Blocked<'a> {
    recorder: &'a LayerRecorder,
    own: OwnThread,
    /// Since when it counts, while it does.
    since: Cell<Option<ThreadTimes>>,
}

/// Counts the time in which the disk keeps the thread, from its making to its drop.
#[must_use = "it counts until it is dropped"]
#[derive(Debug)]
pub struct Counting<'a>(&'a Blocked<'a>);

impl<'a> Blocked<'a> {
    /// For the calling thread. It counts nothing yet.
    pub fn of(recorder: &'a LayerRecorder) -> Self {
        Self { recorder, own: OwnThread::new(), since: Cell::new(None) }
    }

    /// Where it counts.
    pub fn recorder(&self) -> &'a LayerRecorder {
        self.recorder
    }

    /// Counts until the returned value is dropped.
    pub fn counting(&'a self) -> Counting<'a> {
        self.count();
        self.since.set(Some(self.own.times()));
        Counting(self)
    }

    /// Does something whose waits are not the disk's.
    pub fn except<T>(&self, wait: impl FnOnce() -> T) -> T {
        let counting = self.count();
        let waited = wait();
        self.since.set(counting.then(|| self.own.times()));
        waited
    }

    /// Counts until now and no longer; whether it did.
    fn count(&self) -> bool {
        let since = self.since.take();
        if let Some(since) = since {
            self.recorder.waited(Stall::Disk, since.blocked(&self.own.times()));
        }
        since.is_some()
    }
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.0.count();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_excepted_is_not_the_disks() {
        let recorder = LayerRecorder::detached();
        let nap = Duration::from_millis(50);
        let waited = || recorder.report().stall(Stall::Disk);
        let blocked = Blocked::of(&recorder);
        blocked.except(|| std::thread::sleep(20 * nap));
        let counting = blocked.counting();
        blocked.except(|| std::thread::sleep(20 * nap));
        let before = waited();
        std::thread::sleep(nap);
        drop(counting);
        let counted = waited();
        std::thread::sleep(nap);
        assert!(before < 10.0 * nap.as_secs_f64(), "{before} s of waits for something else");
        assert!(counted - before > 0.9 * nap.as_secs_f64(), "{before} and {counted}");
        assert!((waited() - counted).abs() < f64::EPSILON, "it has ended");
    }
}
