//! Registry and fetch against a registry that misbehaves.
//!
//! Pauses between tries are a millisecond and stalls a fifth of a second, so that the matrix of
//! faults runs in seconds; nothing here asserts a time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod faulty_registry;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use faulty_registry::{FaultyRegistry, Reply, Request, eventually};
use hoist::budget::Budget;
use hoist::fetch::{FetchError, Fetcher, Limits};
use hoist::image::{BlobDigest, Sha256};
use hoist::registry::{Reference, Registry, RegistryError, Settings};
use hoist::timeline::{LayerRecorder, Phase};
use tokio::sync::Barrier;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn settings() -> Settings {
    Settings {
        stall_timeout: Duration::from_millis(200),
        retries: 3,
        backoff_initial: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
        ..Settings::default()
    }
}

fn registry() -> Registry {
    Registry::new(settings()).unwrap()
}

fn reference(host: &str) -> Reference {
    format!("{host}/some/image:v1").parse().unwrap()
}

/// Bytes that are nowhere the same.
fn noise(length: usize) -> Vec<u8> {
    (0..length.div_ceil(32))
        .flat_map(|i| *Sha256::of(&i.to_le_bytes()).as_bytes())
        .take(length)
        .collect()
}

/// One blob's way through a fetcher with chunks of `chunk` bytes and a budget of sixteen.
struct Fetch {
    budget: Budget,
    fetcher: Fetcher,
    recorder: Arc<LayerRecorder>,
}

impl Fetch {
    fn new(registry: Registry, chunk: u64) -> Self {
        let budget = Budget::new((chunk * 16).max(16 << 10));
        let limits = Limits { chunk_bytes: chunk, per_image: 4, per_host: 4, global: 4 };
        let fetcher = Fetcher::new(registry, budget.clone(), limits);
        Self { budget, fetcher, recorder: Arc::new(LayerRecorder::detached()) }
    }

    async fn read(
        &self,
        reference: &Reference,
        digest: BlobDigest,
        size: u64,
    ) -> Result<Vec<u8>, FetchError> {
        let blob = self.fetcher.registry().blob(reference, digest, size);
        let handle = tokio::runtime::Handle::current();
        let recorder = Arc::clone(&self.recorder);
        let mut reader = self.fetcher.image().start(&handle, blob, size, recorder);
        let read = move || {
            let mut bytes = Vec::new();
            while let Some(piece) = reader.next()? {
                assert!(!piece.is_empty());
                bytes.extend_from_slice(&piece);
            }
            assert!(reader.next()?.is_none());
            Ok(bytes)
        };
        let result = tokio::task::spawn_blocking(read).await.unwrap();
        self.is_quiet().await;
        result
    }

    /// Waits until nothing is reserved any more.
    async fn is_quiet(&self) {
        eventually("the budget is free again", || self.budget.in_use() == 0).await;
    }

    fn retries(&self) -> u64 {
        self.recorder.report().retries
    }
}

