//! Who waits: a layer's standing, the pull that it is of, and for whom that is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// One pull among those that share.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Party(u64);

impl Party {
    /// Whoever waits for no pull.
    pub const NOBODY: Self = Self(0);

    /// Another one than all before.
    #[allow(clippy::new_without_default, reason = "no two are equal")]
    pub fn new() -> Self {
        Self(number())
    }
}

fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// For whom a layer is pulled; the greater goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// For later: a prefetch.
    Ahead,
    /// For somebody who waits.
    Waited,
}

/// Who wants something scarce.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claimant {
    /// The pull.
    pub party: Party,
    /// What it was when it asked, or when it was let in.
    pub class: Class,
    /// Whether the layer was in work then, and not waiting for its turn.
    pub in_work: bool,
}

/// What speaks for a layer, now.
#[derive(Debug)]
pub struct Standing {
    id: u64,
    party: Party,
    bytes_left: AtomicU64,
    bytes_per_second: u64,
    asked_for: AtomicBool,
    waited: AtomicBool,
    in_work: AtomicBool,
}

impl Standing {
    /// A layer of `party` with `bytes` before it, of which its serial work takes in
    /// `bytes_per_second`.
    pub fn new(party: Party, bytes: u64, bytes_per_second: u64) -> Arc<Self> {
        Arc::new(Self {
            id: number(),
            party,
            bytes_left: AtomicU64::new(bytes),
            bytes_per_second: bytes_per_second.max(1),
            asked_for: AtomicBool::new(false),
            waited: AtomicBool::new(true),
            in_work: AtomicBool::new(true),
        })
    }

    /// The same of another class; to be said before it enters anywhere.
    pub fn of_class(self: Arc<Self>, class: Class) -> Arc<Self> {
        self.waited.store(class == Class::Waited, Relaxed);
        self
    }

    /// The same of a layer that waits for its turn; to be said before it enters anywhere.
    pub fn waiting(self: Arc<Self>) -> Arc<Self> {
        self.in_work.store(false, Relaxed);
        self
    }

    /// Its turn has come. The gates do not hear of it by themselves, as of a promotion.
    pub fn set_to_work(&self) {
        self.in_work.store(true, Relaxed);
    }

    /// Whether its turn has come.
    pub fn is_in_work(&self) -> bool {
        self.in_work.load(Relaxed)
    }

    /// Somebody waits for the layer from now on. The gates do not hear of it by themselves: those that
    /// treat the classes differently have to look again ([`Gate::look_again`](super::Gate::look_again)).
    pub fn promote(&self) {
        self.waited.store(true, Relaxed);
    }

    /// For whom the layer is pulled.
    pub fn class(&self) -> Class {
        if self.waited.load(Relaxed) { Class::Waited } else { Class::Ahead }
    }

    pub(super) fn claimant(&self) -> Claimant {
        Claimant { party: self.party, class: self.class(), in_work: self.is_in_work() }
    }

    /// For what goes before every layer of `party`.
    pub fn ahead(party: Party) -> Arc<Self> {
        Self::new(party, u64::MAX, 1)
    }

    /// Notes that so many bytes have been worked on.
    pub fn worked(&self, bytes: u64) {
        // One reader a layer: nobody else writes meanwhile.
        self.bytes_left.store(self.bytes_left.load(Relaxed).saturating_sub(bytes), Relaxed);
    }

    /// Begins anew with `bytes` before it.
    pub fn begin(&self, bytes: u64) {
        self.bytes_left.store(bytes, Relaxed);
    }

    /// Notes that a Prepare waits for the layer.
    pub fn ask_for(&self) {
        self.asked_for.store(true, Relaxed);
    }

    /// The pull that the layer is of.
    pub fn party(&self) -> Party {
        self.party
    }

    /// Tells the layers apart.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Whether a Prepare waits for the layer.
    pub(super) fn is_asked_for(&self) -> bool {
        self.asked_for.load(Relaxed)
    }

    /// The serial work that is left.
    pub(super) fn nanos_left(&self) -> u128 {
        u128::from(self.bytes_left.load(Relaxed)) * 1_000_000_000
            / u128::from(self.bytes_per_second)
    }
}
