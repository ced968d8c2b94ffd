//! Blobs and manifests into a registry (OCI distribution specification, "Push").
//!
//! A blob that is there is not sent again, and one that another repository of the same registry has is
//! mounted from it. Everything else goes up in chunks, one after the other, over an upload session. When
//! a connection breaks, the registry is asked how much it has, and the upload goes on from there; where the
//! session is gone, a new one begins. Registries that take no chunks get the blob in one request. A
//! manifest makes a tag, so it comes when all that it names is there.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use reqwest::{Method, StatusCode, Url};

use super::auth::Visit;
use super::endpoint::{self, Endpoint};
use super::{Registry, RegistryError, exchange};
use crate::image::{BlobDigest, Reference};

mod request;

use request::Asked;

/// Bytes of a chunk: a connection that breaks costs so many at most. ECR takes no fewer than 5 MiB.
const CHUNK_BYTES: u64 = 16 << 20;

/// The largest chunk that a registry may ask for (`OCI-Chunk-Min-Length`), since it is held in memory.
const CHUNK_BYTES_MOST: u64 = 64 << 20;

/// Reads a part of a blob that is to be sent.
pub type ReadPart = Arc<dyn Fn(Range<u64>) -> std::io::Result<Bytes> + Send + Sync>;

/// What it took to have a blob in a repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// It was there.
    There,
    /// Another repository of the registry had it.
    Mounted,
    /// Its bytes were sent.
    Uploaded,
}

/// The way into one repository.
#[derive(Clone, Debug)]
pub struct Push {
    registry: Registry,
    reference: Reference,
    endpoint: Arc<Endpoint>,
}

/// An upload under way.
struct Session {
    location: Url,
    /// Bytes of a chunk.
    chunk: u64,
}

impl Registry {
    /// The way into the repository of `reference`, on the first host that may be pushed to.
    ///
    /// # Errors
    /// Where a `hosts.toml` cannot be read or has no such host.
    pub fn push(&self, reference: &Reference) -> Result<Push, RegistryError> {
        let all = self.shared.endpoints(reference.registry())?;
        let found = endpoint::by_health(&all).into_iter().find(|e| e.config.capabilities.push);
        let endpoint = found.ok_or_else(|| RegistryError::NoHost {
            registry: reference.registry().to_owned(),
            what: format!("a push to {}", reference.repository()),
            capability: "push",
        })?;
        Ok(Push { registry: self.clone(), reference: reference.clone(), endpoint })
    }
}

