//! What a person is told when a command fails.

use std::path::PathBuf;

use tonic::Code;

use crate::calibrate::CalibrateError;
use crate::calibrate::shelf::ShelfError;
use crate::config::ConfigError;
use crate::containerd::ContainerdError;
use crate::convert::ConvertError;
use crate::image::ManifestError;
use crate::install::InstallError;
use crate::layout::LayoutError;
use crate::listing::ListingError;
use crate::model::ProfileError;
use crate::pull::PullError;
use crate::pull::trees::StoreError;
use crate::registry::{Failure, RegistryError};
use crate::timeline::figures::counted;
use crate::unpack::UnpackError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error(transparent)]
    Config(ConfigError),
    #[error("{what} cannot be started: {source}")]
    Start { what: &'static str, source: std::io::Error },
    #[error(transparent)]
    Platform(#[from] ManifestError),
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error("nobody can be asked here: standard input is no terminal")]
    NobodyToAsk,
    #[error("cannot read the list of paths {}: {source}", file.display())]
    Order { file: PathBuf, source: std::io::Error },
    #[error("{format} has no level {level}: its levels are {range}")]
    Level { level: i32, format: &'static str, range: &'static str },
    #[error("--level {0} says how hard to compress, and --compression none not to compress")]
    LevelOfNothing(i32),
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    #[error("the image has no layer that could be measured with")]
    NoLayer,
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error(
        "{0} cannot be served: name an image of a registry, oci:DIR[:TAG] or oci-archive:FILE[:TAG]"
    )]
    CannotServe(String),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("hoistd has {pulls} pulls, and none of them fetched a layer of a megabyte to its end")]
    NoRecords { pulls: usize },
    #[error("{pulls} pulls were seen, and no layer was under way for long enough to tell a rate")]
    NothingSeen { pulls: usize },
    #[error("comparing: {0}")]
    Diff(ConvertError),
    #[error("the images differ in {}", counted(*.0, "place"))]
    Different(usize),
    #[error("merging the layers into {}: {source}", dest.display())]
    Merge { dest: PathBuf, source: UnpackError },
    #[error("no hoistd answers at {}: {reason}", socket.display())]
    NoDaemon { socket: PathBuf, reason: String },
    #[error("hoistd: {0}")]
    Daemon(String),
    /// What hoistd said instead of an answer, or of a pull that failed.
    #[error("{text}")]
    Refused { code: Code, text: String },
    #[error("nothing is baked here: {} cannot be read: {source}", path.display())]
    NotBaked { path: PathBuf, source: std::io::Error },
    #[error("{}: {reason}", path.display())]
    Baked { path: PathBuf, reason: String },
    #[error("of what was baked, {0} things are not as they were")]
    Spoiled(usize),
    #[error(transparent)]
    Listing(#[from] ListingError),
    #[error("hoistd, started for this, is not ready: {0}")]
    OwnDaemon(String),
    #[error("hoistd knows no pull {0}")]
    NoSuchPull(u64),
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("cannot read the profile {}: {source}", path.display())]
    ReadProfile { path: PathBuf, source: std::io::Error },
    #[error("the profile {}: {source}", path.display())]
    Profile { path: PathBuf, source: ProfileError },
    #[error("cannot read the analysis {}: {source}", path.display())]
    ReadAnalysis { path: PathBuf, source: std::io::Error },
    #[error("the analysis {}: {source}", path.display())]
    Analysis { path: PathBuf, source: serde_json::Error },
    #[error("{} found something wrong", counted(*.0, "check"))]
    Unwell(usize),
    #[error("the terminal cannot be used: {0}")]
    Terminal(std::io::Error),
    #[error("writing to standard output: {0}")]
    Output(std::io::Error),
    #[error("interrupted; what was half done is removed")]
    Interrupted,
}

