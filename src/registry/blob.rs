//! Blobs, whole or by parts.
//!
//! A registry often answers with a redirect to an object store. The first answer's address is kept
//! and asked directly until it is refused, which saves the registry a question for each part; a
//! signed address expires after some minutes, and then the registry is asked again. What comes is
//! checked against what was asked: status, `Content-Range`, and the descriptor's size. The digest
//! is checked by whoever reads all of the bytes.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, ETAG};
use reqwest::{Response, StatusCode, Url};

use super::content_range::ContentRange;
use super::credentials::registry_of;
use super::endpoint::{Endpoint, authority, by_health};
use super::error::chain;
use super::exchange::{self, Answer, Question, same_origin};
use super::retry::Backoff;
use super::{Registry, RegistryError};
use crate::image::{BlobDigest, Reference};

/// A blob of a registry. Clones share what was learned of it.
#[derive(Clone)]
pub struct Blob {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    reference: Reference,
    digest: BlobDigest,
    size: u64,
    what: String,
    learned: Mutex<Learned>,
}

#[derive(Default)]
struct Learned {
    /// The host that served last.
    host: Option<String>,
    /// Who was asked then, to be told by a name of a registry or mirror.
    asked: Option<String>,
    /// Where the redirect of an endpoint led to.
    shortcut: Option<(String, Url)>,
    /// A strong ETag and the host that gave it.
    etag: Option<(String, String)>,
    /// Endpoints that do not have the blob or may not give it.
    refused: Vec<String>,
    /// Whether parts were served, once known.
    parts: Option<bool>,
}

/// How one round over the endpoints failed with one of them.
type Failures = Option<RegistryError>;

