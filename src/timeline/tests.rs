//! Judgements of reports that were made by hand: each shows one bottleneck, and names it.

use super::testing::{busy_layer, example, layer, phase, pull};
use super::*;

/// Judges a pull of one layer and checks what every judgement has to have.
fn judged(report: &PullReport) -> Judgement {
    let judgement = judge(report).expect("something took time");
    assert!(judgement.seconds > 0.0 && judgement.seconds <= report.seconds, "{judgement:?}");
    for sentence in [&judgement.evidence, &judgement.advice] {
        assert!(!sentence.is_empty() && !sentence.contains("NaN") && !sentence.contains("inf "));
    }
    assert!(judgement.evidence.contains(char::is_numeric), "figures: {judgement:?}");
    judgement
}

fn of_layer(layer: LayerReport) -> Judgement {
    judged(&pull(9.0, Some(0.2), vec![layer]))
}

#[test]
fn a_gzip_layer_on_one_core() {
    let judgement = judged(&example());
    assert_eq!(judgement.bottleneck, Bottleneck::Decompression);
    assert!(
        judgement.evidence.starts_with("one gzip layer of 1.4 GB")
            && judgement.evidence.contains("took 8.1 s of 9.0 s on one core"),
        "{judgement:?}"
    );
    assert!(judgement.advice.contains("hoist convert"), "{judgement:?}");
    // 8.1 s shared by four cores, and the 0.7 s around it.
    assert!(judgement.advice.contains("2.7 s at best"), "{judgement:?}");
}

#[test]
fn the_processors() {
    let mut report = example();
    report.machine.cpu_seconds = 32.0;
    let judgement = judged(&report);
    assert_eq!(judgement.bottleneck, Bottleneck::Cpu, "its own load");
    assert!(judgement.advice.contains("zstd layers take half"), "{judgement:?}");
    let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    report.layers.iter_mut().for_each(|layer| zstd.clone_into(&mut layer.media_type));
    let judgement = judged(&report);
    assert_eq!(judgement.bottleneck, Bottleneck::Cpu, "its own load");
    assert!(!judgement.advice.contains("zstd"), "it has them: {judgement:?}");
    let mut report = example();
    report.machine.busy_share = Some(0.97);
    let judgement = judged(&report);
    assert_eq!(judgement.bottleneck, Bottleneck::Cpu, "others' load");
    assert!(judgement.evidence.contains("all processes together 97 %"), "{judgement:?}");
    assert!(judgement.advice.contains("other processes had 94 %"), "{judgement:?}");
}

#[test]
fn the_network() {
    // Eight connections all the time, and the first stage waits for bytes.
    let slow = busy_layer(0.2, 9.0, [0.4, 66.0, 0.5, 0.8, 0.5, 0.4], [0.0, 0.0, 9.0, 8.0, 8.2]);
    let judgement = of_layer(slow.clone());
    assert_eq!(judgement.bottleneck, Bottleneck::Network);
    assert!(judgement.evidence.contains("registry.example"), "{judgement:?}");
    assert!(judgement.evidence.contains("7.5 connections"), "{judgement:?}");
    assert!(judgement.advice.contains("connections_per_image (8 now)"), "{judgement:?}");
    let mut report = pull(9.0, Some(0.2), vec![slow.clone()]);
    report.machine.busy_share = Some(0.99);
    assert_eq!(judged(&report).bottleneck, Bottleneck::Network, "others' load does not slow bytes");
    // One connection where eight could be.
    let mut alone = busy_layer(0.2, 9.0, [0.1, 8.5, 0.2, 0.8, 0.5, 0.4], [0.0, 0.0, 0.0, 8.0, 8.2]);
    alone.size = 8 << 20;
    assert!(of_layer(alone).advice.contains("lower fetch.chunk_size"));
}

#[test]
fn the_first_byte() {
    let mut slow =
        busy_layer(0.2, 9.0, [30.0, 10.0, 35.0, 0.8, 0.5, 0.4], [0.0, 0.0, 9.0, 8.0, 8.2]);
    slow.phases[1].times = 70;
    let judgement = of_layer(slow);
    assert_eq!(judgement.bottleneck, Bottleneck::FirstByte);
    assert!(judgement.evidence.contains("70 requests"), "{judgement:?}");
    assert!(judgement.evidence.contains("0.500 s each"), "{judgement:?}");
    assert!(judgement.advice.contains("fetch.chunk_size (8.4 MB now)"), "{judgement:?}");
}

