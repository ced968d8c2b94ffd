//! The arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Exit codes, as every help text ends.
const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, \
                          4 not authorised, 5 network or registry not reachable, 130 interrupted.";

/// Lifts container images onto hosts.
#[derive(Debug, Parser)]
#[command(name = "hoist", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(super) struct Arguments {
    /// The configuration; /etc/hoist/hoist.toml unless HOIST_CONFIG names another
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Where hoistd listens for hoist; from the configuration unless HOIST_CONTROL_SOCKET names another
    #[arg(long, global = true, value_name = "SOCKET")]
    pub(super) control_socket: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Pull(Pull),
    /// List the layers that hoistd keeps
    Ls(Ls),
    /// Show an image's manifest: platform, layers, media types, sizes
    Inspect(Inspect),
    /// Show what hoistd is pulling, and its last pulls
    Pulls(Pulls),
    /// Print a completion script
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Pull an image and say where the time went
///
/// With --to, nothing else is needed: the image is pulled and unpacked into the directory, whiteouts
/// applied. With --snapshots, a running hoistd pulls the layers into its store, and a pull through
/// containerd that follows finds them there.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Pull {
    /// The image, with its registry: registry.example/repository:tag or …@sha256:…
    pub(super) image: String,
    /// An empty or a new directory for the image's file system; needs no daemon
    #[arg(long, value_name = "DIR", required_unless_present = "snapshots")]
    pub(super) to: Option<PathBuf>,
    /// Into the store of the hoistd that runs here
    #[arg(long, conflicts_with = "to")]
    pub(super) snapshots: bool,
    /// The platform to choose, as linux/arm64; this machine's unless given
    #[arg(long, value_name = "OS/ARCH")]
    pub(super) platform: Option<String>,
    /// Connections at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) connections: Option<u16>,
    /// Speak to this registry without TLS (loopback addresses are spoken to without TLS anyway)
    #[arg(long, value_name = "HOST")]
    pub(super) plain_http: Vec<String>,
    /// No progress, only the summary
    #[arg(long, short)]
    pub(super) quiet: bool,
    /// The pull's report as JSON instead of tables
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Ls {
    /// JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Inspect {
    /// The image, with its registry
    pub(super) image: String,
    /// The platform to choose, as linux/arm64; this machine's unless given
    #[arg(long, value_name = "OS/ARCH")]
    pub(super) platform: Option<String>,
    /// Speak to this registry without TLS
    #[arg(long, value_name = "HOST")]
    pub(super) plain_http: Vec<String>,
    /// JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Pulls {
    /// Show one pull with all of its layers and phases
    pub(super) id: Option<u64>,
    /// At most this many ended pulls
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub(super) limit: u32,
    /// JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
}