impl Blob {
    pub(super) fn new(
        registry: Registry,
        reference: Reference,
        digest: BlobDigest,
        size: u64,
    ) -> Self {
        let what = format!("blob {digest} of {}", reference.repository());
        let inner = Inner { registry, reference, digest, size, what, learned: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    fn learned(&self) -> MutexGuard<'_, Learned> {
        self.inner.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The blob's digest.
    pub fn digest(&self) -> BlobDigest {
        self.inner.digest
    }

    /// The blob's size in bytes, by its descriptor.
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// The host that served the last answer; before the first one the registry's name.
    pub fn host(&self) -> String {
        let host = self.learned().host.clone();
        host.unwrap_or_else(|| self.inner.reference.registry().to_owned())
    }

    /// The registry or mirror that was asked last, whose address the last answer came from or which
    /// redirected there; before the first one the registry's name.
    pub fn asked(&self) -> String {
        let asked = self.learned().asked.clone();
        asked.unwrap_or_else(|| self.inner.reference.registry().to_owned())
    }

    /// Whether the host serves parts of blobs; `None` until it was asked for one.
    pub fn serves_parts(&self) -> Option<bool> {
        self.learned().parts
    }

    /// The pauses between tries, by the registry's settings.
    pub(crate) fn backoff(&self) -> Backoff {
        self.inner.registry.backoff()
    }

    /// Asks for `range`, each host that may be asked once; not empty and within the size. A range
    /// that is the whole blob is asked for without saying so.
    ///
    /// # Errors
    /// Where none of the hosts serves it. [`RegistryError::is_transient`] says whether another
    /// call may fare better.
    pub async fn range(&self, range: Range<u64>) -> Result<Body, RegistryError> {
        self.ask(range, false).await
    }

    /// Goes on at `range` after a break: guarded by the ETag of the first answer where it had one.
    ///
    /// # Errors
    /// As [`Blob::range`].
    pub async fn resume(&self, range: Range<u64>) -> Result<Body, RegistryError> {
        self.ask(range, true).await
    }

    async fn ask(&self, range: Range<u64>, guarded: bool) -> Result<Body, RegistryError> {
        debug_assert!(range.start < range.end && range.end <= self.inner.size);
        let shared = &self.inner.registry.shared;
        let all = shared.endpoints(self.inner.reference.registry())?;
        let mut endpoints: Vec<_> =
            by_health(&all).into_iter().filter(|e| e.config.capabilities.pull).collect();
        if endpoints.is_empty() {
            return Err(RegistryError::NoHost {
                registry: self.inner.reference.registry().to_owned(),
                what: self.inner.what.clone(),
                capability: "pull",
            });
        }
        let refused = self.learned().refused.clone();
        if endpoints.iter().any(|e| !refused.contains(&e.name)) {
            endpoints.retain(|e| !refused.contains(&e.name));
        }
        let mut failure: Failures = None;
        for endpoint in endpoints {
            match self.ask_endpoint(&endpoint, &range, guarded).await {
                Ok(body) => return Ok(body),
                Err(error) => {
                    tracing::debug!(host = endpoint.name, %error, "a host is passed over");
                    self.note_failure(&endpoint, &error);
                    failure = Some(worse(failure, error));
                }
            }
        }
        Err(failure.expect("at least one endpoint was asked"))
    }

    fn note_failure(&self, endpoint: &Endpoint, error: &RegistryError) {
        match error {
            RegistryError::Send { .. } | RegistryError::Stalled { .. } => endpoint.failed(),
            error if error.is_transient() => endpoint.struck(),
            _ => self.learned().refused.push(endpoint.name.clone()),
        }
    }

    async fn ask_endpoint(
        &self,
        endpoint: &Arc<Endpoint>,
        range: &Range<u64>,
        guarded: bool,
    ) -> Result<Body, RegistryError> {
        let shared = &self.inner.registry.shared;
        let whole = *range == (0..self.inner.size);
        let mut question = Question {
            repository: self.inner.reference.repository().to_owned(),
            path: format!("blobs/{}", self.inner.digest),
            what: self.inner.what.clone(),
            accept: None,
            range: (!whole).then(|| range.clone()),
            if_range: None,
        };
        let (shortcut, etag) = {
            let learned = self.learned();
            (learned.shortcut.clone(), learned.etag.clone())
        };
        let shortcut = shortcut.filter(|(name, _)| *name == endpoint.name).map(|(_, url)| url);
        let expected_host = shortcut.as_ref().map_or_else(|| endpoint.name.clone(), authority);
        question.if_range =
            etag.filter(|(host, _)| guarded && *host == expected_host).map(|(_, etag)| etag);
        if let Some(url) = shortcut {
            match exchange::ask_at(shared, endpoint, &question, url).await {
                Ok(answer) => return self.accept(answer, endpoint, range, &question),
                // The store is there but overloaded: a new address would lead to the same place.
                Err(error @ RegistryError::Status { status: 429 | 500..=599, .. }) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::debug!(%error, "a redirect's address is no longer good");
                    self.learned().shortcut = None;
                }
            }
        }
        let answer = exchange::ask(shared, endpoint, &question).await?;
        self.accept(answer, endpoint, range, &question)
    }

    /// Checks an answer against its question.
    fn accept(
        &self,
        answer: Answer,
        endpoint: &Arc<Endpoint>,
        range: &Range<u64>,
        question: &Question,
    ) -> Result<Body, RegistryError> {
        let Answer { response, url, challenged } = answer;
        let host = authority(&url);
        let part = self.part(&response, &host, range)?;
        let mut learned = self.learned();
        let ignored = question.range.is_some() && response.status() == StatusCode::OK;
        if ignored && question.if_range.is_some() {
            // Another copy behind the same name, perhaps of another machine. The digest guards the
            // bytes; the next try asks without the guard.
            learned.etag = None;
            let (host, what) = (host, self.inner.what.clone());
            return Err(RegistryError::RangeIgnored { host, what, at: range.start });
        }
        if question.range.is_some() {
            learned.parts = Some(!ignored);
        }
        learned.host = Some(host.clone());
        learned.asked = Some(registry_of(&endpoint.name).to_owned());
        if !same_origin(&url, &endpoint.config.base) {
            learned.shortcut = Some((endpoint.name.clone(), url));
        }
        let etag = response.headers().get(ETAG).and_then(|value| value.to_str().ok());
        if let Some(etag) = etag.filter(|etag| etag.starts_with('"')) {
            learned.etag = Some((host.clone(), etag.to_owned()));
        }
        let received = self.inner.registry.shared.settings.metrics.received(&host);
        Ok(Body {
            response,
            challenged,
            received,
            host,
            what: self.inner.what.clone(),
            size: self.inner.size,
            position: part.start,
            end: part.end,
            ignored,
            ended: false,
            stall: self.inner.registry.shared.settings.stall_timeout,
            endpoint: Arc::clone(endpoint),
        })
    }

    /// The part of the blob that an answer to a question for `range` has.
    fn part(
        &self,
        response: &Response,
        host: &str,
        range: &Range<u64>,
    ) -> Result<Range<u64>, RegistryError> {
        let size = |actual: u64| RegistryError::Size {
            host: host.to_owned(),
            what: self.inner.what.clone(),
            expected: self.inner.size,
            actual: actual.to_string(),
        };
        let part = if response.status() == StatusCode::PARTIAL_CONTENT {
            let field = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
            let answered = field.and_then(ContentRange::parse);
            let total = answered.as_ref().and_then(|answered| answered.total);
            if let Some(total) = total.filter(|&total| total != self.inner.size) {
                return Err(size(total));
            }
            if answered.and_then(|answered| answered.part).as_ref() != Some(range) {
                return Err(self.wrong_range(host, range, exchange::content_range(response)));
            }
            range.clone()
        } else {
            if let Some(length) = response.content_length().filter(|&l| l != self.inner.size) {
                return Err(size(length));
            }
            0..self.inner.size
        };
        if let Some(length) = response.content_length().filter(|l| *l != part.end - part.start) {
            return Err(self.wrong_range(host, range, format!("{length} bytes")));
        }
        Ok(part)
    }

    fn wrong_range(&self, host: &str, range: &Range<u64>, answered: String) -> RegistryError {
        RegistryError::Range {
            host: host.to_owned(),
            what: self.inner.what.clone(),
            asked: exchange::shown(range),
            answered,
        }
    }
}

/// Of two hosts' failures the one to go by: what may pass goes before what stays, the later before
/// the earlier (the registry itself is asked last).
pub(super) fn worse(first: Option<RegistryError>, second: RegistryError) -> RegistryError {
    match first {
        Some(first) if first.is_transient() && !second.is_transient() => first,
        _ => second,
    }
}

/// The bytes of an answer.
pub struct Body {
    response: Response,
    host: String,
    what: String,
    size: u64,
    position: u64,
    end: u64,
    ignored: bool,
    ended: bool,
    stall: Duration,
    endpoint: Arc<Endpoint>,
    challenged: Option<(Instant, Instant)>,
    received: prometheus::IntCounter,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Body({}..{} of {} from {})", self.position, self.end, self.what, self.host)
    }
}

