//! Bytes in flight: one budget for the whole daemon. Beside it [`rate`]: bytes a second.
//!
//! Every window, queue and buffer of a pull is paid for with a [`Permit`] that lives inside the
//! thing it pays for and gives its bytes back when it is dropped. Who waits is served by the rules
//! of [`turns`]; whoever is next and does not fit is waited for.

pub mod rate;
pub mod turns;

use std::sync::Arc;

use turns::{Claimant, Class, Entering, Gate, Held, Party, Scarce, Standing, Verdict};

/// The smallest thing that is counted; 4 TiB are the most.
const UNIT_BYTES: u64 = 1024;

/// The heads of layers that wait for their turn have this part of a budget: two chunks of the default one, or
/// some seventy of the layers that a builder's smallest steps make. With more, the largest zstd window
/// would not fit beside them.
const HEADS_PART: u32 = 10;

/// A bounded number of bytes that may be in flight at once.
#[derive(Clone)]
pub struct Budget {
    units: Gate<Units>,
    nobody: Arc<Standing>,
    total: u32,
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Budget({} of {} bytes)", self.in_use(), self.total())
    }
}

/// Units of a budget.
struct Units {
    free: u32,
    /// Held by pulls ahead of time.
    ahead: u32,
    ahead_most: u32,
    /// Held for the heads of layers that wait for their turn.
    heads: u32,
    heads_most: u32,
}

impl Units {
    /// What pulls ahead of time hold is a half at most, so that one that somebody waits for finds the
    /// other half free when it comes. A single request of theirs can always go on.
    ///
    /// Of a layer that waits nobody reads, so what its head holds is there until its turn comes: that has a
    /// small part, which those in work can do without, and nobody stands in line behind it.
    fn of(total: u32) -> Self {
        let (ahead_most, heads_most) = (total / 2, total / HEADS_PART);
        Self { free: total, ahead: 0, ahead_most, heads: 0, heads_most }
    }
}

impl Scarce for Units {
    type Want = u32;

    fn verdict(&self, who: Claimant, want: &u32) -> Verdict {
        let ahead = self.ahead.saturating_add(*want);
        if who.class == Class::Ahead && self.ahead > 0 && ahead > self.ahead_most {
            return Verdict::PassOver;
        }
        let fits = *want <= self.free;
        if !who.in_work && (!fits || self.heads.saturating_add(*want) > self.heads_most) {
            return Verdict::PassOver;
        }
        if fits { Verdict::Go } else { Verdict::Wait }
    }

    fn take(&mut self, who: Claimant, want: &u32) {
        self.free -= want;
        if who.class == Class::Ahead {
            self.ahead += want;
        }
        if !who.in_work {
            self.heads += want;
        }
    }

    fn give_back(&mut self, who: Claimant, want: &u32) {
        self.free += want;
        if who.class == Class::Ahead {
            self.ahead -= want;
        }
        if !who.in_work {
            self.heads -= want;
        }
    }

    fn weight(want: &u32) -> u64 {
        u64::from(*want)
    }
}

