//! Which layers are in work: so many turns and so many bytes, given out by what a layer costs.
//!
//! An ordinary layer takes a whole turn, which keeps a core busy, and the buffers of its stages. A
//! layer of less than a chunk is over in some milliseconds, most of which it waits for its registry:
//! it takes a part of a turn and fewer buffers, so that many of them wait together and not one after
//! the other.
//!
//! A layer keeps its turn until it is done, which can be a minute. So the turns of layers that are pulled
//! ahead of time do not count against those that somebody waits for, and of the bytes they have a half at
//! most: whoever comes finds room, whatever is prefetched. What was begun ahead of time goes on meanwhile
//! with what the others leave it.

use super::footprint::Footprint;
use crate::budget::turns::{Claimant, Class, Gate, Scarce, Verdict};
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

/// What layers in work hold.
#[derive(Clone, Copy, Default, Debug)]
struct Sum {
    parts: u32,
    bytes: u64,
}

impl Sum {
    fn and(self, cost: &Cost) -> Self {
        Self { parts: self.parts + cost.parts, bytes: self.bytes + cost.bytes }
    }

    fn without(self, cost: &Cost) -> Self {
        Self { parts: self.parts - cost.parts, bytes: self.bytes - cost.bytes }
    }

    fn within(self, most: Self) -> bool {
        self.parts <= most.parts && self.bytes <= most.bytes
    }
}

/// The layers in work.
#[derive(Debug)]
pub(super) struct Layers {
    waited: Sum,
    ahead: Sum,
    most: Sum,
}

impl Layers {
    /// None yet, with room for `at_once` ordinary ones that hold `bytes_most` together. One is
    /// always in work, however much it holds, and then alone.
    pub(super) fn gate(at_once: usize, bytes_most: u64) -> Gate<Self> {
        let parts = u32::try_from(at_once.max(1)).unwrap_or(u32::MAX).saturating_mul(PARTS);
        let most = Sum { parts, bytes: bytes_most };
        Gate::new(Self { waited: Sum::default(), ahead: Sum::default(), most })
    }

    fn of(&mut self, class: Class) -> &mut Sum {
        match class {
            Class::Waited => &mut self.waited,
            Class::Ahead => &mut self.ahead,
        }
    }
}

impl Scarce for Layers {
    type Want = Cost;

    fn verdict(&self, who: Claimant, cost: &Cost) -> Verdict {
        if self.waited.parts == 0 && self.ahead.parts == 0 {
            return Verdict::Go;
        }
        // Bytes are bytes, whoever holds them: what is in work shall never have to wait for them.
        let bytes = self.waited.bytes + self.ahead.bytes;
        let half = Sum { bytes: self.most.bytes / 2, ..self.most };
        let parts = match who.class {
            Class::Waited => self.waited.parts,
            Class::Ahead if !self.ahead.and(cost).within(half) => return Verdict::PassOver,
            Class::Ahead => self.waited.parts + self.ahead.parts,
        };
        let fits = Sum { parts, bytes }.and(cost).within(self.most);
        if fits { Verdict::Go } else { Verdict::Wait }
    }

    fn take(&mut self, who: Claimant, cost: &Cost) {
        let sum = self.of(who.class);
        *sum = sum.and(cost);
    }

    fn give_back(&mut self, who: Claimant, cost: &Cost) {
        let sum = self.of(who.class);
        *sum = sum.without(cost);
    }

    fn weight(cost: &Cost) -> u64 {
        cost.parts.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::turns::{Held, Party, Standing};
    use crate::pull::footprint::ORDINARY_WINDOW_BYTES;

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

    fn standing(class: Class) -> std::sync::Arc<Standing> {
        Standing::new(Party::new(), 1, 1).of_class(class)
    }

    #[test]
    fn whoever_is_waited_for_finds_room_whatever_is_prefetched() {
        let gate = Layers::gate(3, 84 << 20);
        let cost = Cost::of(900 << 20, Compression::Gzip, ORDINARY_WINDOW_BYTES);
        let (ahead, waited) = (standing(Class::Ahead), standing(Class::Waited));
        let fill = |standing| -> Vec<_> {
            std::iter::from_fn(|| gate.try_enter(standing, cost)).take(1000).collect()
        };
        let prefetches = fill(&ahead);
        assert!(!prefetches.is_empty());
        let pulled = fill(&waited);
        assert_eq!(pulled.len(), 3, "beside {} that are prefetched", prefetches.len());
        assert!((prefetches.len() + pulled.len()) as u64 * cost.bytes <= 84 << 20);
        drop(prefetches);
        assert!(gate.try_enter(&ahead, cost).is_none(), "all turns are others'");
        drop(pulled);
        assert!(gate.try_enter(&ahead, cost).is_some());
    }

    proptest::proptest! {
        /// However layers come and go: what is in work holds no more than it may, or is one alone; whoever
        /// is waited for is never kept out by turns of prefetches; and somebody is always in work.
        #[test]
        fn what_is_in_work_is_bounded_and_never_nothing(
            steps in proptest::collection::vec((0..64_u64, 0..2_u8, proptest::bool::ANY, 0..5_usize), 1..60),
        ) {
            let most = 84 << 20;
            let gate = Layers::gate(3, most);
            let mut held: Vec<(Held<Layers>, Cost)> = Vec::new();
            for (size, zstd, waits, leaves) in steps {
                if leaves > 0 && !held.is_empty() {
                    drop(held.remove(leaves % held.len()));
                }
                let form = if zstd == 0 { Compression::Gzip } else { Compression::Zstd };
                let cost = Cost::of(size << 19, form, ORDINARY_WINDOW_BYTES << (size % 5));
                let class = if waits { Class::Waited } else { Class::Ahead };
                let nobody = held.is_empty();
                let entered = gate.try_enter(&standing(class), cost);
                proptest::prop_assert!(entered.is_some() || !nobody, "{cost:?} alone");
                held.extend(entered.map(|place| (place, cost)));
                let bytes: u64 = held.iter().map(|(_, cost)| cost.bytes).sum();
                proptest::prop_assert!(bytes <= most || held.len() == 1, "{bytes} of {}", held.len());
            }
            drop(held);
            gate.with(|layers| assert_eq!((layers.waited.parts, layers.ahead.bytes), (0, 0)));
        }
    }
}