impl Body {
    /// The next byte's place in the blob: that of the range, or 0 where the host ignored it.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether a part was asked for and the whole blob comes.
    pub fn is_whole(&self) -> bool {
        self.ignored
    }

    /// The host that serves it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// When a challenge was answered on the way to it, if there was one.
    pub fn challenged(&self) -> Option<(Instant, Instant)> {
        self.challenged
    }

    /// The next bytes; `None` after the last, which is the end of the range or of the blob. Reading
    /// up to `None` gives the connection back for the next request.
    ///
    /// # Errors
    /// Where the connection breaks or stalls, and where more or fewer bytes come than announced.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if self.ended {
            return Ok(None);
        }
        let next = tokio::time::timeout(self.stall, self.response.chunk()).await;
        let (host, what) = (self.host.clone(), self.what.clone());
        match next {
            Ok(Ok(Some(bytes))) => {
                let came = self.position + bytes.len() as u64;
                if came > self.end {
                    let actual = format!("more than {}", self.end);
                    return Err(RegistryError::Size { host, what, expected: self.size, actual });
                }
                self.position = came;
                self.received.inc_by(bytes.len() as u64);
                Ok(Some(bytes))
            }
            Ok(Ok(None)) if self.position == self.end => {
                self.ended = true;
                self.endpoint.served();
                Ok(None)
            }
            Ok(Ok(None)) if self.end == self.size && self.response.content_length().is_none() => {
                let actual = self.position.to_string();
                Err(RegistryError::Size { host, what, expected: self.size, actual })
            }
            // The last byte is there; how the connection ends says nothing any more.
            _ if self.position == self.end && self.response.content_length().is_some() => {
                self.ended = true;
                Ok(None)
            }
            Ok(Ok(None)) => {
                self.endpoint.struck();
                let problem = "it ended too early".to_owned();
                Err(RegistryError::Broken { host, what, at: self.position, problem })
            }
            Ok(Err(error)) => {
                self.endpoint.struck();
                let problem = chain(&error);
                Err(RegistryError::Broken { host, what, at: self.position, problem })
            }
            Err(_) => {
                self.endpoint.struck();
                Err(RegistryError::Stalled { host, what, after: self.stall })
            }
        }
    }
}
