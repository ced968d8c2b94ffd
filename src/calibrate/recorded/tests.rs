//! Records of known costs, and the rates that come back.

use proptest::prelude::*;

use super::*;
use crate::image::{BlobDigest, DiffId, Sha256};
use crate::timeline::{MachineReport, PhaseReport, VERSION};

fn phase(phase: Phase, begin: f64, end: f64, busy: f64, bytes: u64) -> PhaseReport {
    PhaseReport {
        phase,
        begin_seconds: begin,
        end_seconds: end,
        busy_seconds: busy,
        times: 1,
        bytes,
        samples: None,
    }
}

/// Seconds of the stages for a byte, and for a file.
#[derive(Clone, Copy, Debug)]
struct Costs {
    decompress: f64,
    hash: f64,
    write: f64,
    file: f64,
}

const COSTS: Costs = Costs { decompress: 8e-9, hash: 2e-9, write: 4e-9, file: 40e-6 };

#[allow(clippy::cast_precision_loss)]
fn layer(costs: Costs, size: u64, entries: u64, seconds: f64, connections: f64) -> LayerReport {
    let digest = Sha256::of(&size.to_le_bytes());
    let bytes = size as f64;
    LayerReport {
        digest: BlobDigest(digest),
        diff_id: DiffId(digest),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        size,
        state: LayerState::Done,
        joined: false,
        host: None,
        retries: 0,
        entries,
        phases: vec![
            phase(Phase::Download, 0.0, seconds, seconds * connections, size),
            phase(Phase::Decompress, 0.0, seconds, bytes * costs.decompress, size * 3),
            phase(Phase::Hash, 0.0, seconds, bytes * costs.hash, size * 4),
            phase(
                Phase::Write,
                0.0,
                seconds,
                bytes * costs.write + entries as f64 * costs.file,
                size * 3,
            ),
        ],
        stalls: Vec::new(),
        limits: Vec::new(),
    }
}

fn pull(id: u64, layers: Vec<LayerReport>) -> PullReport {
    let seconds =
        layers.iter().filter_map(LayerReport::work).map(|(_, end)| end).fold(0.0, f64::max);
    PullReport {
        version: VERSION,
        id,
        image: "registry.example/app:1.2".to_owned(),
        manifest: None,
        #[allow(clippy::cast_precision_loss)]
        began_unix_seconds: id as f64,
        seconds,
        resolve_seconds: Some(0.2),
        auth_seconds: None,
        trace_parent: None,
        state: PullState::Done,
        machine: MachineReport {
            cores: 4,
            connections: 8,
            chunk_bytes: 8 << 20,
            ..Default::default()
        },
        layers,
        judgement: None,
    }
}

proptest! {
    #[test]
    fn costs_come_back(
        decompress in 4e-9..20e-9_f64,
        hash in 1e-9..4e-9_f64,
        write in 1e-9..8e-9_f64,
        file in 5e-6..100e-6_f64,
    ) {
        let costs = Costs { decompress, hash, write, file };
        let reports = [pull(1, vec![
            layer(costs, 400_000_000, 2_000, 100.0, 1.0),
            layer(costs, 30_000_000, 20_000, 10.0, 1.0),
        ])];
        let found = recorded(&reports, "recorded").unwrap();
        let rates = &found.profile.rates;
        let slowest = decompress.max(hash).max(write);
        prop_assert!((rates.per_core.unwrap().0 * (decompress + hash + write) - 1.0).abs() < 0.02);
        prop_assert!((rates.extract.0 * slowest - 1.0).abs() < 0.02, "{:?}", rates);
        prop_assert!((rates.per_file.0 - file).abs() < 1e-6);
    }
}

#[test]
fn a_profile_follows_from_pulls_that_had_to_wait_for_the_link() {
    // Over 2 connections half as fast as over 4, and as fast over 8.
    let reports =
        [(8, 5.0, 2.0), (9, 2.5, 4.0), (10, 2.4, 8.0)].map(|(id, seconds, connections)| {
            pull(id, vec![layer(COSTS, 250_000_000, 100, seconds, connections)])
        });
    let found = recorded(&reports, "recorded").unwrap();
    let rates = &found.profile.rates;
    assert_eq!((found.pulls, found.layers, found.limit), (3, 3, Limit::Link));
    assert!((rates.download.0 / 104.2e6 - 1.0).abs() < 0.01, "{rates:?}");
    assert!((rates.per_connection.unwrap().0 / 25e6 - 1.0).abs() < 0.01, "{rates:?}");
    assert_eq!((rates.cores, rates.connections), (4, 8));
    assert!((rates.latency.0 - 0.2).abs() < 1e-9);
    assert_eq!(Profile::parse(&toml::to_string(&found.profile).unwrap()), Ok(found.profile));
}

#[test]
fn what_was_not_fetched_here_says_nothing() {
    assert_eq!(recorded(&[], "none"), None);
    let whole = || layer(COSTS, 250_000_000, 100, 5.0, 2.0);
    let spoilt: [fn(&mut PullReport); 5] = [
        |report| report.state = PullState::Failed("why".to_owned()),
        |report| report.layers[0].state = LayerState::Shared,
        |report| report.layers[0].joined = true,
        |report| report.layers[0].phases[0].bytes -= 1,
        |report| report.layers[0].media_type = "application/vnd.example".to_owned(),
    ];
    for spoil in spoilt {
        let mut report = pull(1, vec![whole()]);
        spoil(&mut report);
        assert_eq!(recorded(&[report], "none"), None);
    }
    assert!(recorded(&[pull(1, vec![whole()])], "one").is_some());
}

/// Two formats are not mixed: the one with more bytes is what the profile is of.
#[test]
fn the_format_of_most_bytes_counts() {
    let slow = Costs { decompress: 80e-9, ..COSTS };
    let mut zstd = layer(COSTS, 400_000_000, 100, 100.0, 1.0);
    zstd.media_type = "application/vnd.oci.image.layer.v1.tar+zstd".to_owned();
    let found =
        recorded(&[pull(1, vec![layer(slow, 300_000_000, 100, 100.0, 1.0), zstd])], "one").unwrap();
    assert_eq!((found.compression, found.layers), (Compression::Zstd, 1));
    assert!(found.profile.rates.extract.0 > 100e6, "{:?}", found.profile);
}

#[test]
fn spans_that_overlap_count_once() {
    assert!((covered(vec![(2.0, 3.0), (0.0, 1.0), (0.5, 1.5), (0.6, 0.7)]) - 2.5).abs() < 1e-9);
    assert!(covered(Vec::new()).abs() < 1e-9);
}

#[test]
fn equal_rows_leave_files_out() {
    assert_eq!(two_costs(&[[10.0, 1.0, 5.0], [20.0, 2.0, 10.0]]), (0.5, 0.0));
    assert_eq!(two_costs(&[]), (0.0, 0.0));
}