#[test]
fn the_memory_budget() {
    let held = busy_layer(0.2, 9.0, [4.0, 4.0, 5.0, 0.8, 0.5, 0.4], [0.0, 8.0, 0.0, 8.0, 8.2]);
    let judgement = of_layer(held.clone());
    assert_eq!(judgement.bottleneck, Bottleneck::Memory);
    assert!(judgement.evidence.contains("184.5 MB"), "{judgement:?}");
    // As many waits, and no connection was free all the same.
    let busy = busy_layer(0.2, 9.0, [4.0, 60.0, 5.0, 0.8, 0.5, 0.4], [0.0, 8.0, 9.0, 8.0, 8.2]);
    assert_eq!(of_layer(busy).bottleneck, Bottleneck::Network);
    // A window that is full because what follows is slow is no lack of memory.
    let behind = busy_layer(0.2, 9.0, [0.1, 4.0, 0.2, 8.4, 0.5, 0.4], [0.0, 8.0, 0.0, 0.1, 7.0]);
    assert_eq!(of_layer(behind).bottleneck, Bottleneck::Decompression);
}

/// A layer whose archive was there all the time and whose files took it: with writers busy for so
/// long, of which the disk kept them waiting for so long.
fn made(writers: f64, disk: Option<f64>) -> LayerReport {
    let busy = [0.1, 2.0, 0.2, 1.0, 0.5, writers];
    let mut layer = busy_layer(0.2, 9.0, busy, [0.0, 0.0, 0.0, 0.3, 0.4]);
    layer.stalls.extend(disk.map(|seconds| StallReport { stall: Stall::Disk, seconds }));
    layer
}

#[test]
fn the_disk() {
    let judgement = of_layer(made(17.0, Some(15.5)));
    assert_eq!(judgement.bottleneck, Bottleneck::Disk);
    let says = ["300.0 MB in 1000 entries", "waited 15.5 s of 17.0 s for the disk"];
    assert!(says.iter().all(|words| judgement.evidence.contains(words)), "{judgement:?}");
    assert!(judgement.advice.contains("a faster volume"), "{judgement:?}");
    // The one thread that makes an image, and the kernel that makes it wait for its pages.
    assert_eq!(of_layer(made(6.0, Some(5.0))).bottleneck, Bottleneck::Disk);
    // Of a daemon that did not measure it.
    let judgement = of_layer(made(17.0, None));
    assert_eq!(judgement.bottleneck, Bottleneck::Disk);
    assert!(judgement.evidence.contains("its writers were busy for 17.0 s"), "{judgement:?}");
    // Most of it in the commit: settling directories.
    let mut late = busy_layer(0.2, 3.0, [0.1, 2.0, 0.2, 1.0, 0.5, 0.4], [0.0, 0.0, 0.0, 2.5, 2.6]);
    late.phases.push(phase(Phase::Commit, 3.0, 9.0));
    let judgement = of_layer(late);
    assert_eq!(judgement.bottleneck, Bottleneck::Disk);
    assert!(judgement.evidence.contains("files were made took 6.0 s of 9.0 s"), "{judgement:?}");
}

#[test]
fn the_unpacker() {
    // Names and metadata, and next to nothing to write: a faster disk would change nothing.
    let judgement = of_layer(made(1.7, Some(0.2)));
    assert_eq!(judgement.bottleneck, Bottleneck::Unpack);
    let says = ["8.4 s of 9.0 s, computing on one core", "kept it waiting for 0.200 s of that"];
    assert!(says.iter().all(|words| judgement.evidence.contains(words)), "{judgement:?}");
    // Four cores share 8.4 s, and the 0.2 s before.
    assert!(judgement.advice.contains("hoist convert splits it"), "{judgement:?}");
    assert!(judgement.advice.contains("2.3 s at best"), "{judgement:?}");
    let mut alone = pull(9.0, Some(0.2), vec![made(1.7, Some(0.2))]);
    alone.machine.cores = 1;
    assert!(judged(&alone).advice.contains("a faster core"));
    // Several writers that compute.
    let judgement = of_layer(made(17.0, Some(1.0)));
    assert_eq!(judgement.bottleneck, Bottleneck::Unpack);
    assert!(!judgement.evidence.contains("one core"), "{judgement:?}");
    // Of a daemon that did not measure it: writers that were busy for a fifth of it waited for no more.
    let judgement = of_layer(made(1.7, None));
    assert_eq!(judgement.bottleneck, Bottleneck::Unpack);
    assert!(
        judgement.evidence.contains("its writers were busy for 1.7 s of that"),
        "{judgement:?}"
    );
    let mut busy = pull(9.0, Some(0.2), vec![made(1.7, Some(0.2))]);
    busy.machine.busy_share = Some(0.97);
    assert_eq!(judged(&busy).bottleneck, Bottleneck::Cpu, "others' load");
}

