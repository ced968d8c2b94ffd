//! Who provides the layers of a pull; the daemon puts a puller behind this.

use std::path::PathBuf;

use futures_util::future::BoxFuture;

use crate::image::{BlobDigest, ChainId};
use crate::pull::trees::HeldTree;

/// A layer that a Prepare waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// containerd's namespace.
    pub namespace: String,
    /// The image's reference, as containerd resolved it.
    pub image: String,
    /// The manifest of the platform.
    pub manifest: BlobDigest,
    /// The layer's blob.
    pub layer: BlobDigest,
    /// The stack that ends with this layer.
    pub chain_id: ChainId,
    /// The root directories of the layers below, topmost first.
    pub parents: Vec<PathBuf>,
    /// The trace that the Prepare is part of (W3C `traceparent`), unchecked.
    pub trace_parent: Option<String>,
}

/// Why a claim brought no tree.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClaimError {
    /// Let containerd pull this layer itself.
    #[error("{reason}")]
    Fallback {
        /// What is missing.
        reason: String,
    },
    /// Fail the pull.
    #[error("{message}")]
    Failed {
        /// What failed, and what to do.
        message: String,
    },
    /// The job was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// Provides layer trees.
pub trait LayerSource: Send + Sync + 'static {
    /// Has the layer ready: published, its implied directories settled for `claim.parents`, and held
    /// until a snapshot refers to it. Dropping the future withdraws the claim.
    fn claim(&self, claim: Claim) -> BoxFuture<'static, Result<HeldTree, ClaimError>>;
}
