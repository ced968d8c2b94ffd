//! What goes wrong on the way: ranges, breaks, stalls, overload, sizes.

use super::*;

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