impl Push {
    /// Sees to it that the repository has the blob `digest` of `size` bytes: it is looked for first, then
    /// mounted from the repository `from` of the same registry, if any, then sent. `sent` is told of every
    /// piece that has arrived, in bytes; after a break it may be told of some again.
    ///
    /// # Errors
    /// Where the registry refuses, or connections break more often than is tried.
    pub async fn blob(
        &self,
        digest: BlobDigest,
        size: u64,
        from: Option<&str>,
        read: &ReadPart,
        sent: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Sent, RegistryError> {
        let what = format!("blob {digest} into {}", self.reference.repository());
        let mut backoff = self.registry.backoff();
        let (mut session, mut offset, mut furthest) = (None, 0, 0);
        loop {
            let tried =
                self.try_blob(&what, digest, size, from, read, sent, &mut session, &mut offset);
            let error = match tried.await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if offset > furthest {
                furthest = offset;
                backoff.progressed();
            }
            let Some(pause) = backoff.pause(&error) else { return Err(error) };
            tracing::debug!(%error, ?pause, offset, "the upload is taken up again");
            tokio::time::sleep(pause).await;
            offset = match &mut session {
                // A session that cannot be asked is given up.
                Some(open) => match self.progress_of(open, &what).await {
                    Ok(have) => have.min(size),
                    Err(_) => {
                        session = None;
                        0
                    }
                },
                None => 0,
            };
        }
    }

    #[allow(clippy::too_many_arguments, reason = "one try of `blob`, with what it has reached")]
    async fn try_blob(
        &self,
        what: &str,
        digest: BlobDigest,
        size: u64,
        from: Option<&str>,
        read: &ReadPart,
        sent: &(dyn Fn(u64) + Send + Sync),
        session: &mut Option<Session>,
        offset: &mut u64,
    ) -> Result<Sent, RegistryError> {
        if session.is_none() {
            *offset = 0;
            if self.has(what, digest).await? {
                return Ok(Sent::There);
            }
            match self.begin(what, digest, from).await? {
                None => return Ok(Sent::Mounted),
                begun => *session = begun,
            }
        }
        let open = session.as_mut().expect("it was just opened");
        while *offset < size {
            let end = (*offset + open.chunk).min(size);
            let chunk = self.part(what, read, *offset..end).await?;
            match self.chunk(what, open, *offset, chunk).await {
                Ok(()) => {}
                // Some registries take a blob only whole, and the session is spoilt by the question.
                Err(error) if *offset == 0 && is_no_chunks(&error) => {
                    *session = None;
                    return self.whole(what, digest, size, read, sent).await;
                }
                Err(error) => return Err(error),
            }
            sent(end - *offset);
            *offset = end;
        }
        let mut url = open.location.clone();
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let headers = vec![(CONTENT_LENGTH, "0".to_owned())];
        let asked = Asked { method: Method::PUT, url, what, headers, body: Some(Bytes::new()) };
        // Whether it came through is seen at the next try, which looks for the blob first.
        let closed = self.ask(&asked).await;
        *session = None;
        self.expect(closed?, &[StatusCode::CREATED, StatusCode::NO_CONTENT], what).await?;
        Ok(Sent::Uploaded)
    }

    async fn has(&self, what: &str, digest: BlobDigest) -> Result<bool, RegistryError> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let asked = Asked { method: Method::HEAD, url, what, headers: vec![], body: None };
        let response = self.ask(&asked).await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            // Blobs may lie elsewhere: a redirect says that it is there.
            status if status.is_redirection() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refusal(response, what).await),
        }
    }

    /// Opens an upload session; `None` where the blob was mounted instead.
    async fn begin(
        &self,
        what: &str,
        digest: BlobDigest,
        from: Option<&str>,
    ) -> Result<Option<Session>, RegistryError> {
        let mut url = self.url("blobs/uploads/")?;
        if let Some(from) = from.filter(|from| *from != self.reference.repository()) {
            url.query_pairs_mut()
                .append_pair("mount", &digest.to_string())
                .append_pair("from", from);
        }
        let headers = vec![(CONTENT_LENGTH, "0".to_owned())];
        let asked = Asked { method: Method::POST, url, what, headers, body: Some(Bytes::new()) };
        let response = self.ask(&asked).await?;
        match response.status() {
            StatusCode::CREATED => Ok(None),
            StatusCode::ACCEPTED => {
                let least = response.headers().get("oci-chunk-min-length");
                let least = least.and_then(|v| v.to_str().ok()?.parse::<u64>().ok()).unwrap_or(0);
                let chunk = CHUNK_BYTES.max(least).min(CHUNK_BYTES_MOST);
                let location = self.location(&response, &asked.url, what)?;
                Ok(Some(Session { location, chunk }))
            }
            _ => Err(self.refusal(response, what).await),
        }
    }

    async fn chunk(
        &self,
        what: &str,
        session: &mut Session,
        offset: u64,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        let headers = vec![
            (CONTENT_TYPE, "application/octet-stream".to_owned()),
            (CONTENT_RANGE, format!("{offset}-{}", offset + bytes.len() as u64 - 1)),
        ];
        let url = session.location.clone();
        let asked = Asked { method: Method::PATCH, url, what, headers, body: Some(bytes) };
        let response = self.ask(&asked).await?;
        let good = [StatusCode::ACCEPTED, StatusCode::NO_CONTENT, StatusCode::CREATED];
        let response = self.expect(response, &good, what).await?;
        session.location = self.location(&response, &session.location, what)?;
        Ok(())
    }

    /// The blob in one request.
    async fn whole(
        &self,
        what: &str,
        digest: BlobDigest,
        size: u64,
        read: &ReadPart,
        sent: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Sent, RegistryError> {
        let Some(session) = self.begin(what, digest, None).await? else { return Ok(Sent::Mounted) };
        let mut url = session.location;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let scope = self.scope(what);
        let shared = &self.registry.shared;
        let mut visit = Visit::begin();
        let authorization = shared.authorizer.current(&shared.clients, scope, &mut visit).await?;
        let parts: Vec<Range<u64>> = (0..size.div_ceil(CHUNK_BYTES))
            .map(|n| n * CHUNK_BYTES..((n + 1) * CHUNK_BYTES).min(size))
            .collect();
        let read = Arc::clone(read);
        // Read when the connection asks for it, so that one chunk is in memory at a time.
        let stream = futures_util::stream::iter(parts.into_iter().map(move |part| read(part)));
        let request = shared
            .clients
            .client(&url, Some(&self.endpoint.config))?
            .put(url.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, size)
            .body(reqwest::Body::wrap_stream(stream));
        let request = exchange::introduced(request, &url, &self.endpoint, authorization.as_ref());
        let response = self.answer(request, &url, what, size).await?;
        self.expect(response, &[StatusCode::CREATED, StatusCode::NO_CONTENT], what).await?;
        sent(size);
        Ok(Sent::Uploaded)
    }

    /// How many bytes of an upload the registry has.
    async fn progress_of(&self, session: &mut Session, what: &str) -> Result<u64, RegistryError> {
        let url = session.location.clone();
        let asked = Asked { method: Method::GET, url, what, headers: vec![], body: None };
        let response = self.ask(&asked).await?;
        let good = [StatusCode::NO_CONTENT, StatusCode::OK, StatusCode::ACCEPTED];
        let response = self.expect(response, &good, what).await?;
        let range = response.headers().get(RANGE).and_then(|value| value.to_str().ok());
        let have = range.map_or(0, |range| parse_have(range).unwrap_or(0));
        if response.headers().contains_key(LOCATION) {
            session.location = self.location(&response, &session.location, what)?;
        }
        Ok(have)
    }

    /// Puts a manifest or an index under `name`, a tag or its digest.
    ///
    /// # Errors
    /// Where the registry refuses it; that it knows neither the OCI's media types nor zstd is said.
    pub async fn manifest(
        &self,
        name: &str,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<(), RegistryError> {
        let what = format!("manifest {name} into {}", self.reference.repository());
        let url = self.url(&format!("manifests/{name}"))?;
        let headers = vec![(CONTENT_TYPE, media_type.to_owned())];
        let body = Some(bytes.clone());
        let asked = Asked { method: Method::PUT, url, what: &what, headers, body };
        let mut backoff = self.registry.backoff();
        loop {
            let tried = async {
                let response = self.ask(&asked).await?;
                let good = [StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED];
                self.expect(response, &good, &what).await
            };
            match tried.await {
                Ok(_) => return Ok(()),
                Err(RegistryError::Status { host, what, status, detail, .. })
                    if matches!(status, 400 | 404 | 405 | 406 | 415 | 422) =>
                {
                    return Err(RegistryError::ManifestRefused { host, what, status, detail });
                }
                Err(error) => {
                    let Some(pause) = backoff.pause(&error) else { return Err(error) };
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn part(
        &self,
        what: &str,
        read: &ReadPart,
        range: Range<u64>,
    ) -> Result<Bytes, RegistryError> {
        let read = Arc::clone(read);
        let wanted = range.clone();
        let bytes = tokio::task::spawn_blocking(move || read(wanted)).await;
        let bytes = bytes.expect("reading a file does not panic");
        bytes.map_err(|source| RegistryError::Source { what: what.to_owned(), source })
    }
}

/// Whether a registry says that it takes no chunks.
fn is_no_chunks(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Status { status: 400 | 405 | 411 | 415 | 501, .. })
}

/// The bytes that `0-N` stands for. A registry says `0-0` of an upload that has nothing.
fn parse_have(range: &str) -> Option<u64> {
    let (_, last) = range.trim_start_matches("bytes=").split_once('-')?;
    let last: u64 = last.parse().ok()?;
    if last == 0 { Some(0) } else { last.checked_add(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_has_is_read() {
        assert_eq!(parse_have("0-0"), Some(0));
        assert_eq!(parse_have("0-1023"), Some(1024));
        assert_eq!(parse_have("bytes=0-9"), Some(10));
        assert_eq!(parse_have("0"), None);
        assert_eq!(parse_have(&format!("0-{}", u64::MAX)), None);
    }
}
