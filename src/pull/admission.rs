//! Which layers are in work: so many turns and so many bytes, given out by what a layer costs.
//!
//! An ordinary layer takes a whole turn, which keeps a core busy, and the buffers of its stages. A
//! layer of less than a chunk is over in some milliseconds, most of which it waits for its registry:
//! it takes a part of a turn and fewer buffers, so that many of them wait together and not one after
//! the other.

use super::layer::Footprint;
use crate::budget::turns::{Gate, Party, Scarce, Verdict};
use crate::image::Compression;

/// Parts of a turn: so many of the smallest layers are in work in place of one.
const PARTS: u32 = 8;

/// From this size on a layer takes a whole turn: inflating it takes longer than asking for it.
const WHOLE_TURN_BYTES: u64 = 8 << 20;

/// What a layer takes while it is in work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cost {
    parts: u32,
    /// What it reserves in the budget.
    pub(super) bytes: u64,
}

impl Cost {
    /// For a layer of `size` compressed bytes that decodes within a window of `window_bytes`.
    pub(super) fn of(size: u64, compression: Compression, window_bytes: u64) -> Self {
        let parts = (size * u64::from(PARTS)).div_ceil(WHOLE_TURN_BYTES);
        let parts = parts.clamp(1, PARTS.into()) as u32;
        Self { parts, bytes: Footprint::of(size).bytes(compression, window_bytes) }
    }
}

/// The layers in work.
#[derive(Debug)]
pub(super) struct Layers {
    parts: u32,
    parts_most: u32,
    bytes: u64,
    bytes_most: u64,
}

impl Layers {
    /// None yet, with room for `at_once` ordinary ones that hold `bytes_most` together. One is
    /// always in work, however much it holds, and then alone.
    pub(super) fn gate(at_once: usize, bytes_most: u64) -> Gate<Self> {
        let parts_most = u32::try_from(at_once.max(1)).unwrap_or(u32::MAX).saturating_mul(PARTS);
        Gate::new(Self { parts: 0, parts_most, bytes: 0, bytes_most })
    }
}

impl Scarce for Layers {
    type Want = Cost;

    fn verdict(&self, _: Party, cost: &Cost) -> Verdict {
        let fits = self.parts + cost.parts <= self.parts_most
            && self.bytes + cost.bytes <= self.bytes_most;
        if self.parts == 0 || fits { Verdict::Go } else { Verdict::Wait }
    }

    fn take(&mut self, _: Party, cost: &Cost) {
        self.parts += cost.parts;
        self.bytes += cost.bytes;
    }

    fn give_back(&mut self, _: Party, cost: &Cost) {
        self.parts -= cost.parts;
        self.bytes -= cost.bytes;
    }

    fn weight(cost: &Cost) -> u64 {
        cost.parts.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::turns::{Held, Standing};
    use crate::pull::layer::ORDINARY_WINDOW_BYTES;

    fn admitted(gate: &Gate<Layers>, cost: Cost) -> Vec<Held<Layers>> {
        let standing = Standing::new(Party::new(), 1, 1);
        std::iter::from_fn(|| gate.try_enter(&standing, cost)).take(1000).collect()
    }

    #[test]
    fn tiny_layers_are_in_work_together_and_hold_no_more() {
        let gate = Layers::gate(3, 84 << 20);
        let large = Cost::of(900 << 20, Compression::Gzip, ORDINARY_WINDOW_BYTES);
        assert_eq!(admitted(&gate, large).len(), 3);
        let tiny = Cost::of(240 << 10, Compression::Gzip, ORDINARY_WINDOW_BYTES);
        let held = admitted(&gate, tiny);
        assert!(held.len() >= 14, "{}", held.len());
        assert!(held.len() as u64 * tiny.bytes <= 84 << 20);
        // The memory is the bound, for those with a window each.
        let tiny = Cost::of(240 << 10, Compression::Zstd, ORDINARY_WINDOW_BYTES);
        drop(held);
        assert!(admitted(&gate, tiny).len() as u64 * tiny.bytes <= 84 << 20);
    }

    #[test]
    fn one_that_is_larger_than_all_there_is_works_alone() {
        let gate = Layers::gate(3, 84 << 20);
        let huge = Cost::of(900 << 20, Compression::Zstd, 128 << 20);
        let tiny = Cost::of(1, Compression::Gzip, ORDINARY_WINDOW_BYTES);
        let alone = admitted(&gate, huge);
        assert_eq!(alone.len(), 1);
        assert!(admitted(&gate, tiny).is_empty());
        drop(alone);
        let others = admitted(&gate, tiny);
        assert!(admitted(&gate, huge).is_empty());
        drop(others);
    }
}
