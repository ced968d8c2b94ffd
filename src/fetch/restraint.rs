//! What an operator holds fetching to beside the number of connections: bytes a second, of the
//! whole daemon and of one registry, and the connections of one registry.
//!
//! A registry is known by its name in image references, a mirror by its own; both with all that
//! they redirect to, since what is to be spared is mostly the way there.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::budget::rate::RateLimit;
use crate::budget::turns::{Class, Standing};
use crate::timeline::{LayerRecorder, Limit, Stall};

/// What one registry may be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OfRegistry {
    /// Bytes a second; `None`: as many as come.
    pub bytes_per_second: Option<u64>,
    /// Requests at once; `None`: as many as one host.
    pub connections: Option<usize>,
}

/// Everything that fetching is held to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Restraints {
    /// Bytes a second of all registries together; `None`: as many as come.
    pub bytes_per_second: Option<u64>,
    /// By the names of registries and mirrors: `registry.example:5000`, `docker.io`.
    pub registries: BTreeMap<String, OfRegistry>,
}

/// One registry's, shared by all that is fetched from it.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: Arc<str>,
    pub(super) connections: Option<usize>,
    rate: RateLimit,
}

/// The restraints in force. They can change while bytes are on their way.
#[derive(Debug, Default)]
pub(super) struct InForce {
    all: RateLimit,
    registries: Mutex<HashMap<String, Arc<Named>>>,
}

/// What one answer's body is held to.
#[derive(Debug)]
pub(super) struct Held {
    all: RateLimit,
    registry: Option<Arc<Named>>,
}

impl InForce {
    /// Puts others in their place. A registry that stays keeps its account.
    pub(super) fn set(&self, new: &Restraints) {
        self.all.set(new.bytes_per_second);
        let mut registries = self.registries();
        let old = std::mem::take(&mut *registries);
        for gone in old.iter().filter(|(name, _)| !new.registries.contains_key(*name)) {
            gone.1.rate.set(None);
        }
        *registries = new
            .registries
            .iter()
            .map(|(name, of)| {
                let rate = old.get(name).map(|named| named.rate.clone()).unwrap_or_default();
                rate.set(of.bytes_per_second);
                let named = Named { name: name.as_str().into(), connections: of.connections, rate };
                (name.clone(), Arc::new(named))
            })
            .collect();
    }

    fn registries(&self) -> MutexGuard<'_, HashMap<String, Arc<Named>>> {
        self.registries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registry's own, if there are any.
    pub(super) fn of(&self, registry: &str) -> Option<Arc<Named>> {
        self.registries().get(registry).map(Arc::clone)
    }

    /// What a body from `registry` is held to.
    pub(super) fn held(&self, registry: &str) -> Held {
        Held { all: self.all.clone(), registry: self.of(registry) }
    }

    /// The rate limits in force, first that of all: name, bytes a second, and how long was waited
    /// for it.
    pub(super) fn rates(&self) -> Vec<(Option<String>, RateLimit)> {
        let mut rates = vec![(None, self.all.clone())];
        let registries = self.registries();
        let named = registries.iter().map(|(name, of)| (Some(name.clone()), of.rate.clone()));
        rates.extend(named.filter(|(_, rate)| rate.bytes_per_second().is_some()));
        rates
    }
}

impl Held {
    /// Waits until so many bytes that have come may have come, of a layer of this `standing`. What is not read meanwhile
    /// holds the sender up by TCP's own window.
    pub(super) async fn came(&self, bytes: u64, standing: &Standing, recorder: &LayerRecorder) {
        let from = Instant::now();
        let held = match standing.class() {
            Class::Waited => self.waited_for(bytes).await,
            Class::Ahead => self.ahead(bytes, standing).await,
        };
        let Some((bytes_per_second, registry)) = held else { return };
        recorder.stalled(Stall::Bandwidth, from);
        recorder.limited(&Limit {
            stall: Stall::Bandwidth,
            bytes_per_second,
            registry: registry.map(str::to_owned),
        });
    }

    /// The rate that held it up, and whose that is.
    async fn waited_for(&self, bytes: u64) -> Option<(u64, Option<&str>)> {
        let all = self.all.take(bytes);
        let registry = self.registry.as_ref().and_then(|of| Some((of, of.rate.take(bytes)?)));
        let named = registry.map(|(of, turn)| (turn, Some(&*of.name)));
        // Both are owed; whichever takes longer is the one that held it up.
        let later = all.map(|turn| (turn, None)).into_iter().chain(named);
        let (turn, registry) = later.max_by_key(|(turn, _)| turn.at)?;
        turn.wait().await;
        Some((turn.bytes_per_second, registry))
    }

