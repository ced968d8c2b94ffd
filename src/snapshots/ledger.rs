//! Who counts on a layer tree that no snapshot refers to (yet).
//!
//! A tree without a snapshot is garbage, unless a pull is about to use it. The ledger remembers
//! how many hold it and when somebody asked for it last; the sweeper spares what is held and, for
//! a grace period, what was asked for. A tree whose last snapshot was removed has no grace: who
//! deletes an image wants its bytes back.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::pull::trees::TreeId;

#[derive(Debug)]
struct Account {
    pins: usize,
    /// When it was asked for last; `None`: its last snapshot was removed since.
    wanted_at: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Ledger {
    /// What a tree without an account counts as asked for: it stood there when the daemon started,
    /// perhaps because an earlier life was killed in the middle of a pull that is now repeated.
    opened_at: Instant,
    accounts: Mutex<HashMap<TreeId, Account>>,
}

/// What the sweeper may do with a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Sweep,
    /// Held: whoever lets go wakes the sweeper.
    Held,
    /// To be looked at again after this time.
    Grace(Duration),
}

impl Ledger {
    pub(super) fn new() -> Self {
        Self { opened_at: Instant::now(), accounts: Mutex::default() }
    }

    /// Notes that somebody asked for the tree.
    pub(super) fn want(&self, id: TreeId) {
        self.locked().account(id).wanted_at = Some(Instant::now());
    }

    /// Notes that the last snapshot of the tree is gone.
    pub(super) fn abandon(&self, id: TreeId) {
        self.locked().account(id).wanted_at = None;
    }

    /// Lets a pin go.
    pub(super) fn release(&self, id: TreeId) {
        let mut locked = self.locked();
        let account = locked.account(id);
        account.pins = account.pins.saturating_sub(1);
        // The claim that a pull answered is put down in the next moment, and a pull that gave up may
        // be repeated: either way somebody may want the tree, even if an image with it was deleted
        // while it was held.
        account.wanted_at = Some(Instant::now());
    }

    /// The accounts, held still: what is judged stays as it is until this is dropped.
    pub(super) fn locked(&self) -> Locked<'_> {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { opened_at: self.opened_at, accounts }
    }
}

pub(super) struct Locked<'a> {
    opened_at: Instant,
    accounts: MutexGuard<'a, HashMap<TreeId, Account>>,
}

impl Locked<'_> {
    /// Holds the tree once more.
    pub(super) fn pin(&mut self, id: TreeId) {
        let account = self.account(id);
        account.pins += 1;
        account.wanted_at = Some(Instant::now());
    }

    /// Whether a tree that no snapshot refers to can go.
    pub(super) fn judge(&self, id: TreeId, grace: Duration) -> Verdict {
        let (pins, wanted_at) = match self.accounts.get(&id) {
            Some(account) => (account.pins, account.wanted_at),
            None => (0, Some(self.opened_at)),
        };
        if pins > 0 {
            return Verdict::Held;
        }
        let left = wanted_at.map_or(Duration::ZERO, |at| grace.saturating_sub(at.elapsed()));
        if left.is_zero() { Verdict::Sweep } else { Verdict::Grace(left) }
    }

    /// Closes the account of a tree that is gone.
    pub(super) fn close(&mut self, id: TreeId) {
        self.accounts.remove(&id);
    }

    fn account(&mut self, id: TreeId) -> &mut Account {
        let wanted_at = Some(self.opened_at);
        self.accounts.entry(id).or_insert(Account { pins: 0, wanted_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn pins_and_grace_protect_and_abandoning_ends_the_grace() {
        let ledger = Ledger::new();
        let id = TreeId(1);
        assert!(matches!(ledger.locked().judge(id, LONG), Verdict::Grace(_)));
        assert_eq!(ledger.locked().judge(id, Duration::ZERO), Verdict::Sweep);
        ledger.locked().pin(id);
        ledger.locked().pin(id);
        ledger.abandon(id);
        ledger.release(id);
        assert_eq!(ledger.locked().judge(id, Duration::ZERO), Verdict::Held);
        ledger.release(id);
        assert!(matches!(ledger.locked().judge(id, LONG), Verdict::Grace(_)));
        ledger.abandon(id);
        assert_eq!(ledger.locked().judge(id, LONG), Verdict::Sweep);
        ledger.want(id);
        assert!(matches!(ledger.locked().judge(id, LONG), Verdict::Grace(_)));
    }
}
