//! The running daemon: three doors, one state, and the way to the end.
//!
//! ```text
//! build ──▶ serving ──SIGTERM──▶ draining ──pulls have ended, or the bound──▶ closing ──▶ drained
//!                                     ╰──────────second signal──────────▶ at once
//! ```
//!
//! While it drains the doors stay open: a pull under way needs the rest of its Prepares answered.
//! `/readyz` says no meanwhile.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::control::ControlService;
use super::error::DaemonError;
use super::flags::Flags;
use super::logging::Level;
use super::signals::{Ended, Signals, Wish};
use super::sockets::{self, SocketFile};
use super::wiring::Engine;
use super::{cri, http, notify, prefetch, reload, rest};
use crate::config::{Config, Cri, Environment};
use crate::otlp::Exporter;
use crate::sys::heap;
use crate::timeline::{History, LayerState};

/// How often a draining daemon looks whether pulls are under way.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// How many looks in a row have to find nothing under way. containerd asks for an image's next
/// layer within milliseconds of the one before; a second without work is the end of a pull.
const DRAIN_QUIET_LOOKS: u32 = 10;

/// How long connections may take to close once no pull is under way.
const CLOSE_BOUND: Duration = Duration::from_secs(3);

/// How long connections to registries may take to close, before the memory of their buffers is given back.
const CLOSING: Duration = Duration::from_millis(200);

/// What is shared between the doors.
pub(super) struct State {
    pub(super) engine: Engine,
    pub(super) root: PathBuf,
    /// How long a layer that was pulled ahead of time is kept.
    pub(super) prepulled: Duration,
    /// The containerd that images are put into, where nobody says another one.
    pub(super) containerd: PathBuf,
    /// Wakes whoever ends pins at their time.
    pub(super) pins_changed: Notify,
    /// The end has begun.
    pub(super) draining: CancellationToken,
    /// All doors close.
    pub(super) closing: CancellationToken,
}

/// A daemon whose doors are open.
pub(super) struct Application {
    flags: Flags,
    config: Config,
    level: Level,
    signals: Signals,
    state: Arc<State>,
    containerd: (UnixListener, SocketFile),
    control: (UnixListener, SocketFile),
    kubelet: Option<(UnixListener, SocketFile)>,
    http: Option<TcpListener>,
}

impl Application {
    /// Opens the root and the doors.
    pub(super) async fn build(
        flags: &Flags,
        config: Config,
        environment: Environment,
        level: Level,
    ) -> Result<Self, DaemonError> {
        // First of all: a signal that comes during the start must not kill it halfway.
        let signals = Signals::listen()?;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            root = %config.root.display(),
            socket = %config.socket.display(),
            cores = environment.cores,
            pulls = !flags.no_pull,
            "hoistd starts"
        );
        if !flags.no_pull && !owns_all_users() {
            return Err(DaemonError::Privileges);
        }
        let traces = Exporter::start(&environment.traces).unwrap_or_else(|error| {
            // A host shall not be without images for want of traces.
            tracing::warn!(%error, "no traces are sent");
            None
        });
        let engine = Engine::open(&config, flags.no_pull, traces)?;
        let state = State {
            engine,
            root: config.root.clone(),
            prepulled: config.cleanup.prepulled,
            containerd: config.cri.containerd.clone(),
            pins_changed: Notify::new(),
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
        };
        let http = match config.metrics.address {
            None => None,
            Some(address) => {
                let listening = TcpListener::bind(address).await;
                Some(listening.map_err(|source| DaemonError::Address { address, source })?)
            }
        };
        Ok(Self {
            containerd: sockets::listen(&config.socket)?,
            control: sockets::listen(&config.control_socket)?,
            kubelet: config.cri.socket.as_deref().map(sockets::listen).transpose()?,
            http,
            flags: flags.clone(),
            config,
            level,
            signals,
            state: Arc::new(state),
        })
    }

    /// Serves until a signal ends it.
    pub(super) async fn serve(self) -> Result<Ended, DaemonError> {
        let Self { flags, mut config, level, mut signals, state, .. } = self;
        let Self { containerd, control, kubelet, http, .. } = self;
        let (containerd, _containerd_file) = containerd;
        let (control, _control_file) = control;
        let mut doors = open_doors(&state, containerd, control, http);
        let (kubelet, _kubelet_file) = kubelet.unzip();
        if let Some(listener) = kubelet {
            doors.spawn(open_to_kubelet(&state, listener, config.cri.clone()));
        }
        let watchdog = tokio::spawn(watch(Arc::clone(&state)));
        let expiry = tokio::spawn(prefetch::expire(Arc::clone(&state)));
        let rest = tokio::spawn(rest_after_pulls(Arc::clone(&state)));
        notify::ready();
        tracing::info!("ready");
        loop {
            tokio::select! {
                wish = signals.next() => match wish {
                    Wish::End => break,
                    Wish::Reload => {
                        notify::reloading();
                        let named = flags.config.as_deref();
                        let load = |environment: &Environment| {
                            Config::load(named, environment).map(|config| flags.over(config))
                        };
                        let restrain = |config: &Config| state.engine.restrain(config);
                        reload::reload(&mut config, load, &level, restrain);
                        notify::ready();
                    }
                },
                Some(ended) = doors.join_next() => return Err(closed_by_itself(ended)),
            }
        }
        let bound = config.drain_timeout;
        notify::stopping(bound + 2 * CLOSE_BOUND);
        tracing::info!(bound_seconds = bound.as_secs_f64(), "draining");
        state.draining.cancel();
        let ended = tokio::select! {
            () = drain(&state, bound, &mut doors) => Ended::Drained,
            () = signals.end() => {
                tracing::warn!("a second signal: ending at once");
                Ended::AtOnce
            }
        };
        if let (Ended::Drained, Some(traces)) = (&ended, &state.engine.traces) {
            traces.flush(CLOSE_BOUND).await;
        }
        watchdog.abort();
        expiry.abort();
        rest.abort();
        tracing::info!("hoistd ends");
        Ok(ended)
    }
}

