//! Leave for connections: of an image, of a host, of the daemon.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Limits;
use super::pace::Pace;
use super::restraint::Named;
use crate::budget::turns::{Claimant, Gate, Held, Party, Scarce, Standing, Verdict};

/// Leave for one connection.
pub(super) type Connection = Held<Open>;

/// All connections of a daemon. Clones share them.
#[derive(Clone)]
pub(super) struct Connections(Gate<Open>);

/// Whom a connection is wanted to.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    host: Arc<str>,
    /// The registry that led there, and how many it may have, where that was limited by its name.
    registry: Option<(Arc<str>, usize)>,
}

impl Wanted {
    pub(super) fn of(host: &Arc<str>, registry: Option<&Named>) -> Self {
        let limited = |named: &Named| Some((Arc::clone(&named.name), named.connections?));
        Self { host: Arc::clone(host), registry: registry.and_then(limited) }
    }
}

/// The connections that are open.
pub(super) struct Open {
    limits: Limits,
    all: usize,
    images: HashMap<Party, usize>,
    hosts: HashMap<Arc<str>, Host>,
    /// Of registries whose connections are limited by name.
    registries: HashMap<Arc<str>, usize>,
}

struct Host {
    open: usize,
    pace: Pace,
    /// It asked to be left alone until then, by the clock of the timer that ends it.
    closed_until: Option<tokio::time::Instant>,
}

impl Open {
    fn host(&mut self, host: &Arc<str>) -> &mut Host {
        let most = self.limits.per_host;
        let new = || Host { open: 0, pace: Pace::new(most), closed_until: None };
        self.hosts.entry(Arc::clone(host)).or_insert_with(new)
    }
}

impl Scarce for Open {
    type Want = Wanted;

    fn verdict(&self, Claimant { party: image, .. }: Claimant, wanted: &Wanted) -> Verdict {
        let of_image = self.images.get(&image).copied().unwrap_or_default();
        let registry_is_full = wanted
            .registry
            .as_ref()
            .is_some_and(|(name, most)| self.registries.get(name).is_some_and(|open| open >= most));
        let host_is_full = self.hosts.get(&wanted.host).is_some_and(|host| {
            host.open >= host.pace.limit()
                || host.closed_until.is_some_and(|until| tokio::time::Instant::now() < until)
        });
        let full = self.all >= self.limits.global
            || of_image >= self.limits.per_image
            || host_is_full
            || registry_is_full;
        if full { Verdict::PassOver } else { Verdict::Go }
    }

    fn take(&mut self, Claimant { party: image, .. }: Claimant, wanted: &Wanted) {
        self.all += 1;
        *self.images.entry(image).or_default() += 1;
        if let Some((name, _)) = &wanted.registry {
            *self.registries.entry(Arc::clone(name)).or_default() += 1;
        }
        let host = self.host(&wanted.host);
        host.open += 1;
        if host.open >= host.pace.limit() {
            host.pace.full();
        }
    }

    fn give_back(&mut self, Claimant { party: image, .. }: Claimant, wanted: &Wanted) {
        self.all -= 1;
        self.host(&wanted.host).open -= 1;
        if let Some((name, _)) = &wanted.registry
            && let Some(open) = self.registries.get_mut(name)
        {
            *open -= 1;
        }
        if let Some(open) = self.images.get_mut(&image) {
            *open -= 1;
            if *open == 0 {
                self.images.remove(&image);
            }
        }
    }

    fn weight(_: &Wanted) -> u64 {
        1
    }
}

impl Connections {
    pub(super) fn new(limits: Limits) -> Self {
        let (images, hosts, registries) = Default::default();
        Self(Gate::new(Open { limits, all: 0, images, hosts, registries }))
    }

    /// How many are open now.
    pub(super) fn count(&self) -> usize {
        self.0.with(|open| open.all)
    }

    /// Waits for leave to ask.
    pub(super) async fn open(&self, layer: &Arc<Standing>, wanted: Wanted) -> Connection {
        self.0.enter(layer, wanted).await
    }

    /// Notes the answer to a request made at `asked`.
    pub(super) fn answered(&self, host: &Arc<str>, asked: Instant) {
        self.0.with(|open| open.host(host).pace.answered(asked, Instant::now()));
    }

    /// Notes that the host is overloaded: it is asked less from now on, and nothing at all for as
    /// long as it says.
    pub(super) fn refused(&self, host: &Arc<str>, asked: Instant, pause: Option<Duration>) {
        let until = pause.map(|pause| tokio::time::Instant::now() + pause);
        self.0.with(|open| {
            let host = open.host(host);
            host.pace.refused(asked, Instant::now());
            host.closed_until = host.closed_until.max(until);
        });
        if let Some(pause) = pause {
            // Whoever was refused may be gone by then, and others wait for the host too.
            let gate = self.0.clone();
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                gate.with(|_| ());
            });
        }
    }

    /// Notes bytes that have come from `host`.
    pub(super) fn arrived(&self, host: &Arc<str>, bytes: u64) {
        self.0.with(|open| open.host(host).pace.arrived(bytes, Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn to(host: &Arc<str>) -> Wanted {
        Wanted::of(host, None)
    }

    fn limits(per_image: usize, per_host: usize, global: usize) -> Limits {
        Limits { chunk_bytes: 1, per_image, per_host, global }
    }

    #[tokio::test]
    async fn a_host_that_is_full_does_not_hold_up_another() {
        let connections = Connections::new(limits(4, 2, 3));
        let layer = Standing::new(Party::new(), 9, 1);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let first = connections.open(&layer, to(&a)).await;
        let _second = connections.open(&layer, to(&a)).await;
        let mut third = Box::pin(connections.open(&layer, to(&a)));
        assert!((&mut third).now_or_never().is_none(), "the host has two");
        let other = connections.open(&layer, to(&b)).await;
        drop(first);
        let third = third.await;
        let other_layer = Standing::new(Party::new(), 9, 1);
        assert!(
            connections.open(&other_layer, to(&b)).now_or_never().is_none(),
            "the daemon has three"
        );
        drop((third, other));
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_is_left_alone_for_as_long_as_it_asks() {
        let connections = Connections::new(limits(8, 8, 8));
        let layer = Standing::new(Party::new(), 9, 1);
        let host: Arc<str> = "a".into();
        // The clock goes only as far as somebody waits.
        let pause = Duration::from_secs(50);
        connections.refused(&host, Instant::now(), Some(pause));
        let mut opened = Box::pin(connections.open(&layer, to(&host)));
        assert!((&mut opened).now_or_never().is_none());
        tokio::time::advance(pause - Duration::from_millis(1)).await;
        assert!((&mut opened).now_or_never().is_none(), "a millisecond is left");
        drop(opened.await);
    }
}
