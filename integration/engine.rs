//! The engine that pulls, against a registry in this process: what comes whole is there, what does not is told and
//! leaves nothing, one layer is fetched once however many want it, and nobody's pull outlives its last caller.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod faulty_registry;

#[path = "engine/images.rs"]
mod images;
#[path = "engine/prefetch.rs"]
mod prefetch;
#[path = "harness/skipped.rs"]
mod skipped;
#[path = "engine/speculation.rs"]
mod speculation;

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use faulty_registry::{FaultyRegistry, Reply, Request, eventually};
use hoist::budget::Budget;
use hoist::compression::{Pool, Speculation, WINDOW_BYTES_MAX};
use hoist::fetch::{Fetcher, Limits};
use hoist::image::{BlobDigest, DiffId, ImagePlan, Platform, Sha256};
use hoist::pull::directory::DirectoryStore;
use hoist::pull::trees::{HeldTree, TreeStore as _};
use hoist::pull::{Claim, Decompression, PullError, Puller, Settings};
use hoist::registry::{Registry, Settings as RegistrySettings};
use hoist::timeline::{History, LayerState, PullState};
use hoist::unpack;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer as a builder makes it; what is pushed may be told to lie.
#[derive(Clone)]
struct Layer {
    media_type: String,
    blob: Vec<u8>,
    diff_id: DiffId,
    /// What the manifest says of it, where that is not the truth.
    size: Option<u64>,
}

fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
        }
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

impl Layer {
    fn new(form: &str, archive: &[u8]) -> Self {
        let blob = match form {
            "gzip" => gzip(archive),
            "zstd" => zstd::encode_all(archive, 3).unwrap(),
            _ => archive.to_vec(),
        };
        let media_type = if form == "none" { TAR.to_owned() } else { format!("{TAR}+{form}") };
        Self { media_type, blob, diff_id: DiffId(Sha256::of(archive)), size: None }
    }

    /// Its content is large and compresses badly.
    fn large(form: &str, name: &str, bytes: usize) -> Self {
        let noise: Vec<u8> = (0..bytes.div_ceil(32))
            .flat_map(|i| *Sha256::of(format!("{name}{i}").as_bytes()).as_bytes())
            .take(bytes)
            .collect();
        Self::new(form, &tar(&[(name, &noise)]))
    }
}

/// Pushes an image and says how its layers are asked for.
fn push(server: &FaultyRegistry, tag: &str, layers: &[Layer]) -> ImagePlan {
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
    let config =
        serde_json::json!({ "rootfs": { "type": "layers", "diff_ids": diff_ids } }).to_string();
    let config_size = config.len();
    let config = server.blob(config);
    let described = layers.iter().map(|layer| {
        let digest = server.blob(layer.blob.clone());
        let size = layer.size.unwrap_or(layer.blob.len() as u64);
        serde_json::json!({ "mediaType": layer.media_type, "digest": digest, "size": size })
    });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
        "layers": described.collect::<Vec<_>>(),
    });
    let digest = server.manifest(tag, MANIFEST, manifest.to_string());
    let layers = layers.iter().map(|layer| hoist::image::Descriptor {
        media_type: layer.media_type.clone(),
        digest: BlobDigest(Sha256::of(&layer.blob)),
        size: layer.blob.len() as u64,
    });
    ImagePlan::new(digest, layers.collect(), &diff_ids).unwrap()
}

/// An engine over a directory.
struct Engine {
    puller: Puller,
    store: Arc<DirectoryStore>,
    budget: Budget,
    pool: Pool,
    history: History,
    ended: Arc<Mutex<Vec<PullState>>>,
    directory: tempfile::TempDir,
}

impl Engine {
    fn new() -> Self {
        Self::with(96 << 20, 1 << 30)
    }

    fn with(budget_bytes: u64, max_unpacked: u64) -> Self {
        Self::connected(4, Duration::from_millis(500), budget_bytes, max_unpacked)
    }

    /// Whose helpers guess at a single gzip member, or leave it alone.
    fn guessing(speculation: Speculation) -> Self {
        Self::of(4, Duration::from_millis(500), 96 << 20, 1 << 30, speculation)
    }

