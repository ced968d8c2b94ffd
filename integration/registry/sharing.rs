//! Who gets a connection, how many there are, and whether they are used again. Counts and orders, no times.

use super::*;

/// Long enough that requests meet at the server.
const DELAY: Duration = Duration::from_millis(5);

const CHUNK: usize = 1024;

/// A fetcher that may have so many connections, for chunks of a KiB.
fn fetcher(connections: usize) -> Fetcher {
    let limits = Limits {
        chunk_bytes: CHUNK as u64,
        per_image: connections,
        per_host: connections,
        global: connections,
    };
    Fetcher::new(registry(), Budget::new(64 << 10), limits)
}

/// A blob of so many chunks, unlike others.
fn blob(server: &FaultyRegistry, chunks: usize) -> (BlobDigest, u64) {
    let bytes = noise(chunks * CHUNK);
    (server.blob(bytes.clone()), bytes.len() as u64)
}

/// Reads a blob to its end, for an image.
fn reading(
    image: &hoist::fetch::ImageFetcher,
    fetcher: &Fetcher,
    server: &FaultyRegistry,
    (digest, size): (BlobDigest, u64),
) -> tokio::task::JoinHandle<u64> {
    let blob = fetcher.registry().blob(&reference(&server.host), digest, size);
    let recorder = Arc::new(LayerRecorder::detached());
    let mut reader = image.start(&tokio::runtime::Handle::current(), blob, size, recorder);
    tokio::task::spawn_blocking(move || {
        let mut read = 0;
        while let Some(piece) = reader.next().unwrap() {
            read += piece.len() as u64;
        }
        read
    })
}

/// Which of two blobs each request was for: whether it was the first.
fn which(server: &FaultyRegistry, first: BlobDigest) -> Vec<bool> {
    let name = first.to_string();
    server.blob_requests().iter().map(|request| request.path.ends_with(&name)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_grow_to_their_bound_where_answers_come() {
    let server = FaultyRegistry::start().await;
    server.script(|_, reply| Reply { delay: Some(DELAY), ..reply });
    let fetcher = fetcher(12);
    let stored = blob(&server, 300);
    assert_eq!(reading(&fetcher.image(), &fetcher, &server, stored).await.unwrap(), stored.1);
    let most = server.most_waiting();
    assert!((6..=12).contains(&most), "{most} requests at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_limited_by_name_is_asked_no_more_at_once() {
    use hoist::fetch::{OfRegistry, Restraints};
    let [limited, free] = [FaultyRegistry::start().await, FaultyRegistry::start().await];
    for server in [&limited, &free] {
        server.script(|_, reply| Reply { delay: Some(DELAY), ..reply });
    }
    let fetcher = fetcher(12);
    let two = OfRegistry { connections: Some(2), bytes_per_second: None };
    let registries = [(limited.host.clone(), two)].into();
    fetcher.restrain(&Restraints { registries, ..Restraints::default() });
    let (image, stored) = (fetcher.image(), [blob(&limited, 100), blob(&free, 100)]);
    let beside = reading(&image, &fetcher, &free, stored[1]);
    assert_eq!(reading(&image, &fetcher, &limited, stored[0]).await.unwrap(), stored[0].1);
    assert_eq!(beside.await.unwrap(), stored[1].1);
    assert_eq!(limited.most_waiting(), 2);
    assert!(free.most_waiting() > 2, "the other has all: {}", free.most_waiting());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_host_is_asked_for_less() {
    for status in [429, 503] {
        let server = FaultyRegistry::start().await;
        let refused = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&refused);
        server.script(move |request, reply| {
            if request.waiting > 3 {
                counted.fetch_add(1, SeqCst);
                return Reply::new(status, "").with("Retry-After", 0);
            }
            Reply { delay: Some(DELAY), ..reply }
        });
        let fetcher = fetcher(16);
        let stored = blob(&server, 150);
        assert_eq!(reading(&fetcher.image(), &fetcher, &server, stored).await.unwrap(), stored.1);
        let (refused, asked) = (refused.load(SeqCst), server.requests().len());
        assert!(refused > 0, "the test is about refusals");
        // Those that were under way at the first one, and a try or two later on a slow machine.
        assert!(refused * 10 <= asked, "{refused} of {asked} refused with {status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pulls_share_the_connections() {
    let server = FaultyRegistry::start().await;
    server.script(|_, reply| Reply { delay: Some(DELAY), ..reply });
    let fetcher = fetcher(4);
    let (one, two) = (blob(&server, 400), blob(&server, 80));
    let first = reading(&fetcher.image(), &fetcher, &server, one);
    eventually("the first pull has all connections", || server.most_waiting() >= 4).await;
    let second = reading(&fetcher.image(), &fetcher, &server, two);
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (one.1, two.1));
    let order = which(&server, two.0);
    let (from, to) = (
        order.iter().position(|&of_two| of_two).unwrap(),
        order.iter().rposition(|&of_two| of_two).unwrap(),
    );
    let of_one = order[from..=to].iter().filter(|&&of_two| !of_two).count();
    assert!((40..=160).contains(&of_one), "{of_one} of the first pull beside 80 of the second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_layer_with_most_before_it_is_fetched_first() {
    let server = FaultyRegistry::start().await;
    // So long that whoever has a chunk to ask for stands in line when the connection comes free.
    server.script(|_, reply| Reply { delay: Some(10 * DELAY), ..reply });
    let fetcher = fetcher(1);
    let image = fetcher.image();
    let (short, long) = (blob(&server, 6), blob(&server, 30));
    let _readers = [short, long].map(|(digest, size)| {
        let blob = fetcher.registry().blob(&reference(&server.host), digest, size);
        let recorder = Arc::new(LayerRecorder::detached());
        image.start(&tokio::runtime::Handle::current(), blob, size, recorder)
    });
    // Each has its first three chunks fetched and no more, for nobody reads.
    eventually("six requests", || server.requests().len() == 6).await;
    assert_eq!(server.most_waiting(), 1);
    let order = which(&server, long.0);
    let last = |of: bool| order.iter().rposition(|&of_long| of_long == of).unwrap();
    assert!(last(true) < last(false), "all of the long one goes first: {order:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_used_again() {
    let server = FaultyRegistry::start().await;
    let fetcher = fetcher(4);
    for chunks in [100, 1, 50] {
        let stored = blob(&server, chunks);
        assert_eq!(reading(&fetcher.image(), &fetcher, &server, stored).await.unwrap(), stored.1);
    }
    assert_eq!(server.requests().len(), 151);
    // A connection comes back a moment after its last byte; a request that follows at once may
    // open another one meanwhile.
    assert!(server.accepted() <= 8, "{} connections", server.accepted());
}
