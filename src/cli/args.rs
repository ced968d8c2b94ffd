//! The arguments.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{Args, Parser, Subcommand};

use crate::config::Config;
use crate::image::{Compression, ManifestError, Platform};
use crate::model::Model;
use crate::units::Rate;

/// Exit codes, as every help text ends.
pub(super) const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, \
                          4 not authorised, 5 network or registry not reachable, 130 interrupted.";

/// Where a completion script goes; fish is told by its first word, the others look into directories.
const COMPLETION_HELP: &str = "\
Examples:
  bash: hoist completion bash > /etc/bash_completion.d/hoist
  zsh:  hoist completion zsh > /usr/local/share/zsh/site-functions/_hoist
  fish: hoist completion fish > ~/.config/fish/completions/hoist.fish
A new shell knows them then.

Exit codes: 0 done, 1 failed, 2 wrong usage.";

/// Lifts container images onto hosts.
#[derive(Debug, Parser)]
#[command(name = "hoist", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(super) struct Arguments {
    /// The configuration; /etc/hoist/hoist.toml unless HOIST_CONFIG names another
    #[arg(long, global = true, value_name = "FILE", help_heading = "Options of every command")]
    pub(super) config: Option<PathBuf>,
    /// Where hoistd listens for hoist; from the configuration unless HOIST_CONTROL_SOCKET names another
    #[arg(long, global = true, value_name = "SOCKET", help_heading = "Options of every command")]
    pub(super) control_socket: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Pull(Pull),
    Prefetch(super::prefetch::Prefetch),
    Bake(super::bake::Bake),
    /// List the layers that hoistd keeps
    Ls(Ls),
    /// Show an image's manifest: platform, layers, media types, sizes
    Inspect(Inspect),
    Convert(Box<Convert>),
    Analyze(Box<Analyze>),
    Diff(Diff),
    /// Show what hoistd is pulling, and its last pulls
    Pulls(Pulls),
    Simulate(Box<super::simulate::Simulate>),
    Top(super::top::Top),
    Doctor(super::doctor::Doctor),
    Install(super::install::Install),
    Uninstall(super::install::Uninstall),
    /// Write the manual's pages into a directory (for packages)
    #[command(hide = true)]
    Man {
        /// The directory, which is there
        directory: PathBuf,
    },
    Calibrate(Calibrate),
    /// Print a completion script
    #[command(after_help = COMPLETION_HELP)]
    Completion {
        /// The shell that is to complete
        shell: clap_complete::Shell,
    },
}

