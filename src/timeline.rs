//! What happened when in a pull.
//!
//! Every pull has a [`PullRecorder`] and every layer in it a [`LayerRecorder`]: counters that the
//! threads of a pull write without a lock. A [`PullReport`] is a picture of them at one moment; it
//! is what the log, the control API and `hoist pulls` show, and it is plain data (serde).
//!
//! For each phase there are three figures: when it first began, when it last ended (its *wall*
//! span, which may overlap with other phases'), and how long threads were *busy* in it. A phase
//! whose busy time is close to its span is a bottleneck; one that is mostly idle waits for another.

mod history;
mod recorder;
mod report;

pub use history::History;
pub use recorder::{LayerRecorder, PullRecorder, Timing};
pub use report::{LayerReport, LayerState, PhaseReport, PullReport, PullState};

/// The phases of a layer, in the order of a byte's way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// In the queue, before anything was asked of the registry.
    Wait,
    /// Connecting and sending requests, until response headers arrived.
    Connect,
    /// From a request's sending to the first byte of its body.
    FirstByte,
    /// Receiving bodies.
    Download,
    /// Inflating.
    Decompress,
    /// Hashing, compressed and uncompressed bytes together.
    Hash,
    /// Creating and writing files.
    Write,
    /// Settling implied directories and recording the tree.
    Commit,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Self; 8] = [
        Self::Wait,
        Self::Connect,
        Self::FirstByte,
        Self::Download,
        Self::Decompress,
        Self::Hash,
        Self::Write,
        Self::Commit,
    ];

    /// The word for it in reports and in metrics' labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Connect => "connect",
            Self::FirstByte => "first_byte",
            Self::Download => "download",
            Self::Decompress => "decompress",
            Self::Hash => "hash",
            Self::Write => "write",
            Self::Commit => "commit",
        }
    }
}
