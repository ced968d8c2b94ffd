//! The engine: the rooms below, put together as the configuration says.
//!
//! containerd's Prepare comes in through `snapshots`, which asks a
//! [`LayerSource`](crate::snapshots::LayerSource); here that is a [`Provider`] over the
//! [`Puller`], which keeps its trees in the same `snapshots`. The translation of errors at this
//! seam decides between fallback and failure.

use std::path::Path;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::net::UnixListener;
use tokio::sync::Notify;

use super::error::DaemonError;
use super::observe;
use crate::budget::Budget;
use crate::budget::rate::RateLimit;
use crate::config::{Config, MinFree, OnError};
use crate::fetch::Fetcher;
use crate::image::Platform;
use crate::metrics::{Known, Metrics, RateNow};
use crate::otlp::Exporter;
use crate::pull::trees::{HeldTree, TreeStore};
use crate::pull::{self, Keeper, PullError, Puller};
use crate::registry::{self, Keychain, Registry, RegistryError};
use crate::snapshots::{self, Claim, ClaimError, LayerSource, OnCall, Snapshots};
use crate::timeline::{Bottleneck, History, LayerState, Phase, PullReport};
use crate::unpack::{self, UnpackError};

/// The rooms below, as one thing.
pub(super) struct Engine {
    pub(super) snapshots: Arc<Snapshots>,
    /// `None`: no layers are provided.
    pub(super) puller: Option<Puller>,
    pub(super) history: History,
    pub(super) budget: Budget,
    pub(super) metrics: Arc<Metrics>,
    /// `None`: nobody wants traces.
    pub(super) traces: Option<Exporter>,
    /// `None`: nothing is fetched.
    fetcher: Option<Fetcher>,
    /// Of all that pulls write.
    disk_rate: RateLimit,
    min_free: MinFree,
    on_error: OnError,
    /// What a kubelet passed.
    pub(super) keychain: Keychain,
    /// Told when a pull has ended.
    pub(super) pull_ended: Arc<Notify>,
}

impl Engine {
    /// Opens the root and makes everything that a pull needs.
    pub(super) fn open(
        config: &Config,
        no_pull: bool,
        traces: Option<Exporter>,
    ) -> Result<Self, DaemonError> {
        let metrics = Arc::new(Metrics::new(config.metrics.image_label));
        metrics.known(&Known {
            phases: &Phase::ALL.map(Phase::as_str),
            bottlenecks: &Bottleneck::ALL.map(Bottleneck::as_str),
            kinds: &PullError::KINDS,
            causes: &RegistryError::CAUSES,
        });
        let budget = config.budget();
        let counted = Arc::clone(&metrics);
        let options = snapshots::Options {
            on_call: OnCall::new(move |call, code, time| {
                counted.snapshots.answered(call, code, time.as_secs_f64());
            }),
            metadata: metrics.metadata.clone(),
            fallbacks: metrics.pulls.fallbacks().clone(),
            ..config.snapshot_options()
        };
        let snapshots = Snapshots::open(&config.root, options)
            .map_err(|source| DaemonError::Root { root: config.root.clone(), source })?;
        let history = history(config);
        // They go on where they were before a restart.
        history.images(usize::MAX).iter().for_each(|image| metrics.pulls.seen(image));
        let keychain = Keychain::default();
        let fetcher = match no_pull {
            true => None,
            false => Some(fetcher(config, &budget, &metrics, &keychain)?),
        };
        let pull_ended = Arc::new(Notify::new());
        let ended = {
            let (metrics, traces) = (Arc::clone(&metrics), traces.clone());
            let pull_ended = Arc::clone(&pull_ended);
            move |report: &PullReport| {
                observe::count(&metrics, report);
                observe::log(report);
                if let Some(traces) = &traces {
                    traces.send(report);
                }
                pull_ended.notify_one();
            }
        };
        let unpack = config.unpack_options();
        let disk_rate = unpack.rate.clone();
        let puller = fetcher.as_ref().map(|fetcher| {
            puller(config, unpack, fetcher, &snapshots, &history, (&budget, &metrics), ended)
        });
        let on_error = config.pull.on_error;
        Ok(Self {
            snapshots,
            puller,
            history,
            budget,
            metrics,
            traces,
            fetcher,
            disk_rate,
            min_free: config.limits.min_free,
            on_error,
            keychain,
            pull_ended,
        })
    }

    /// Takes over those limits that can change while pulls are under way: bytes a second, and what
    /// single registries may be asked.
    pub(super) fn restrain(&self, config: &Config) {
        self.disk_rate.set(config.limits.disk_bytes_per_second);
        if let Some(fetcher) = &self.fetcher {
            fetcher.restrain(&config.restraints());
        }
    }

    /// Serves containerd until `shutdown`.
    pub(super) async fn serve(
        &self,
        listener: UnixListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), DaemonError> {
        let source = self.puller.clone().map(|puller| {
            let (metrics, on_error) = (Arc::clone(&self.metrics), self.on_error);
            Arc::new(Provider { puller, metrics, on_error }) as Arc<dyn LayerSource>
        });
        let served = Arc::clone(&self.snapshots).serve(source, listener, shutdown).await;
        served
            .map_err(|error| DaemonError::Served { door: "containerd", reason: error.to_string() })
    }