/// Pull an image and say where the time went
///
/// With --to, nothing else is needed: the image is pulled and unpacked into the directory, whiteouts
/// applied. With --snapshots, a running hoistd pulls the layers into its store, and a pull through
/// containerd that follows finds them there.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES, group = clap::ArgGroup::new("into").required(true))]
pub(super) struct Pull {
    /// The image, with its registry: registry.example/repository:tag or …@sha256:…
    pub(super) image: String,
    /// An empty or a new directory for the image's file system; needs no daemon
    #[arg(long, value_name = "DIR", group = "into")]
    pub(super) to: Option<PathBuf>,
    /// Into the store of the hoistd that runs here, with its connections and its way to registries
    #[arg(long, group = "into", conflicts_with_all = ["connections", "plain_http"])]
    pub(super) snapshots: bool,
    #[command(flatten)]
    pub(super) wanted: ImageArgs,
    /// Connections at once, 1 to 256; fetch.connections_per_image of the configuration unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) connections: Option<u16>,
    /// Fetch no more than this in a second, as 25MB/s; fetch.bandwidth of the configuration
    /// unless given
    #[arg(long, value_name = "RATE", conflicts_with = "snapshots")]
    pub(super) limit_rate: Option<Rate>,
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
    /// The image, with its registry: registry.example/repository:tag or …@sha256:…
    pub(super) image: String,
    #[command(flatten)]
    pub(super) wanted: ImageArgs,
    /// JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

/// As [`EXIT_CODES`], with what people want first.
const CONVERT_HELP: &str = "\
Examples:
  For stock containerd, Docker, ECS and EKS as they are, from registry to registry:
    hoist convert registry.example/app:v1 registry.example/app:v1-fast
  For hosts with hoistd, into a layout that is looked at first:
    hoist convert registry.example/app:v1 oci:app:v1 --target hoist
  Only zstd instead of gzip, and the same layers:
    hoist convert registry.example/app:v1 registry.example/app:v1-zstd --keep-layers
  Above a base image that other images share:
    hoist convert registry.example/app:v1 registry.example/app:v1-fast --keep-base registry.example/base:v3

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, 4 not authorised, \
5 network or registry not reachable, 130 interrupted.";

/// Rewrite an image so that it pulls faster, with the same files in it
///
/// What no container can see is dropped, equal files become hard links, the files are cut into
/// layers that are fetched and unpacked well, and these are compressed anew. The result is read
/// again and compared with the source, entry by entry, before it appears under its name. SOURCE is
/// registry.example/repository:tag, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME]
/// or containerd:NAME; DESTINATION is a registry's, oci:DIR[:TAG] or oci-archive:FILE[:TAG].
#[derive(Debug, Args)]
#[command(after_help = CONVERT_HELP)]
pub(super) struct Convert {
    /// The image to read
    pub(super) source: String,
    /// Where the result goes
    pub(super) destination: String,
    /// Who will pull the result: the layers are cut as the model says is fastest for it, and a pull of
    /// the source and one of the result are predicted
    #[arg(long, value_name = "MODEL", default_value = "containerd", value_parser = models())]
    pub(super) target: Model,
    /// The rates of its hosts: a file (hoist calibrate writes one), or "even", "two-cores-gzip" or
    /// "two-cores-zstd"; two cores on a fast link unless given
    #[arg(long, value_name = "FILE|NAME")]
    pub(super) profile: Option<String>,
    /// Leave the layers as they are and only compress them anew; their DiffIDs stay
    #[arg(long, conflicts_with_all = ["layers", "layer_sizes", "max_layer_size", "keep_base", "order", "dedupe"])]
    pub(super) keep_layers: bool,
    /// Leave the lowest layers as they are, byte for byte, as far as they are those of this image, so
    /// that it is still shared; what lies above is rewritten
    #[arg(long, value_name = "IMAGE")]
    pub(super) keep_base: Option<String>,
    /// So many layers of equal compressed size, 1 to 127, instead of what the model says
    #[arg(long, value_name = "N", value_parser = layers(), conflicts_with_all = ["layer_sizes", "max_layer_size"])]
    pub(super) layers: Option<usize>,
    /// Layers whose compressed sizes have these proportions, as 490MB,736MB,1474MB
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = super::convert::parse_size, conflicts_with = "max_layer_size")]
    pub(super) layer_sizes: Vec<u64>,
    /// As few equal layers as are estimated to have at most so many compressed bytes each, as 500MB
    #[arg(long, value_name = "SIZE", value_parser = super::convert::parse_size)]
    pub(super) max_layer_size: Option<u64>,
    /// How layers are compressed
    #[arg(long, value_name = "FORM", value_enum, default_value_t = Compress::Zstd)]
    pub(super) compression: Compress,
    /// The level: 1 to 22 for zstd (unless given, what the model says is fastest to ready: 3, or 19 over a
    /// slow link), 1 to 9 for gzip (6 unless given)
    #[arg(long, value_name = "N")]
    pub(super) level: Option<i32>,
    /// Which equal files become hard links of one. strict: those with the same mode, owner, time and
    /// extended attributes, outside of /etc and /var; content: the time may differ, the first one's
    /// counts. A container sees a higher link count; one that writes to such a file writes to a copy
    /// of its own for one name (overlayfs breaks the link)
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Links::Strict)]
    pub(super) dedupe: Links,
    /// Paths that come first in their layers, one a line
    #[arg(long, value_name = "FILE")]
    pub(super) order: Option<PathBuf>,
    /// Convert only this platform of a multi-platform image, as linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    pub(super) platform: Option<String>,
    /// Do not read the result again to compare it with the source
    #[arg(long)]
    pub(super) no_verify: bool,
    /// Threads, 1 to 256; one for each core unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) threads: Option<u16>,
    /// Where a result for a registry waits until it is whole; it needs room for two compressed copies.
    /// TMPDIR or /var/tmp unless given
    #[arg(long, value_name = "DIR")]
    pub(super) scratch: Option<PathBuf>,
    #[command(flatten)]
    pub(super) containerd: ContainerdArgs,
    #[command(flatten)]
    pub(super) registries: RegistryArgs,
    /// No progress, only the summary
    #[arg(long, short)]
    pub(super) quiet: bool,
    /// The result as JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

