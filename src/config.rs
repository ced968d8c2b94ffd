//! What an operator sets, from `/etc/hoist/hoist.toml`.
//!
//! The file is parsed, never merely validated: text goes in, and out comes either a [`Config`]
//! whose every number is inside its bounds, or *all* of the file's mistakes, each with its key and
//! line. A key that hoist does not know is a mistake too, because a misspelt limit that is
//! silently ignored is found out at the worst moment.
//!
//! This is the one room that reads the environment: [`Environment::of_process`] takes a picture of
//! the few variables that count, and everything after that gets them as a parameter.

mod environment;
mod keys;
mod kinds;
mod means;
mod reader;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use crate::units::{UnitError, parse_duration, parse_size};
pub use environment::Environment;

/// Where the configuration is if nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/hoist/hoist.toml";

/// Where `hoistd` listens for `hoist` if nobody says otherwise.
pub const DEFAULT_CONTROL_SOCKET: &str = "/run/hoist/control.sock";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file can be read and says wrong things.
    #[error("{} has {} to put right:\n{}", path.display(), count(mistakes), list(mistakes))]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// All of them, in the order of their lines.
        mistakes: Vec<Mistake>,
    },
}

fn count(mistakes: &[Mistake]) -> String {
    match mistakes.len() {
        1 => "1 mistake".to_owned(),
        n => format!("{n} mistakes"),
    }
}

fn list(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(|mistake| format!("  {mistake}")).collect::<Vec<_>>().join("\n")
}

/// One thing that is wrong in a configuration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {key}: {text}")]
pub struct Mistake {
    /// Counted from 1.
    pub line: usize,
    /// With its section, as `fetch.chunk_size`; "toml" where the text is no TOML at all.
    pub key: String,
    /// What is wrong, and what would be right.
    pub text: String,
}

/// A whole configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Where layers, snapshots and metadata are kept.
    pub root: PathBuf,
    /// The socket that containerd talks to.
    pub socket: PathBuf,
    /// The socket that `hoist` talks to.
    pub control_socket: PathBuf,
    /// How long SIGTERM waits for what is under way.
    pub drain_timeout: Duration,
    /// Bounds on memory, threads and disk.
    pub limits: Limits,
    /// How blobs are fetched.
    pub fetch: Fetch,
    /// Where from, and as whom.
    pub registry: Registry,
    /// The door for a kubelet.
    pub cri: Cri,
    /// What a pull does when it cannot go on.
    pub pull: Pull,
    /// The HTTP endpoint.
    pub metrics: Metrics,
    /// The log.
    pub log: Log,
    /// Ended pulls.
    pub history: History,
    /// The removal of what nobody refers to.
    pub cleanup: Cleanup,
}

/// Bounds on memory, threads and disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes in flight in the whole daemon.
    pub memory_budget_bytes: u64,
    /// Layers that are fetched and unpacked at once.
    pub layers_at_once: usize,
    /// Threads that write the files of one layer.
    pub writers_per_layer: usize,
    /// Threads that decompress a layer of several members or frames; all but one are shared by all
    /// layers.
    pub decompress_threads: usize,
    /// When they decompress a layer of a single gzip member too.
    pub speculative_gzip: Speculation,
    /// The most that one layer may unpack to, in bytes.
    pub max_unpacked_bytes: u64,
    /// What all pulls together may write in a second; `None`: as much as the disk takes.
    pub disk_bytes_per_second: Option<u64>,
    /// What has to stay free of the root's file system.
    pub min_free: MinFree,
    /// What the threads that unpack and write layers yield to.
    pub writers: Priority,
}

pub use crate::compression::Speculation;
pub use crate::unpack::MinFree;

pub use crate::sys::priority::{IoClass, Priority};

/// How blobs are fetched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetch {
    /// Bytes asked for in one ranged request.
    pub chunk_bytes: u64,
    /// Requests at once for one image.
    pub connections_per_image: usize,
    /// Requests at once to one host.
    pub connections_per_host: usize,
    /// Requests at once in the whole daemon.
    pub connections: usize,
    /// How often a request is made again before it counts as failed.
    pub retries: u32,
    /// The wait before the first retry.
    pub backoff_initial: Duration,
    /// The most that waits grow to.
    pub backoff_max: Duration,
    /// A body that sends no byte for this long is given up and resumed.
    pub stall_timeout: Duration,
    /// A connection that is not made in this time is given up.
    pub connect_timeout: Duration,
    /// What all pulls together may fetch in a second; `None`: as much as comes.
    pub bytes_per_second: Option<u64>,
    /// The limits of single registries and mirrors, by their names.
    pub registries: BTreeMap<String, OfRegistry>,
}

pub use crate::fetch::OfRegistry;

/// Where from, and as whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registry {
    /// Directories of `HOST/hosts.toml`, as containerd's `config_path`.
    pub hosts_dirs: Vec<PathBuf>,
    /// Docker's `config.json`.
    pub docker_config: PathBuf,
    /// Directories of Kubernetes' pull secrets.
    pub kubernetes_secrets: Vec<PathBuf>,
    /// Whether AWS is asked for the passwords of its own registries.
    pub ecr: bool,
    /// Hosts that are spoken to without TLS.
    pub plain_http_hosts: Vec<String>,
    /// PEM files of further certificate authorities.
    pub ca_files: Vec<PathBuf>,
}

/// The door for a kubelet, in front of containerd's CRI.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cri {
    /// Where the kubelet asks; `None`: nowhere.
    pub socket: Option<PathBuf>,
    /// Where containerd answers.
    pub containerd: PathBuf,
    /// How long credentials that pass are kept, in memory.
    pub keep: Duration,
}