    /// With so many connections, each of which may be silent for so long.
    fn connected(
        connections: usize,
        stall_timeout: Duration,
        budget_bytes: u64,
        max_unpacked: u64,
    ) -> Self {
        Self::of(connections, stall_timeout, budget_bytes, max_unpacked, Speculation::Auto)
    }

    fn of(
        connections: usize,
        stall_timeout: Duration,
        budget_bytes: u64,
        max_unpacked: u64,
        speculation: Speculation,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(DirectoryStore::new(&directory.path().join("to")).unwrap());
        let registry = Registry::new(RegistrySettings {
            stall_timeout,
            retries: 2,
            backoff_initial: Duration::from_millis(1),
            backoff_max: Duration::from_millis(2),
            ..RegistrySettings::default()
        })
        .unwrap();
        let budget = Budget::new(budget_bytes);
        let limits = Limits {
            chunk_bytes: 64 << 10,
            per_image: connections.min(4),
            per_host: connections,
            global: connections,
        };
        let fetcher = Fetcher::new(registry.clone(), budget.clone(), limits);
        let ended = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&ended);
        let pool = Pool::new(3, budget.clone(), budget_bytes / 4);
        let settings = Settings {
            layers_at_once: 3,
            decompression: Decompression {
                pool: Some(pool.clone()),
                window_bytes: (budget_bytes / 2).min(WINDOW_BYTES_MAX),
                speculation,
            },
            unpack: unpack::Options {
                writers: 2,
                max_bytes: max_unpacked,
                ..unpack::Options::default()
            },
            platform: Platform::host(),
            keeper: None,
            on_end: Arc::new(move |report| told.lock().unwrap().push(report.state.clone())),
        };
        let history = History::new(9);
        let puller = Puller::new(
            registry,
            fetcher,
            budget.clone(),
            Arc::clone(&store) as _,
            history.clone(),
            settings,
        );
        Self { puller, store, budget, pool, history, ended, directory }
    }

    /// Asks as a Prepare does, for layer `index` over `below`, lowest first.
    async fn claim(
        &self,
        server: &FaultyRegistry,
        plan: &ImagePlan,
        index: usize,
        below: &[HeldTree],
    ) -> Result<HeldTree, PullError> {
        let layer = &plan.layers[index];
        let claim = Claim {
            namespace: "default".to_owned(),
            image: format!("{}/some/image:tag", server.host),
            manifest: plan.manifest,
            layer: layer.blob,
            chain_id: layer.chain_id,
            parents: below.iter().rev().map(|held| held.tree.path.clone()).collect(),
            trace_parent: None,
        };
        self.puller.claim(claim).await
    }

    fn staged(&self) -> usize {
        std::fs::read_dir(self.directory.path().join("to/.hoist-pull")).unwrap().count()
    }

    /// Nothing is in flight and nothing half done is left.
    async fn is_clean(&self, trees: usize) {
        eventually("nothing is left", || self.budget.in_use() == 0 && self.staged() == trees).await;
    }
}

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

/// Three layers are in work at once, as the engine is set; of tiny ones there are more, or the
/// barrier would never open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_layers_do_not_wait_for_each_other() {
    let server = FaultyRegistry::start().await;
    let layers: Vec<_> = (0..24)
        .map(|n| Layer::new("gzip", &tar(&[(&format!("file-{n}"), n.to_string().as_bytes())])))
        .collect();
    push(&server, "tag", &layers);
    let barrier = Arc::new(tokio::sync::Barrier::new(4));
    server.script(move |request, reply| {
        let layer = request.is_blob() && !reply.body.starts_with(b"{");
        Reply { barrier: layer.then(|| Arc::clone(&barrier)), ..reply }
    });
    let engine = Engine::new();
    let pulling = engine.puller.start(&format!("{}/some/image:tag", server.host), None).unwrap();
    let trees = pulling.trees().await.unwrap();
    engine.store.merge(&trees).unwrap();
    assert_eq!(read(&engine.directory.path().join("to/file-23")), "23");
    assert_eq!(pulling.recorder().report().layers.iter().map(|l| l.retries).sum::<u64>(), 0);
    drop((pulling, trees));
    eventually("the budget is free", || engine.budget.in_use() == 0).await;
}

