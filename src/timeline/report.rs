//! A picture of a pull at one moment, as plain data. `docs/timeline.md` describes its JSON form.

use serde::{Deserialize, Serialize};

use super::judge::Judgement;
use super::samples::Samples;
use super::{Phase, Stall};
use crate::image::{BlobDigest, DiffId};

/// The version of the form. It grows when a key changes its meaning or goes; a key that is new does
/// not count.
pub const VERSION: u32 = 1;

fn first_version() -> u32 {
    1
}

/// How far a pull is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is", content = "reason")]
pub enum PullState {
    /// Still at it.
    Running,
    /// All layers are there.
    Done,
    /// Some layers were left to containerd, for this reason.
    FellBack(String),
    /// It failed, for this reason.
    Failed(String),
    /// Nobody waited for it any more.
    Cancelled,
}

impl PullState {
    /// The words for it that people read.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::FellBack(_) => "fell back",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// How far a layer is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is", content = "reason")]
pub enum LayerState {
    /// In the queue.
    Waiting,
    /// Being fetched and unpacked.
    Running,
    /// Unpacked and verified.
    Done,
    /// It was there already, unpacked for another image.
    Shared,
    /// It failed, for this reason.
    Failed(String),
    /// Nobody waited for it any more.
    Cancelled,
}

impl LayerState {
    /// The word for it that people read.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
            Self::Shared => "shared",
            Self::Failed(_) => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One phase of one layer. Times are seconds since the pull began.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PhaseReport {
    /// Which.
    pub phase: Phase,
    /// When it first began.
    pub begin_seconds: f64,
    /// When it last ended.
    pub end_seconds: f64,
    /// How long threads or connections were busy in it; several at once add up.
    pub busy_seconds: f64,
    /// How many spans of work that was; for `connect`, the number of requests.
    #[serde(default)]
    pub times: u64,
    /// Bytes that went through it.
    pub bytes: u64,
    /// Those bytes over time, for download, decompress and write. Left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<Samples>,
}

impl PhaseReport {
    /// From its begin to its end, in seconds.
    pub fn span(&self) -> f64 {
        self.end_seconds - self.begin_seconds
    }
}

/// How long a part of the pipeline waited for another.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StallReport {
    /// For what.
    pub stall: Stall,
    /// How long; where several wait at once (chunks), their times add up.
    pub seconds: f64,
}

/// A limit on bytes a second that was set and that a layer waited for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Limit {
    /// Where: [`Stall::Bandwidth`] or [`Stall::DiskRate`].
    pub stall: Stall,
    /// What it allows.
    pub bytes_per_second: u64,
    /// The registry or mirror that it is for; `None`: for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
}

/// One layer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LayerReport {
    /// The blob.
    pub digest: BlobDigest,
    /// The uncompressed archive.
    pub diff_id: DiffId,
    /// The media type as the manifest has it.
    pub media_type: String,
    /// Compressed size in bytes.
    pub size: u64,
    /// How far it is.
    pub state: LayerState,
    /// Whether another pull had begun it. Phases that began before this pull are shown from 0 on.
    #[serde(default)]
    pub joined: bool,
    /// The host that served it.
    pub host: Option<String>,
    /// Requests that had to be made again.
    pub retries: u64,
    /// Archive entries written.
    pub entries: u64,
    /// The phases that have begun.
    pub phases: Vec<PhaseReport>,
    /// What it waited for.
    #[serde(default)]
    pub stalls: Vec<StallReport>,
    /// The limits among that, as they were last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
}

impl LayerReport {
    /// A phase's figures, if it has begun.
    pub fn phase(&self, phase: Phase) -> Option<&PhaseReport> {
        self.phases.iter().find(|p| p.phase == phase)
    }

    /// Bytes that went through a phase.
    pub fn bytes(&self, phase: Phase) -> u64 {
        self.phase(phase).map_or(0, |p| p.bytes)
    }

    /// How long it waited for something, in seconds.
    pub fn stall(&self, stall: Stall) -> f64 {
        self.stalls.iter().find(|s| s.stall == stall).map_or(0.0, |s| s.seconds)
    }