#[test]
fn the_limits_of_the_configuration() {
    // Four connections that were kept from reading most of the time.
    let mut held = busy_layer(0.2, 9.0, [0.1, 0.9, 0.2, 0.8, 0.5, 0.4], [0.0, 0.0, 9.0, 8.0, 8.2]);
    assert_eq!(of_layer(held.clone()).bottleneck, Bottleneck::Network, "before it is told");
    held.stalls.push(StallReport { stall: Stall::Bandwidth, seconds: 30.0 });
    let limit = Limit { stall: Stall::Bandwidth, bytes_per_second: 50_000_000, registry: None };
    held.limits.push(limit.clone());
    let judgement = of_layer(held.clone());
    assert_eq!(judgement.bottleneck, Bottleneck::BandwidthLimit);
    let says = "the bandwidth limit of 50.0 MB/s in hoist.toml let layer";
    assert!(judgement.evidence.starts_with(says), "{judgement:?}");
    assert!(judgement.advice.contains("fetch.bandwidth"), "{judgement:?}");
    held.limits[0] = Limit { registry: Some("docker.io".to_owned()), ..limit };
    let judgement = of_layer(held.clone());
    assert!(judgement.evidence.contains("in hoist.toml for docker.io let"), "{judgement:?}");
    let key = r#"bandwidth of [fetch.registries."docker.io"]"#;
    assert!(judgement.advice.contains(key), "{judgement:?}");
    // A limit that hardly held anything up is not the bottleneck.
    held.stalls.last_mut().unwrap().seconds = 0.3;
    assert_eq!(of_layer(held).bottleneck, Bottleneck::Network);

    // The unpacker had all it wanted, and its writers had leave to write only now and then.
    let mut slow = busy_layer(0.2, 9.0, [0.1, 2.0, 0.2, 0.5, 0.5, 1.0], [0.0, 0.0, 0.0, 0.3, 0.2]);
    slow.stalls.push(StallReport { stall: Stall::DiskRate, seconds: 7.0 });
    let limit = Limit { stall: Stall::DiskRate, bytes_per_second: 35_000_000, registry: None };
    slow.limits.push(limit);
    let judgement = of_layer(slow.clone());
    assert_eq!(judgement.bottleneck, Bottleneck::DiskLimit);
    assert!(judgement.evidence.contains("limit of 35.0 MB/s in hoist.toml"), "{judgement:?}");
    assert!(judgement.advice.contains("limits.disk_rate"), "{judgement:?}");
    slow.stalls.last_mut().unwrap().seconds = 0.3;
    slow.stalls.push(StallReport { stall: Stall::Disk, seconds: 7.0 });
    assert_eq!(of_layer(slow).bottleneck, Bottleneck::Disk);
}

#[test]
fn the_hashes() {
    let mut plain =
        busy_layer(0.2, 9.0, [0.1, 2.0, 0.2, 0.5, 11.0, 1.0], [0.0, 0.0, 0.0, 0.3, 7.0]);
    plain.stalls.push(StallReport { stall: Stall::Hash, seconds: 8.0 });
    let judgement = of_layer(plain);
    assert_eq!(judgement.bottleneck, Bottleneck::Hash);
    assert!(judgement.evidence.contains("waited 8.0 s of 9.0 s"), "{judgement:?}");
}

#[test]
fn what_is_outside_of_layers() {
    let manifest = judged(&pull(2.0, Some(1.5), vec![layer(1.5, 2.0)]));
    assert_eq!(manifest.bottleneck, Bottleneck::Resolve);
    let waiting = judged(&pull(9.0, Some(0.1), vec![layer(0.1, 2.0)]));
    assert_eq!(waiting.bottleneck, Bottleneck::Containerd);
    assert!(waiting.evidence.contains("7.0 s of 9.0 s"), "{waiting:?}");
    for (admission, expected) in [(0.0, Bottleneck::Queue), (6.0, Bottleneck::Memory)] {
        let mut queued = busy_layer(7.0, 9.0, [0.1; 6], [admission, 0.0, 0.0, 0.1, 0.1]);
        queued.phases.insert(0, phase(Phase::Wait, 0.1, 7.0));
        assert_eq!(judged(&pull(9.0, Some(0.1), vec![queued])).bottleneck, expected);
    }
}

#[test]
fn nothing_done_is_not_judged_and_a_failure_is() {
    assert_eq!(judge(&pull(0.0, None, vec![])), None);
    let mut report = example();
    report.state = PullState::Failed("why".to_owned());
    report.layers[2].state = LayerState::Failed("why".to_owned());
    assert!(judge(&report).is_some());
}

#[test]
fn a_record_of_an_older_daemon_is_read() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let report: PullReport = serde_json::from_value(serde_json::json!({
        "id": 1, "image": "i", "manifest": null, "began_unix_seconds": 1.0, "seconds": 2.5,
        "resolve_seconds": 0.25, "state": {"is": "done"},
        "layers": [{"digest": digest, "diff_id": digest, "media_type": "m", "size": 10,
            "state": {"is": "done"}, "host": null, "retries": 0, "entries": 0,
            "phases": [{"phase": "write", "begin_seconds": 1.0, "end_seconds": 1.5,
                        "busy_seconds": 0.75, "bytes": 100}]}]
    }))
    .unwrap();
    assert_eq!(report.version, 1);
    assert!(judge(&report).is_some());
}