    /// The same for a layer that nobody waits for: at each limit the others go first.
    async fn ahead(&self, bytes: u64, standing: &Standing) -> Option<(u64, Option<&str>)> {
        let since = tokio::time::Instant::now();
        let named = self.registry.as_ref().map(|of| (&of.rate, Some(&*of.name)));
        let mut held = None;
        for (rate, name) in named.into_iter().chain([(&self.all, None)]) {
            let goes_first = || standing.class() == Class::Waited;
            let yielded = rate.take_after_others(bytes, since, goes_first).await;
            let mut waited_for = yielded.waited_for;
            if !yielded.taken
                && let Some(turn) = rate.take(bytes)
            {
                waited_for = Some(turn.bytes_per_second);
                turn.wait().await;
            }
            held = waited_for.map(|rate| (rate, name)).or(held);
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::turns::Party;
    use std::time::Duration;

    fn waited() -> Arc<Standing> {
        Standing::new(Party::new(), 1, 1)
    }

    fn ahead() -> Arc<Standing> {
        waited().of_class(Class::Ahead)
    }

    fn restraints(all: Option<u64>, registries: &[(&str, u64)]) -> Restraints {
        let of = |&(name, rate): &(&str, u64)| {
            (name.to_owned(), OfRegistry { bytes_per_second: Some(rate), connections: None })
        };
        Restraints { bytes_per_second: all, registries: registries.iter().map(of).collect() }
    }

    /// Fetches from several registries at once; how long each took on the paused clock.
    async fn race(in_force: &InForce, fetches: &[(&str, u64)]) -> Vec<Duration> {
        let began = tokio::time::Instant::now();
        let tasks: Vec<_> = fetches
            .iter()
            .map(|&(registry, pieces)| {
                let held = in_force.held(registry);
                tokio::spawn(async move {
                    let recorder = LayerRecorder::detached();
                    for _ in 0..pieces {
                        held.came(10_000, &waited(), &recorder).await;
                    }
                    began.elapsed()
                })
            })
            .collect();
        let mut took = Vec::new();
        for task in tasks {
            took.push(task.await.unwrap());
        }
        took
    }

    fn about(took: Duration, seconds: f64) -> bool {
        (took.as_secs_f64() - seconds).abs() < 0.2
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_with_a_limit_holds_up_nobody_else() {
        let in_force = InForce::default();
        in_force.set(&restraints(None, &[("slow", 100_000)]));
        let took = race(&in_force, &[("slow", 30), ("slow", 30), ("quick", 30)]).await;
        // 600 kB of the slow one together.
        assert!(about(took[0], 6.0) && about(took[1], 6.0), "{took:?}");
        assert_eq!(took[2], Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_of_all_holds_beside_that_of_one() {
        let in_force = InForce::default();
        in_force.set(&restraints(Some(200_000), &[("slow", 50_000)]));
        let took = race(&in_force, &[("slow", 30), ("quick", 300)]).await;
        assert!(about(took[0], 6.0), "its own limit: {took:?}");
        // 3.3 MB at 200 kB/s: what the slow one leaves is the other's.
        assert!(about(took[1], 16.5), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_on_its_way_hears_of_a_change() {
        let in_force = InForce::default();
        in_force.set(&restraints(Some(1000), &[("gone", 1000), ("stays", 1000)]));
        let [gone, stays] = ["gone", "stays"].map(|name| in_force.held(name));
        in_force.set(&restraints(None, &[("stays", 100_000), ("new", 7)]));
        let recorder = LayerRecorder::detached();
        let began = tokio::time::Instant::now();
        gone.came(1 << 30, &waited(), &recorder).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        stays.came(200_000, &waited(), &recorder).await;
        assert!(about(began.elapsed(), 2.0), "{:?}", began.elapsed());
        let mut rates: Vec<_> = in_force
            .rates()
            .into_iter()
            .map(|(name, rate)| (name, rate.bytes_per_second()))
            .collect();
        rates.sort();
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(rates, [(None, None), (name("new"), Some(7)), (name("stays"), Some(100_000))]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_held_a_layer_up_is_recorded_by_name() {
        let in_force = InForce::default();
        in_force.set(&restraints(Some(1_000_000), &[("slow", 10_000)]));
        let recorder = LayerRecorder::detached();
        in_force.held("slow").came(10_000, &waited(), &recorder).await;
        let report = recorder.report();
        let limit = &report.limits[0];
        assert_eq!(limit.registry.as_deref(), Some("slow"));
        assert_eq!((limit.stall, limit.bytes_per_second), (Stall::Bandwidth, 10_000));
        in_force.held("other").came(1_000_000, &waited(), &recorder).await;
        let report = recorder.report();
        assert_eq!(report.limits[0].registry, None, "the last one counts");
        assert_eq!(report.limits.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_has_what_the_others_leave() {
        let in_force = InForce::default();
        in_force.set(&restraints(Some(100_000), &[("slow", 50_000)]));
        let began = tokio::time::Instant::now();
        let fetch = |registry: &str, standing: Arc<Standing>, pieces: u64| {
            let held = in_force.held(registry);
            tokio::spawn(async move {
                let recorder = LayerRecorder::detached();
                for _ in 0..pieces {
                    held.came(1000, &standing, &recorder).await;
                }
                (began.elapsed(), recorder.report().limits)
            })
        };
        let ahead_of_time = ahead();
        let prefetch = fetch("slow", Arc::clone(&ahead_of_time), 100);
        let pull = fetch("quick", waited(), 300);
        let (took, _) = pull.await.unwrap();
        // 300 kB at 100 kB/s, and one piece in 33 of the other.
        assert!(about(took, 3.05), "{took:?}");
        let (took, limits) = prefetch.await.unwrap();
        // Some 10 kB by then, and the rest at its own registry's rate.
        assert!(about(took, 4.8), "{took:?}");
        assert_eq!(limits.last().unwrap().registry.as_deref(), Some("slow"));
        // Somebody comes to wait for it: it shares with the others then.
        let promoted = ahead();
        let [first, second] = [("a", Arc::clone(&promoted)), ("b", waited())]
            .map(|(registry, standing)| fetch(registry, standing, 200));
        tokio::time::sleep(Duration::from_millis(500)).await;
        promoted.promote();
        let times = [first.await.unwrap().0 - took, second.await.unwrap().0 - took];
        // The other had half a second alone, and then they shared.
        assert!(about(times[0], 4.0) && about(times[1], 3.5), "{times:?}");
    }
}