impl CliError {
    /// As the help texts say.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Platform(_)
            | Self::ReadProfile { .. }
            | Self::Profile { .. }
            | Self::ReadAnalysis { .. }
            | Self::Analysis { .. }
            | Self::Order { .. }
            | Self::Level { .. }
            | Self::LevelOfNothing(_)
            | Self::NobodyToAsk
            | Self::CannotServe(_)
            | Self::Pull(PullError::Reference { .. }) => 2,
            Self::Convert(error) => convert_code(error),
            Self::Diff(error) => convert_code(error).max(2),
            Self::NoSuchPull(_) | Self::NotBaked { .. } | Self::NoRecords { .. } => 3,
            Self::Shelf(ShelfError::Registry(source)) => registry_code(source),
            Self::Shelf(ShelfError::Layout(LayoutError::NoTag { .. })) => 3,
            Self::Shelf(ShelfError::Fetch { .. }) => 5,
            Self::Pull(PullError::Registry { source, .. }) => registry_code(source),
            Self::Registry(source) => registry_code(source),
            Self::NoDaemon { .. } | Self::Calibrate(CalibrateError::Fetch { .. }) => 5,
            Self::Refused { code: Code::InvalidArgument, .. } => 2,
            Self::Refused { code: Code::NotFound, .. } => 3,
            Self::Refused { code: Code::Unauthenticated, .. } => 4,
            Self::Refused { code: Code::Unavailable, .. } => 5,
            Self::Interrupted => 130,
            _ => 1,
        }
    }

    /// What to try, where the error itself does not say it.
    pub(super) fn advice(&self) -> Option<&'static str> {
        match self {
            Self::NoDaemon { .. } => Some(
                "Is hoistd running (systemctl status hoistd), and is this its control socket (--control-socket)? \
                 It answers to root only.",
            ),
            Self::ReadProfile { .. } => Some(
                "A profile is a file, or one of these names: even, two-cores-gzip, two-cores-zstd.",
            ),
            Self::Profile { .. } => {
                Some("docs/model.md shows a whole profile; rates are written as \"225MB/s\".")
            }
            Self::ReadAnalysis { .. } | Self::Analysis { .. } => {
                Some("hoist analyze IMAGE --json writes one.")
            }
            Self::NoSuchPull(_) => {
                Some("hoist pulls lists those it knows; it keeps the last ones only.")
            }
            Self::NotBaked { .. } => Some("hoist bake IMAGE… bakes images, as root."),
            Self::Spoiled(_) => Some(
                "hoist bake --verify --repair mends it: from what is here where that is enough, else from the registry.",
            ),
            Self::NoRecords { .. } => Some(
                "Pull an image through containerd, or with hoist pull --snapshots, and ask again.",
            ),
            Self::NothingSeen { .. } => Some(
                "A layer has to take some tenths of a second: serve an image with larger layers.",
            ),
            Self::NobodyToAsk => Some("Pass --yes to write it, or --dry-run to see it only."),
            Self::Pull(PullError::Reference { .. }) => Some(AN_IMAGE),
            Self::Pull(PullError::Registry { source, .. }) => registry_advice(source),
            Self::Registry(source) => registry_advice(source),
            Self::Convert(ConvertError::Registry(source)) => registry_advice(source),
            Self::Pull(error) if error.is_integrity() => Some(
                "The registry, a mirror or a proxy in between serves other bytes than the image names; nothing was kept.",
            ),
            Self::Pull(error) if is_full(error) => Some(
                "The file system is full; nothing of the pull is left on it. Make room, or name a directory on a larger one.",
            ),
            Self::Pull(error) if is_not_permitted(error) => Some(
                "Layers hold devices and files of all owners: unpacking them takes root, outside of user namespaces.",
            ),
            _ => None,
        }
    }
}

/// How an image is named.
pub(super) const AN_IMAGE: &str = "An image is named registry.example/repository:tag or registry.example/repository@sha256:…, in small letters \
     and without https://.";

fn registry_advice(error: &RegistryError) -> Option<&'static str> {
    (registry_code(error) == 5).then_some(
        "Is its name right, and can this host reach it? hoist doctor --image IMAGE looks at names, mirrors and credentials; \
         --plain-http HOST is for a registry without TLS.",
    )
}

/// Whether the disk took no more (ENOSPC, EDQUOT); where it was looked at before, the error says what is missing itself.
fn is_full(error: &PullError) -> bool {
    let looked = matches!(error, PullError::NoRoom { .. })
        || matches!(error, PullError::Unpack { source, .. } if matches!(**source, UnpackError::NoRoom(_)));
    error.is_no_space() && !looked
}

/// Whether the system refused it for want of privileges (EPERM), however deep that is told.
fn is_not_permitted(error: &PullError) -> bool {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| error.source()).any(|error| {
        let system = error.downcast_ref::<std::io::Error>();
        system.and_then(std::io::Error::raw_os_error) == Some(nix::errno::Errno::EPERM as i32)
    })
}

fn registry_code(error: &RegistryError) -> u8 {
    match error.failure() {
        Failure::NotFound => 3,
        Failure::NotAuthorised => 4,
        Failure::Refused => 1,
        Failure::NotReachable => 5,
    }
}

fn convert_code(error: &ConvertError) -> u8 {
    match error {
        ConvertError::Name { .. } | ConvertError::Plan(_) | ConvertError::Base { .. } => 2,
        ConvertError::Containerd(ContainerdError::NoImage { .. }) => 3,
        ConvertError::Containerd(ContainerdError::Connect { .. }) => 5,
        ConvertError::Layout(LayoutError::NoTag { .. }) => 3,
        ConvertError::Registry(error) => registry_code(error),
        ConvertError::Fetch { .. } => 5,
        ConvertError::Cancelled => 130,
        _ => 1,
    }
}
