//! What the bottleneck of a pull was: a pure function of its report.
//!
//! Only the critical path counts. The time of a layer on it is given to the stage that was busy for
//! the largest part of it. For the decoder, which is one thread, that is its busy time; for the
//! network it is how long the decoder waited for bytes, for the hashes how long it waited for them,
//! and for the unpacker how long it did *not* wait for the archive: the stage before a bottleneck is
//! held up and the one behind it starves, so neither's own time says much. What the unpacker had then
//! is the disk's where that kept it waiting for most of it, and its own computing where not. Where
//! all processors were busy, no stage of its own was the bottleneck.

use serde::{Deserialize, Serialize};

use super::path::{self, Segment, Step};
use super::{LayerReport, MachineReport, Phase, PullReport, PullState, Stall, advice};

/// What held a pull up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bottleneck {
    /// The registry was slow with manifest or configuration.
    Resolve,
    /// Other pulls had all places for layers, or their share of the memory budget.
    Queue,
    /// The memory budget let too few requests be made at once.
    Memory,
    /// Requests waited long for the first byte of their answer.
    FirstByte,
    /// The limit on bytes a second that the configuration sets for fetching.
    BandwidthLimit,
    /// Bytes came slower than everything behind could take them.
    Network,
    /// One thread that inflates one layer.
    Decompression,
    /// The threads that hash all layers.
    Hash,
    /// One thread that makes one layer's files, or its image, computing.
    Unpack,
    /// The limit on bytes a second that the configuration sets for writing.
    DiskLimit,
    /// Whoever made files waited for the disk.
    Disk,
    /// All processors were busy.
    Cpu,
    /// The layers were there, and containerd had not asked for all of them.
    Containerd,
}

impl Bottleneck {
    /// All of them, in the order of a byte's way.
    pub const ALL: [Self; 13] = [
        Self::Resolve,
        Self::Queue,
        Self::Memory,
        Self::FirstByte,
        Self::BandwidthLimit,
        Self::Network,
        Self::Decompression,
        Self::Hash,
        Self::Unpack,
        Self::DiskLimit,
        Self::Disk,
        Self::Cpu,
        Self::Containerd,
    ];

    /// The word for it in reports and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Queue => "queue",
            Self::Memory => "memory",
            Self::FirstByte => "first_byte",
            Self::BandwidthLimit => "bandwidth_limit",
            Self::Network => "network",
            Self::Decompression => "decompression",
            Self::Hash => "hash",
            Self::Unpack => "unpack",
            Self::DiskLimit => "disk_limit",
            Self::Disk => "disk",
            Self::Cpu => "cpu",
            Self::Containerd => "containerd",
        }
    }
}

impl Bottleneck {
    /// The words for it that people read.
    pub fn words(self) -> &'static str {
        match self {
            Self::Resolve => "the manifest",
            Self::Queue => "the queue",
            Self::Memory => "the memory budget",
            Self::FirstByte => "latency (first bytes)",
            Self::BandwidthLimit => "the bandwidth limit",
            Self::Network => "the network",
            Self::Decompression => "decompression",
            Self::Hash => "hashing",
            Self::Unpack => "unpacking",
            Self::DiskLimit => "the limit on the disk",
            Self::Disk => "the disk",
            Self::Cpu => "the processors",
            Self::Containerd => "containerd",
        }
    }
}

/// The bottleneck of a pull, and what to do about it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Judgement {
    /// What it was.
    pub bottleneck: Bottleneck,
    /// How much of the pull's time it had, in seconds.
    pub seconds: f64,
    /// Why that is said: one sentence with its figures.
    pub evidence: String,
    /// What would help: one sentence.
    pub advice: String,
}

/// All processors are taken to be busy from this share on: something is always about to wait.
const CPU_SATURATED_SHARE: f64 = 0.85;

/// First bytes are the network's trouble if connections wait for them for this share of their time.
const LATENCY_SHARE: f64 = 0.5;

/// The disk is what held the making of files up if it kept them waiting for this share of it.
const DISK_SHARE: f64 = 0.5;

/// Parts of the critical path that one bottleneck has.
#[derive(Default)]
pub(super) struct Blame {
    pub(super) seconds: f64,
    /// The layer that it took longest with, and how long.
    pub(super) layer: Option<(usize, f64)>,
}

/// What the bottleneck was; `None` for a pull that has not done anything yet.
pub fn judge(report: &PullReport) -> Option<Judgement> {
    // What failed before there was a layer was not slow; the reason says it all.
    if matches!(report.state, PullState::Failed(_)) && report.layers.is_empty() {
        return None;
    }
    let path = path::critical(report);
    let mut blames: [Blame; Bottleneck::ALL.len()] = Default::default();
    for segment in &path {
        for (bottleneck, seconds, layer) in shares(report, segment) {
            let blame = &mut blames[bottleneck as usize];
            blame.seconds += seconds;
            if let Some(layer) = layer.filter(|_| blame.layer.is_none_or(|most| seconds > most.1)) {
                blame.layer = Some((layer, seconds));
            }
        }
    }
    let worst = Bottleneck::ALL
        .into_iter()
        .max_by(|one, other| {
            blames[*one as usize].seconds.total_cmp(&blames[*other as usize].seconds)
        })
        .filter(|worst| blames[*worst as usize].seconds > 0.0)?;
    let working: f64 = path
        .iter()
        .filter(|segment| matches!(segment.step, Step::Layer(_)))
        .map(Segment::seconds)
        .sum();
    let bottleneck = if is_cpu(worst, &report.machine, working) { Bottleneck::Cpu } else { worst };
    let blame = &blames[worst as usize];
    let seconds = if bottleneck == Bottleneck::Cpu { working } else { blame.seconds };
    let (evidence, advice) = advice::sentences(report, bottleneck, blame, working);
    Some(Judgement { bottleneck, seconds, evidence, advice })
}