/// Which image is meant where its name stands for several, and how it is come by.
#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    /// The platform to choose, as linux/arm64; this machine's unless given
    #[arg(long, value_name = "OS/ARCH")]
    pub(super) platform: Option<String>,
    #[command(flatten)]
    pub(super) registries: RegistryArgs,
}

impl ImageArgs {
    /// The platform that was asked for.
    pub(super) fn platform(&self) -> Result<Platform, ManifestError> {
        self.platform.as_deref().map_or_else(|| Ok(Platform::host()), str::parse)
    }
}

/// How registries are spoken to.
#[derive(Debug, Args)]
pub(super) struct RegistryArgs {
    /// Speak to this registry without TLS, as with loopback addresses; may be given several times
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<String>,
}

impl RegistryArgs {
    /// Adds what was asked for to what the configuration says.
    pub(super) fn apply(&self, config: &mut Config) {
        config.registry.plain_http_hosts.extend(self.plain_http.iter().cloned());
    }
}

/// Where the images of containerd: are.
#[derive(Debug, Args)]
pub(super) struct ContainerdArgs {
    /// containerd's socket, for containerd:NAME; CONTAINERD_ADDRESS or /run/containerd/containerd.sock
    /// unless given
    #[arg(long, value_name = "SOCKET")]
    pub(super) containerd_address: Option<PathBuf>,
    /// The namespace of its images, as k8s.io; CONTAINERD_NAMESPACE or default unless given
    #[arg(long, value_name = "NAME")]
    pub(super) containerd_namespace: Option<String>,
}

/// Say what is in an image, what of it is in vain, and what a pull would gain from which command
///
/// The image is read to its end. Bytes that later layers hide, equal files, and the largest directories
/// are named; a pull is predicted as it is and after each remedy (docs/model.md).
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Analyze {
    /// The image, named in any way that hoist convert can read
    pub(super) image: String,
    /// Who pulls
    #[arg(long, value_name = "MODEL", default_value = "containerd", value_parser = models())]
    pub(super) target: Model,
    /// The rates of its hosts: a file, or "even", "two-cores-gzip" or "two-cores-zstd"; two cores on a
    /// fast link unless given
    #[arg(long, value_name = "FILE|NAME")]
    pub(super) profile: Option<String>,
    #[command(flatten)]
    pub(super) wanted: ImageArgs,
    #[command(flatten)]
    pub(super) containerd: ContainerdArgs,
    /// Write it as a page
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// JSON instead of tables
    #[arg(long)]
    pub(super) json: bool,
    /// No progress
    #[arg(long, short)]
    pub(super) quiet: bool,
}

/// How layers are compressed.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Compress {
    Zstd,
    Gzip,
    None,
}

impl Compress {
    pub(super) fn format(self) -> Compression {
        match self {
            Self::Zstd => Compression::Zstd,
            Self::Gzip => Compression::Gzip,
            Self::None => Compression::None,
        }
    }
}

/// Which equal files become hard links.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Links {
    Strict,
    Content,
    Off,
}