    /// Brings those metrics up to date that are read when they are asked for. Blocks for
    /// milliseconds.
    ///
    /// # Errors
    /// The store does not answer.
    pub(super) fn refresh(&self) -> Result<(), crate::snapshots::Error> {
        self.metrics.store.budget(self.budget.total(), self.budget.in_use());
        self.metrics.pulls.in_progress(self.history.running());
        self.history.images(0).iter().for_each(|image| self.metrics.pulls.seen(image));
        let (waiting, running) = self.layers();
        self.metrics.layers.now(waiting, running);
        let (most, in_use) = self.connections();
        self.metrics.store.connections(most, in_use);
        self.metrics.rates.now(self.rates());
        let disk = self.snapshots.disk()?;
        self.metrics.store.disk(disk.size_bytes, disk.available_bytes);
        self.metrics.store.min_free(self.min_free.bytes(disk.size_bytes));
        for (kind, count) in self.snapshots.kinds()? {
            self.metrics.store.snapshots(kind.as_str(), count);
        }
        let statistics = self.snapshots.statistics()?;
        self.metrics.store.trees(statistics.trees, statistics.tree_bytes, statistics.saved_bytes);
        Ok(())
    }

    /// Closes connections to registries that nobody uses.
    pub(super) fn close_idle(&self) {
        if let Some(fetcher) = &self.fetcher {
            fetcher.registry().close_idle();
        }
    }

    /// Requests for blobs that there may be at once, and that there are.
    pub(super) fn connections(&self) -> (usize, usize) {
        self.fetcher.as_ref().map_or((0, 0), Fetcher::connections)
    }

    /// The limits on bytes a second.
    fn rates(&self) -> Vec<RateNow> {
        let disk = rate_now("disk", None, &self.disk_rate);
        let bandwidth = self.fetcher.iter().flat_map(Fetcher::rate_limits);
        let bandwidth = bandwidth.map(|(name, rate)| rate_now("bandwidth", name, &rate));
        bandwidth.chain([disk]).collect()
    }

    /// Layers of running pulls that wait for their turn, and that are in work.
    pub(super) fn layers(&self) -> (usize, usize) {
        let running = self.history.list(0);
        let count = |state: &LayerState| {
            running.iter().flat_map(|pull| &pull.layers).filter(|l| l.state == *state).count()
        };
        (count(&LayerState::Waiting), count(&LayerState::Running))
    }
}

/// Records of pulls, on disk if that can be: nobody's pull shall fail for them.
fn history(config: &Config) -> History {
    let directory = config.root.join("pulls");
    History::open(&directory, config.keep(), config.pull_bounds()).unwrap_or_else(|error| {
        tracing::warn!(%error, "records of pulls are kept in memory only");
        History::bounded(config.history.pulls, config.pull_bounds())
    })
}

fn rate_now(limit: &'static str, registry: Option<String>, rate: &RateLimit) -> RateNow {
    RateNow {
        limit,
        registry: registry.unwrap_or_default(),
        bytes_per_second: rate.bytes_per_second().unwrap_or(0),
        waited_seconds: rate.waited().as_secs_f64(),
    }
}

fn fetcher(
    config: &Config,
    budget: &Budget,
    metrics: &Metrics,
    keychain: &Keychain,
) -> Result<Fetcher, DaemonError> {
    let settings = registry::Settings {
        metrics: metrics.requests.clone(),
        keychain: keychain.clone(),
        ..config.registry_settings()
    };
    let fetcher = Fetcher::new(Registry::new(settings)?, budget.clone(), config.fetch_limits());
    fetcher.restrain(&config.restraints());
    Ok(fetcher)
}

fn puller(
    config: &Config,
    unpack: unpack::Options,
    fetcher: &Fetcher,
    snapshots: &Arc<Snapshots>,
    history: &History,
    (budget, metrics): (&Budget, &Arc<Metrics>),
    ended: impl Fn(&PullReport) + Send + Sync + 'static,
) -> Puller {
    let (registry, fetcher) = (fetcher.registry().clone(), fetcher.clone());
    let settings = pull::Settings {
        layers_at_once: config.limits.layers_at_once,
        unpack,
        decompression: config.decompression(budget),
        platform: Platform::host(),
        keeper: config.content_store().map(|socket| keeper(socket, metrics)),
        on_end: Arc::new(ended),
    };
    let store = Arc::clone(snapshots) as Arc<dyn TreeStore>;
    Puller::new(registry, fetcher, budget.clone(), store, history.clone(), settings)
}

fn keeper(socket: &Path, metrics: &Arc<Metrics>) -> Keeper {
    let metrics = Arc::clone(metrics);
    let on_kept = Arc::new(move |result: &str| metrics.layers.kept(result));
    Keeper { socket: socket.to_owned(), on_kept }
}

/// Provides containerd's Prepare with layers out of a puller.
struct Provider {
    puller: Puller,
    metrics: Arc<Metrics>,
    on_error: OnError,
}

