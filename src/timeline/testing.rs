//! Reports made by hand.

use super::*;
use crate::image::{BlobDigest, DiffId, Sha256};

pub(super) fn phase(phase: Phase, begin: f64, end: f64) -> PhaseReport {
    PhaseReport {
        phase,
        begin_seconds: begin,
        end_seconds: end,
        busy_seconds: end - begin,
        times: 1,
        bytes: 0,
        samples: None,
    }
}

/// A layer that was at work from `begin` to `end`, with figures that blame nobody.
pub(super) fn layer(begin: f64, end: f64) -> LayerReport {
    let digest = Sha256::of(format!("{begin} {end}").as_bytes());
    LayerReport {
        digest: BlobDigest(digest),
        diff_id: DiffId(digest),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        size: 100_000_000,
        state: LayerState::Done,
        joined: false,
        host: Some("registry.example".to_owned()),
        retries: 0,
        entries: 1000,
        phases: vec![
            phase(Phase::Connect, begin, begin + 0.01),
            phase(Phase::Download, begin, end),
        ],
        stalls: Vec::new(),
        limits: Vec::new(),
    }
}

pub(super) fn pull(seconds: f64, resolve: Option<f64>, layers: Vec<LayerReport>) -> PullReport {
    PullReport {
        version: VERSION,
        id: 17,
        image: "registry.example/app:1.2".to_owned(),
        manifest: None,
        began_unix_seconds: 1_790_000_000.0,
        seconds,
        resolve_seconds: resolve,
        auth_seconds: None,
        trace_parent: None,
        state: PullState::Done,
        machine: MachineReport {
            cores: 4,
            cpu_seconds: 1.0,
            busy_share: Some(0.3),
            connections: 8,
            chunk_bytes: 8 << 20,
            writers: 4,
            memory_bytes: 176 << 20,
        },
        layers,
        judgement: None,
    }
}

/// A layer of `begin` to `end` with busy times (connect, download, first byte, decompress, hash,
/// write) and stalls (admission, memory, connection, bytes, archive); all in seconds.
pub(super) fn busy_layer(begin: f64, end: f64, busy: [f64; 6], stalls: [f64; 5]) -> LayerReport {
    let [connect, download, first_byte, rest @ ..] = busy;
    let busy = [connect, first_byte, download].into_iter().chain(rest);
    let mut layer = layer(begin, end);
    layer.phases = Phase::ALL[2..8].iter().map(|&p| phase(p, begin, end)).collect();
    for (phase, busy) in layer.phases.iter_mut().zip(busy) {
        phase.busy_seconds = busy;
        phase.bytes = match phase.phase {
            Phase::Download => 100_000_000,
            Phase::Decompress | Phase::Write => 300_000_000,
            Phase::Hash => 400_000_000,
            _ => 0,
        };
    }
    let named = [Stall::Admission, Stall::Memory, Stall::Connection, Stall::Bytes, Stall::Archive];
    layer.stalls = named
        .into_iter()
        .zip(stalls)
        .map(|(stall, seconds)| StallReport { stall, seconds })
        .collect();
    layer
}

/// A pull with something of everything: a queue, a gzip layer that takes long, samples.
pub(super) fn example() -> PullReport {
    let small = busy_layer(0.3, 2.0, [0.1, 1.2, 0.3, 0.3, 0.2, 0.2], [0.0, 0.0, 0.0, 1.2, 1.4]);
    let mut large = busy_layer(0.3, 8.6, [0.1, 3.0, 0.2, 8.1, 1.6, 2.0], [0.0, 0.0, 0.0, 0.2, 7.0]);
    (large.size, large.retries) = (1_400_000_000, 2);
    large.phases[2].end_seconds = 7.0;
    large.phases[2].samples = Some(Samples {
        begin_seconds: 0.3,
        interval_seconds: 1.7,
        bytes: vec![400, 100, 300, 200],
    });
    large.phases.push(phase(Phase::Commit, 8.6, 8.8));
    let mut late = busy_layer(2.0, 3.0, [0.1, 0.4, 0.2, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.6, 0.7]);
    late.phases.insert(0, phase(Phase::Wait, 0.3, 2.0));
    let mut shared = layer(0.0, 0.0);
    (shared.state, shared.phases, shared.host) = (LayerState::Shared, Vec::new(), None);
    let mut pull = pull(9.0, Some(0.3), vec![shared, small, large, late]);
    pull.image = "registry.example/<app>&:1.2".to_owned();
    pull.judged()
}