/// Compare the final file systems of two images
///
/// A line is printed for every path that is in one of them only or not the same in both, and what is
/// not the same about it.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 the same, 1 different, 2 and above as with other commands, 2 for what is 1 there."
)]
pub(super) struct Diff {
    /// An image, named in any way that hoist convert can read
    pub(super) first: String,
    /// Another one
    pub(super) second: String,
    #[command(flatten)]
    pub(super) wanted: ImageArgs,
    #[command(flatten)]
    pub(super) containerd: ContainerdArgs,
    /// No progress
    #[arg(long, short)]
    pub(super) quiet: bool,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
pub(super) struct Pulls {
    #[command(subcommand)]
    pub(super) command: Option<PullsCommand>,
    /// Show one pull as tables of its layers and phases
    pub(super) id: Option<u64>,
    /// At most this many ended pulls
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub(super) limit: u32,
    /// Show them anew every second, until Ctrl-C
    #[arg(long, conflicts_with_all = ["id", "json"])]
    pub(super) watch: bool,
    /// JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum PullsCommand {
    Show(ShowPull),
}

/// Draw a pull as a waterfall and say what its bottleneck was
///
/// Layers and phases that the pull's end waited for are marked (the critical path). With NO_COLOR set,
/// or where standard output is no terminal, there are no colours.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct ShowPull {
    /// The pull's number, from hoist pulls
    pub(super) id: u64,
    /// The whole record as JSON instead (docs/timeline.md)
    #[arg(long)]
    pub(super) json: bool,
    /// Write it for Perfetto (ui.perfetto.dev) or chrome://tracing instead, in the Trace Event format
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub(super) trace: Option<PathBuf>,
    /// Write the waterfall as a picture instead
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    pub(super) svg: Option<PathBuf>,
}

/// As [`EXIT_CODES`], with what people want first.
const CALIBRATE_HELP: &str = "\
Examples:
  This host, with an image of the registry that it pulls from:
    hoist calibrate --image registry.example/app:v1 -o profile.toml
  What the pulls of this host's hoistd have shown:
    hoist calibrate --from-daemon -o profile.toml
  Hosts where nothing can be installed, which pull three variants of one image from here:
    hoist calibrate --serve 0.0.0.0:5000 oci:app:one oci:app:three oci:app:five --svg pulls.svg -o profile.toml

docs/model.md tells how each figure is found.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, 4 not authorised, \
5 network or registry not reachable, 130 interrupted.";

/// Find the rates of hosts and links, and write a profile for convert, simulate and analyze
///
/// With --image, this host is measured: a part of the image's largest layer is fetched over one connection
/// and over many, decompressed and hashed; the disk gets a large file and many small ones, which go again.
/// How much slower containerd decompresses is not measured but taken from docs/model.md. It takes some
/// seconds. With --from-daemon, the pulls that a running hoistd has recorded say it. With --serve, hoist is
/// a registry and watches others pull.
#[derive(Debug, Args)]
#[command(after_help = CALIBRATE_HELP, group = clap::ArgGroup::new("way").required(true))]
pub(super) struct Calibrate {
    /// An image with a layer of at least 8 MiB, in the registry that will be pulled from
    #[arg(long, value_name = "IMAGE", group = "way")]
    pub(super) image: Option<String>,
    /// The format of the layers that will be pulled, where it is not the image's: its bytes are compressed anew
    #[arg(long = "as", value_name = "FORMAT", requires = "image")]
    pub(super) pulled: Option<Compress>,
    /// From the pulls that the hoistd which runs here has recorded
    #[arg(long, group = "way")]
    pub(super) from_daemon: bool,
    #[command(flatten)]
    pub(super) served: super::calibrate::Served,
    /// A directory on the disk that layers lie on; with --serve, where images of registries are copied to
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub(super) dir: PathBuf,
    /// Where the profile is written; standard output unless given
    #[arg(long, short, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    #[command(flatten)]
    pub(super) wanted: ImageArgs,
}

/// As many layers as overlayfs stacks.
fn layers() -> impl clap::builder::TypedValueParser<Value = usize> {
    let most = crate::convert::LAYERS_MOST as u64;
    clap::builder::RangedU64ValueParser::<usize>::new().range(1..=most)
}

/// The names of those who pull.
pub(super) fn models() -> impl clap::builder::TypedValueParser<Value = Model> {
    PossibleValuesParser::new(Model::ALL.map(Model::as_str)).try_map(|name| name.parse::<Model>())
}
