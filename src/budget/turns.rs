//! Who goes next when something scarce comes free: bytes, connections, leave to be in work.
//!
//! Everybody who waits at a [`Gate`] does so for a layer, and a layer has a [`Standing`] that changes
//! while it is pulled. Whose turn it is, is decided when something comes free and not on arrival:
//!
//! 1. a pull that somebody waits for before one ahead of time ([`Class`]);
//! 2. who has been overtaken too often, in the order of arrival: nobody waits for ever;
//! 3. a layer that a Prepare waits for and that holds nothing here;
//! 4. a layer that is in work before one that waits for its turn, and has its head fetched meanwhile;
//! 5. the party (the pull) that holds least here: two pulls share evenly;
//! 6. the layer with the longest work left, which is what a pull cannot be faster than;
//! 7. who came first. A layer's own requests stand equal in all else, so they keep their order.
//!
//! Who is next and does not fit yet is waited for, so that small requests do not starve a large one.
//! Only what waits for another thing than all others (another host) is passed over without a count.
//!
//! The first rule has an exception, so that a host which never stops pulling comes to its prefetches
//! too: when so many of the first class went that one of the second was overtaken too often, one of the
//! second goes. A layer that is pulled ahead of time changes its class when somebody comes to wait for it
//! ([`Standing::promote`]).

mod standing;

use std::collections::HashMap;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

pub use standing::{Claimant, Class, Party, Standing};

/// How often somebody who waits is overtaken by later ones at most: some windows' worth of chunks,
/// so that the longest layer gets far and the shortest is never out of sight.
const OVERTAKEN_MOST: u32 = 32;

/// Whether somebody may go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Now.
    Go,
    /// When more has come free, and nobody before.
    Wait,
    /// Others may go first, who wait for something else.
    PassOver,
}

/// What is scarce. Pure: whoever asks holds a lock.
pub trait Scarce: Send + 'static {
    /// What somebody wants of it.
    type Want: Clone + Send + Unpin + 'static;

    /// Whether `who` may have `want` now.
    fn verdict(&self, who: Claimant, want: &Self::Want) -> Verdict;
    /// Notes that `who` has it.
    fn take(&mut self, who: Claimant, want: &Self::Want);
    /// Notes that `who` has it no longer; the same as when it was taken.
    fn give_back(&mut self, who: Claimant, want: &Self::Want);
    /// How much of a party's share it is.
    fn weight(want: &Self::Want) -> u64;
}

struct Waiting<S: Scarce> {
    number: u64,
    standing: Arc<Standing>,
    want: S::Want,
    overtaken: u32,
    tell: oneshot::Sender<Held<S>>,
}

struct State<S: Scarce> {
    scarce: S,
    waiting: Vec<Waiting<S>>,
    arrivals: u64,
    /// How many that somebody waits for went, since one ahead of time went last or began to wait.
    went_before: u32,
    of_parties: HashMap<Party, u64>,
    of_layers: HashMap<u64, u64>,
}

fn add<K: Hash + Eq>(map: &mut HashMap<K, u64>, key: K, amount: u64) {
    *map.entry(key).or_default() += amount;
}

fn subtract<K: Hash + Eq>(map: &mut HashMap<K, u64>, key: K, amount: u64) {
    if let Some(held) = map.get_mut(&key) {
        *held -= amount;
        if *held == 0 {
            map.remove(&key);
        }
    }
}

impl<S: Scarce> State<S> {
    fn take(&mut self, standing: &Standing, who: Claimant, want: &S::Want) {
        self.scarce.take(who, want);
        add(&mut self.of_parties, standing.party(), S::weight(want));
        add(&mut self.of_layers, standing.id(), S::weight(want));
    }

    fn give_back(&mut self, standing: &Standing, who: Claimant, want: &S::Want) {
        self.scarce.give_back(who, want);
        subtract(&mut self.of_parties, standing.party(), S::weight(want));
        subtract(&mut self.of_layers, standing.id(), S::weight(want));
    }

    /// What decides between two who wait; the greater goes first.
    fn precedence(&self, waiting: &Waiting<S>) -> impl Ord + use<S> {
        use std::cmp::Reverse;
        let Waiting { number, standing, overtaken, .. } = waiting;
        let favoured = if self.went_before < OVERTAKEN_MOST { Class::Waited } else { Class::Ahead };
        let patient = (*overtaken >= OVERTAKEN_MOST).then_some(Reverse(*number));
        let has_nothing = !self.of_layers.contains_key(&standing.id());
        let first = standing.is_asked_for() && has_nothing;
        let held = self.of_parties.get(&standing.party()).copied().unwrap_or_default();
        let of_class = standing.class() == favoured;
        let share = (standing.is_in_work(), Reverse(held));
        (of_class, patient, first, share, standing.nanos_left(), Reverse(*number))
    }

    fn verdict(&self, waiting: &Waiting<S>) -> Verdict {
        self.scarce.verdict(waiting.standing.claimant(), &waiting.want)
    }

