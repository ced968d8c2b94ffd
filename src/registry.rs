//! Requests to registries: manifests and blobs, by the OCI distribution specification.
//!
//! A reference names a registry, and `hosts.toml` may name other hosts that stand for it. They are
//! asked in order until one answers: `exchange` asks one host one question, answers its challenge
//! (`auth`, with what `credentials` finds) and follows its redirects. What may pass by itself is
//! asked again after a pause (`retry`), everything else is an error with a way out
//! ([`RegistryError`]). Manifests and other documents come whole and verified; blobs come as ranges
//! ([`Blob`]), and whoever puts them together verifies them.
//!
//! What is made here goes the other way ([`Push`]).
//!
//! Only this room opens outbound connections, but for `otlp`, which sends traces where it is told to.

mod auth;
mod blob;
mod clients;
mod content_range;
mod credentials;
mod endpoint;
mod error;
mod exchange;
mod hosts;
mod push;
mod retry;
mod scope;
mod tls;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use reqwest::header::CONTENT_TYPE;

use crate::image::{BlobDigest, Reference, Sha256};
use crate::metrics::RequestMetrics;

pub use blob::{Blob, Body};
pub use credentials::{Keychain, registry_of, unpacked};
pub use error::{Failure, RegistryError};
pub use push::{Push, ReadPart, Sent};
pub(crate) use retry::Backoff;

use auth::Authorizer;
use clients::Clients;
use endpoint::Endpoint;
use exchange::Question;

/// The largest manifest that is read; containerd's bound.
const MANIFEST_BYTES_MOST: u64 = 8 << 20;

/// How long a `hosts.toml` is believed before it is read again.
const HOSTS_FRESH: Duration = Duration::from_secs(10);

