//! A picture of a pull at one moment, as plain data. `docs/timeline.md` describes its JSON form.

use serde::{Deserialize, Serialize};

use super::Phase;
use crate::image::{BlobDigest, DiffId};

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
    /// Bytes that went through it.
    pub bytes: u64,
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
    /// The host that served it.
    pub host: Option<String>,
    /// Requests that had to be made again.
    pub retries: u64,
    /// Archive entries written.
    pub entries: u64,
    /// The phases that have begun.
    pub phases: Vec<PhaseReport>,
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
}

/// One pull.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PullReport {
    /// Its number, unique in the life of a daemon.
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
    /// How far it is.
    pub state: PullState,
    /// The layers, lowest first.
    pub layers: Vec<LayerReport>,
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
        self.layers.iter().filter_map(|layer| layer.phase(phase)).map(|p| p.busy_seconds).sum()
    }
}
