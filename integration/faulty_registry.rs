//! A registry in this process that can be told to misbehave.
//!
//! It serves manifests and blobs by the distribution specification over plain HTTP on loopback.
//! For every request it works out the proper [`Reply`] and hands it to a script, which may change
//! anything of it: status, headers, where the connection breaks or falls silent, on what it waits.
//! Every request is noted, headers and all.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use hoist::image::{BlobDigest, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, watch};
use tokio::task::{AbortHandle, JoinSet};

/// What a client begins with that wants TLS.
const TLS_HANDSHAKE: u8 = 0x16;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// The number of the request, from 0.
    pub number: usize,
    /// `GET` or `POST`.
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// What stands behind the question mark.
    pub query: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    /// What was posted.
    pub body: String,
    /// How many requests wait for the beginning of their answer, this one included.
    pub waiting: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }

    /// First and last byte of the Range field.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// What is answered, and how it goes wrong.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection is reset after so many bytes of the body.
    pub reset_after: Option<usize>,
    /// Nothing comes any more after so many bytes of the body; the connection stays.
    pub stall_after: Option<usize>,
    /// The body comes in chunks of so many bytes, without a Content-Length.
    pub chunked: Option<usize>,
    /// The reply waits until so many are waiting here.
    pub barrier: Option<Arc<Barrier>>,
    /// Nothing comes before this is so.
    pub until: Option<watch::Receiver<bool>>,
    /// Nothing comes before this.
    pub delay: Option<std::time::Duration>,
    /// The body comes with so many bytes a second.
    pub rate: Option<u64>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

type Script = Box<dyn Fn(&Request, Reply) -> Reply + Send + Sync>;

#[derive(Default)]
struct State {
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    manifests: Mutex<HashMap<String, (String, Vec<u8>)>>,
    requests: Mutex<Vec<Request>>,
    script: Mutex<Option<Arc<Script>>>,
    /// Connections that are open.
    open: Arc<()>,
    /// Connections that there have been.
    accepted: AtomicUsize,
    /// Requests that wait for the beginning of their answer.
    waiting: Arc<()>,
    most_waiting: AtomicUsize,
}

/// A running registry; it ends when it is dropped.
pub struct FaultyRegistry {
    /// `127.0.0.1:PORT`.
    pub host: String,
    state: Arc<State>,
    task: AbortHandle,
}

impl Drop for FaultyRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FaultyRegistry {
    /// A registry that behaves, until it is told otherwise.
    pub async fn start() -> Self {
        Self::on(std::net::TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// The same at a place that is bound already; to be called in a runtime.
    pub fn on(listener: std::net::TcpListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State::default());
        let served = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = Arc::clone(&served);
                state.accepted.fetch_add(1, SeqCst);
                connections.spawn(async move {
                    let _open = Arc::clone(&state.open);
                    // A client that goes away is no fault of the registry.
                    let _ = serve(stream, &state).await;
                });
            }
        });
        Self { host, state, task: task.abort_handle() }
    }

    /// From now on `script` has the last word on every reply.
    pub fn script(&self, script: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) {
        *self.state.script.lock().unwrap() = Some(Arc::new(Box::new(script)));
    }

    /// Stores a blob for all repositories.
    pub fn blob(&self, bytes: impl Into<Vec<u8>>) -> BlobDigest {
        let bytes = bytes.into();
        let digest = BlobDigest(Sha256::of(&bytes));
        self.state.blobs.lock().unwrap().insert(digest.to_string(), bytes);
        digest
    }

    /// Stores a manifest for all repositories, under a tag and its digest.
    pub fn manifest(&self, tag: &str, media_type: &str, bytes: impl Into<Vec<u8>>) -> BlobDigest {
        let bytes = bytes.into();
        let digest = BlobDigest(Sha256::of(&bytes));
        let mut manifests = self.state.manifests.lock().unwrap();
        for name in [tag.to_owned(), digest.to_string()] {
            manifests.insert(name, (media_type.to_owned(), bytes.clone()));
        }
        digest
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Those for blobs.
    pub fn blob_requests(&self) -> Vec<Request> {
        self.requests().into_iter().filter(Request::is_blob).collect()
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        Arc::strong_count(&self.state.open) - 1
    }

    /// How many connections there have been.
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(SeqCst)
    }

    /// How many requests have waited for their answers at the same time.
    pub fn most_waiting(&self) -> usize {
        self.state.most_waiting.load(SeqCst)
    }
}