impl LayerSource for Provider {
    fn claim(&self, claim: Claim) -> BoxFuture<'static, Result<HeldTree, ClaimError>> {
        let Self { puller, metrics, on_error } = self;
        let (puller, metrics, on_error) = (puller.clone(), Arc::clone(metrics), *on_error);
        let Claim { namespace, image, manifest, layer, chain_id, parents, trace_parent } = claim;
        async move {
            let asked =
                pull::Claim { namespace, image, manifest, layer, chain_id, parents, trace_parent };
            let error = match puller.claim(asked).await {
                Ok(held) => return Ok(held),
                Err(error) => error,
            };
            let answer = refusal(&error, on_error);
            if answer != ClaimError::Cancelled {
                metrics.pulls.failed(error.kind());
            }
            if matches!(answer, ClaimError::Fallback { .. }) {
                metrics.pulls.fallbacks().count(error.kind());
            }
            Err(answer)
        }
        .boxed()
    }
}

/// What containerd hears. Bytes that are not what the image promises are an error whatever the
/// configuration says: another way of pulling must not hide them.
fn refusal(error: &PullError, on_error: OnError) -> ClaimError {
    let text = error.to_string();
    if matches!(error, PullError::Cancelled) {
        return ClaimError::Cancelled;
    }
    if error.is_integrity() {
        tracing::error!(error = text, "an image's bytes are not what it promises");
        return ClaimError::Failed { message: text };
    }
    if error.is_no_space() {
        // containerd would write the compressed layer beside the unpacked one: it fills what is left.
        let message = match error {
            PullError::NoRoom { .. } => text,
            PullError::Unpack { source, .. } if matches!(**source, UnpackError::NoRoom(_)) => text,
            _ => format!(
                "{text}; remove images or give hoist's root a larger volume, and pull again"
            ),
        };
        tracing::error!(error = message, "the disk is full, or as full as it may be");
        return ClaimError::Failed { message };
    }
    match on_error {
        OnError::Fallback => ClaimError::Fallback { reason: text },
        OnError::Fail => ClaimError::Failed { message: text },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{BlobDigest, Sha256};

    #[test]
    fn wrong_bytes_never_fall_back() {
        let [expected, actual] = [b"a", b"b"].map(|text| BlobDigest(Sha256::of(text)));
        let mismatch = PullError::BlobMismatch { expected, actual };
        for on_error in [OnError::Fallback, OnError::Fail] {
            let answer = refusal(&mismatch, on_error);
            let ClaimError::Failed { message } = answer else { panic!("{answer:?}") };
            assert!(message.contains(&expected.to_string()), "{message}");
            assert!(message.contains(&actual.to_string()), "{message}");
        }
    }

    #[test]
    fn a_full_disk_never_falls_back() {
        let path = std::path::PathBuf::from("/root");
        let room = unpack::NoRoom {
            path,
            available_bytes: 1,
            min_free_bytes: 2,
            needed_bytes: 3,
            begun: false,
        };
        let refused = PullError::NoRoom { image: "image".to_owned(), source: room.clone() };
        let stopped = |source| PullError::Unpack {
            layer: BlobDigest(Sha256::of(b"a")),
            source: Arc::new(source),
        };
        let full = UnpackError::Tree {
            what: "write",
            path: "/root/x".into(),
            source: std::io::Error::from_raw_os_error(libc::ENOSPC),
        };
        for error in [refused, stopped(UnpackError::NoRoom(room)), stopped(full)] {
            assert_eq!(error.kind(), "no_space");
            let answer = refusal(&error, OnError::Fallback);
            let ClaimError::Failed { message } = answer else { panic!("{answer:?}") };
            assert!(message.contains("remove images"), "{message}");
            assert!(message.contains("pull again"), "{message}");
        }
        let broken = UnpackError::Tree {
            what: "write",
            path: "/root/x".into(),
            source: std::io::Error::from_raw_os_error(libc::EIO),
        };
        let answer = refusal(&stopped(broken), OnError::Fallback);
        assert!(matches!(answer, ClaimError::Fallback { .. }), "{answer:?}");
    }

    #[test]
    fn other_errors_go_as_configured() {
        let panicked = PullError::Panicked { what: "x".to_owned(), said: "y".to_owned() };
        let answer = refusal(&panicked, OnError::Fallback);
        let ClaimError::Fallback { reason } = answer else { panic!("{answer:?}") };
        assert!(reason.starts_with("x panicked: y;"), "{reason}");
        assert!(matches!(refusal(&panicked, OnError::Fail), ClaimError::Failed { .. }));
        let error = PullError::Unsupported {
            layer: BlobDigest(Sha256::of(b"a")),
            media_type: "application/x".to_owned(),
        };
        assert!(matches!(refusal(&error, OnError::Fallback), ClaimError::Fallback { .. }));
        assert!(matches!(refusal(&error, OnError::Fail), ClaimError::Failed { .. }));
        assert_eq!(refusal(&PullError::Cancelled, OnError::Fail), ClaimError::Cancelled);
    }
}