/// Whether files of any owner can be made: root, and no user namespace that knows some owners only.
fn owns_all_users() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    // Of the first namespace: 0 is 0, and so on for all 32 bits but the last. Where it cannot be read, root is believed.
    let all = map.is_empty() || map.split_whitespace().eq(["0", "0", "4294967295"]);
    all && nix::unistd::geteuid().is_root()
}

type Doors = JoinSet<Result<(), DaemonError>>;

fn open_doors(
    state: &Arc<State>,
    containerd: UnixListener,
    control: UnixListener,
    http: Option<TcpListener>,
) -> Doors {
    let mut doors = Doors::new();
    let shared = Arc::clone(state);
    doors.spawn(async move {
        let closing = shared.closing.clone();
        shared.engine.serve(containerd, closing.cancelled_owned()).await
    });
    doors.spawn(ControlService::serve(Arc::clone(state), control));
    if let Some(listener) = http {
        doors.spawn(http::serve(Arc::clone(state), listener));
    }
    doors
}

fn open_to_kubelet(
    state: &State,
    listener: UnixListener,
    cri: Cri,
) -> impl Future<Output = Result<(), DaemonError>> + use<> {
    let (keychain, closing) = (state.engine.keychain.clone(), state.closing.clone());
    async move { cri::serve(listener, &cri.containerd, keychain, cri.keep, closing).await }
}

fn closed_by_itself(ended: Result<Result<(), DaemonError>, tokio::task::JoinError>) -> DaemonError {
    let reason = match ended {
        Ok(Err(error)) => return error,
        Ok(Ok(())) => "nobody asked for it".to_owned(),
        Err(error) => error.to_string(),
    };
    DaemonError::Served { door: "a socket", reason }
}

/// Waits until no pull is under way, at most for `bound`; then closes the doors.
async fn drain(state: &State, bound: Duration, doors: &mut Doors) {
    if tokio::time::timeout(bound, quiet(&state.engine.history)).await.is_err() {
        tracing::warn!("pulls are still under way; they are cancelled");
    }
    state.closing.cancel();
    let closed = async { while doors.join_next().await.is_some() {} };
    if tokio::time::timeout(CLOSE_BOUND, closed).await.is_err() {
        tracing::warn!("connections are still open; they are cut");
    }
}

/// Waits until no pull has had work for a while. No pull at all is quiet at once.
async fn quiet(history: &History) {
    let mut looks = 0;
    while looks < DRAIN_QUIET_LOOKS && history.running() > 0 {
        looks = if at_work(history) { 0 } else { looks + 1 };
        tokio::time::sleep(DRAIN_LOOK).await;
    }
}

fn at_work(history: &History) -> bool {
    let busy = |state: &LayerState| matches!(state, LayerState::Waiting | LayerState::Running);
    let pulls = history.list(0);
    // A pull without layers has not got its manifest yet.
    pulls.iter().any(|p| p.layers.is_empty() || p.layers.iter().any(|layer| busy(&layer.state)))
}

/// Gives memory back when pulls have ended.
async fn rest_after_pulls(state: Arc<State>) {
    let engine = &state.engine;
    let give_back = || async move {
        engine.close_idle();
        tokio::time::sleep(CLOSING).await;
        // It cannot fail but by a panic, of which there is none.
        let _ = tokio::task::spawn_blocking(heap::give_back).await;
        tracing::debug!("memory of pulls is given back");
    };
    rest::rest(&engine.pull_ended, || engine.history.running() > 0, give_back).await;
}

/// Tells systemd's watchdog that the daemon lives: that is, that its store answers.
async fn watch(state: Arc<State>) {
    let Some(interval) = notify::watchdog_interval() else { return };
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        let shared = Arc::clone(&state);
        let asked = tokio::task::spawn_blocking(move || shared.engine.snapshots.statistics());
        match asked.await {
            Ok(Ok(_)) => notify::alive(),
            Ok(Err(error)) => tracing::error!(%error, "the store does not answer"),
            Err(error) => tracing::error!(%error, "the store could not be asked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::timeline::LayerRecorder;

    #[tokio::test]
    async fn a_pull_under_way_is_waited_for() {
        let history = History::new(3);
        assert_eq!(quiet(&history).now_or_never(), Some(()), "no pull at all");
        let pull = history.begin("host/image:tag");
        assert!(at_work(&history), "its manifest is not there yet");
        assert_eq!(quiet(&history).now_or_never(), None);
        history.close(&pull);
        assert_eq!(quiet(&history).now_or_never(), Some(()));
    }

    #[test]
    fn a_pull_whose_layers_are_over_has_no_work() {
        let history = History::new(3);
        let pull = history.begin("host/image:tag");
        let layer = LayerRecorder::detached();
        layer.state(LayerState::Running);
        let layer = Arc::new(layer);
        pull.attach(Arc::clone(&layer));
        assert!(at_work(&history));
        layer.state(LayerState::Done);
        assert!(!at_work(&history));
    }
}
