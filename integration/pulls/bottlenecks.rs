//! Pulls whose bottleneck is known because the test made it.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hoist::budget::Budget;
use hoist::budget::rate::RateLimit;
use hoist::compression::Speculation;
use hoist::fetch::{Fetcher, Limits, OfRegistry, Restraints};
use hoist::image::Platform;
use hoist::pull::directory::DirectoryStore;
use hoist::pull::{Decompression, Puller, Settings};
use hoist::registry::{Registry, Settings as RegistrySettings};
use hoist::timeline::{
    self, Bottleneck, Bounds, History, Judgement, MachineReport, Phase, PullReport,
};
use hoist::unpack;

use super::faulty_registry::{FaultyRegistry, Reply, Request};
use super::harness::{must, prepare, skipped};
use super::images::{Layer, letters, noise, push, tar};
use super::slow_disk::SlowDisk;

const CONNECTIONS: usize = 4;
const CHUNK_BYTES: u64 = 64 << 10;
const PLENTY_BYTES: u64 = 128 << 20;

/// What a zstd layer reserves for its window.
const ORDINARY_WINDOW_BYTES: u64 = 8 << 20;

/// One test at a time: each is about what it has slowed down, and not about its neighbours.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Pulls with an engine of its own into `to`; what is recorded of it.
async fn pull(image: &str, memory_bytes: u64, to: &Path) -> PullReport {
    pull_in_chunks(CHUNK_BYTES, image, memory_bytes, to).await
}

async fn pull_in_chunks(chunk_bytes: u64, image: &str, memory_bytes: u64, to: &Path) -> PullReport {
    let (puller, history) = engine(chunk_bytes, memory_bytes, 3, to);
    let pulling = puller.start(image, None).unwrap();
    pulling.trees().await.unwrap();
    history.list(1).remove(0)
}

/// An engine of its own, and what it records.
fn engine(
    chunk_bytes: u64,
    memory_bytes: u64,
    layers_at_once: usize,
    to: &Path,
) -> (Puller, History) {
    engine_within(
        &Restraints::default(),
        RateLimit::default(),
        (chunk_bytes, memory_bytes, layers_at_once),
        to,
    )
}

/// The same, held to limits on bytes a second.
fn engine_within(
    restraints: &Restraints,
    rate: RateLimit,
    (chunk_bytes, memory_bytes, layers_at_once): (u64, u64, usize),
    to: &Path,
) -> (Puller, History) {
    let store = Arc::new(DirectoryStore::new(to).unwrap());
    let registry = Registry::new(RegistrySettings::default()).unwrap();
    let budget = Budget::new(memory_bytes);
    let limits =
        Limits { chunk_bytes, per_image: CONNECTIONS, per_host: CONNECTIONS, global: CONNECTIONS };
    let fetcher = Fetcher::new(registry.clone(), budget.clone(), limits);
    fetcher.restrain(restraints);
    let settings = Settings {
        layers_at_once,
        unpack: unpack::Options { writers: 2, rate, ..unpack::Options::default() },
        decompression: Decompression {
            pool: None,
            window_bytes: ORDINARY_WINDOW_BYTES,
            speculation: Speculation::Off,
        },
        platform: Platform::host(),
        keeper: None,
        on_end: Arc::new(|_| ()),
    };
    let bounds = Bounds { connections: CONNECTIONS, chunk_bytes, writers: 2, memory_bytes };
    let history = History::bounded(2, bounds);
    (Puller::new(registry, fetcher, budget, store as _, history.clone(), settings), history)
}

/// The judgement, whatever the machine was busy with beside this test: tests run side by side, and
/// on a machine whose processors are all busy it is right to say so.
fn judged(report: &PullReport) -> Judgement {
    let machine = MachineReport { cpu_seconds: 0.0, busy_share: None, ..report.machine.clone() };
    let calm = PullReport { machine, ..report.clone() };
    timeline::judge(&calm).unwrap()
}