    /// Takes for whoever is next, if there is somebody and it fits.
    fn next(&mut self) -> Option<(Waiting<S>, Claimant)> {
        let best = self.waiting.iter().enumerate();
        let best = best.filter(|(_, waiting)| self.verdict(waiting) != Verdict::PassOver);
        let (index, _) = best.max_by_key(|(_, waiting)| self.precedence(waiting))?;
        if self.verdict(&self.waiting[index]) == Verdict::Wait {
            return None;
        }
        let next = self.waiting.swap_remove(index);
        let who = next.standing.claimant();
        self.count_overtaken(next.number, who.class);
        self.take(&next.standing, who, &next.want);
        Some((next, who))
    }

    /// Notes that those who wait, and could have gone, are still there: one of `class` went.
    fn count_overtaken(&mut self, number: u64, class: Class) {
        let mut ahead_waits = false;
        for index in 0..self.waiting.len() {
            let other = &self.waiting[index];
            if self.verdict(other) == Verdict::PassOver {
                continue;
            }
            ahead_waits |= other.standing.class() == Class::Ahead;
            if other.number < number && other.standing.class() == class {
                self.waiting[index].overtaken += 1;
            }
        }
        let counts = class == Class::Waited && ahead_waits;
        self.went_before = if counts { self.went_before + 1 } else { 0 };
    }
}

/// Where one waits for something scarce. Clones are of the same gate.
pub struct Gate<S: Scarce>(Arc<Mutex<State<S>>>);

impl<S: Scarce> Clone for Gate<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Something scarce that somebody has; it returns when this is dropped.
#[must_use = "it returns when it is dropped"]
pub struct Held<S: Scarce> {
    gate: Gate<S>,
    standing: Arc<Standing>,
    /// As it was let in: a promotion changes nothing about what is held.
    who: Claimant,
    want: S::Want,
}

/// A place in the line. It is kept whether it is looked at or not; dropping it gives it up.
pub struct Entering<S: Scarce> {
    gate: Gate<S>,
    number: u64,
    told: oneshot::Receiver<Held<S>>,
}

impl<S: Scarce> Gate<S> {
    /// A gate before `scarce`.
    pub fn new(scarce: S) -> Self {
        let (of_parties, of_layers) = Default::default();
        let waiting = Vec::new();
        let state = State { scarce, waiting, arrivals: 0, went_before: 0, of_parties, of_layers };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins those who wait.
    pub fn enter(&self, standing: &Arc<Standing>, want: S::Want) -> Entering<S> {
        let (tell, told) = oneshot::channel();
        let mut state = self.state();
        let number = state.arrivals;
        state.arrivals += 1;
        let standing = Arc::clone(standing);
        state.waiting.push(Waiting { number, standing, want, overtaken: 0, tell });
        drop(state);
        self.let_in();
        Entering { gate: self.clone(), number, told }
    }

    /// Takes it if it is free now and nobody waits for it.
    pub fn try_enter(&self, standing: &Arc<Standing>, want: S::Want) -> Option<Held<S>> {
        let mut state = self.state();
        let who = standing.claimant();
        let wait = state.waiting.iter().any(|other| state.verdict(other) != Verdict::PassOver);
        if wait || state.scarce.verdict(who, &want) != Verdict::Go {
            return None;
        }
        state.take(standing, who, &want);
        Some(Held { gate: self.clone(), standing: Arc::clone(standing), who, want })
    }

    /// Looks at what is scarce, or changes how much there is of it.
    pub fn with<R>(&self, look: impl FnOnce(&mut S) -> R) -> R {
        let result = look(&mut self.state().scarce);
        self.let_in();
        result
    }

    /// Lets in whoever may go since a standing was promoted.
    pub fn look_again(&self) {
        self.let_in();
    }

    /// Whether somebody waits.
    pub fn has_waiting(&self) -> bool {
        !self.state().waiting.is_empty()
    }

    fn let_in(&self) {
        loop {
            let next = self.state().next();
            let Some((Waiting { standing, want, tell, .. }, who)) = next else { return };
            // Who went away meanwhile does not take it: dropping it gives it back.
            drop(tell.send(Held { gate: self.clone(), standing, who, want }));
        }
    }
}

impl<S: Scarce> Drop for Held<S> {
    fn drop(&mut self) {
        self.gate.state().give_back(&self.standing, self.who, &self.want);
        self.gate.let_in();
    }
}

impl<S: Scarce> std::fmt::Debug for Held<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}

impl<S: Scarce> Entering<S> {
    /// What was waited for, if it is there; then it is used up.
    ///
    /// # Errors
    /// It is not: here it is again.
    pub fn granted(mut self) -> Result<Held<S>, Self> {
        self.told.try_recv().map_err(|_| self)
    }
}

impl<S: Scarce> Future for Entering<S> {
    type Output = Held<S>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Held<S>> {
        let told = Pin::new(&mut self.told).poll(context);
        told.map(|held| held.expect("who waits is told or leaves"))
    }
}

impl<S: Scarce> Drop for Entering<S> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        let place = state.waiting.iter().position(|waiting| waiting.number == self.number);
        let left = place.map(|index| state.waiting.swap_remove(index));
        drop(state);
        if left.is_some() {
            // It may have been the one that all waited for.
            self.gate.let_in();
        }
    }
}

#[cfg(test)]
mod tests;
