//! How a root is kept, as an operator chose.

use std::time::Duration;

use super::timed::OnCall;
use crate::metrics::{FallbackMetrics, MetadataMetrics};

/// What to do when a layer is not there in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnLate {
    /// Answer with ordinary mounts: containerd pulls the layer itself.
    #[default]
    Fallback,
    /// Fail the Prepare.
    Fail,
}

/// What of a layer a power cut may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Sync {
    /// What the kernel has not written yet: files of a layer that is said to be there may be empty.
    #[default]
    None,
    /// Nothing: a layer is on disk before it is said to be there.
    Layer,
}

/// What the layers become that hoist unpacks. Those that stand stay what they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Backend {
    /// Images where this host can have them, else files.
    Auto,
    /// Files in a directory.
    #[default]
    Overlay,
    /// EROFS images, mounted.
    Erofs,
}

/// How a root is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a layer tree that nobody refers to stays after it was unpacked or asked for last, so
    /// that a pull which was interrupted finds it again. A tree whose last snapshot is removed goes
    /// at once.
    pub grace: Duration,
    /// How long a Prepare waits for its layer: containerd's garbage collector waits with it.
    pub claim_timeout: Duration,
    /// What happens then.
    pub on_late: OnLate,
    /// Whether layers are on disk when they are told to be there.
    pub sync: Sync,
    /// What layers become.
    pub backend: Backend,
    /// Is told how long each call of containerd took.
    pub on_call: OnCall,
    /// Where transactions of the metadata store are counted.
    pub metadata: MetadataMetrics,
    /// Where those layers are counted that were left to containerd before the source was asked, or
    /// although it was.
    pub fallbacks: FallbackMetrics,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(30),
            claim_timeout: Duration::from_secs(30 * 60),
            on_late: OnLate::default(),
            sync: Sync::default(),
            backend: Backend::default(),
            on_call: OnCall::default(),
            metadata: MetadataMetrics::default(),
            fallbacks: FallbackMetrics::default(),
        }
    }
}