/// What goes wrong, and what the error has to name.
struct Fault {
    name: &'static str,
    layer: Layer,
    script: fn(&Request, Reply) -> Reply,
    integrity: bool,
    says: Vec<String>,
}

fn faults() -> Vec<Fault> {
    let archive = tar(&[("a", b"content of a"), ("b", &[7; 100_000])]);
    let proper: fn(&Request, Reply) -> Reply = |_, reply| reply;
    let good = || Layer::new("gzip", &archive);
    let digest = |layer: &Layer| Sha256::of(&layer.blob).to_string();
    let mut faults = Vec::new();
    let mut add = |name, layer: Layer, script, integrity, says: Vec<String>| {
        faults.push(Fault { name, layer, script, integrity, says });
    };
    let flip: fn(&Request, Reply) -> Reply = |request, mut reply| {
        if request.is_blob() && reply.body.len() > 120 {
            *reply.body.last_mut().unwrap() ^= 1;
        }
        reply
    };
    let plain = Layer::new("none", &archive);
    let mut flipped = plain.blob.clone();
    *flipped.last_mut().unwrap() ^= 1;
    add("another byte, plain", plain.clone(), flip, true, vec![digest(&plain)]);
    add("another byte, gzip", good(), flip, true, vec![digest(&good())]);
    let wrong = Layer { diff_id: DiffId(Sha256::of(b"another archive")), ..good() };
    let says = vec![Sha256::of(&archive).to_string(), wrong.diff_id.to_string(), digest(&wrong)];
    add("another DiffID", wrong, proper, true, says);
    for form in ["gzip", "zstd"] {
        let garbage =
            Layer { blob: b"this was never compressed".repeat(9), ..Layer::new(form, &archive) };
        add("garbage", garbage.clone(), proper, true, vec![digest(&garbage), form.to_owned()]);
        let mut cut = Layer::new(form, &archive);
        cut.blob.truncate(cut.blob.len() - 9);
        add("cut off before it was pushed", cut.clone(), proper, true, vec![digest(&cut)]);
    }
    let short = Layer { size: Some(good().blob.len() as u64 + 1), ..good() };
    let says =
        vec![digest(&short), good().blob.len().to_string(), (good().blob.len() + 1).to_string()];
    add("shorter than the descriptor says", short, proper, true, says);
    let long = Layer { size: Some(good().blob.len() as u64 - 1), ..good() };
    let says = vec![digest(&long), (good().blob.len() - 1).to_string()];
    add("longer than the descriptor says", long, proper, true, says);
    let bomb = Layer::new("gzip", &tar(&[("zeros", &vec![0; 8 << 20])]));
    add("a bomb", bomb.clone(), proper, true, vec![digest(&bomb), (4 << 20).to_string()]);
    let odd = Layer { media_type: format!("{TAR}+lz4"), ..good() };
    add(
        "a media type of tomorrow",
        odd.clone(),
        proper,
        false,
        vec![digest(&odd), "tar+lz4".to_owned()],
    );
    let gone: fn(&Request, Reply) -> Reply = |request, reply| {
        if request.is_blob() && reply.body.len() > 120 { Reply::new(404, "") } else { reply }
    };
    add("not there", good(), gone, false, vec![digest(&good())]);
    let down: fn(&Request, Reply) -> Reply = |request, reply| {
        if request.is_blob() && reply.body.len() > 120 { Reply::new(503, "") } else { reply }
    };
    add(
        "down for longer than the retries",
        good(),
        down,
        false,
        vec![digest(&good()), "503".to_owned()],
    );
    faults
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_told_and_leaves_nothing() {
    for fault in faults() {
        let name = fault.name;
        let server = FaultyRegistry::start().await;
        let plan = push(&server, "tag", std::slice::from_ref(&fault.layer));
        server.script(fault.script);
        let engine = Engine::with(64 << 20, 4 << 20);
        let error = match engine.claim(&server, &plan, 0, &[]).await {
            Err(error) => error,
            Ok(tree) => panic!("{name}: a tree at {}", tree.tree.path.display()),
        };
        let text = error.to_string();
        assert_eq!(error.is_integrity(), fault.integrity, "{name}: {text}");
        for word in fault.says {
            assert!(text.contains(&word), "{name}: {word} is not in {text:?}");
        }
        engine.is_clean(0).await;
        assert!(engine.store.find(plan.layers[0].diff_id).unwrap().is_empty(), "{name}");
    }
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

impl Layer {
    /// A layer whose blob is what somebody else makes of the archive.
    fn made(form: &str, archive: &[u8], blob: Vec<u8>) -> Self {
        let media_type = format!("{TAR}+{form}");
        Self { media_type, blob, diff_id: DiffId(Sha256::of(archive)), size: None }
    }
}

/// An archive of `bytes` of text, or a little more.
fn text(bytes: usize) -> Vec<u8> {
    let text = (0_u32..).map(|i| format!("{i} {:x}, ", i.wrapping_mul(0x9E37_79B9)));
    let text: String = text.take(bytes / 10).collect();
    tar(&[("text", text.as_bytes())])
}

fn windowed(log: u32, archive: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(log).unwrap();
    encoder.write_all(archive).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_window_is_paid_for_or_refused() {
    let server = FaultyRegistry::start().await;
    let archive = text(1 << 20);
    // Two ordinary layers beside it: the one with the large window waits for them, not they for it.
    let layers = [
        Layer::large("zstd", "one", 1 << 20),
        Layer::made("zstd", &archive, windowed(25, &archive)),
        Layer::large("gzip", "two", 1 << 20),
    ];
    push(&server, "tag", &layers);
    let image = format!("{}/some/image:tag", server.host);
    let engine = Engine::with(96 << 20, 1 << 30);
    let pulling = engine.puller.start(&image, None).unwrap();
    let trees = pulling.trees().await.unwrap();
    assert_eq!(trees.len(), 3);
    drop((pulling, trees));
    eventually("the budget is free", || engine.budget.in_use() == 0).await;

    // Half of this budget is less than the window: containerd may try.
    let engine = Engine::with(48 << 20, 1 << 30);
    let pulling = engine.puller.start(&image, None).unwrap();
    let error = pulling.trees().await.unwrap_err();
    assert!(!error.is_integrity(), "{error}");
    assert!(error.to_string().contains("a window of 33554432 bytes"), "{error}");
    assert!(error.to_string().contains("limits.memory_budget"), "{error}");
    drop(pulling);
    eventually("the budget is free", || engine.budget.in_use() == 0).await;
}

/// What `command` makes of `archive`.
fn piped(command: &[&str], archive: &[u8]) -> Vec<u8> {
    let mut child = std::process::Command::new(command[0])
        .args(&command[1..])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}, from integration/testbed/install: {error}"));
    let mut input = child.stdin.take().unwrap();
    let archive = archive.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&archive));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{command:?}");
    output.stdout
}

