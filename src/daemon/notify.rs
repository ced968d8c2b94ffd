//! What systemd is told. Without systemd all of this does nothing.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use sd_notify::NotifyState;

type Words = Vec<NotifyState<'static>>;

/// Words that are not said yet.
static UNSAID: AtomicUsize = AtomicUsize::new(0);

/// A thread of its own says the words: whoever listens may have stopped to, and a datagram to a full
/// socket blocks. A runtime's thread that blocks may take the whole daemon's end with it.
static MESSENGER: LazyLock<Option<Sender<Words>>> = LazyLock::new(|| {
    let (sender, words) = channel::<Words>();
    let speak = move || {
        for states in words {
            if let Err(error) = sd_notify::notify(&states) {
                tracing::warn!(%error, "systemd could not be told how things are");
            }
            UNSAID.fetch_sub(1, Relaxed);
        }
    };
    let thread = std::thread::Builder::new().name("hoist-notify".to_owned()).spawn(speak);
    match thread {
        Ok(_) => Some(sender),
        Err(error) => {
            tracing::warn!(%error, "systemd will not be told how things are");
            None
        }
    }
});

fn tell(states: &[NotifyState<'static>]) {
    if let Some(messenger) = &*MESSENGER {
        UNSAID.fetch_add(1, Relaxed);
        // The thread listens for as long as the process lives.
        let _ = messenger.send(states.to_vec());
    }
}

/// All doors are open.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again; `ready` has to follow.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "no monotonic clock"),
    }
}

/// The end has begun and may take this long.
pub(super) fn stopping(bound: Duration) {
    let micros = u32::try_from(bound.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(micros)]);
}

/// How often the watchdog wants to hear from us: half of its patience. `None`: there is none.
pub(super) fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2)
}

/// Still alive. Not said again while nobody has listened to the last time.
pub(super) fn alive() {
    if UNSAID.load(Relaxed) == 0 {
        tell(&[NotifyState::Watchdog]);
    }
}