/// Bytes reserved in a [`Budget`]; they return when it is dropped.
#[derive(Debug)]
pub struct Permit(#[allow(dead_code, reason = "held for its Drop")] Held<Units>);

/// A reservation that its owner looks for now and then, instead of waiting. It keeps its place in
/// the line all the while; dropping it gives the place up.
pub struct Pending(Entering<Units>);

impl Pending {
    /// The bytes, if they have been reserved by now; then it is used up.
    ///
    /// # Errors
    /// They have not: here it is again.
    pub fn granted(self) -> Result<Permit, Self> {
        self.0.granted().map(Permit).map_err(Self)
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pending")
    }
}

fn to_units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Budget {
    /// A budget of `bytes`, rounded up to a whole KiB.
    pub fn new(bytes: u64) -> Self {
        let total = to_units(bytes);
        let nobody = Standing::ahead(Party::NOBODY);
        Self { units: Gate::new(Units::of(total)), nobody, total }
    }

    /// Waits for `bytes` for the layer of `standing`. A request for more than the whole budget gets
    /// the whole budget: the smallest piece of work can always go on, if alone.
    pub async fn reserve(&self, standing: &Arc<Standing>, bytes: u64) -> Permit {
        Permit(self.units.enter(standing, to_units(bytes).min(self.total)).await)
    }

    /// Queues for `bytes` for somebody who can go on without them.
    pub fn request(&self, bytes: u64) -> Pending {
        Pending(self.units.enter(&self.nobody, to_units(bytes).min(self.total)))
    }

    /// Takes `bytes` if they are free now and nobody waits.
    pub fn try_reserve(&self, bytes: u64) -> Option<Permit> {
        self.units.try_enter(&self.nobody, to_units(bytes).min(self.total)).map(Permit)
    }

    /// Lets in whoever may go since a standing was promoted.
    pub fn look_again(&self) {
        self.units.look_again();
    }

    /// All bytes of the budget.
    pub fn total(&self) -> u64 {
        u64::from(self.total) * UNIT_BYTES
    }

    /// What the heads of layers that wait for their turn may hold of it: bytes that those in work may have
    /// to do without.
    pub fn heads(&self) -> u64 {
        u64::from(self.units.with(|units| units.heads_most)) * UNIT_BYTES
    }

    /// Bytes reserved now.
    pub fn in_use(&self) -> u64 {
        self.total() - u64::from(self.units.with(|units| units.free)) * UNIT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn permits_return_and_the_whole_is_the_most() {
        let budget = Budget::new(10 * 1024);
        let layer = Standing::new(Party::new(), 1, 1);
        let first = budget.reserve(&layer, 4 * 1024).await;
        assert_eq!(budget.in_use(), 4 * 1024);
        assert!(budget.try_reserve(7 * 1024).is_none());
        drop(first);
        let all = budget.reserve(&layer, u64::MAX).await;
        assert_eq!(budget.in_use(), budget.total());
        drop(all);
        assert_eq!(budget.in_use(), 0);
    }

    #[test]
    fn a_request_keeps_its_place_without_being_waited_for() {
        let budget = Budget::new(10 * 1024);
        let all = budget.try_reserve(10 * 1024).unwrap();
        let asked = budget.request(8 * 1024).granted().expect_err("nothing is free");
        let given_up = budget.request(1024).granted().expect_err("nothing is free");
        drop(all);
        assert!(budget.try_reserve(4 * 1024).is_none(), "the request goes first");
        drop(given_up);
        let permit = asked.granted().expect("all is free");
        assert_eq!(budget.in_use(), 8 * 1024);
        drop(permit);
        assert_eq!(budget.in_use(), 0);
    }

    #[test]
    fn what_is_ahead_of_time_leaves_a_half_to_those_who_wait() {
        use futures_util::FutureExt as _;
        let budget = Budget::new(10 * 1024);
        let later = Standing::new(Party::new(), 1, 1).of_class(Class::Ahead);
        let reserve = |bytes| budget.reserve(&later, bytes);
        let first = reserve(4 * 1024).now_or_never().expect("it is within the half");
        let mut second = Box::pin(reserve(2 * 1024));
        assert!((&mut second).now_or_never().is_none(), "it would be more than the half");
        let waited = Standing::new(Party::new(), 1, 1);
        let all = budget.reserve(&waited, 6 * 1024).now_or_never();
        assert!(all.is_some(), "the half is there for who waits, whoever came first");
        drop(all);
        // Somebody comes to wait for it.
        later.promote();
        assert!((&mut second).now_or_never().is_none(), "nobody has looked");
        budget.look_again();
        drop((&mut second).now_or_never().expect("it may have all now"));
        drop(first);
        let alone = Standing::new(Party::new(), 1, 1).of_class(Class::Ahead);
        drop(budget.reserve(&alone, 9 * 1024).now_or_never().expect("it can always go on, alone"));
        assert_eq!(budget.in_use(), 0);
        assert_eq!(budget.units.with(|units| units.ahead), 0);
    }

    #[test]
    fn heads_have_a_small_part_and_nobody_stands_behind_one() {
        use futures_util::FutureExt as _;
        let budget = Budget::new(20 * 1024);
        let waiting = || Standing::new(Party::new(), 1, 1).waiting();
        let (first, second) = (waiting(), waiting());
        let head = budget.reserve(&first, 2 * 1024).now_or_never().expect("it is a tenth");
        let mut more = Box::pin(budget.reserve(&second, 1024));
        assert!((&mut more).now_or_never().is_none(), "it would be more than a tenth");
        let in_work = Standing::new(Party::new(), 1, 1);
        let rest =
            budget.reserve(&in_work, 18 * 1024).now_or_never().expect("the rest is for others");
        drop(head);
        drop((&mut more).now_or_never().expect("there is room for it now"));
        let mut late = Box::pin(budget.reserve(&second, 2 * 1024 + 1));
        assert!((&mut late).now_or_never().is_none());
        assert!(budget.try_reserve(1024).is_some(), "nobody waits for a head");
        // Its turn comes: it is as good as any other, and is waited for.
        second.set_to_work();
        assert!((&mut late).now_or_never().is_none(), "nothing so large is free");
        assert!(budget.try_reserve(1024).is_none(), "it goes first");
        drop(rest);
        drop((&mut late).now_or_never().expect("all is free"));
        assert_eq!((budget.in_use(), budget.units.with(|units| units.heads)), (0, 0));
    }
}
