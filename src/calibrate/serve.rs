//! A small read-only registry that watches who pulls from it.
//!
//! Of the distribution specification it knows what a pull needs: `/v2/`, manifests by tag and digest, blobs
//! whole and in parts. Nobody is asked who they are, and nothing can be pushed. What a socket takes beyond
//! the bytes on their way is kept small, so that the times at which bytes leave here are those of the link.
//!
//! `/ended/NAME:TAG` is ours: a puller, or the container that it started, says there that the pull has ended,
//! which no registry can see otherwise.

use std::net::IpAddr;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::experiment::{BUCKET_SECONDS, ServedPull, Transfer};
use super::shelf::{Document, Shelf};
use crate::image::BlobDigest;
use crate::layout::Member;
use crate::sys::sockets;

/// What a socket takes beyond what is on its way: less than a bucket of a fast link, and enough for the
/// kernel to have something to send.
const UNSENT_BYTES: u32 = 256 << 10;

/// Pulls that are kept; the first ones go. An experiment has a handful.
const PULLS_MOST: usize = 1000;

/// A registry that watches. Cheap to clone.
#[derive(Clone)]
pub struct Watcher(Arc<Inner>);

struct Inner {
    shelf: Shelf,
    began: Instant,
    pulls: Mutex<Vec<ServedPull>>,
    ended: Notify,
}

impl Watcher {
    /// One that has these images.
    pub fn new(shelf: Shelf) -> Self {
        let (pulls, ended) = (Mutex::default(), Notify::new());
        Self(Arc::new(Inner { shelf, began: Instant::now(), pulls, ended }))
    }

    /// Serves until `stop`; requests that are under way then are cut off.
    ///
    /// # Errors
    /// What the operating system says of the listener.
    pub async fn serve(
        &self,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let router = Router::new()
            .route("/v2/", any(|| async { version() }))
            .route("/v2", any(|| async { version() }))
            .route("/v2/{*path}", any(asked))
            .route("/ended/{*name}", any(ended))
            .with_state(self.clone());
        let listener = listener.tap_io(|socket| {
            // Without it only the figures are worse.
            let _ = sockets::limit_unsent(socket, UNSENT_BYTES);
            let _ = socket.set_nodelay(true);
        });
        let service = router.into_make_service_with_connect_info::<std::net::SocketAddr>();
        tokio::select! {
            served = axum::serve(listener, service) => served,
            () = stop.cancelled() => Ok(()),
        }
    }

    /// What was seen so far.
    pub fn pulls(&self) -> Vec<ServedPull> {
        self.locked().clone()
    }

    /// Waits until `count` pulls have said that they had ended.
    pub async fn until_ended(&self, count: usize) {
        loop {
            let told = self.0.ended.notified();
            if self.locked().iter().filter(|pull| pull.ended.is_some()).count() >= count {
                return;
            }
            told.await;
        }
    }

    fn now(&self) -> f64 {
        self.0.began.elapsed().as_secs_f64()
    }

    fn locked(&self) -> MutexGuard<'_, Vec<ServedPull>> {
        self.0.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `peer` asks for a manifest: a new pull, unless it has only asked for manifests so far.
    fn begun(&self, name: String, peer: String, document: &Document) {
        let begin = self.now();
        let mut pulls = self.locked();
        let last = pulls.iter().rev().find(|pull| pull.peer == peer && pull.name == name);
        if last.is_some_and(|pull| pull.transfers.is_empty() && pull.ended.is_none()) {
            return;
        }
        let layers = document.layers.clone();
        let transfers = Vec::new();
        pulls.push(ServedPull { name, peer, layers, begin, transfers, ended: None });
        if pulls.len() > PULLS_MOST {
            pulls.remove(0);
        }
    }

