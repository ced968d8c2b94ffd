//! How far a conversion is, and whether anybody wants it still.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::ConvertError;
use crate::fetch::Canceller;
use crate::model::Prediction;

/// What is being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Asking for manifests and configurations.
    Resolve,
    /// Reading the source's layers; the bytes are compressed ones.
    Read,
    /// Writing new layers; the bytes are uncompressed ones.
    Write,
    /// Reading the result again; the bytes are compressed ones.
    Verify,
    /// Sending the result, or moving it where it belongs.
    Publish,
}

const PHASES: [Phase; 5] =
    [Phase::Resolve, Phase::Read, Phase::Write, Phase::Verify, Phase::Publish];

/// What is about to be written.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Compressed bytes of each layer, the lowest first, as estimated by what the source's layers have.
    pub layers: Vec<u64>,
    /// How a pull of the source is expected to go.
    pub before: Prediction,
    /// And one of the layers that are planned.
    pub after: Prediction,
}

/// Shared between whoever converts and whoever watches.
#[derive(Default)]
pub struct Progress {
    cancelled: AtomicBool,
    /// Ends the fetches that a reader may be waiting for.
    fetches: Mutex<Vec<Canceller>>,
    phase: AtomicUsize,
    done: AtomicU64,
    total: AtomicU64,
    /// Plans that nobody was told of yet.
    plans: Mutex<Vec<Planned>>,
}

impl Progress {
    /// Asks for an early end. It comes after the piece of work that is under way, some megabytes; a
    /// reader that waits for a registry waits no longer.
    pub fn cancel(&self) {
        let fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        self.cancelled.store(true, Ordering::SeqCst);
        fetches.iter().for_each(Canceller::cancel);
    }

    /// Notes a fetch, to end it with everything else.
    pub(super) fn watch(&self, fetch: Canceller) {
        let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        if self.cancelled.load(Ordering::SeqCst) {
            fetch.cancel();
        }
        fetches.push(fetch);
    }

    /// The phase, bytes done in it, and bytes in all (0 if not known).
    pub fn now(&self) -> (Phase, u64, u64) {
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let phase = self.phase.load(Ordering::Relaxed);
        (PHASES[phase.min(PHASES.len() - 1)], load(&self.done), load(&self.total))
    }

    pub(super) fn enter(&self, phase: Phase, total: u64) {
        let at = PHASES.iter().position(|&p| p == phase).unwrap_or(0);
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
        self.phase.store(at, Ordering::Relaxed);
    }

    /// Plans that were made since this was asked last.
    pub fn take_plans(&self) -> Vec<Planned> {
        std::mem::take(&mut self.plans.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn tell(&self, plan: Planned) {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).push(plan);
    }

    pub(super) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn check(&self) -> Result<(), ConvertError> {
        if self.cancelled.load(Ordering::Relaxed) { Err(ConvertError::Cancelled) } else { Ok(()) }
    }
}
