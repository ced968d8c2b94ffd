//! The flags. What can stand in the configuration stands there; these are for trying things out.

use std::path::PathBuf;

use clap::Parser;

use crate::config::Config;

/// hoist's snapshotter for containerd.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "hoistd",
    version,
    after_help = "Exit codes: 0 ended when told to, 1 failed or ended by a second signal, 2 wrong usage or configuration.\n\
                  SIGTERM drains and ends, SIGHUP reloads the log level."
)]
pub(super) struct Flags {
    /// The configuration; /etc/hoist/hoist.toml unless HOIST_CONFIG names another
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Only read the configuration and tell all of its mistakes
    #[arg(long)]
    pub(super) check: bool,
    /// Where layers and snapshots are kept, instead of what the configuration says
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Where to listen for containerd, instead of what the configuration says
    #[arg(long, value_name = "SOCKET")]
    socket: Option<PathBuf>,
    /// Where to listen for hoist; next to --socket if that is given
    #[arg(long, value_name = "SOCKET")]
    control_socket: Option<PathBuf>,
    /// Where to serve metrics and pages, instead of what the configuration says; off if --socket is given
    #[arg(long, value_name = "IP:PORT|off", value_parser = address)]
    metrics: Option<Address>,
    /// Provide no layers: an ordinary overlay snapshotter
    #[arg(long)]
    pub(super) no_pull: bool,
}

#[derive(Clone, Copy, Debug)]
struct Address(Option<std::net::SocketAddr>);

const NO_ADDRESS: &str = "it is neither IP:PORT, as 127.0.0.1:9469, nor off";

fn address(text: &str) -> Result<Address, String> {
    match text {
        "off" => Ok(Address(None)),
        _ => text.parse().map(|a| Address(Some(a))).map_err(|_| NO_ADDRESS.to_owned()),
    }
}

impl Flags {
    /// The configuration with what the flags say over it. A second daemon that is tried out beside
    /// the first (`--root X --socket Y`) must not collide with it at the other two doors.
    pub(super) fn over(&self, mut config: Config) -> Config {
        if let Some(root) = &self.root {
            config.root.clone_from(root);
        }
        if let Some(socket) = &self.socket {
            config.socket.clone_from(socket);
            config.control_socket = socket.with_extension("control.sock");
            config.metrics.address = None;
        }
        if let Some(socket) = &self.control_socket {
            config.control_socket.clone_from(socket);
        }
        if let Some(Address(address)) = self.metrics {
            config.metrics.address = address;
        }
        config
    }
}