    /// Begins a transfer of `digest` in the last pull by `peer` from `repository` that has it as a layer.
    fn transfer(&self, repository: &str, peer: &str, digest: BlobDigest) -> Option<Watched> {
        let begin = self.now();
        let mut pulls = self.locked();
        let belongs = |pull: &ServedPull| {
            pull.peer == peer
                && pull.name.rsplit_once(':').is_some_and(|(name, _)| name == repository)
                && pull.layers.iter().any(|layer| layer.digest == digest)
        };
        let pull = pulls.iter_mut().rev().find(|pull| belongs(pull))?;
        let first = bucket(begin);
        let transfer = Transfer { digest, begin, end: begin, sent: 0, first, buckets: vec![0] };
        pull.transfers.push(transfer);
        let (name, at) = (pull.name.clone(), pull.transfers.len() - 1);
        let pull = pull.begin.to_bits();
        Some(Watched { watcher: self.clone(), name, peer: peer.to_owned(), pull, at })
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "moments of hours")]
fn bucket(seconds: f64) -> usize {
    (seconds / BUCKET_SECONDS) as usize
}

/// A transfer that goes on.
struct Watched {
    watcher: Watcher,
    name: String,
    peer: String,
    /// The bits of the time at which its pull began: with name and peer that is the pull.
    pull: u64,
    at: usize,
}

impl Watched {
    /// Notes that the socket has taken so many bytes by now.
    fn took(&self, bytes: usize) {
        let now = self.watcher.now();
        let mut pulls = self.watcher.locked();
        let mut own = pulls.iter_mut().rev();
        let own = own.find(|pull| {
            pull.begin.to_bits() == self.pull && pull.peer == self.peer && pull.name == self.name
        });
        // It may have been among the oldest.
        let Some(transfer) = own.and_then(|pull| pull.transfers.get_mut(self.at)) else { return };
        transfer.end = now;
        transfer.sent += bytes as u64;
        let index = bucket(now).saturating_sub(transfer.first);
        if transfer.buckets.len() <= index {
            transfer.buckets.resize(index + 1, 0);
        }
        transfer.buckets[index] += bytes as u64;
    }
}

/// A blob on its way. A piece counts as taken when the next one is asked for.
struct Outgoing {
    member: Member,
    watched: Option<Watched>,
    pending: usize,
}

impl Outgoing {
    fn settle(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if let Some(watched) = self.watched.as_ref().filter(|_| pending > 0) {
            watched.took(pending);
        }
    }
}

impl futures_util::Stream for Outgoing {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.settle();
        // Read where it is asked for: a quarter of a megabyte, from the page cache after the first pull.
        let piece = self.member.next_piece().transpose();
        if let Some(Ok(piece)) = &piece {
            self.pending = piece.len();
        }
        Poll::Ready(piece)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // The last piece; where the peer has gone away, one that it may have had.
        if self.member.left() == 0 {
            self.settle();
        }
    }
}

fn version() -> Response {
    ([("docker-distribution-api-version", "registry/2.0")], "{}").into_response()
}

