//! What comes: manifests, blobs whole and by ranges, within their bounds.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_come_by_tag_and_by_digest_and_are_verified() {
    let server = FaultyRegistry::start().await;
    let digest = server.manifest("v1", &format!("{MANIFEST}; charset=utf-8"), "{}");
    let (registry, reference) = (registry(), reference(&server.host));
    for document in [
        registry.manifest(&reference).await.unwrap(),
        registry.manifest_by_digest(&reference, digest).await.unwrap(),
        registry.manifest(&reference.with_digest(digest)).await.unwrap(),
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
    eventually("four requests", || server.requests().len() >= 4).await;
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