/// Each tool's layer comes whole; those that can be cut are decoded by helpers too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_of_real_tools_come_whole() {
    let archive = text(12 << 20);
    let cases: [(&str, bool, &[&str]); 6] = [
        ("zstd", false, &["zstd", "-q", "-c"]),
        ("zstd", true, &["pzstd", "-q", "-1", "-p", "2", "-c"]),
        ("gzip", true, &["bgzip", "-c"]),
        ("gzip", false, &["pigz", "-c"]),
        ("gzip", false, &["pigz", "-i", "-c"]),
        ("gzip", false, &["gzip", "-c"]),
    ];
    let server = FaultyRegistry::start().await;
    let mut layers: Vec<_> = cases
        .map(|(form, cut, tool)| {
            (format!("{tool:?}"), cut, Layer::made(form, &archive, piped(tool, &archive)))
        })
        .into();
    // cat one.gz two.gz …, as eStargz has a member for each file of an archive.
    let members = archive.chunks(300_000).flat_map(|part| piped(&["gzip", "-c"], part)).collect();
    layers.push(("gzip members".to_owned(), true, Layer::made("gzip", &archive, members)));
    for (name, cut, layer) in layers {
        // A pull each, so that no helper is left of another.
        let engine = Engine::new();
        push(&server, "tag", &[layer]);
        let pulling =
            engine.puller.start(&format!("{}/some/image:tag", server.host), None).unwrap();
        let trees = pulling.trees().await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(engine.pool.threads() > 0, cut, "{name}");
        drop((pulling, trees));
        eventually("the budget is free", || engine.budget.in_use() == 0).await;
    }
}
