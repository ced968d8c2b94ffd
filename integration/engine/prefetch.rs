//! What somebody waits for goes before what is fetched ahead of time: into work, to the registry, and out of the way of a
//! prefetch that had begun with it.

use tokio::sync::watch;

use super::faulty_registry::Request;
use super::*;

/// From this size on a layer takes a whole turn; of noise, so that its blob is as large.
const WHOLE_TURN_BYTES: usize = 9 << 20;

/// Longer than a test takes: what is held back is not given up.
const PATIENT: Duration = Duration::from_secs(600);

/// What takes so long will never end.
const HUNG: Duration = Duration::from_secs(60);

/// Holds back every answer for one of these layers until the sender says so.
fn hold_back<'a>(
    server: &FaultyRegistry,
    layers: impl IntoIterator<Item = &'a Layer>,
    until: watch::Receiver<bool>,
) {
    let digest = |layer: &Layer| BlobDigest(Sha256::of(&layer.blob)).to_string();
    let held: Vec<String> = layers.into_iter().map(digest).collect();
    server.script(move |request, reply| {
        let is_held = held.iter().any(|digest| request.path.ends_with(digest));
        Reply { until: is_held.then(|| until.clone()), ..reply }
    });
}

fn is_for(request: &Request, layer: &Layer) -> bool {
    request.path.ends_with(&BlobDigest(Sha256::of(&layer.blob)).to_string())
}

/// Layers of a prefetch, of which the first are in work and stand still; the last waits for its turn.
async fn stuck_prefetch(
    engine: &Engine,
    server: &FaultyRegistry,
    layers: &[Layer],
) -> hoist::pull::Pulling {
    push(server, "later", layers);
    let prefetch =
        engine.puller.prefetch(&format!("{}/some/image:later", server.host), None, None).unwrap();
    let states = || {
        let report = prefetch.recorder().report();
        let count = |state| report.layers.iter().filter(|layer| layer.state == state).count();
        (count(LayerState::Running), count(LayerState::Waiting))
    };
    eventually("some of the prefetch is in work, and all asked for", || {
        let (running, waiting) = states();
        let asked = layers
            .iter()
            .filter(|layer| server.blob_requests().iter().any(|request| is_for(request, layer)));
        running > 0 && waiting > 0 && asked.count() == running
    })
    .await;
    prefetch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_is_waited_for_does_not_wait_for_prefetches() {
    let server = FaultyRegistry::start().await;
    let engine = Engine::connected(16, PATIENT, 96 << 20, 1 << 30);
    let names = ["a", "b", "c", "d"];
    let layers = names.map(|name| Layer::large("gzip", name, WHOLE_TURN_BYTES));
    let (open, until) = watch::channel(false);
    hold_back(&server, &layers, until);
    let prefetch = stuck_prefetch(&engine, &server, &layers).await;
    let wanted = [Layer::large("gzip", "wanted", WHOLE_TURN_BYTES)];
    let plan = push(&server, "now", &wanted);
    let claim = engine.claim(&server, &plan, 0, &[]);
    tokio::time::timeout(HUNG, claim).await.expect("it waits for the prefetch").unwrap();
    // Nothing of the prefetch has moved, and nothing of it is lost.
    open.send(true).unwrap();
    assert_eq!(prefetch.trees().await.unwrap().len(), layers.len());
    eventually("the budget is free", || engine.budget.in_use() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefetched_layer_that_somebody_asks_for_goes_before_the_others() {
    let server = FaultyRegistry::start().await;
    let engine = Engine::connected(16, PATIENT, 96 << 20, 1 << 30);
    let names = ["a", "b", "c", "d"];
    let layers = names.map(|name| Layer::large("gzip", name, WHOLE_TURN_BYTES));
    let (open, until) = watch::channel(false);
    hold_back(&server, &layers, until.clone());
    let prefetch = stuck_prefetch(&engine, &server, &layers).await;
    let report = prefetch.recorder().report();
    let waiting = report.layers.iter().position(|layer| layer.state == LayerState::Waiting);
    let shared = &layers[waiting.unwrap()];
    assert!(!server.blob_requests().iter().any(|request| is_for(request, shared)));
    // The others go on standing still.
    hold_back(&server, layers.iter().filter(|layer| layer.diff_id != shared.diff_id), until);
    let plan = push(&server, "now", std::slice::from_ref(shared));
    let claim = engine.claim(&server, &plan, 0, &[]);
    tokio::time::timeout(HUNG, claim).await.expect("it waits for the prefetch").unwrap();
    let report = prefetch.recorder().report();
    assert!(report.layers.iter().any(|layer| layer.state == LayerState::Running), "{report:?}");
    open.send(true).unwrap();
    prefetch.trees().await.unwrap();
    // The job was the prefetch's: it was asked for once.
    let asked: usize = (server.blob_requests().iter().filter(|request| is_for(request, shared)))
        .map(|request| request.range().map_or(shared.blob.len(), |(a, z)| z - a + 1))
        .sum();
    assert_eq!(asked, shared.blob.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registry_is_asked_for_what_is_waited_for_first() {
    let server = FaultyRegistry::start().await;
    // One request at a time: the order of requests is the order in which they were let go.
    let engine = Engine::connected(1, PATIENT, 96 << 20, 1 << 30);
    let later = ["later 1", "later 2"].map(|name| Layer::large("none", name, 1 << 20));
    let (open, until) = watch::channel(false);
    hold_back(&server, &later, until);
    push(&server, "later", &later);
    let image = format!("{}/some/image:later", server.host);
    let prefetch = engine.puller.prefetch(&image, None, None).unwrap();
    let asked = |layers: &[Layer]| {
        let requests = server.blob_requests();
        requests.iter().filter(|r| layers.iter().any(|layer| is_for(r, layer))).count()
    };
    eventually("the prefetch has the connection", || asked(&later) == 1).await;
    let before = engine.budget.in_use();
    let now = ["now 1", "now 2"].map(|name| Layer::large("none", name, 300 << 10));
    push(&server, "now", &now);
    let pull = engine.puller.start(&format!("{}/some/image:now", server.host), None).unwrap();
    let (pulled, ()) = tokio::join!(pull.trees(), async {
        eventually("both layers wait for the connection", || {
            engine.history.list(0).iter().any(|pull| {
                pull.layers.len() == 2
                    && pull.image.ends_with(":now")
                    && pull.layers.iter().all(|layer| layer.state == LayerState::Running)
            }) && engine.budget.in_use() >= before + 2 * (64 << 10)
        })
        .await;
        // Between the bytes and the line for the connection lies nothing that takes time.
        tokio::time::sleep(Duration::from_millis(200)).await;
        open.send(true).unwrap();
    });
    pulled.unwrap();
    prefetch.trees().await.unwrap();
    let requests = server.blob_requests();
    let first = |layer: &Layer| requests.iter().position(|request| is_for(request, layer)).unwrap();
    let mut prefetched = requests
        .iter()
        .enumerate()
        .filter(|(_, request)| later.iter().any(|layer| is_for(request, layer)));
    let (second, _) = prefetched.nth(1).expect("the prefetch has several requests");
    for layer in &now {
        assert!(
            first(layer) < second,
            "{:?}",
            requests.iter().map(|r| &r.path).collect::<Vec<_>>()
        );
    }
}
