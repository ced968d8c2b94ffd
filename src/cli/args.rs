//! The arguments.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, Parser, Subcommand};

use crate::model::Model;
use crate::units::{Rate, Seconds, Size};

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
    Simulate(Box<Simulate>),
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

/// As [`EXIT_CODES`], with what people want first.
const SIMULATE_HELP: &str = "\
Examples:
  One image as it is, pulled in three ways, on a link of 600 MB/s with 80 MB/s a connection:
    hoist simulate registry.example/app:v1 --download 600MB/s --per-connection 80MB/s
  What another cut of the same bytes would bring under stock containerd:
    hoist simulate --layer-sizes 490.9MB,736.4MB,1472.7MB --model containerd --model hoist
  A picture of it, and a page:
    hoist simulate --layer-sizes 2.7GB --svg pull.svg --html pull.html

docs/model.md tells the formulas, and what they leave out.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, 4 not authorised, \
5 network or registry not reachable, 130 interrupted.";

/// Predict how a pull would go, layer by layer, under several pullers
///
/// Sizes come from a registry's manifest or by hand; rates from flags or a profile. The chart shows for
/// each layer when it waits, is downloaded and is extracted.
#[derive(Debug, Args)]
#[command(after_help = SIMULATE_HELP)]
pub(super) struct Simulate {
    /// The image, with its registry; its manifest gives the layers' sizes
    #[arg(required_unless_present = "layer_sizes", conflicts_with = "layer_sizes")]
    pub(super) image: Option<String>,
    /// Compressed sizes of the layers in the order of the stack, as 490MB,736MB,1.4GiB
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',')]
    pub(super) layer_sizes: Vec<Size>,
    /// Who pulls; may be given several times [default: containerd, containerd-parallel and hoist]
    #[arg(long, value_name = "MODEL", value_delimiter = ',', value_parser = models())]
    pub(super) model: Vec<Model>,
    /// Rates: a file (TOML or JSON), or "even" or "two-cores-gzip"; flags come before it
    #[arg(long, value_name = "FILE")]
    pub(super) profile: Option<String>,
    /// The link, all connections together [default: 225MB/s]
    #[arg(long, value_name = "RATE")]
    pub(super) download: Option<Rate>,
    /// What one connection gets at most
    #[arg(long, value_name = "RATE")]
    pub(super) per_connection: Option<Rate>,
    /// Connections of a puller that fetches ranges [default: 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) connections: Option<u32>,
    /// Layers that containerd downloads at once [default: 3; containerd-parallel 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(super) downloads: Option<u32>,
    /// Compressed bytes that the extraction of one layer takes in [default: 225MB/s]
    #[arg(long, value_name = "RATE")]
    pub(super) extract: Option<Rate>,
    /// Cores [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(super) cores: Option<u32>,
    /// What the disk takes; unlimited unless given
    #[arg(long, value_name = "RATE")]
    pub(super) disk: Option<Rate>,
    /// Before the first byte, as 200ms
    #[arg(long, value_name = "TIME")]
    pub(super) latency: Option<Seconds>,
    /// What a file costs beside its bytes, as 35us
    #[arg(long, value_name = "TIME")]
    pub(super) per_file: Option<Seconds>,
    /// Uncompressed bytes for a compressed one; counts with --disk
    #[arg(long, value_name = "R", default_value_t = 2.5, value_parser = expansion)]
    pub(super) expansion: f64,
    /// Files of the image, spread over its layers by their sizes; counts with --per-file
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) files: u64,
    /// The platform to choose, as linux/arm64; this machine's unless given
    #[arg(long, value_name = "OS/ARCH")]
    pub(super) platform: Option<String>,
    /// Speak to this registry without TLS
    #[arg(long, value_name = "HOST")]
    pub(super) plain_http: Vec<String>,
    /// Write the chart as a page
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Write the chart as a picture
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
    /// JSON instead of the chart
    #[arg(long)]
    pub(super) json: bool,
}

fn models() -> impl clap::builder::TypedValueParser<Value = Model> {
    PossibleValuesParser::new(Model::ALL.map(Model::as_str)).try_map(|name| name.parse::<Model>())
}

/// A factor that a compression can have.
fn expansion(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| (0.1..=1000.0).contains(value));
    value.ok_or_else(|| format!("{text:?} is not a number from 0.1 to 1000, as 2.5"))
}