const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, */*;q=0.1";

/// How registries are talked to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directories with `HOST/hosts.toml`, containerd's `certs.d`; the first that has one counts.
    pub hosts_dirs: Vec<PathBuf>,
    /// What a kubelet passed; tried before all else.
    pub keychain: Keychain,
    /// A docker `config.json`.
    pub docker_config: Option<PathBuf>,
    /// Directories of Kubernetes' pull secrets, in files of docker's form.
    pub kubernetes_secrets: Vec<PathBuf>,
    /// Whether AWS is asked for the passwords of its own registries.
    pub ecr: bool,
    /// Hosts, with or without port, that are asked by plain HTTP. Loopback hosts with a port are
    /// anyway.
    pub plain_http_hosts: Vec<String>,
    /// Files with CA certificates (PEM) that are trusted besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// How long a connection may take to stand.
    pub connect_timeout: Duration,
    /// How long a host may send nothing, in an answer or before it.
    pub stall_timeout: Duration,
    /// Tries after the first one; progress within a blob starts the count anew.
    pub retries: u32,
    /// The first pause between tries; each further one is twice as long.
    pub backoff_initial: Duration,
    /// The longest pause between tries.
    pub backoff_max: Duration,
    /// Where requests are counted.
    pub metrics: RequestMetrics,
}

impl Default for Settings {
    /// Five retries within about ten seconds: longer than a registry's hiccup, shorter than the
    /// patience of whoever waits for the pull.
    fn default() -> Self {
        Self {
            hosts_dirs: Vec::new(),
            keychain: Keychain::default(),
            docker_config: None,
            kubernetes_secrets: Vec::new(),
            ecr: false,
            plain_http_hosts: Vec::new(),
            ca_files: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(20),
            retries: 5,
            backoff_initial: Duration::from_millis(300),
            backoff_max: Duration::from_secs(10),
            metrics: RequestMetrics::default(),
        }
    }
}

/// The way to all registries. Clones share connections, tokens and what was learned of hosts.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

/// A document that came whole and has the digest that it should have.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its bytes.
    pub bytes: Bytes,
    /// Their digest.
    pub digest: BlobDigest,
    /// The media type that the registry gave it, without parameters.
    pub content_type: Option<String>,
    /// How much of the time went into answering a challenge.
    pub authorizing: Duration,
}

type Endpoints = Vec<Arc<Endpoint>>;

struct Shared {
    settings: Settings,
    clients: Clients,
    authorizer: Authorizer,
    endpoints: Mutex<HashMap<String, (Instant, Endpoints)>>,
}

impl Shared {
    /// The hosts for `registry`, from a `hosts.toml` read some seconds ago at most. Where it has
    /// not changed, they keep their health.
    fn endpoints(&self, registry: &str) -> Result<Endpoints, RegistryError> {
        let mut known = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, endpoints)) = known.get(registry)
            && read.elapsed() < HOSTS_FRESH
        {
            return Ok(endpoints.clone());
        }
        let mut fresh = endpoint::load(&self.settings, registry)?;
        if let Some((_, old)) = known.get(registry)
            && old.iter().map(|e| &e.config).eq(fresh.iter().map(|e| &e.config))
        {
            fresh.clone_from(old);
        }
        known.insert(registry.to_owned(), (Instant::now(), fresh.clone()));
        Ok(fresh)
    }
}

/// What a document has to be.
struct Wanted<'a> {
    reference: &'a Reference,
    question: Question,
    /// Whether a host needs the capability to resolve, instead of that to pull.
    resolve: bool,
    digest: Option<BlobDigest>,
    limit: u64,
}

impl Registry {
    /// A way to registries by `settings`.
    ///
    /// # Errors
    /// Where a CA file cannot be used.
    pub fn new(settings: Settings) -> Result<Self, RegistryError> {
        for file in &settings.ca_files {
            tls::certificates(file)?;
        }
        let credentials = credentials::Credentials::new(&settings);
        let shared = Shared {
            clients: Clients::new(settings.ca_files.clone(), settings.connect_timeout),
            authorizer: Authorizer::new(
                credentials,
                settings.stall_timeout,
                settings.metrics.clone(),
            ),
            endpoints: Mutex::default(),
            settings,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Closes the connections that nobody uses, which takes a moment after this has returned.
    pub fn close_idle(&self) {
        self.shared.clients.forget();
    }

    fn backoff(&self) -> Backoff {
        let Settings { retries, backoff_initial: initial, backoff_max: max, ref metrics, .. } =
            self.shared.settings;
        let policy = retry::RetryPolicy { retries, initial, max };
        Backoff::new(policy, metrics.clone())
    }

    /// The manifest or index of `reference`: by its digest where it has one, else by its tag, which
    /// is `latest` where it has none.
    ///
    /// # Errors
    /// Where no host gives it, it is larger than 8 MiB, or its digest is another.
    pub async fn manifest(&self, reference: &Reference) -> Result<Document, RegistryError> {
        let digest = reference.digest().map(str::parse).transpose();
        let digest =
            digest.map_err(|error: crate::image::DigestError| RegistryError::Reference {
                reference: reference.to_string(),
                problem: error.to_string(),
            })?;
        match digest {
            Some(digest) => self.manifest_by_digest(reference, digest).await,
            None => {
                let tag = reference.tag().unwrap_or("latest");
                self.manifest_named(reference, tag, None).await
            }
        }
    }

    /// The manifest or index with this digest from the repository of `reference`.
    ///
    /// # Errors
    /// Where no host gives it, it is larger than 8 MiB, or its digest is another.
    pub async fn manifest_by_digest(
        &self,
        reference: &Reference,
        digest: BlobDigest,
    ) -> Result<Document, RegistryError> {
        self.manifest_named(reference, &digest.to_string(), Some(digest)).await
    }

    async fn manifest_named(
        &self,
        reference: &Reference,
        name: &str,
        digest: Option<BlobDigest>,
    ) -> Result<Document, RegistryError> {
        let question = Question {
            repository: reference.repository().to_owned(),
            path: format!("manifests/{name}"),
            what: format!("manifest {name} of {}", reference.repository()),
            accept: Some(MANIFEST_TYPES),
            range: None,
            if_range: None,
        };
        let resolve = digest.is_none();
        let limit = MANIFEST_BYTES_MOST;
        self.document(Wanted { reference, question, resolve, digest, limit }).await
    }

    /// A blob that is read whole, such as an image configuration, verified.
    ///
    /// # Errors
    /// Where no host gives it, it is larger than `max_bytes`, or its digest is another.
    pub async fn small_blob(
        &self,
        reference: &Reference,
        digest: BlobDigest,
        max_bytes: u64,
    ) -> Result<Bytes, RegistryError> {
        let question = Question {
            repository: reference.repository().to_owned(),
            path: format!("blobs/{digest}"),
            what: format!("blob {digest} of {}", reference.repository()),
            accept: None,
            range: None,
            if_range: None,
        };
        let (digest, limit) = (Some(digest), max_bytes);
        let wanted = Wanted { reference, question, resolve: false, digest, limit };
        Ok(self.document(wanted).await?.bytes)
    }

    /// The hosts that would be asked for images of `registry`, in their order. Asks nothing.
    ///
    /// # Errors
    /// Where its `hosts.toml` cannot be read or has a mistake.
    pub fn hosts(&self, registry: &str) -> Result<Vec<String>, RegistryError> {
        let endpoints = self.shared.endpoints(registry)?;
        Ok(endpoints.iter().map(|endpoint| endpoint.name.clone()).collect())
    }

    /// Which sources have credentials for an image, for each host that would be asked for it: the
    /// host, and the sources in their order, with the reason where one fails. Runs docker's helpers, and
    /// asks AWS for its own registries; asks no registry. No secret is in it.
    ///
    /// # Errors
    /// Where a `hosts.toml` cannot be read or has a mistake.
    pub async fn credentials(
        &self,
        reference: &Reference,
    ) -> Result<Vec<(String, Vec<String>)>, RegistryError> {
        let mut found = Vec::new();
        for endpoint in self.shared.endpoints(reference.registry())? {
            let scope = endpoint.scope(reference.repository(), "");
            found.push((endpoint.name.clone(), self.shared.authorizer.sources(scope).await));
        }
        Ok(found)
    }

    /// A blob of `size` bytes that is read by ranges. Asks nothing yet.
    pub fn blob(&self, reference: &Reference, digest: BlobDigest, size: u64) -> Blob {
        Blob::new(self.clone(), reference.clone(), digest, size)
    }

    /// Asks host after host; once all have failed, those again whose failure may pass.
    async fn document(&self, wanted: Wanted<'_>) -> Result<Document, RegistryError> {
        let all = self.shared.endpoints(wanted.reference.registry())?;
        let mut left: Endpoints = endpoint::by_health(&all);
        left.retain(|e| {
            let can = e.config.capabilities;
            if wanted.resolve { can.resolve } else { can.pull }
        });
        let mut backoff = self.backoff();
        loop {
            let mut failure = None;
            let mut again = Vec::new();
            for endpoint in left {
                match self.document_from(&endpoint, &wanted).await {
                    Ok(document) => return Ok(document),
                    Err(error) => {
                        tracing::debug!(host = endpoint.name, %error, "a host is passed over");
                        if matches!(
                            error,
                            RegistryError::Send { .. } | RegistryError::Stalled { .. }
                        ) {
                            endpoint.failed();
                        }
                        if error.is_transient() {
                            again.push(endpoint);
                        }
                        failure = Some(blob::worse(failure, error));
                    }
                }
            }
            let Some(error) = failure else {
                return Err(RegistryError::NoHost {
                    registry: wanted.reference.registry().to_owned(),
                    what: wanted.question.what,
                    capability: if wanted.resolve { "resolve" } else { "pull" },
                });
            };
            let Some(pause) = backoff.pause(&error) else { return Err(error) };
            tracing::debug!(%error, ?pause, "another try follows");
            tokio::time::sleep(pause).await;
            left = again;
        }
    }

    async fn document_from(
        &self,
        endpoint: &Endpoint,
        wanted: &Wanted<'_>,
    ) -> Result<Document, RegistryError> {
        let answer = exchange::ask(&self.shared, endpoint, &wanted.question).await?;
        let authorizing = answer.challenged.map_or(Duration::ZERO, |(from, to)| to - from);
        let mut response = answer.response;
        let (host, what) = (endpoint.name.clone(), wanted.question.what.clone());
        let field = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.map(|value| value.split(';').next().unwrap_or_default().trim().to_owned())
        };
        let content_type = field(CONTENT_TYPE.as_str());
        let promised = field("docker-content-digest").and_then(|text| text.parse().ok());
        let mut bytes = BytesMut::new();
        loop {
            let stall = self.shared.settings.stall_timeout;
            let piece = match tokio::time::timeout(stall, response.chunk()).await {
                Err(_) => return Err(RegistryError::Stalled { host, what, after: stall }),
                Ok(Err(error)) => {
                    let (at, problem) = (bytes.len() as u64, error::chain(&error));
                    return Err(RegistryError::Broken { host, what, at, problem });
                }
                Ok(Ok(None)) => break,
                Ok(Ok(Some(piece))) => piece,
            };
            if (bytes.len() + piece.len()) as u64 > wanted.limit {
                return Err(RegistryError::TooLarge { host, what, limit: wanted.limit });
            }
            bytes.extend_from_slice(&piece);
        }
        let digest = BlobDigest(Sha256::of(&bytes));
        if let Some(expected) = wanted.digest.or(promised).filter(|&expected| expected != digest) {
            let (expected, actual) = (expected.to_string(), digest.to_string());
            return Err(RegistryError::Digest { host, what, expected, actual });
        }
        Ok(Document { bytes: bytes.freeze(), digest, content_type, authorizing })
    }
}
