//! Layers that wait for their turn have their first chunk fetched, after what others ask for, and no more.

use hoist::budget::turns::Standing;
use hoist::fetch::{BlobReader, ImageFetcher};

use super::*;

const CHUNK: usize = 1024;

/// Heads that there may be at once: 6 KiB, the whole ones of a tenth of 64.
const HEADS: usize = 6;

/// A fetcher with so many connections, chunks of a KiB, and a tenth of 64 KiB for heads.
fn fetcher(connections: usize) -> (Fetcher, Budget) {
    let limits = Limits {
        chunk_bytes: CHUNK as u64,
        per_image: connections,
        per_host: connections,
        global: connections,
    };
    let budget = Budget::new(64 << 10);
    (Fetcher::new(registry(), budget.clone(), limits), budget)
}

/// The blob of a layer that waits for its turn, and what its turn is told to.
struct Waiting {
    name: String,
    size: usize,
    standing: Arc<Standing>,
    reader: BlobReader,
}

impl Waiting {
    fn begin(
        image: &ImageFetcher,
        fetcher: &Fetcher,
        server: &FaultyRegistry,
        size: usize,
    ) -> Self {
        let digest = server.blob(noise(size));
        let blob = fetcher.registry().blob(&reference(&server.host), digest, size as u64);
        let recorder = Arc::new(LayerRecorder::detached());
        let standing = Standing::new(image.party(), size as u64, 1).waiting();
        let runtime = tokio::runtime::Handle::current();
        let told = Arc::clone(&standing);
        let reader = image.start_for(&runtime, blob, size as u64, recorder, told);
        Self { name: digest.to_string(), size, standing, reader }
    }

    /// The first bytes that were asked for, in the order of asking.
    fn asked(&self, server: &FaultyRegistry) -> Vec<usize> {
        let requests = server.blob_requests();
        let own = requests.iter().filter(|request| request.path.ends_with(&self.name));
        own.map(|request| request.range().map_or(0, |(first, _)| first)).collect()
    }

    /// Its turn has come: whether it comes whole.
    async fn read(mut self) -> bool {
        self.standing.set_to_work();
        self.reader.begin();
        let read = move || {
            let mut bytes = Vec::new();
            while let Some(piece) = self.reader.next().unwrap() {
                bytes.extend_from_slice(&piece);
            }
            bytes == noise(self.size)
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_chunk_is_there_when_the_turn_comes_and_the_rest_follows() {
    let server = FaultyRegistry::start().await;
    let (fetcher, budget) = fetcher(4);
    let image = fetcher.image();
    let large = Waiting::begin(&image, &fetcher, &server, 10 * CHUNK);
    let small = Waiting::begin(&image, &fetcher, &server, CHUNK / 2);
    eventually("both heads have come", || large.reader.is_ready() && small.reader.is_ready()).await;
    eventually("a head that has come holds no connection", || fetcher.connections().1 == 0).await;
    assert_eq!((large.asked(&server), small.asked(&server)), (vec![0], vec![0]));
    assert_eq!(budget.in_use(), CHUNK as u64 * 2, "half a chunk counts as one here");
    assert!(large.read().await && small.read().await);
    assert_eq!(server.requests().len(), 11, "nothing was asked for twice");
    eventually("the budget is free", || budget.in_use() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_have_their_part_of_the_budget_and_whoever_comes_finds_the_rest() {
    let server = FaultyRegistry::start().await;
    let (fetcher, budget) = fetcher(4);
    let image = fetcher.image();
    let begin = |size| Waiting::begin(&image, &fetcher, &server, size);
    let mut waiting: Vec<_> = (2..22).map(|chunks| begin(chunks * CHUNK)).collect();
    let there = |waiting: &[Waiting]| waiting.iter().filter(|w| w.reader.is_ready()).count();
    eventually("as many as may have come", || there(&waiting) == HEADS).await;
    assert_eq!((budget.in_use(), budget.heads()), (6 << 10, 6 << 10));
    // The turn of one that has no head yet: what is left is its own.
    let first = waiting.iter().position(|waiting| !waiting.reader.is_ready()).unwrap();
    assert!(waiting.remove(first).read().await);
    assert_eq!(there(&waiting), HEADS, "they hold what they have");
    // In the order of their turns, each makes room for the head of another.
    while let Some(next) = waiting.iter().position(|waiting| waiting.reader.is_ready()) {
        assert!(waiting.remove(next).read().await);
        let left = waiting.len().min(HEADS);
        eventually("another head has come", || there(&waiting) == left).await;
    }
    assert!(waiting.is_empty());
    eventually("the budget is free", || budget.in_use() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_work_is_asked_for_before_any_head() {
    let server = FaultyRegistry::start().await;
    let (open, opened) = tokio::sync::watch::channel(false);
    server.script(move |_, reply| Reply { until: Some(opened.clone()), ..reply });
    let (fetcher, budget) = fetcher(1);
    let image = fetcher.image();
    let begin = |chunks: usize| Waiting::begin(&image, &fetcher, &server, chunks * CHUNK);
    let holds = begin(30);
    eventually("the connection is taken", || server.requests().len() == 1).await;
    let (waits, works) = (begin(20), begin(3));
    // The least is left of it, and it came last.
    works.standing.set_to_work();
    works.reader.begin();
    eventually("all have their bytes", || budget.in_use() == 3 * CHUNK as u64).await;
    open.send(true).unwrap();
    eventually("all heads have come", || waits.reader.is_ready()).await;
    let order = server.blob_requests();
    let at = |of: &Waiting| order.iter().position(|request| request.path.ends_with(&of.name));
    assert!(at(&holds) < at(&works) && at(&works) < at(&waits), "{order:?}");
    assert!(works.read().await);
}

/// It sends the whole blob on a connection that nobody would read from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_without_ranges_is_asked_again_when_the_turn_comes() {
    let server = FaultyRegistry::start().await;
    let size = 2 << 20;
    server.script(without_ranges(noise(size)));
    let limits = Limits { chunk_bytes: 64 << 10, per_image: 1, per_host: 1, global: 1 };
    let budget = Budget::new(4 << 20);
    let fetcher = Fetcher::new(registry(), budget.clone(), limits);
    let image = fetcher.image();
    let begin = || Waiting::begin(&image, &fetcher, &server, size);
    let waits = begin();
    eventually("its head was asked for", || server.requests().len() == 1).await;
    assert!(begin().read().await, "the only connection is another's");
    assert!(waits.read().await);
    eventually("the budget is free", || budget.in_use() == 0).await;
}