fn refuse(status: StatusCode, code: &str) -> Response {
    let text = format!("{{\"errors\":[{{\"code\":\"{code}\"}}]}}");
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Who asks: as a proxy in front says it, where there is one.
fn peer(address: IpAddr, headers: &HeaderMap) -> String {
    let forwarded = headers.get("x-forwarded-for").and_then(|value| value.to_str().ok());
    let first = forwarded.and_then(|value| value.split(',').next()).map(str::trim);
    first.filter(|text| !text.is_empty()).map_or_else(|| address.to_string(), str::to_owned)
}

type Peer = ConnectInfo<std::net::SocketAddr>;

async fn asked(
    State(watcher): State<Watcher>,
    ConnectInfo(address): Peer,
    method: Method,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Response {
    if method != Method::GET && method != Method::HEAD {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED");
    }
    let peer = peer(address.ip(), &headers);
    if let Some((repository, reference)) = path.rsplit_once("/manifests/") {
        return watcher.answer_manifest(repository, reference, peer, &method);
    }
    let Some((repository, digest)) = path.rsplit_once("/blobs/") else {
        return refuse(StatusCode::NOT_FOUND, "UNSUPPORTED");
    };
    let Ok(digest) = digest.parse() else {
        return refuse(StatusCode::BAD_REQUEST, "DIGEST_INVALID");
    };
    watcher.answer_blob(repository, digest, &peer, &method, &headers)
}

impl Watcher {
    fn answer_manifest(
        &self,
        repository: &str,
        reference: &str,
        peer: String,
        method: &Method,
    ) -> Response {
        let Some((name, document)) = self.0.shelf.manifest(repository, reference) else {
            return refuse(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN");
        };
        // Whoever looks whether it has changed asks by tag, too; only layers make a pull of it.
        self.begun(name, peer, document);
        let head = [
            (header::CONTENT_TYPE.as_str(), document.media_type.clone()),
            (header::CONTENT_LENGTH.as_str(), document.bytes.len().to_string()),
            ("docker-content-digest", document.digest.to_string()),
        ];
        let body = if method == Method::HEAD { Bytes::new() } else { document.bytes.clone() };
        (head, body).into_response()
    }

    fn answer_blob(
        &self,
        repository: &str,
        digest: BlobDigest,
        peer: &str,
        method: &Method,
        headers: &HeaderMap,
    ) -> Response {
        let Some(size) = self.0.shelf.size(digest) else {
            return refuse(StatusCode::NOT_FOUND, "BLOB_UNKNOWN");
        };
        let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
        let (status, range) = match asked.map(|text| part(text, size)) {
            None | Some(Part::Whole) => (StatusCode::OK, 0..size),
            Some(Part::Of(range)) => (StatusCode::PARTIAL_CONTENT, range),
            Some(Part::Beyond) => {
                let size = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
                return (StatusCode::RANGE_NOT_SATISFIABLE, size).into_response();
            }
        };
        let mut answer = Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, range.end - range.start)
            .header(header::ACCEPT_RANGES, "bytes")
            .header("docker-content-digest", digest.to_string());
        if status == StatusCode::PARTIAL_CONTENT {
            let last = range.end - 1;
            answer = answer
                .header(header::CONTENT_RANGE, format!("bytes {}-{last}/{size}", range.start));
        }
        let body = if method == Method::HEAD {
            Body::empty()
        } else {
            let Ok(Some(member)) = self.0.shelf.open(digest, range) else {
                return refuse(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN");
            };
            let watched = self.transfer(repository, peer, digest);
            Body::from_stream(Outgoing { member, watched, pending: 0 })
        };
        answer.body(body).expect("its headers are digits and digests")
    }
}

/// What a `Range` header asks for.
#[derive(PartialEq, Eq, Debug)]
enum Part {
    /// Nothing that is known here, so that it may be passed over (RFC 9110, section 14.2).
    Whole,
    Of(Range<u64>),
    Beyond,
}

fn part(text: &str, size: u64) -> Part {
    let Some((begin, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-'))
    else {
        return Part::Whole;
    };
    match (begin.parse::<u64>(), last.parse::<u64>()) {
        (Ok(begin), _) if begin >= size => Part::Beyond,
        (Ok(begin), Err(_)) if last.is_empty() => Part::Of(begin..size),
        (Ok(begin), Ok(last)) if begin <= last => Part::Of(begin..last.saturating_add(1).min(size)),
        (Err(_), Ok(count)) if begin.is_empty() && count > 0 && size > 0 => {
            Part::Of(size.saturating_sub(count)..size)
        }
        _ => Part::Whole,
    }
}

async fn ended(
    State(watcher): State<Watcher>,
    ConnectInfo(address): Peer,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let (peer, now) = (peer(address.ip(), &headers), watcher.now());
    let noted = {
        let mut pulls = watcher.locked();
        let mut own = pulls.iter_mut().rev();
        // A container may come by another address than the one who pulled for it.
        let found = own
            .find(|pull| pull.name == name && pull.ended.is_none() && !pull.transfers.is_empty());
        found.map(|pull| pull.ended = Some(now)).is_some()
    };
    if !noted {
        let text = format!("{peer} has no pull of {name} that could have ended\n");
        return (StatusCode::NOT_FOUND, text).into_response();
    }
    watcher.0.ended.notify_waiters();
    "noted\n".into_response()
}

#[cfg(test)]
mod tests;
