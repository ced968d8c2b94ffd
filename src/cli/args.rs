//! Arguments that several commands take. What belongs to one command stands with it.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};

use crate::config::Config;
use crate::image::{Compression, ManifestError, Platform};
use crate::model::Model;
use crate::units::Rate;

/// Exit codes, as every help text ends.
pub(super) const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, \
                          4 not authorised, 5 network or registry not reachable, 130 interrupted.";

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
    /// The platform that was asked for, if one was.
    pub(super) fn asked(&self) -> Result<Option<Platform>, ManifestError> {
        self.platform.as_deref().map(str::parse).transpose()
    }

    /// The platform that was asked for, or this host's.
    pub(super) fn platform(&self) -> Result<Platform, ManifestError> {
        Ok(self.asked()?.unwrap_or_else(Platform::host))
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

/// The names of those who pull.
pub(super) fn models() -> impl clap::builder::TypedValueParser<Value = Model> {
    PossibleValuesParser::new(Model::ALL.map(Model::as_str)).try_map(|name| name.parse::<Model>())
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
