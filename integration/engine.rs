//! The engine that pulls, against a registry in this process: what comes whole is there, what does not is told and
//! leaves nothing, one layer is fetched once however many want it, and nobody's pull outlives its last caller.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod faulty_registry;

#[path = "engine/faults.rs"]
mod faults;
#[path = "engine/forms.rs"]
mod forms;
#[path = "engine/images.rs"]
mod images;
#[path = "engine/layers.rs"]
mod layers;
#[path = "engine/panics.rs"]
mod panics;
#[path = "engine/prefetch.rs"]
mod prefetch;
#[path = "engine/rig.rs"]
mod rig;
#[path = "harness/skipped.rs"]
mod skipped;
#[path = "engine/speculation.rs"]
mod speculation;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use faulty_registry::{FaultyRegistry, Reply, eventually};
use hoist::image::{BlobDigest, Sha256};
use hoist::timeline::{LayerState, PullState};
use layers::{Layer, push, tar};
use rig::Engine;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_every_form_comes_whole_and_merges() {
    let server = FaultyRegistry::start().await;
    let layers = [
        Layer::new(
            "gzip",
            &tar(&[
                ("etc/", b""),
                ("etc/one", b"1"),
                ("etc/two", b"2"),
                ("old/", b""),
                ("old/x", b"x"),
            ]),
        ),
        Layer::new("zstd", &tar(&[("etc/one", b"one"), ("etc/.wh.two", b""), (".wh.old", b"")])),
        Layer::new("none", &tar(&[("etc/three", b"3")])),
        Layer::large("gzip", "large", 3 << 20),
        // The empty layer that builders make for steps which change nothing.
        Layer::new("gzip", &[0; 1024]),
    ];
    push(&server, "tag", &layers);
    let engine = Engine::new();
    let pulling = engine.puller.start(&format!("{}/some/image:tag", server.host), None).unwrap();
    let trees = pulling.trees().await.unwrap();
    let report = pulling.recorder().report();
    assert_eq!(report.state, PullState::Done);
    assert!(report.layers.iter().all(|layer| layer.state == LayerState::Done), "{report:?}");
    assert_eq!(report.bytes(hoist::timeline::Phase::Download), report.size());
    engine.store.merge(&trees).unwrap();
    let to = engine.directory.path().join("to");
    assert_eq!(read(&to.join("etc/one")), "one");
    assert_eq!(read(&to.join("etc/three")), "3");
    assert!(!to.join("etc/two").exists() && !to.join("old").exists());
    assert_eq!(std::fs::metadata(to.join("large")).unwrap().len(), 3 << 20);
    drop((pulling, trees));
    eventually("the budget is free", || engine.budget.in_use() == 0).await;
}

/// Three layers are in work at once, as the engine is set; of tiny ones there are more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_layers_do_not_wait_for_each_other() {
    let server = FaultyRegistry::start().await;
    let layers: Vec<_> = (0..24)
        .map(|n| Layer::new("gzip", &tar(&[(&format!("file-{n}"), n.to_string().as_bytes())])))
        .collect();
    push(&server, "tag", &layers);
    let open = hold_layers(&server);
    let engine = Engine::new();
    let pulling = engine.puller.start(&format!("{}/some/image:tag", server.host), None).unwrap();
    eventually("more than three are in work", || engine.staged() > 3).await;
    open.send(true).unwrap();
    let trees = pulling.trees().await.unwrap();
    engine.store.merge(&trees).unwrap();
    assert_eq!(read(&engine.directory.path().join("to/file-23")), "23");
    assert_eq!(pulling.recorder().report().layers.iter().map(|l| l.retries).sum::<u64>(), 0);
    drop((pulling, trees));
    eventually("the budget is free", || engine.budget.in_use() == 0).await;
}

/// Keeps the answers to requests for layers back until it is told.
fn hold_layers(server: &FaultyRegistry) -> tokio::sync::watch::Sender<bool> {
    let (open, opened) = tokio::sync::watch::channel(false);
    server.script(move |request, reply| {
        let layer = request.is_blob() && !reply.body.starts_with(b"{");
        Reply { until: layer.then(|| opened.clone()), ..reply }
    });
    open
}

