//! What happened when in a pull.
//!
//! Every pull has a [`PullRecorder`] and every layer in it a [`LayerRecorder`]: counters that the
//! threads of a pull write without a lock, and a few samples of bytes over time. A [`PullReport`] is
//! a picture of them at one moment; it is what the log, the control API, the page and `hoist pulls`
//! show, and it is plain data (serde). [`History`] keeps the last ones, on disk for a daemon.
//!
//! For each phase there are three figures: when it first began, when it last ended (its *wall*
//! span, which may overlap with other phases'), and how long threads were *busy* in it. For the
//! places where one stage waits for another there is how long it waited (a [`Stall`]). From both
//! [`judge`] works out the bottleneck: the stage of a pipeline that is busy while those before it
//! wait for room and those behind it wait for bytes.
//!
//! ```text
//! recorder ─▶ report ─▶ path ─▶ judge ─▶ advice      what it was, and what would help
//!    │           ├────▶ waterfall, svg               what a person looks at
//!    ╰ samples   ╰────▶ trace                        what Perfetto opens
//! ```

mod advice;
mod blocked;
pub mod figures;
mod history;
mod judge;
pub mod path;
mod recorder;
mod records;
mod report;
mod samples;
pub mod svg;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod waterfall;

pub use blocked::{Blocked, Counting};
pub use history::{History, Keep};
pub use judge::{Bottleneck, Judgement, judge};
pub use recorder::{Bounds, LayerRecorder, PullRecorder, Timing};
pub use records::RecordsError;
pub use report::{
    LayerReport, LayerState, Limit, MachineReport, PhaseReport, PullReport, PullState, StallReport,
    VERSION,
};
pub use samples::{SAMPLES_MOST, Samples};

/// What a part of the pipeline can wait for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stall {
    /// The layer, to begin: for its share of the memory budget.
    Admission,
    /// Its next chunk, to be asked for: for the memory budget.
    Memory,
    /// A chunk that has its memory: for its turn among the connections.
    Connection,
    /// Bytes that have come: for the limit on bytes a second that was set.
    Bandwidth,
    /// The layer's decoder: for bytes from the registry.
    Bytes,
    /// The decoder and what is before it: for the hashes, which may fall behind only so far.
    Hash,
    /// The unpacker: for bytes of the archive.
    Archive,
    /// Its writers: for the limit on bytes a second that was set.
    DiskRate,
    /// The unpacker and its writers: for the disk, inside system calls.
    Disk,
}

impl Stall {
    /// All of them, in the order of a byte's way.
    pub const ALL: [Self; 9] = [
        Self::Admission,
        Self::Memory,
        Self::Connection,
        Self::Bandwidth,
        Self::Bytes,
        Self::Hash,
        Self::Archive,
        Self::DiskRate,
        Self::Disk,
    ];
}

/// The phases of a layer, in the order of a byte's way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// In the queue, before anything was asked of the registry.
    Wait,
    /// Answering the registry's challenge: credentials, a token service.
    Auth,
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
    pub const ALL: [Self; 9] = [
        Self::Wait,
        Self::Auth,
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
            Self::Auth => "auth",
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