    /// The limit that it waited for there, if there was one.
    pub fn limit(&self, stall: Stall) -> Option<&Limit> {
        self.limits.iter().find(|limit| limit.stall == stall)
    }

    /// From its turn, or the first request if that was later, to the end of the last phase, in seconds since the
    /// pull began; `None` where nothing was done. What was fetched while it waited for its turn held
    /// nobody up.
    pub fn work(&self) -> Option<(f64, f64)> {
        let begin = self.asked_from()?;
        let end = self.busy().map(|p| p.end_seconds).reduce(f64::max)?;
        let turn = self.phase(Phase::Wait).map_or(begin, |wait| wait.end_seconds);
        Some((begin.max(turn.min(end)), end))
    }

    /// When the first request was made, in seconds since the pull began: for the head of a layer that waits
    /// before its turn. `None` where nothing was done.
    pub fn asked_from(&self) -> Option<f64> {
        self.busy().map(|p| p.begin_seconds).reduce(f64::min)
    }

    /// How long its bytes came, in seconds: where its head was there before its turn, without the pause
    /// between them.
    pub fn downloading(&self) -> Option<f64> {
        let download = self.phase(Phase::Download)?;
        let (begin, end) = (download.begin_seconds, download.end_seconds);
        let turn = self.work().map_or(begin, |(turn, _)| turn);
        Some(if turn < end { end - begin.max(turn) } else { end - begin })
    }

    fn busy(&self) -> impl Iterator<Item = &PhaseReport> {
        self.phases.iter().filter(|p| p.phase != Phase::Wait)
    }
}

/// What the pull could use, and what the processors did meanwhile. Zero where it is not known.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineReport {
    /// Processors that the process may use.
    pub cores: usize,
    /// Processor seconds of the whole process during the pull, other pulls' too.
    pub cpu_seconds: f64,
    /// The share of all processors' time in which they did something, whoever for.
    pub busy_share: Option<f64>,
    /// Connections that the image could have at once.
    pub connections: usize,
    /// Bytes that one request asked for at most.
    pub chunk_bytes: u64,
    /// Threads that wrote the files of one layer.
    pub writers: usize,
    /// The memory budget that all pulls share.
    pub memory_bytes: u64,
}

/// One pull.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PullReport {
    /// The version of this form, [`VERSION`].
    #[serde(default = "first_version")]
    pub version: u32,
    /// Its number, unique among those that are kept.
    pub id: u64,
    /// The image reference.
    pub image: String,
    /// The manifest's digest, once known.
    pub manifest: Option<BlobDigest>,
    /// When it began, in seconds since 1970.
    pub began_unix_seconds: f64,
    /// How long it took, or has taken so far.
    pub seconds: f64,
    /// How long it took until manifest and configuration were known.
    pub resolve_seconds: Option<f64>,
    /// How much of that went into answering the registry's challenges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_seconds: Option<f64>,
    /// The caller's trace context (W3C `traceparent`), where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_parent: Option<String>,
    /// How far it is.
    pub state: PullState,
    /// What it could use.
    #[serde(default)]
    pub machine: MachineReport,
    /// The layers, lowest first.
    pub layers: Vec<LayerReport>,
    /// Where the time went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judgement: Option<Judgement>,
}

impl PullReport {
    /// Compressed bytes of all layers.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }

    /// Bytes that went through a phase, over all layers.
    pub fn bytes(&self, phase: Phase) -> u64 {
        self.layers.iter().map(|layer| layer.bytes(phase)).sum()
    }

    /// Busy seconds of a phase, over all layers.
    pub fn busy_seconds(&self, phase: Phase) -> f64 {
        // The sum of nothing is -0.0, which would be shown.
        self.layers.iter().filter_map(|l| l.phase(phase)).fold(0.0, |sum, p| sum + p.busy_seconds)
    }

    /// The same with the judgement that follows from it.
    #[must_use]
    pub fn judged(mut self) -> Self {
        self.judgement = super::judge(&self);
        self
    }

    /// The same without samples, which are most of it: for lists and logs.
    #[must_use]
    pub fn without_samples(mut self) -> Self {
        let phases = self.layers.iter_mut().flat_map(|layer| &mut layer.phases);
        phases.for_each(|phase| phase.samples = None);
        self
    }
}
