//! Why the daemon cannot start or go on.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the daemon cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum DaemonError {
    /// No threads.
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    /// The log cannot be started.
    #[error("cannot start the log with level {level:?}: {reason}")]
    Log {
        /// As configured.
        level: String,
        /// What is wrong.
        reason: String,
    },
    /// Layers could not be unpacked.
    #[error(
        "hoistd needs root, outside of user namespaces: layers hold devices and files of all owners \
         (rootless containerd is not supported; with --no-pull hoistd is a snapshotter that pulls nothing)"
    )]
    Privileges,
    /// Signals cannot be listened for.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// A unix socket cannot be listened on.
    #[error("cannot listen on {}: {source}", path.display())]
    Socket {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else answers on the socket.
    #[error("another process answers on {}; stop it, or set another socket", path.display())]
    SocketInUse {
        /// Which.
        path: PathBuf,
    },
    /// The HTTP endpoint cannot be listened on.
    #[error("cannot listen on {address}: {source}; set [metrics] address, or \"off\"")]
    Address {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The place where layers and snapshots are kept cannot be used.
    #[error("cannot use the root {}: {source}", root.display())]
    Root {
        /// Which.
        root: PathBuf,
        /// What is wrong with it.
        source: crate::snapshots::Error,
    },
    /// The registry client cannot be made.
    #[error("cannot make the registry client: {0}")]
    Registry(#[from] crate::registry::RegistryError),
    /// A door closed by itself.
    #[error("serving {door} ended: {reason}")]
    Served {
        /// Which.
        door: &'static str,
        /// Why.
        reason: String,
    },
}