/// Of these three have their turns, as each has a window of 8 MiB and the layers a half of 96 MiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_waits_for_its_turn_has_its_head_asked_for() {
    let server = FaultyRegistry::start().await;
    let layers =
        [5, 4, 3, 2].map(|size| Layer::large("zstd", &format!("file-{size}"), size * 100_000));
    push(&server, "tag", &layers);
    let open = hold_layers(&server);
    let engine = Engine::new();
    let pulling = engine.puller.start(&format!("{}/some/image:tag", server.host), None).unwrap();
    eventually("three are in work", || engine.staged() == 3).await;
    let report = pulling.recorder().report();
    let waits: Vec<_> =
        report.layers.iter().filter(|layer| layer.state == LayerState::Waiting).collect();
    assert_eq!(waits.len(), 1, "{report:?}");
    let name = waits[0].digest.to_string();
    let asked = || {
        let requests = server.blob_requests();
        let own = requests.iter().filter(|request| request.path.ends_with(&name));
        own.map(|request| request.range().unwrap()).collect::<Vec<_>>()
    };
    eventually("the head of the fourth is asked for", || !asked().is_empty()).await;
    assert_eq!(engine.staged(), 3, "it has not got its turn meanwhile");
    assert_eq!(asked(), [(0, (64 << 10) - 1)], "its first chunk alone");
    open.send(true).unwrap();
    let trees = pulling.trees().await.unwrap();
    let report = pulling.recorder().report();
    assert_eq!(report.bytes(hoist::timeline::Phase::Download), report.size(), "each byte once");
    drop((pulling, trees));
    eventually("the budget is free", || engine.budget.in_use() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_of_two_images_make_one_job() {
    let server = FaultyRegistry::start().await;
    let shared = Layer::large("zstd", "shared", 1 << 20);
    let one = push(&server, "one", &[shared.clone(), Layer::new("gzip", &tar(&[("one", b"1")]))]);
    let two = push(&server, "two", &[shared.clone(), Layer::new("gzip", &tar(&[("two", b"2")]))]);
    let engine = Arc::new(Engine::new());
    let claims = (0..8).map(|n| {
        let plan = if n % 2 == 0 { &one } else { &two };
        engine.claim(&server, plan, 0, &[])
    });
    let trees = futures_util::future::join_all(claims).await;
    let ids: std::collections::BTreeSet<_> =
        trees.iter().map(|tree| tree.as_ref().unwrap().tree.id).collect();
    assert_eq!(ids.len(), 1, "one tree for all");
    let digest = BlobDigest(Sha256::of(&shared.blob)).to_string();
    let asked: u64 = server
        .blob_requests()
        .iter()
        .filter(|request| request.path.ends_with(&digest))
        .map(|request| request.range().map_or(shared.blob.len(), |(a, z)| z - a + 1) as u64)
        .sum();
    assert_eq!(asked, shared.blob.len() as u64, "every byte was asked for once");
    let below = [trees.into_iter().next().unwrap().unwrap()];
    for plan in [&one, &two] {
        engine.claim(&server, plan, 1, &below).await.unwrap();
    }
    eventually("both pulls have ended", || engine.ended.lock().unwrap().len() == 2).await;
    assert_eq!(*engine.ended.lock().unwrap(), [PullState::Done, PullState::Done]);
}

/// containerd does not ask for layers that it has of another image.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_let_go_with_its_topmost_layer() {
    let server = FaultyRegistry::start().await;
    let layers =
        [Layer::new("none", &tar(&[("a", b"a")])), Layer::new("none", &tar(&[("b", b"b")]))];
    let plan = push(&server, "tag", &layers);
    let engine = Engine::new();
    engine.claim(&server, &plan, 1, &[]).await.unwrap();
    assert_eq!(*engine.ended.lock().unwrap(), [PullState::Done]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_takes_nothing_from_another() {
    let server = FaultyRegistry::start().await;
    let plan = push(&server, "tag", &[Layer::large("gzip", "large", 1 << 20)]);
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    // Blobs are overloaded until the gate opens; the retries are many enough.
    server.script(move |request, reply| {
        let held = request.is_blob() && reply.body.len() > 1000 && !gate.load(SeqCst);
        if held { Reply { stall_after: Some(10), ..reply } } else { reply }
    });
    let engine = Engine::new();
    let stays = engine.claim(&server, &plan, 0, &[]);
    let leaves =
        tokio::time::timeout(Duration::from_millis(100), engine.claim(&server, &plan, 0, &[]));
    let (stayed, left) = tokio::join!(stays, async {
        let left = leaves.await;
        open.store(true, SeqCst);
        left
    });
    assert!(left.is_err(), "it was meant to leave early");
    stayed.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_waits_for_is_cancelled() {
    let server = FaultyRegistry::start().await;
    let plan = push(
        &server,
        "tag",
        &[Layer::large("gzip", "a", 1 << 20), Layer::large("zstd", "b", 1 << 20)],
    );
    server.script(|request, reply| {
        if request.is_blob() && reply.body.len() > 1000 {
            Reply { stall_after: Some(1000), ..reply }
        } else {
            reply
        }
    });
    let engine = Engine::new();
    // Both layers are under way when the only caller leaves.
    {
        let mut claim = std::pin::pin!(engine.claim(&server, &plan, 0, &[]));
        tokio::select! {
            _ = &mut claim => panic!("the registry stalls"),
            () = eventually("both layers have begun", || engine.staged() == 2) => {}
        }
    }
    eventually("the pull has ended", || *engine.ended.lock().unwrap() == [PullState::Cancelled])
        .await;
    engine.is_clean(0).await;
    assert_eq!(engine.history.list(9).len(), 1);
}

/// `tmp` is 1777 in one base and 0700 in another; an upper layer implies it without naming it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn implied_directories_are_the_parents_and_shared_only_where_equal() {
    use std::os::unix::fs::PermissionsExt as _;
    let base = |mode: u32| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        builder.append_data(&mut header, "tmp/", &b""[..]).unwrap();
        Layer::new("gzip", &builder.into_inner().unwrap())
    };
    let server = FaultyRegistry::start().await;
    let upper = Layer::new("gzip", &tar(&[("tmp/x", b"x")]));
    let engine = Engine::new();
    let mut uppers = Vec::new();
    for (tag, mode) in [("a", 0o1777), ("b", 0o700), ("c", 0o1777)] {
        // A further layer makes the third image another one than the first.
        let mut layers = vec![base(mode), upper.clone()];
        layers.extend((tag == "c").then(|| Layer::new("none", &tar(&[("c", b"c")]))));
        let plan = push(&server, tag, &layers);
        let lower = engine.claim(&server, &plan, 0, &[]).await.unwrap();
        let tree = engine.claim(&server, &plan, 1, &[lower]).await.unwrap();
        let found = std::fs::metadata(tree.tree.path.join("tmp")).unwrap().permissions().mode();
        assert_eq!(found & 0o7777, mode, "image {tag}");
        uppers.push(tree.tree.id);
    }
    assert_ne!(uppers[0], uppers[1], "a tree that came out differently is not shared");
    assert_eq!(uppers[0], uppers[2], "one that came out equally is");
}