fn shares(report: &PullReport, segment: &Segment) -> Vec<(Bottleneck, f64, Option<usize>)> {
    let seconds = segment.seconds();
    match segment.step {
        Step::Resolve => vec![(Bottleneck::Resolve, seconds, None)],
        Step::Containerd => vec![(Bottleneck::Containerd, seconds, None)],
        Step::Queue(index) => {
            let layer = &report.layers[index];
            let memory = layer.stall(Stall::Admission) > seconds / 2.0;
            let what = if memory { Bottleneck::Memory } else { Bottleneck::Queue };
            vec![(what, seconds, Some(index))]
        }
        Step::Layer(index) => {
            let layer = &report.layers[index];
            let commit = layer.phase(Phase::Commit).map_or(0.0, super::PhaseReport::span);
            let work = (seconds - commit).max(0.0);
            let stage = stage(layer, &report.machine, work);
            vec![(Bottleneck::Disk, commit.min(seconds), Some(index)), (stage, work, Some(index))]
        }
    }
}

/// The stage that was busy for the largest part of a layer's time.
fn stage(layer: &LayerReport, machine: &MachineReport, work: f64) -> Bottleneck {
    let starved = layer.stall(Stall::Bytes);
    let busy = |phase| layer.phase(phase).map_or(0.0, |p| p.busy_seconds);
    let unpacking = unpacking(layer, work);
    let stages = [
        (Bottleneck::Network, starved),
        (Bottleneck::Decompression, busy(Phase::Decompress)),
        (Bottleneck::Hash, layer.stall(Stall::Hash)),
        (making(layer, unpacking), unpacking),
    ];
    let most = stages.into_iter().max_by(|one, other| one.1.total_cmp(&other.1));
    match most.map_or(Bottleneck::Network, |(stage, _)| stage) {
        Bottleneck::Network => network(layer, machine, work),
        other => other,
    }
}

/// How long a layer's archive was there and its files were still to be made.
pub(super) fn unpacking(layer: &LayerReport, work: f64) -> f64 {
    let unpacks = layer.phase(Phase::Write).is_some();
    if unpacks { (work - layer.stall(Stall::Archive)).max(0.0) } else { 0.0 }
}

/// Why files took that long to be made.
fn making(layer: &LayerReport, unpacking: f64) -> Bottleneck {
    let writers = layer.phase(Phase::Write).map_or(0.0, |p| p.busy_seconds);
    if layer.stall(Stall::DiskRate) > writers {
        return Bottleneck::DiskLimit;
    }
    // A record of before this was measured says how long writers were at it, whatever with.
    let waited = for_disk(layer).unwrap_or(writers);
    // Several writers wait at once.
    let disk = waited > DISK_SHARE * writers.max(unpacking);
    if disk { Bottleneck::Disk } else { Bottleneck::Unpack }
}

/// How long those who made files waited for the disk; `None` in a record of before that was measured.
pub(super) fn for_disk(layer: &LayerReport) -> Option<f64> {
    layer.stalls.iter().find(|s| s.stall == Stall::Disk).map(|s| s.seconds)
}

/// Why bytes came late.
fn network(layer: &LayerReport, machine: &MachineReport, work: f64) -> Bottleneck {
    let starved = layer.stall(Stall::Bytes);
    // Connections that were kept waiting for longer than they waited for the other side.
    if layer.stall(Stall::Bandwidth) > connected(layer) {
        return Bottleneck::BandwidthLimit;
    }
    // Where chunks stand in line for a connection, more memory would lengthen the line only.
    let waits_for_connections = layer.stall(Stall::Connection) > layer.stall(Stall::Memory);
    let spare = machine.connections as f64 > 1.5 * at_once(layer, work);
    if layer.stall(Stall::Memory) > starved / 2.0 && spare && !waits_for_connections {
        return Bottleneck::Memory;
    }
    let first_byte = layer.phase(Phase::FirstByte).map_or(0.0, |p| p.busy_seconds);
    if first_byte > LATENCY_SHARE * connected(layer) {
        return Bottleneck::FirstByte;
    }
    Bottleneck::Network
}

/// Seconds that connections had a request under way, all added up.
pub(super) fn connected(layer: &LayerReport) -> f64 {
    let busy = |phase| layer.phase(phase).map_or(0.0, |p| p.busy_seconds);
    busy(Phase::Connect) + busy(Phase::Download)
}

/// How many connections it had at once, on average over its work.
pub(super) fn at_once(layer: &LayerReport, work: f64) -> f64 {
    if work > 0.0 { connected(layer) / work } else { 0.0 }
}

/// The share of the process's processors that it used itself while it worked.
#[allow(clippy::cast_precision_loss, reason = "a number of processors")]
pub(super) fn own_share(machine: &MachineReport, working: f64) -> f64 {
    let all = machine.cores as f64 * working;
    if all > 0.0 { machine.cpu_seconds / all } else { 0.0 }
}

/// Whether it was the processors after all. Bytes that others' work keeps from being read are still
/// the network's: only this process's own load makes that the processors'.
fn is_cpu(worst: Bottleneck, machine: &MachineReport, working: f64) -> bool {
    let own = own_share(machine, working) >= CPU_SATURATED_SHARE;
    let all = machine.busy_share.is_some_and(|share| share >= CPU_SATURATED_SHARE);
    match worst {
        Bottleneck::Decompression | Bottleneck::Hash | Bottleneck::Unpack | Bottleneck::Disk => {
            own || all
        }
        Bottleneck::Network | Bottleneck::FirstByte | Bottleneck::Memory => own,
        _ => false,
    }
}