/// What a pull does when it cannot go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pull {
    /// Who takes over.
    pub on_error: OnError,
    /// What layers become.
    pub backend: Backend,
    /// What of a layer a power cut may take.
    pub sync: Sync,
    /// What of a layer goes into containerd's content store.
    pub content_store: ContentStore,
    /// How long one Prepare may wait for its layer.
    pub deadline: Duration,
}

/// What Prepare answers when hoist cannot provide a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnError {
    /// Ordinary mounts: containerd pulls the layer itself.
    Fallback,
    /// The error: the pull fails.
    Fail,
}

/// What layers become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// Images where this host can have them, else files.
    Auto,
    /// Files.
    Overlay,
    /// EROFS images.
    Erofs,
}

/// When layers are written to disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sync {
    /// When the kernel sees fit.
    None,
    /// Before they are said to be there.
    Layer,
}

/// What of a pulled layer goes into containerd's content store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContentStore {
    /// Nothing.
    None,
    /// The compressed blob, as containerd's own pull leaves it.
    Keep,
}

/// The HTTP endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Metrics {
    /// "IP:PORT" as the operator wrote it; `None`: no endpoint.
    pub address: Option<std::net::SocketAddr>,
    /// What the label `image` holds.
    pub image_label: ImageLabel,
}

pub use crate::metrics::ImageLabel;

/// The log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Log {
    /// A level, or a filter as `tracing-subscriber` has it.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Ended pulls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct History {
    /// How many are kept.
    pub pulls: usize,
    /// The most that their records may take on disk, in bytes.
    pub max_bytes: u64,
}

/// The removal of what nobody refers to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cleanup {
    /// How long a layer tree is kept after its last snapshot has gone.
    pub grace: Duration,
    /// How long a layer is kept that was pulled ahead of time and that no snapshot refers to yet.
    pub prepulled: Duration,
}

impl Config {
    /// What holds where the file says nothing, on a machine of `cores`.
    pub fn defaults(cores: usize, environment: &Environment) -> Self {
        let per_image = (2 * cores).max(8);
        Self {
            root: "/var/lib/hoist".into(),
            socket: "/run/hoist/hoist.sock".into(),
            control_socket: DEFAULT_CONTROL_SOCKET.into(),
            drain_timeout: Duration::from_secs(20),
            limits: Limits {
                memory_budget_bytes: 256 << 20,
                layers_at_once: cores + 1,
                writers_per_layer: cores.min(8),
                decompress_threads: cores,
                speculative_gzip: Speculation::Auto,
                max_unpacked_bytes: 128 << 30,
                disk_bytes_per_second: None,
                min_free: MinFree::Auto,
                writers: Priority::default(),
            },
            fetch: Fetch {
                chunk_bytes: 8 << 20,
                connections_per_image: per_image,
                connections_per_host: 2 * per_image,
                connections: 4 * per_image,
                retries: 5,
                backoff_initial: Duration::from_millis(250),
                backoff_max: Duration::from_secs(15),
                stall_timeout: Duration::from_secs(30),
                connect_timeout: Duration::from_secs(5),
                bytes_per_second: None,
                registries: BTreeMap::new(),
            },
            registry: Registry {
                hosts_dirs: vec!["/etc/containerd/certs.d".into()],
                docker_config: environment.docker_config(),
                kubernetes_secrets: Vec::new(),
                ecr: true,
                plain_http_hosts: Vec::new(),
                ca_files: Vec::new(),
            },
            cri: Cri {
                socket: None,
                containerd: "/run/containerd/containerd.sock".into(),
                keep: Duration::from_secs(30 * 60),
            },
            pull: Pull {
                on_error: OnError::Fallback,
                backend: Backend::Auto,
                sync: Sync::None,
                content_store: ContentStore::None,
                deadline: Duration::from_secs(30 * 60),
            },
            metrics: Metrics {
                address: Some(std::net::SocketAddr::from(([127, 0, 0, 1], 9469))),
                image_label: ImageLabel::None,
            },
            log: Log { level: "info".to_owned(), format: LogFormat::Text },
            history: History { pulls: 100, max_bytes: 32 << 20 },
            cleanup: Cleanup {
                grace: Duration::from_secs(30),
                prepulled: Duration::from_secs(60 * 60),
            },
        }
    }

    /// Reads `text` over `defaults`.
    ///
    /// # Errors
    /// All mistakes at once, in the order of their lines.
    pub fn parse(text: &str, defaults: Self) -> Result<Self, Vec<Mistake>> {
        keys::read(text, defaults)
    }

    /// Loads the file that was named, or the one that `HOIST_CONFIG` names, or the default one. A
    /// default file that does not exist is an empty one; a named one has to be there.
    ///
    /// # Errors
    /// The file cannot be read, or has mistakes.
    pub fn load(named: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        let named = named.or(environment.config.as_deref());
        let path = Self::path(named, environment);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if named.is_none() && e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path, source }),
        };
        let defaults = Self::defaults(environment.cores, environment);
        Self::parse(&text, defaults).map_err(|mistakes| ConfigError::Mistakes { path, mistakes })
    }

    /// The file that [`Self::load`] reads.
    pub fn path(named: Option<&Path>, environment: &Environment) -> PathBuf {
        named.or(environment.config.as_deref()).unwrap_or(Path::new(DEFAULT_PATH)).to_owned()
    }
}
