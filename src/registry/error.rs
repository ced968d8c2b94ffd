//! What can go wrong between hoist and a registry.
//!
//! Each variant names the host, the thing that was asked for, and the way out where there is one.
//! [`RegistryError::is_transient`] is the one place that decides what is worth another try.

use std::path::PathBuf;
use std::time::Duration;

use super::tls::Verdict;

/// What the failure of a request is to whoever asked, whatever its reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// It is not there.
    NotFound,
    /// Other credentials are needed, or any.
    NotAuthorised,
    /// The registry was reached, and does not want what was asked for.
    Refused,
    /// The registry was not reached, or cannot answer.
    NotReachable,
}

/// Why a registry did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A `hosts.toml` cannot be used.
    #[error("{}: {problem}", file.display())]
    Hosts {
        /// The file.
        file: PathBuf,
        /// The key and what is wrong with it.
        problem: String,
    },
    /// A certificate or key cannot be used.
    #[error("{}: {problem}", file.display())]
    Certificate {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The HTTP client cannot be built, mostly for want of CA certificates.
    #[error(
        "no HTTPS client can be built ({problem}): install the system's CA certificates or name some with `ca`"
    )]
    Client {
        /// What the TLS library says.
        problem: String,
    },
    /// The docker `config.json` cannot be read.
    #[error("credentials for {host} cannot be read from {}: {problem}", file.display())]
    Credentials {
        /// The file.
        file: PathBuf,
        /// The registry's host.
        host: String,
        /// What is wrong.
        problem: String,
    },
    /// A docker credential helper failed.
    #[error("docker-credential-{helper} gave no credentials for {host}: {problem}")]
    CredentialHelper {
        /// The helper's name, without its prefix.
        helper: String,
        /// The registry's host.
        host: String,
        /// What it said, or how it ended.
        problem: String,
    },
    /// The registry wants other credentials, or any.
    #[error("{host} refuses {what} ({status}): {way_out}")]
    Unauthorized {
        /// The host that refused.
        host: String,
        /// What was asked for.
        what: String,
        /// 401 or 403.
        status: u16,
        /// What to do.
        way_out: String,
    },
    /// A token service failed or answered nonsense.
    #[error("{realm}, which gives out tokens for {host}, failed for {what}: {problem}")]
    Token {
        /// The registry's host.
        host: String,
        /// The token service's address.
        realm: String,
        /// What the token was for.
        what: String,
        /// What happened.
        problem: String,
        /// Whether another try may help.
        transient: bool,
        /// How long the service asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// It is not there.
    #[error("{host} does not have {what}")]
    NotFound {
        /// The host that was asked.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// Another status than the expected ones.
    #[error("{host} answered {status} for {what}{detail}")]
    Status {
        /// The host that was asked.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the answer's body, with a colon before it, or nothing.
        detail: String,
        /// How long the host asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// No answer came: name resolution, connection, TLS, or a reset before the headers.
    #[error("{host} cannot be asked for {what}: {}", told(source).0)]
    Send {
        /// The host that was asked.
        host: String,
        /// What was asked for.
        what: String,
        /// What the HTTP client says.
        source: reqwest::Error,
    },
    /// Nothing came for a while.
    #[error("{host} sent nothing of {what} for {} s", after.as_secs_f64())]
    Stalled {
        /// The host that was asked.
        host: String,
        /// What was asked for.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// A body broke off.
    #[error("{what} from {host} broke off at byte {at}: {problem}")]
    Broken {
        /// The host that served it.
        host: String,
        /// What was asked for.
        what: String,
        /// How far it came.
        at: u64,
        /// What the HTTP client says.
        problem: String,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects {what} to {target}, which is not followed: {problem}")]
    Redirect {
        /// The host that redirects.
        host: String,
        /// What was asked for.
        what: String,
        /// Where to.
        target: String,
        /// Why not.
        problem: String,
    },
    /// An answer to another question than was asked.
    #[error("{host} was asked for bytes {asked} of {what} and answered with {answered:?}")]
    Range {
        /// The host that was asked.
        host: String,
        /// What was asked for.
        what: String,
        /// The range, as it stood in the request.
        asked: String,
        /// The answer's Content-Range.
        answered: String,
    },
    /// The whole blob came where a part of it was needed.
    #[error("{host} serves ranges of {what} no longer: asked for byte {at}, it began at 0")]
    RangeIgnored {
        /// The host that was asked.
        host: String,
        /// What was asked for.
        what: String,
        /// The first byte that was needed.
        at: u64,
    },
    /// The blob has another size than its descriptor says.
    #[error("{what} has {expected} bytes by its descriptor, but {host} serves {actual}")]
    Size {
        /// The host that served it.
        host: String,
        /// What was asked for.
        what: String,
        /// The descriptor's size in bytes.
        expected: u64,
        /// What is there: a number, or "more than" one.
        actual: String,
    },
    /// The bytes are not those that were asked for.
    #[error("{what} from {host} has digest {actual} instead of {expected}")]
    Digest {
        /// The host that served it.
        host: String,
        /// What was asked for.
        what: String,
        /// The digest that was asked for or promised.
        expected: String,
        /// The digest of what came.
        actual: String,
    },
    /// A document is larger than documents may be.
    #[error("{what} from {host} is larger than {limit} bytes, which is the most that is read")]
    TooLarge {
        /// The host that served it.
        host: String,
        /// What was asked for.
        what: String,
        /// The bound in bytes.
        limit: u64,
    },
    /// No host is left to be asked.
    #[error(
        "no host may be asked for {what}: the hosts.toml of {registry} gives none with the capability {capability:?}"
    )]
    NoHost {
        /// The registry of the image reference.
        registry: String,
        /// What was asked for.
        what: String,
        /// `pull` or `resolve`.
        capability: &'static str,
    },
    /// A registry does not take a manifest.
    #[error(
        "{host} does not take {what} ({status}{detail}); some registries know neither the OCI's media types nor \
         layers in zstd: --compression gzip, or an oci: destination that skopeo takes on from there, helps with those"
    )]
    ManifestRefused {
        /// The host that refused.
        host: String,
        /// The manifest, and where it was to go.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the answer's body, with a colon before it, or nothing.
        detail: String,
    },
    /// What is to be sent cannot be read.
    #[error("{what}: reading what is to be sent: {source}")]
    Source {
        /// What was being sent.
        what: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The reference is not one that hoist can ask for.
    #[error("{reference}: {problem}")]
    Reference {
        /// The reference.
        reference: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl RegistryError {
    /// Where the host says that it is overloaded (429 or 503): how long it asks to be left alone,
    /// if it says so.
    pub fn overload(&self) -> Option<Option<std::time::Duration>> {
        match self {
            Self::Status { status: 429 | 503, retry_after, .. } => {
                Some(retry_after.map(|asked| asked.min(super::retry::RETRY_AFTER_MOST)))
            }
            _ => None,
        }
    }

    /// Whether the same question may get an answer later: overload, a server's fault, and
    /// everything that happens to connections, but for a certificate that one side does not trust.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Send { source, .. } => told(source).1,
            Self::Stalled { .. } | Self::Broken { .. } | Self::RangeIgnored { .. } => true,
            Self::Token { transient, .. } => *transient,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            _ => false,
        }
    }

    /// What [`RegistryError::cause`] says of that which is worth another try.
    pub const CAUSES: [&'static str; 9] = [
        "connect",
        "send",
        "stalled",
        "broken",
        "range_ignored",
        "token",
        "status_429",
        "status_5xx",
        "status_other",
    ];

    /// The word for it in metrics' labels; one of a fixed few.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Send { source, .. } if source.is_connect() => "connect",
            Self::Send { .. } => "send",
            Self::Stalled { .. } => "stalled",
            Self::Broken { .. } => "broken",
            Self::RangeIgnored { .. } => "range_ignored",
            Self::Token { .. } => "token",
            Self::Status { status: 429, .. } => "status_429",
            Self::Status { status: 500..=599, .. } => "status_5xx",
            Self::Status { .. } => "status_other",
            _ => "other",
        }
    }

    /// How long the host asked to be left alone (`Retry-After`).
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } | Self::Token { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the registry answered that it does not have it.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether other credentials are needed, or any.
    pub fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Unauthorized { .. })
    }

    /// What it is to whoever asked.
    pub fn failure(&self) -> Failure {
        match self {
            Self::NotFound { .. } => Failure::NotFound,
            Self::Unauthorized { .. } => Failure::NotAuthorised,
            Self::Status { status: 400..500, .. } => Failure::Refused,
            _ => Failure::NotReachable,
        }
    }

    /// Whether the bytes themselves are wrong, in which case nobody else's copy excuses them.
    pub fn is_integrity(&self) -> bool {
        matches!(self, Self::Digest { .. } | Self::Size { .. })
    }
}

/// An error as [`chain`] tells it, with what to do where it is the certificates' fault, and whether
/// another try may help.
pub(super) fn told(error: &reqwest::Error) -> (String, bool) {
    match Verdict::of(error) {
        Some(verdict) => (format!("{}; {}", chain(error), verdict.way_out()), false),
        None => (chain(error), !error.is_builder()),
    }
}

/// An error with its sources, without addresses: those of object stores carry signatures.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let text = if error.is_timeout() {
        "timed out"
    } else if error.is_connect() {
        "no connection"
    } else {
        "the connection failed"
    };
    with_sources(text.to_owned(), error)
}

/// What is said of an error, with those of its sources that say more.
pub(super) fn with_sources(mut text: String, error: &dyn std::error::Error) -> String {
    let mut source = error.source();
    while let Some(inner) = source {
        let line = inner.to_string();
        if !text.contains(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        source = inner.source();
    }
    text
}