/// Fetches a blob of `size` bytes in chunks of `chunk` from a registry with `script`.
async fn fetch_with(
    size: usize,
    chunk: u64,
    script: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> (Result<Vec<u8>, FetchError>, FaultyRegistry, Fetch) {
    let server = FaultyRegistry::start().await;
    let digest = server.blob(noise(size));
    server.script(script);
    let fetch = Fetch::new(registry(), chunk);
    let result = fetch.read(&reference(&server.host), digest, size as u64).await;
    (result, server, fetch)
}

fn registry_error(result: Result<Vec<u8>, FetchError>) -> RegistryError {
    match result {
        Err(FetchError::Registry(error)) => error,
        other => panic!("not a registry's error: {:?}", other.map(|bytes| bytes.len())),
    }
}

/// Drops the range from what the client asked for: what a server without ranges does.
fn without_ranges(blob: Vec<u8>) -> impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static {
    move |request, reply| if request.is_blob() { Reply::new(200, blob.clone()) } else { reply }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_come_by_tag_and_by_digest_and_are_verified() {
    let server = FaultyRegistry::start().await;
    let digest = server.manifest("v1", &format!("{MANIFEST}; charset=utf-8"), "{}");
    let (registry, reference) = (registry(), reference(&server.host));
    for document in [
        registry.manifest(&reference).await.unwrap(),
        registry.manifest_by_digest(&reference, digest).await.unwrap(),
        registry.manifest(&reference.clone_with_digest(digest.to_string())).await.unwrap(),
    ] {
        assert_eq!(document.bytes, "{}");
        assert_eq!(document.digest, digest);
        assert_eq!(document.content_type.as_deref(), Some(MANIFEST));
    }
    let accept = server.requests()[0].header("accept").unwrap().to_owned();
    assert!(accept.contains(MANIFEST) && accept.contains("manifest.list.v2+json"), "{accept}");

    server.script(|_, reply| Reply { body: b"[]".to_vec(), ..reply });
    for error in [
        registry.manifest(&reference).await.unwrap_err(),
        registry.manifest_by_digest(&reference, digest).await.unwrap_err(),
        registry.small_blob(&reference, server.blob("x"), 9).await.unwrap_err(),
    ] {
        assert!(matches!(error, RegistryError::Digest { .. }), "{error}");
        assert!(error.is_integrity() && !error.is_transient());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_blobs_are_bounded_and_their_breaks_are_tried_again() {
    let server = FaultyRegistry::start().await;
    let digest = server.blob("0123456789");
    let (registry, reference) = (registry(), reference(&server.host));
    server.script(|request, reply| Reply {
        reset_after: (request.number == 0).then_some(4),
        ..reply
    });
    assert_eq!(registry.small_blob(&reference, digest, 10).await.unwrap(), "0123456789");
    assert_eq!(server.requests().len(), 2);
    let error = registry.small_blob(&reference, digest, 9).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { limit: 9, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_comes_by_ranges_and_is_counted() {
    for (size, chunk, requests) in
        [(0, 1024, 0), (1, 1024, 1), (1024, 1024, 1), (1025, 1024, 2), (100_000, 4096, 25)]
    {
        let (result, server, fetch) = fetch_with(size, chunk, |_, reply| reply).await;
        assert!(result.unwrap() == noise(size), "{size}");
        assert_eq!(server.blob_requests().len(), requests, "{size}");
        let report = fetch.recorder.report();
        assert_eq!(report.bytes(Phase::Download), size as u64);
        assert_eq!(report.retries, 0);
        assert_eq!(report.host, (size > 0).then(|| server.host.clone()));
        assert_eq!(report.phase(Phase::Connect).is_some(), size > 0);
        assert_eq!(report.phase(Phase::FirstByte).is_some(), size > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_are_asked_for_at_the_same_time() {
    // The second to the fifth chunk are answered only once four requests are there.
    let barrier = Arc::new(Barrier::new(4));
    let (result, ..) = fetch_with(5 * 1024, 1024, move |request, reply| Reply {
        barrier: request.range().filter(|r| r.0 > 0).map(|_| Arc::clone(&barrier)),
        ..reply
    })
    .await;
    assert!(result.unwrap() == noise(5 * 1024));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_stay_within_their_bounds() {
    for (per_image, per_host, global, most) in [(2, 9, 9, 2), (9, 3, 9, 3), (9, 9, 4, 4)] {
        let server = FaultyRegistry::start().await;
        let digest = server.blob(noise(20_000));
        // The first answer comes, the rest never.
        server.script(|request, reply| Reply {
            stall_after: (request.number > 0).then_some(0),
            ..reply
        });
        let patient = Settings { stall_timeout: Duration::from_secs(600), ..settings() };
        let registry = Registry::new(patient).unwrap();
        let limits = Limits { chunk_bytes: 1024, per_image, per_host, global };
        let budget = Budget::new(1 << 20);
        let fetcher = Fetcher::new(registry.clone(), budget, limits);
        let image = fetcher.image();
        let handle = tokio::runtime::Handle::current();
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let blob = registry.blob(&reference(&server.host), digest, 20_000);
                image.start(&handle, blob, 20_000, Arc::new(LayerRecorder::detached()))
            })
            .collect();
        eventually("as many requests as may be", || server.requests().len() > most).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(server.requests().len(), most + 1, "{limits:?}");
        drop(readers);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_blobs_share_a_budget_that_is_smaller_than_they() {
    let server = FaultyRegistry::start().await;
    let blobs: Vec<_> = (0..6).map(|i| noise(60_000 + i)).collect();
    let digests: Vec<_> = blobs.iter().map(|blob| server.blob(blob.clone())).collect();
    // Every third blob comes without ranges.
    let whole = [digests[0].to_string(), digests[3].to_string()];
    let (first, fourth) = (blobs[0].clone(), blobs[3].clone());
    server.script(move |request, reply| {
        let is = |digest: &String| request.path.ends_with(digest.as_str());
        match (is(&whole[0]), is(&whole[1])) {
            (true, _) => Reply::new(200, first.clone()),
            (_, true) => Reply::new(200, fourth.clone()),
            _ => reply,
        }
    });
    let fetch = Fetch::new(registry(), 2048);
    let reference = reference(&server.host);
    let reads = digests
        .iter()
        .zip(&blobs)
        .map(|(&digest, blob)| fetch.read(&reference, digest, blob.len() as u64));
    for (read, blob) in futures_util::future::join_all(reads).await.into_iter().zip(&blobs) {
        assert!(read.unwrap() == *blob);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_ignores_ranges_is_asked_once() {
    // More than the socket buffers hold, so that the server has to wait for the reader.
    let size = 6_000_000;
    let (result, server, fetch) = fetch_with(size, 256 << 10, without_ranges(noise(size))).await;
    assert!(result.unwrap() == noise(size));
    assert_eq!(server.blob_requests().len(), 1);
    assert_eq!(fetch.retries(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_content_range_is_an_error() {
    for wrong in [
        "bytes 0-1023/4096",
        "bytes 1025-2047/4096",
        "bytes 1024-2046/4096",
        "bytes 1024-2048/4096",
        "items 1024-2047/4096",
        "",
    ] {
        let (result, ..) = fetch_with(4096, 1024, move |request, reply| {
            let second = request.range().is_some_and(|range| range.0 == 1024);
            if second { reply.with("Content-Range", wrong) } else { reply }
        })
        .await;
        let error = registry_error(result);
        assert!(matches!(error, RegistryError::Range { .. }), "{wrong}: {error}");
        assert!(error.to_string().contains("1024-2047"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_at_every_offset_is_resumed() {
    let size = 96;
    let server = FaultyRegistry::start().await;
    let blob = noise(size);
    let digest = server.blob(blob.clone());
    for chunk in [1024, 32] {
        for ranges in [true, false] {
            for offset in 0..size {
                let (done, stored) = (AtomicUsize::new(0), blob.clone());
                server.script(move |request, reply| {
                    let reply = if ranges { reply } else { Reply::new(200, stored.clone()) };
                    let start = request.range().filter(|_| ranges).map_or(0, |range| range.0);
                    let within = (start..start + reply.body.len()).contains(&offset);
                    let first = within && done.fetch_add(1, SeqCst) == 0;
                    Reply { reset_after: first.then(|| offset - start), ..reply }
                });
                let fetch = Fetch::new(registry(), chunk);
                let read = fetch.read(&reference(&server.host), digest, size as u64).await;
                assert!(read.unwrap() == blob, "{chunk} {ranges} {offset}");
                assert_eq!(fetch.retries(), 1, "{chunk} {ranges} {offset}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_starts_the_count_of_tries_anew_and_resumes_are_guarded() {
    // Seven breaks, twice as many as there are retries; each answer gives ten bytes.
    let (result, server, fetch) =
        fetch_with(80, 1024, |_, reply| Reply { reset_after: Some(10), ..reply }).await;
    assert!(result.unwrap() == noise(80));
    assert_eq!(fetch.retries(), 7);
    let requests = server.blob_requests();
    assert_eq!(requests[0].header("if-range"), None);
    assert!(requests[1..].iter().all(|request| request.header("if-range").is_some()));

    let (result, server, fetch) =
        fetch_with(80, 1024, |_, reply| Reply { reset_after: Some(0), ..reply }).await;
    let error = registry_error(result);
    assert!(matches!(error, RegistryError::Broken { .. }), "{error}");
    assert_eq!((fetch.retries(), server.requests().len()), (3, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etag_that_changes_is_not_trusted() {
    // One chunk: another one's answer, late, would bring a new ETag to guard with.
    let (result, server, _) = fetch_with(3000, 4096, |request, reply| {
        let reply = reply.with("ETag", format!("\"{}\"", request.number));
        let guarded = request.header("if-range").is_some();
        let reply = if guarded { Reply::new(200, noise(3000)) } else { reply };
        Reply { reset_after: (request.number == 0).then_some(100), ..reply }
    })
    .await;
    assert!(result.unwrap() == noise(3000));
    let requests = server.blob_requests();
    assert_eq!(requests.iter().filter(|r| r.header("if-range").is_some()).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_is_resumed() {
    for ranges in [true, false] {
        let blob = noise(5000);
        let (result, _, fetch) = fetch_with(5000, 1024, move |request, reply| {
            let reply = if ranges { reply } else { Reply::new(200, blob.clone()) };
            Reply { stall_after: (request.number == 0).then_some(700), ..reply }
        })
        .await;
        assert!(result.unwrap() == noise(5000));
        assert_eq!(fetch.retries(), 1);
    }
    let (result, ..) =
        fetch_with(50, 1024, |_, reply| Reply { stall_after: Some(0), ..reply }).await;
    let error = registry_error(result);
    assert!(matches!(error, RegistryError::Stalled { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_waited_for_and_refusals_are_not() {
    for status in [408, 429, 500, 502, 503, 504] {
        let (result, _, fetch) = fetch_with(3000, 1024, move |request, reply| {
            if request.number < 2 { Reply::new(status, "").with("Retry-After", 0) } else { reply }
        })
        .await;
        assert!(result.unwrap() == noise(3000));
        assert_eq!(fetch.retries(), 2, "{status}");
    }
    for (status, requests) in [(400, 1), (403, 1), (404, 1), (503, 4)] {
        let (result, server, _) =
            fetch_with(3000, 1024, move |_, _| Reply::new(status, "go away")).await;
        let error = registry_error(result);
        assert_eq!(server.requests().len(), requests, "{error}");
        assert!(error.to_string().contains(&server.host), "{error}");
        let registry = registry();
        let before = server.requests().len();
        let manifest = registry.manifest(&reference(&server.host)).await;
        assert!(manifest.is_err());
        assert_eq!(server.requests().len() - before, requests);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retry_after_is_obeyed() {
    let server = FaultyRegistry::start().await;
    server.manifest("v1", MANIFEST, "{}");
    let times = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&times);
    server.script(move |request, reply| {
        noted.lock().unwrap().push(std::time::Instant::now());
        if request.number == 0 { Reply::new(429, "").with("Retry-After", 1) } else { reply }
    });
    registry().manifest(&reference(&server.host)).await.unwrap();
    let times = times.lock().unwrap();
    // Not before the time that the server named: a lower bound holds on the slowest machine.
    assert!(times[1] - times[0] >= Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_size_that_is_not_the_descriptors_names_both() {
    let cases = [(3000, 2999), (3000, 3001), (500, 499), (500, 501), (3000, 900)];
    for (actual, descriptor) in cases {
        for mode in ["ranges", "whole", "chunked"] {
            let server = FaultyRegistry::start().await;
            let digest = server.blob(noise(actual));
            server.script(move |_, reply| match mode {
                "ranges" => reply,
                "whole" => Reply::new(200, noise(actual)),
                _ => Reply { chunked: Some(100), ..Reply::new(200, noise(actual)) },
            });
            let fetch = Fetch::new(registry(), 1024);
            let read = fetch.read(&reference(&server.host), digest, descriptor).await;
            let error = registry_error(read);
            assert!(matches!(error, RegistryError::Size { .. }), "{mode} {descriptor}: {error}");
            let text = error.to_string();
            let says = |n: u64| text.contains(&n.to_string());
            assert!(text.contains(&digest.to_string()) && says(descriptor), "{mode}: {text}");
            let longer = (actual as u64) > descriptor;
            assert!(says(actual as u64) || (longer && mode == "chunked"), "{mode}: {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crumbs_come_whole() {
    let blob = noise(4000);
    let (result, ..) = fetch_with(4000, 1024, move |_, _| Reply {
        chunked: Some(1),
        ..Reply::new(200, blob.clone())
    })
    .await;
    assert!(result.unwrap() == noise(4000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_a_reader_ends_its_requests() {
    let server = FaultyRegistry::start().await;
    let digest = server.blob(noise(100_000));
    server.script(|request, reply| Reply {
        stall_after: (request.number > 0).then_some(10),
        ..reply
    });
    let patient = Settings { stall_timeout: Duration::from_secs(600), ..settings() };
    let fetch = Fetch::new(Registry::new(patient).unwrap(), 1024);
    let blob = fetch.fetcher.registry().blob(&reference(&server.host), digest, 100_000);
    let handle = tokio::runtime::Handle::current();
    let recorder = Arc::new(LayerRecorder::detached());
    let reader = fetch.fetcher.image().start(&handle, blob, 100_000, recorder);
    eventually("five requests", || server.requests().len() >= 5).await;
    assert!(fetch.budget.in_use() > 0);
    drop(reader);
    fetch.is_quiet().await;
    let idle = 1;
    eventually("the connections are gone", || server.connections() <= idle).await;
}

#[test]
fn a_runtime_that_ends_ends_the_readers() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (mut reader, budget) = runtime.block_on(async {
        let server = FaultyRegistry::start().await;
        let digest = server.blob(noise(1000));
        server.script(|_, reply| Reply { stall_after: Some(0), ..reply });
        let fetch = Fetch::new(registry(), 100);
        let blob = fetch.fetcher.registry().blob(&reference(&server.host), digest, 1000);
        let handle = tokio::runtime::Handle::current();
        let recorder = Arc::new(LayerRecorder::detached());
        let reader = fetch.fetcher.image().start(&handle, blob, 1000, recorder);
        (reader, fetch.budget.clone())
    });
    drop(runtime);
    assert!(matches!(reader.next(), Err(FetchError::Stopped)));
    assert_eq!(budget.in_use(), 0);
}

#[test]
fn a_runtime_that_ends_before_it_begins_ends_the_readers() {
    // A runtime of one thread polls nothing until it is told to, and this one never is.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let fetch = Fetch::new(registry(), 100);
    let digest = BlobDigest(Sha256::of(b""));
    let blob = fetch.fetcher.registry().blob(&reference("127.0.0.1:1"), digest, 1000);
    let recorder = Arc::new(LayerRecorder::detached());
    let mut reader = fetch.fetcher.image().start(runtime.handle(), blob, 1000, recorder);
    drop(runtime);
    assert!(matches!(reader.next(), Err(FetchError::Stopped)));
    assert_eq!(fetch.budget.in_use(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_bounds_what_is_asked_for() {
    for ranges in [true, false] {
        let size = 6_000_000;
        let server = FaultyRegistry::start().await;
        let blob = noise(size);
        let digest = server.blob(blob.clone());
        if !ranges {
            server.script(without_ranges(blob));
        }
        let fetch = Fetch::new(registry(), 64 << 10);
        let blob = fetch.fetcher.registry().blob(&reference(&server.host), digest, size as u64);
        let handle = tokio::runtime::Handle::current();
        let recorder = Arc::clone(&fetch.recorder);
        let mut reader = fetch.fetcher.image().start(&handle, blob, size as u64, recorder);
        // The first piece is there, and then nobody reads.
        let (first, reader) =
            tokio::task::spawn_blocking(move || (reader.next(), reader)).await.unwrap();
        assert!(first.unwrap().is_some());
        tokio::time::sleep(Duration::from_millis(300)).await;
        let read = fetch.recorder.report().bytes(Phase::Download);
        // The window, and for a stream the HTTP client's own piece.
        let most = fetch.budget.total() + (1 << 20);
        assert!(read <= most, "{read} bytes are in memory, {most} may be");
        assert!(fetch.budget.in_use() <= fetch.budget.total());
        drop(reader);
        fetch.is_quiet().await;
    }
}

// Who asks: challenges, tokens, credentials.

/// A docker `config.json` with `auths` in a directory of its own.
fn docker_config(auths: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    std::fs::write(&file, format!(r#"{{"auths": {{{auths}}}}}"#)).unwrap();
    (dir, file)
}

/// Serves only whoever brings the current token; hands out a new one to whoever asks at `/token`
/// as `authorized` allows. Tokens are numbers, and so many are good as `current` says.
fn with_tokens(
    server: &FaultyRegistry,
    current: Arc<AtomicUsize>,
    refused: u16,
    authorized: fn(&Request) -> bool,
) {
    let host = server.host.clone();
    server.script(move |request, reply| {
        if request.path == "/token" {
            if !authorized(request) {
                return Reply::new(401, "");
            }
            let token = current.load(SeqCst);
            return Reply::new(200, format!(r#"{{"token":"{token}","expires_in":300}}"#));
        }
        let expected = format!("Bearer {}", current.load(SeqCst));
        match request.header("authorization") {
            Some(token) if token == expected => reply,
            Some(_) if refused == 403 => Reply::new(403, "expired"),
            _ => {
                let challenge = format!(
                    "Bearer realm=\"http://{host}/token\",service=\"s v\",scope=\"repository:some/image:pull\""
                );
                Reply::new(401, "").with("WWW-Authenticate", challenge)
            }
        }
    });
}

fn token_requests(server: &FaultyRegistry) -> Vec<Request> {
    server.requests().into_iter().filter(|request| request.path == "/token").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_asked_for_once_and_again_when_it_has_expired() {
    for refused in [401, 403] {
        let server = FaultyRegistry::start().await;
        let digest = server.blob(noise(40_000));
        server.manifest("v1", MANIFEST, "{}");
        let current = Arc::new(AtomicUsize::new(1));
        with_tokens(&server, Arc::clone(&current), refused, |_| true);
        let registry = registry();
        let reference = reference(&server.host);
        registry.manifest(&reference).await.unwrap();
        let fetch = Fetch::new(registry.clone(), 1024);
        assert!(fetch.read(&reference, digest, 40_000).await.unwrap() == noise(40_000));
        assert_eq!(token_requests(&server).len(), 1);
        let query = &token_requests(&server)[0].query;
        assert_eq!(query, "service=s+v&scope=repository%3Asome%2Fimage%3Apull");

        // The token expires, and many requests find out at once.
        current.store(2, SeqCst);
        let fetch = Fetch::new(registry, 1024);
        assert!(fetch.read(&reference, digest, 40_000).await.unwrap() == noise(40_000));
        assert_eq!(token_requests(&server).len(), 2, "{refused}");
        assert_eq!(fetch.retries(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_whose_time_is_over_is_renewed_unasked() {
    let server = FaultyRegistry::start().await;
    server.manifest("v1", MANIFEST, "{}");
    let host = server.host.clone();
    server.script(move |request, reply| match request.header("authorization") {
        _ if request.path == "/token" => Reply::new(200, r#"{"token":"t","expires_in":0}"#),
        Some("Bearer t") => reply,
        _ => Reply::new(401, "")
            .with("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\"")),
    });
    let registry = registry();
    for _ in 0..3 {
        registry.manifest(&reference(&server.host)).await.unwrap();
    }
    let refused = server.requests().iter().filter(|r| r.header("authorization").is_none()).count();
    // The first manifest's request alone is refused; the others are for tokens.
    assert_eq!(refused - token_requests(&server).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_go_to_the_token_service() {
    let server = FaultyRegistry::start().await;
    server.manifest("v1", MANIFEST, "{}");
    with_tokens(&server, Arc::default(), 401, |request| {
        // "user:secret"
        request.header("authorization") == Some("Basic dXNlcjpzZWNyZXQ=")
    });
    let (_dir, file) =
        docker_config(&format!(r#""{}": {{"auth": "dXNlcjpzZWNyZXQ="}}"#, server.host));
    let with = |file: Option<PathBuf>| {
        Registry::new(Settings { docker_config: file, ..settings() }).unwrap()
    };
    with(Some(file)).manifest(&reference(&server.host)).await.unwrap();

    let (_dir, empty) = docker_config("");
    let error = with(Some(empty.clone())).manifest(&reference(&server.host)).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, RegistryError::Unauthorized { status: 401, .. }), "{text}");
    let says =
        format!("hoist has no credentials for {}: put them into {}", server.host, empty.display());
    assert!(text.contains(&says), "{text}");
    assert!(text.contains("manifest v1 of some/image"), "{text}");
    let error = with(None).manifest(&reference(&server.host)).await.unwrap_err().to_string();
    assert!(error.contains("name a docker config.json"), "{error}");
    let (_dir, wrong) =
        docker_config(&format!(r#""{}": {{"auth": "dXNlcjp3cm9uZw=="}}"#, server.host));
    let error = with(Some(wrong)).manifest(&reference(&server.host)).await.unwrap_err().to_string();
    assert!(error.contains("do not allow it"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_token_service_is_asked_again() {
    let server = FaultyRegistry::start().await;
    server.manifest("v1", MANIFEST, "{}");
    let (host, refusals) = (server.host.clone(), AtomicUsize::new(0));
    server.script(move |request, reply| match request.header("authorization") {
        _ if request.path == "/token" && refusals.fetch_add(1, SeqCst) < 2 => Reply::new(503, ""),
        _ if request.path == "/token" => Reply::new(200, r#"{"access_token":"t"}"#),
        Some("Bearer t") => reply,
        _ => Reply::new(401, "")
            .with("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\"")),
    });
    registry().manifest(&reference(&server.host)).await.unwrap();
    assert_eq!(token_requests(&server).len(), 3);
    // A challenge is not to lead credentials astray.
    server.script(|_, _| {
        Reply::new(401, "").with("WWW-Authenticate", "Bearer realm=\"ftp://a.example/token\"")
    });
    let error = registry().manifest(&reference(&server.host)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Token { transient: false, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_token_is_exchanged() {
    let server = FaultyRegistry::start().await;
    server.manifest("v1", MANIFEST, "{}");
    with_tokens(&server, Arc::default(), 401, |request| {
        let has = |field| request.body.split('&').any(|other| other == field);
        request.method == "POST"
            && has("grant_type=refresh_token")
            && has("refresh_token=id%2Ftoken")
            && has("service=s+v")
            && has("scope=repository%3Asome%2Fimage%3Apull")
    });
    let (_dir, file) =
        docker_config(&format!(r#""{}": {{"identitytoken": "id/token"}}"#, server.host));
    let settings = Settings { docker_config: Some(file), ..settings() };
    Registry::new(settings).unwrap().manifest(&reference(&server.host)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn basic_is_answered_with_a_password() {
    let server = FaultyRegistry::start().await;
    let digest = server.blob(noise(3000));
    server.script(|request, reply| match request.header("authorization") {
        Some("Basic dXNlcjpzZWNyZXQ=") => reply,
        _ => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"here\""),
    });
    let (_dir, file) = docker_config(&format!(
        r#""http://{}": {{"username": "user", "password": "secret"}}"#,
        server.host
    ));
    let settings = Settings { docker_config: Some(file), ..settings() };
    let fetch = Fetch::new(Registry::new(settings).unwrap(), 1024);
    let read = fetch.read(&reference(&server.host), digest, 3000).await;
    assert!(read.unwrap() == noise(3000));
    let refused = server.requests().iter().filter(|r| r.header("authorization").is_none()).count();
    assert_eq!(refused, 1);
}

// Where from: redirects and mirrors.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_kept_until_refused_and_gets_no_credentials() {
    let store = FaultyRegistry::start().await;
    let server = FaultyRegistry::start().await;
    let digest = server.blob(noise(20_000));
    store.blob(noise(20_000));
    let target = store.host.clone();
    let signatures = Arc::new(AtomicUsize::new(0));
    let signed = Arc::clone(&signatures);
    server.script(move |request, _| {
        if request.header("authorization").is_none() {
            return Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"here\"");
        }
        let signature = signed.fetch_add(1, SeqCst) + 1;
        let path = &request.path;
        Reply::new(307, "").with("Location", format!("http://{target}{path}?sig={signature}"))
    });
    // A signature is good for five requests.
    let uses = Arc::new(Mutex::new(std::collections::HashMap::<String, usize>::new()));
    store.script(move |request, reply| {
        let mut uses = uses.lock().unwrap();
        let used = uses.entry(request.query.clone()).or_default();
        *used += 1;
        if *used > 5 { Reply::new(403, "Request has expired") } else { reply }
    });
    let (_dir, file) =
        docker_config(&format!(r#""{}": {{"auth": "dXNlcjpzZWNyZXQ="}}"#, server.host));
    let settings = Settings { docker_config: Some(file), ..settings() };
    let fetch = Fetch::new(Registry::new(settings).unwrap(), 1024);
    let read = fetch.read(&reference(&server.host), digest, 20_000).await;
    assert!(read.unwrap() == noise(20_000));
    assert!(store.requests().iter().all(|request| request.header("authorization").is_none()));
    assert!(store.requests().iter().all(|request| request.query.starts_with("sig=")));
    let asked = signatures.load(SeqCst);
    // Twenty chunks: one signature at first, then one for each task that was refused.
    assert!((4..20).contains(&asked), "{asked} signatures");
    assert_eq!(fetch.recorder.report().host, Some(store.host.clone()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_without_an_end_or_an_aim_are_errors() {
    for location in ["/v2/some/image/manifests/v1", "ftp://elsewhere/", "http://["] {
        let server = FaultyRegistry::start().await;
        server.script(move |_, _| Reply::new(302, "").with("Location", location));
        let error = registry().manifest(&reference(&server.host)).await.unwrap_err();
        assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
        assert!(server.requests().len() <= 6);
    }
}

/// Settings with a `hosts.toml` for `server`.
fn mirrored(server: &FaultyRegistry, toml: &str) -> (tempfile::TempDir, Settings) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join(&server.host);
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("hosts.toml"), toml).unwrap();
    let settings = Settings { hosts_dirs: vec![root.path().to_owned()], ..settings() };
    (root, settings)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_are_asked_first_in_their_own_way() {
    let (server, first) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
    let second = FaultyRegistry::start().await;
    let digest = second.blob(noise(5000));
    second.manifest("v1", MANIFEST, "{}");
    // The first may not say what a tag means, and has nothing.
    let (_root, settings) = mirrored(
        &server,
        &format!(
            r#"
            [host."http://{}"]
            capabilities = ["pull"]
            [host."http://{}/over/here"]
            override_path = true
            [host."http://{}/over/here".header]
            x-team = ["a", "b"]
            "#,
            first.host, second.host, second.host
        ),
    );
    let registry = Registry::new(settings).unwrap();
    let reference = reference(&server.host);
    registry.manifest(&reference).await.unwrap();
    assert_eq!((first.requests().len(), server.requests().len()), (0, 0));
    let request = &second.requests()[0];
    assert_eq!(request.path, "/over/here/some/image/manifests/v1");
    let ns = format!("ns={}", server.host.replace(':', "%3A"));
    assert_eq!(request.query, ns);
    assert!(request.header("x-team").is_some());

    let fetch = Fetch::new(registry, 1024);
    assert!(fetch.read(&reference, digest, 5000).await.unwrap() == noise(5000));
    // What it does not have it is asked for once.
    assert_eq!(first.requests().len(), 1);
    assert_eq!(server.requests().len(), 0);
    assert_eq!(fetch.recorder.report().host, Some(second.host.clone()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_fails_is_passed_over() {
    type Fault = fn(&Request, Reply) -> Reply;
    let faults: [Fault; 8] = [
        |_, _| Reply::new(500, ""),
        |_, _| Reply::new(403, ""),
        |_, _| Reply::new(404, ""),
        |_, _| Reply::new(401, ""),
        |_, reply| Reply { reset_after: Some(0), ..reply },
        |_, reply| reply.with("Content-Range", "bytes 7-9/10"),
        |_, _| Reply::new(200, "rubbish"),
        |_, _| Reply::new(302, ""),
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        let (server, mirror) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
        let digest = server.blob(noise(5000));
        let manifest = server.manifest("v1", MANIFEST, "{}");
        mirror.blob(noise(5000));
        mirror.manifest("v1", MANIFEST, "{}");
        mirror.script(fault);
        let (_root, settings) = mirrored(&server, &format!("[host.\"http://{}\"]", mirror.host));
        let registry = Registry::new(settings).unwrap();
        let reference = reference(&server.host);
        if number != 5 {
            registry.manifest_by_digest(&reference, manifest).await.unwrap();
            assert!(!mirror.requests().is_empty(), "{number}");
        }
        let fetch = Fetch::new(registry, 1024);
        let read = fetch.read(&reference, digest, 5000).await;
        assert!(read.unwrap() == noise(5000), "{number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_is_down_is_passed_over() {
    let server = FaultyRegistry::start().await;
    let digest = server.blob(noise(5000));
    server.manifest("v1", MANIFEST, "{}");
    // A port that nobody listens at: bound, then given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (_root, settings) = mirrored(&server, &format!("[host.\"http://127.0.0.1:{port}\"]"));
    let registry = Registry::new(settings).unwrap();
    let reference = reference(&server.host);
    registry.manifest(&reference).await.unwrap();
    let fetch = Fetch::new(registry, 1024);
    assert!(fetch.read(&reference, digest, 5000).await.unwrap() == noise(5000));
    assert_eq!(fetch.retries(), 0, "a mirror that is down costs no try");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_down_is_an_error_that_names_it() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = format!("127.0.0.1:{port}");
    let error = registry().manifest(&reference(&host)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Send { .. }) && error.is_transient(), "{error}");
    assert!(error.to_string().contains(&host), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_in_a_hosts_toml_names_file_and_key() {
    let server = FaultyRegistry::start().await;
    let (_root, settings) =
        mirrored(&server, "[host.\"http://m.example\"]\ncapabilities = [\"pul\"]");
    let error =
        Registry::new(settings).unwrap().manifest(&reference(&server.host)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("hosts.toml") && text.contains("capabilities"), "{text}");
    assert!(server.requests().is_empty());
    let none = "[host.\"http://m.example\"]\ncapabilities = [\"push\"]\n";
    let (_root, settings) = mirrored(&server, &format!("capabilities = [\"push\"]\n{none}"));
    let error =
        Registry::new(settings).unwrap().manifest(&reference(&server.host)).await.unwrap_err();
    assert!(matches!(error, RegistryError::NoHost { .. }), "{error}");
}

#[test]
fn a_ca_file_that_is_none_is_named() {
    let file = Path::new("/nonexistent/ca.pem").to_owned();
    let error = Registry::new(Settings { ca_files: vec![file], ..settings() }).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/ca.pem"), "{error}");
}

/// TLS in front of `server`, with a certificate for 127.0.0.1 by a CA of its own; returns its
/// address and the CA's certificate.
async fn tls_front(server: &FaultyRegistry) -> (String, String) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let target = server.host.clone();
    tokio::spawn(async move {
        while let Ok((outer, _)) = listener.accept().await {
            let (acceptor, target) = (acceptor.clone(), target.clone());
            tokio::spawn(async move {
                // A client that does not trust us goes away here.
                let Ok(mut outer) = acceptor.accept(outer).await else { return };
                let mut inner = tokio::net::TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
            });
        }
    });
    (host, ca.pem())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_wants_a_certificate_that_is_trusted() {
    let server = FaultyRegistry::start().await;
    let digest = server.blob(noise(5000));
    let (front, ca) = tls_front(&server).await;
    let reference = reference(&server.host);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, ca).unwrap();
    let only = |keys: &str| {
        let host = format!("[host.\"https://{front}\"]\n{keys}");
        mirrored(&server, &format!("capabilities = [\"push\"]\n{host}"))
    };
    let read = async |settings: Settings| {
        let fetch = Fetch::new(Registry::new(settings).unwrap(), 1024);
        fetch.read(&reference, digest, 5000).await
    };

    let (_root, settings) = only("");
    let error = registry_error(read(settings.clone()).await);
    assert!(matches!(error, RegistryError::Send { .. } | RegistryError::Client { .. }), "{error}");
    assert!(server.requests().is_empty());
    let by_settings = Settings { ca_files: vec![file.clone()], ..settings };
    assert!(read(by_settings).await.unwrap() == noise(5000));
    let (_root, settings) = only(&format!("ca = {file:?}"));
    assert!(read(settings).await.unwrap() == noise(5000));
    let (_root, settings) = only("skip_verify = true");
    assert!(read(settings).await.unwrap() == noise(5000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canceller_wakes_a_waiting_reader() {
    let server = FaultyRegistry::start().await;
    let digest = server.blob(noise(20_000));
    server.script(|_, reply| Reply { stall_after: Some(0), ..reply });
    let patient = Settings { stall_timeout: Duration::from_secs(600), ..settings() };
    let fetch = Fetch::new(Registry::new(patient).unwrap(), 1024);
    let blob = fetch.fetcher.registry().blob(&reference(&server.host), digest, 20_000);
    let handle = tokio::runtime::Handle::current();
    let recorder = Arc::clone(&fetch.recorder);
    let mut reader = fetch.fetcher.image().start(&handle, blob, 20_000, recorder);
    let canceller = reader.canceller();
    let reading = tokio::task::spawn_blocking(move || reader.next());
    eventually("a request", || !server.requests().is_empty()).await;
    canceller.cancel();
    assert!(matches!(reading.await.unwrap(), Err(FetchError::Cancelled)));
    fetch.is_quiet().await;
    eventually("the connection is gone", || server.connections() == 0).await;
}