fn is_layer(request: &Request, reply: &Reply) -> bool {
    request.is_blob() && reply.body.len() > 10_000
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_gives_each_connection_little() {
    let _alone = ALONE.lock().await;
    let server = FaultyRegistry::start().await;
    let image = push(&server, "v1", &[Layer::of("zstd", "file", noise("network", 2 << 20))]);
    server.script(|request, reply| {
        let rate = is_layer(request, &reply).then_some(500_000);
        Reply { rate, ..reply }
    });
    let to = tempfile::tempdir().unwrap();
    let report = pull(&image, PLENTY_BYTES, to.path()).await;
    let judgement = judged(&report);
    assert_eq!(judgement.bottleneck, Bottleneck::Network, "{judgement:?}\n{report:?}");
    assert!(judgement.evidence.contains(&server.host), "{judgement:?}");
    assert!(judgement.advice.contains("connections_per_image"), "{judgement:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_the_configuration() {
    let _alone = ALONE.lock().await;
    let server = FaultyRegistry::start().await;
    let image = push(&server, "v1", &[Layer::of("zstd", "file", noise("limits", 2 << 20))]);
    let rate = Some(2_000_000);
    let of_all = Restraints { bytes_per_second: rate, ..Restraints::default() };
    let of_one = OfRegistry { bytes_per_second: rate, connections: Some(2) };
    let registries = [(server.host.clone(), of_one)].into();
    let of_one = Restraints { bytes_per_second: None, registries };
    let none = Restraints::default();
    let cases = [
        (&of_all, None, Bottleneck::BandwidthLimit, "fetch.bandwidth"),
        (&of_one, None, Bottleneck::BandwidthLimit, server.host.as_str()),
        (&none, rate, Bottleneck::DiskLimit, "limits.disk_rate"),
    ];
    for (restraints, rate, bottleneck, key) in cases {
        let to = tempfile::tempdir().unwrap();
        let sizes = (CHUNK_BYTES, PLENTY_BYTES, 3);
        let (puller, history) = engine_within(restraints, RateLimit::new(rate), sizes, to.path());
        puller.start(&image, None).unwrap().trees().await.unwrap();
        let report = history.list(1).remove(0);
        let judgement = judged(&report);
        assert_eq!(judgement.bottleneck, bottleneck, "{judgement:?}\n{report:?}");
        assert!(judgement.evidence.contains("limit of 2.0 MB/s"), "{judgement:?}");
        assert!(judgement.advice.contains(key), "{judgement:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_thinks_before_it_answers() {
    let _alone = ALONE.lock().await;
    let server = FaultyRegistry::start().await;
    let image = push(&server, "v1", &[Layer::of("zstd", "file", noise("latency", 1 << 20))]);
    server.script(|request, reply| {
        let delay = is_layer(request, &reply).then_some(Duration::from_millis(100));
        Reply { delay, ..reply }
    });
    let to = tempfile::tempdir().unwrap();
    let report = pull(&image, PLENTY_BYTES, to.path()).await;
    let judgement = judged(&report);
    assert_eq!(judgement.bottleneck, Bottleneck::FirstByte, "{judgement:?}\n{report:?}");
    assert!(judgement.evidence.contains("requests to"), "{judgement:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_slow_with_the_manifest() {
    let _alone = ALONE.lock().await;
    let server = FaultyRegistry::start().await;
    let image = push(&server, "v1", &[Layer::of("zstd", "file", noise("manifest", 100_000))]);
    server.script(|request, reply| {
        let manifest = request.path.contains("/manifests/");
        Reply { delay: manifest.then_some(Duration::from_secs(1)), ..reply }
    });
    let to = tempfile::tempdir().unwrap();
    let judgement = judged(&pull(&image, PLENTY_BYTES, to.path()).await);
    assert_eq!(judgement.bottleneck, Bottleneck::Resolve, "{judgement:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_gzip_layer_beside_small_ones() {
    let _alone = ALONE.lock().await;
    let server = FaultyRegistry::start().await;
    let layers = [
        Layer::of("gzip", "small", letters("small", 100_000)),
        Layer::of("gzip", "large", letters("large", 48 << 20)),
        Layer::of("zstd", "other", letters("other", 100_000)),
    ];
    let image = push(&server, "v1", &layers);
    let to = tempfile::tempdir().unwrap();
    // Few requests: the registry here is no faster with one than ISA-L is with what it brings.
    let report = pull_in_chunks(4 << 20, &image, PLENTY_BYTES, to.path()).await;
    let judgement = judged(&report);
    assert_eq!(judgement.bottleneck, Bottleneck::Decompression, "{judgement:?}\n{report:?}");
    assert!(judgement.evidence.contains("one gzip layer"), "{judgement:?}");
}

/// The layer itself has what it needs; what is left lets one request be made at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_memory_budget_that_holds_one_chunk() {
    let _alone = ALONE.lock().await;
    let server = FaultyRegistry::start().await;
    let image = push(&server, "v1", &[Layer::of("zstd", "file", noise("memory", 1 << 20))]);
    server.script(|request, reply| {
        let delay = is_layer(request, &reply).then_some(Duration::from_millis(30));
        Reply { delay, ..reply }
    });
    let to = tempfile::tempdir().unwrap();
    // The noise, and what zstd puts around it: less would leave no whole chunk, and nothing could go on.
    let layer_bytes = hoist::pull::layer_bytes((1 << 20) + 1024) + ORDINARY_WINDOW_BYTES;
    let report = pull(&image, layer_bytes + CHUNK_BYTES, to.path()).await;
    let judgement = judged(&report);
    assert_eq!(judgement.bottleneck, Bottleneck::Memory, "{judgement:?}\n{report:?}");
    assert!(judgement.advice.contains("limits.memory_budget"), "{judgement:?}");
}

/// Another pull's layer has the only place until its registry answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_full() {
    /// From this size on a layer takes a whole place.
    const LARGE_BYTES: usize = 9 << 20;
    let _alone = ALONE.lock().await;
    let server = FaultyRegistry::start().await;
    let large = Layer::of("zstd", "large", noise("large", LARGE_BYTES));
    let digest = hoist::image::Sha256::of(&large.blob).hex();
    let first = push(&server, "v1", &[large]);
    let second = push(&server, "v2", &[Layer::of("zstd", "small", noise("small", 200_000))]);
    let held = digest.clone();
    server.script(move |request, reply| {
        let begins = request.path.ends_with(&held) && request.range().is_none_or(|(at, _)| at == 0);
        Reply { delay: begins.then_some(Duration::from_secs(1)), ..reply }
    });
    let to = tempfile::tempdir().unwrap();
    let (puller, history) = engine(CHUNK_BYTES, PLENTY_BYTES, 1, to.path());
    let holder = puller.start(&first, None).unwrap();
    let asked = || server.requests().iter().any(|request| request.path.ends_with(&digest));
    while !asked() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let waiting = puller.start(&second, None).unwrap();
    waiting.trees().await.unwrap();
    holder.trees().await.unwrap();
    let reports = history.list(2);
    let report = reports.iter().find(|report| report.image == second).unwrap();
    let judgement = judged(report);
    assert_eq!(judgement.bottleneck, Bottleneck::Queue, "{judgement:?}\n{report:?}");
    assert!(judgement.evidence.contains("which other pulls had"), "{judgement:?}");
    assert!(judgement.advice.contains("limits.layers_at_once"), "{judgement:?}");
}

/// What the slow disk takes.
const DISK_BYTES_PER_SECOND: u64 = 1_000_000;

const FILES: u64 = 150;
const FILE_BYTES: u64 = 20_000;

/// Pulls an image of that many small files onto a slow disk, by a `hoist` of its own; what is recorded of it.
async fn pull_onto(disk: SlowDisk, test: &'static str) -> PullReport {
    let server = FaultyRegistry::start().await;
    let files = (0..FILES).map(|i| (format!("file{i}"), noise("disk", FILE_BYTES as usize)));
    let image = push(&server, "v1", &[Layer::new("zstd", &tar(files))]);
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("hoist.toml"), "").unwrap();
    let pull = move || {
        let mut pull = Command::new(env!("CARGO_BIN_EXE_hoist"));
        pull.arg("--config").arg(home.path().join("hoist.toml"));
        pull.args(["pull", "--json", &image, "--to"]).arg(disk.path().join("to"));
        let limit = match (disk.is_delayed(), disk.limit()) {
            (false, Err(reason)) => {
                let reason = format!("a sync mount is in its place: {reason}");
                skipped(&format!("{test}: the limit"), &reason);
                None
            }
            (_, limit) => limit.ok(),
        };
        let mut command = match limit {
            Some(limit) => limit.around(&pull),
            None => pull,
        };
        let told = must(&mut command);
        let report: PullReport = serde_json::from_str(&told).unwrap();
        if let Some(limit) = limit {
            // That it was this process's writes that were held back, and not another's.
            let written = limit.written_bytes();
            assert!(written >= FILES * FILE_BYTES, "the kernel counts {written} bytes");
            // And that they were: a disk that is throttled is no faster than that on any machine.
            let least = (FILES * FILE_BYTES / DISK_BYTES_PER_SECOND) as f64 / 2.0;
            assert!(report.busy_seconds(Phase::Write) > least, "{report:?}");
        }
        report
    };
    tokio::task::spawn_blocking(pull).await.unwrap()
}

fn is_the_disks(report: &PullReport) {
    let judgement = judged(report);
    assert_eq!(judgement.bottleneck, Bottleneck::Disk, "{judgement:?}\n{report:?}");
    assert!(judgement.evidence.contains("in 150 entries"), "{judgement:?}");
    assert!(judgement.evidence.contains(" for the disk, at "), "{judgement:?}");
    assert!(judgement.advice.contains("a faster volume"), "{judgement:?}");
}

/// By the controller of control groups that this kernel has, of version 1 or 2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_takes_its_time() {
    const TEST: &str = "a_disk_that_takes_its_time";
    let Some(disk) = SlowDisk::mount(DISK_BYTES_PER_SECOND) else {
        return skipped(TEST, "no file system can be mounted here");
    };
    let _alone = ALONE.lock().await;
    is_the_disks(&pull_onto(disk, TEST).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "wants device-mapper, which few test machines have: another_kernel_with_slow_disks runs it in one that does"]
async fn a_disk_behind_a_delay() {
    let disk = SlowDisk::delayed(20);
    let _alone = ALONE.lock().await;
    is_the_disks(&pull_onto(disk, "a_disk_behind_a_delay").await);
}

/// The two above in an emulated machine: its kernel has version 2 of the control groups alone, and device-mapper.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_kernel_with_slow_disks() {
    const TEST: &str = "another_kernel_with_slow_disks";
    let run = || {
        let Some(bed) = prepare("kernel") else {
            return skipped(TEST, "no kernel or no QEMU could be had (see above)");
        };
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut emulate = Command::new(checkout.join("integration/testbed/emulate"));
        emulate.env("HOIST_TESTBED", bed).current_dir(checkout);
        emulate.args([env!("CARGO_BIN_EXE_hoist"), "--"]).arg(std::env::current_exe().unwrap());
        emulate.args(["bottlenecks::a_disk_", "--include-ignored", "--test-threads=1"]);
        let told = must(&mut emulate);
        assert!(told.contains("2 passed; 0 failed"), "{told}");
        // As it would be said where there is no limit to be had.
        assert!(!told.contains("SKIPPED"), "{told}");
    };
    let _alone = ALONE.lock().await;
    tokio::task::spawn_blocking(run).await.unwrap();
}

/// One processor for three layers; the registry has the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_core_for_everything() {
    let _alone = ALONE.lock().await;
    let server = FaultyRegistry::start().await;
    let layers: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|name| Layer::of("gzip", name, letters(name, 32 << 20)))
        .collect();
    let image = push(&server, "v1", &layers);
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("hoist.toml"), "").unwrap();
    let pull = |to: std::path::PathBuf| {
        // Others want this core too; it is this pull's as long as it wants it.
        let mut command = Command::new("nice");
        command.args(["-n", "-15", "taskset", "-c", "0", env!("CARGO_BIN_EXE_hoist"), "--config"]);
        command.arg(home.path().join("hoist.toml"));
        command.args(["pull", "--json", &image, "--to"]).arg(to);
        async move { tokio::task::spawn_blocking(move || must(&mut command)).await.unwrap() }
    };
    // Where other tests take the registry's processor, the record says so, and rightly: another pull then.
    let mut reports = Vec::<PullReport>::new();
    while reports.len() < 5 {
        let told = pull(home.path().join(reports.len().to_string())).await;
        reports.push(serde_json::from_str(&told).unwrap());
        let judgement = reports.last().and_then(|report| report.judgement.as_ref());
        if judgement.is_some_and(|judgement| judgement.bottleneck == Bottleneck::Cpu) {
            break;
        }
    }
    let report = reports.last().unwrap();
    assert_eq!(report.machine.cores, 1);
    let judgement = report.judgement.as_ref().unwrap();
    assert_eq!(judgement.bottleneck, Bottleneck::Cpu, "{report:?}");
    assert!(judgement.evidence.contains("of 1 core "), "{judgement:?}");
}