async fn serve(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut read = Vec::new();
    while let Some(mut request) = next_request(&mut stream, &mut read, state).await? {
        let waiting = Arc::clone(&state.waiting);
        request.waiting = Arc::strong_count(&waiting) - 1;
        state.most_waiting.fetch_max(request.waiting, SeqCst);
        let script = state.script.lock().unwrap().clone();
        let mut reply = proper(&request, state);
        if let Some(script) = script {
            reply = script(&request, reply);
        }
        if let Some(barrier) = &reply.barrier {
            barrier.wait().await;
        }
        if let Some(until) = &mut reply.until {
            // A test that is over opens nothing any more.
            let _ = until.wait_for(|open| *open).await;
        }
        if let Some(delay) = reply.delay {
            tokio::time::sleep(delay).await;
        }
        drop(waiting);
        if !send(&mut stream, &reply).await? {
            return Ok(());
        }
    }
    Ok(())
}

async fn next_request(
    stream: &mut TcpStream,
    read: &mut Vec<u8>,
    state: &State,
) -> std::io::Result<Option<Request>> {
    let end = loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(read).await? == 0 {
            return Ok(None);
        }
        if read[0] == TLS_HANDSHAKE {
            // By such words Docker sees that it has to ask without TLS.
            stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await?;
            return Ok(None);
        }
    };
    let head = String::from_utf8(read[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, target) = (first.next().unwrap().to_owned(), first.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    while read.len() < end + length {
        stream.read_buf(read).await?;
    }
    let body = String::from_utf8(read[end..end + length].to_vec()).unwrap();
    read.drain(..end + length);
    let (path, query) = (path.to_owned(), query.to_owned());
    let mut requests = state.requests.lock().unwrap();
    let number = requests.len();
    let request = Request { number, method, path, query, headers, body, waiting: 0 };
    requests.push(request.clone());
    Ok(Some(request))
}

/// What a registry without faults answers.
fn proper(request: &Request, state: &State) -> Reply {
    let name = request.path.rsplit('/').next().unwrap();
    if request.path.contains("/manifests/") {
        let manifests = state.manifests.lock().unwrap();
        return manifests.get(name).map_or_else(
            || Reply::new(404, "manifest unknown"),
            |(media_type, bytes)| {
                Reply::new(200, bytes.clone())
                    .with("Content-Type", media_type)
                    .with("Docker-Content-Digest", Sha256::of(bytes))
            },
        );
    }
    let blobs = state.blobs.lock().unwrap();
    let Some(blob) = blobs.get(name).filter(|_| request.is_blob()) else {
        return Reply::new(404, "blob unknown");
    };
    let etag = format!("\"{name}\"");
    let changed = request.header("if-range").is_some_and(|guard| guard != etag);
    let reply = match request.range().filter(|_| !changed) {
        None => Reply::new(200, blob.clone()),
        Some((first, _)) if first >= blob.len() => {
            Reply::new(416, "").with("Content-Range", format!("bytes */{}", blob.len()))
        }
        Some((first, last)) => {
            let last = last.min(blob.len() - 1);
            let range = format!("bytes {first}-{last}/{}", blob.len());
            Reply::new(206, &blob[first..=last]).with("Content-Range", range)
        }
    };
    reply.with("ETag", etag)
}

/// Sends a reply; whether the connection is good for another one.
async fn send(stream: &mut TcpStream, reply: &Reply) -> std::io::Result<bool> {
    let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if reply.chunked.is_some() {
        head.push_str("Transfer-Encoding: chunked\r\n\r\n");
    } else {
        head.push_str(&format!("Content-Length: {}\r\n\r\n", reply.body.len()));
    }
    stream.write_all(head.as_bytes()).await?;
    let cut = reply.reset_after.or(reply.stall_after).unwrap_or(usize::MAX);
    let body = &reply.body[..reply.body.len().min(cut)];
    match reply.chunked {
        None if reply.rate.is_some() => {
            // A hundredth of a second at a time.
            let piece = (reply.rate.unwrap() / 100).max(1) as usize;
            let mut ticks = tokio::time::interval(std::time::Duration::from_millis(10));
            for piece in body.chunks(piece) {
                ticks.tick().await;
                stream.write_all(piece).await?;
            }
        }
        None => stream.write_all(body).await?,
        Some(size) => {
            for piece in body.chunks(size) {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
                stream.write_all(piece).await?;
                stream.write_all(b"\r\n").await?;
            }
        }
    }
    if reply.reset_after.is_some() {
        stream.set_zero_linger()?;
        return Ok(false);
    }
    if reply.stall_after.is_some() {
        // Until the client has had enough.
        while stream.read(&mut [0; 256]).await? > 0 {}
        return Ok(false);
    }
    if reply.chunked.is_some() {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    Ok(true)
}

/// Waits until `condition` holds; panics if it does not within many seconds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}
