//! What can go wrong in this room; `service.rs` turns each into a gRPC status.

use std::io;
use std::path::PathBuf;

use crate::pull::trees::TreeId;

/// Why a call of the snapshotter failed.
///
/// containerd and its test suite look for some of the words, so texts are part of the contract.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No snapshot of this name or key.
    #[error("snapshot {0:?} does not exist: not found")]
    Missing(String),
    /// The parent is not there.
    #[error("parent {0:?} does not exist: not found")]
    ParentMissing(String),
    /// The name or key is in use.
    #[error("snapshot {0:?}: already exists")]
    Taken(String),
    /// The layer asked for stands as a committed snapshot: containerd has nothing to do.
    #[error("layer {chain_id} is present: already exists")]
    Present {
        /// The ChainID that containerd asked for.
        chain_id: String,
    },
    /// Only committed snapshots can be parents.
    #[error("parent {0:?} is not a committed snapshot: invalid argument")]
    ParentNotCommitted(String),
    /// A key or name without any letter.
    #[error("a snapshot needs a name that is not empty: invalid argument")]
    EmptyName,
    /// Update of something that cannot be changed.
    #[error("cannot update field {field:?} of snapshot {name:?}: invalid argument")]
    Immutable {
        /// The path in the field mask.
        field: String,
        /// The snapshot.
        name: String,
    },
    /// Others build on it.
    #[error("cannot remove snapshot {0:?} with child: failed precondition")]
    HasChildren(String),
    /// Commit of something that is not active.
    #[error("snapshot {0:?} is not active: failed precondition")]
    NotActive(String),
    /// Mounts of a committed snapshot.
    #[error("snapshot {0:?} is not active or view: failed precondition")]
    NotMountable(String),
    /// Another process uses this hoistd.
    #[error(
        "this hoistd serves the process {holder}, and the call is from {caller}: two containerds would remove each \
         other's layers. Give the second a hoistd of its own, with another root and socket (docs/hosts/coexistence.md): \
         permission denied"
    )]
    OtherCaller {
        /// Who was there first: process id and program.
        holder: String,
        /// Who calls.
        caller: String,
    },
    /// A filter of List that cannot be read.
    #[error("filter {filter:?}: {reason}: invalid argument")]
    Filter {
        /// The filter as it came.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A label that maps user or group ids cannot be read.
    #[error(
        "label {label} = {value:?}: {reason}; expected container:host:size, such as 0:100000:65536"
    )]
    Mapping {
        /// The label's key.
        label: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A container's users are mapped, and its layers are images.
    #[error(
        "snapshot {key:?} is for mapped users, and layer {tree} is an EROFS image: containerd shifts the directory that \
         layers lie in without what is mounted there, and the container would be without files. Set pull.backend = \
         \"overlay\" in hoist.toml, restart hoistd, and remove and pull the image again: failed precondition"
    )]
    MappedImage {
        /// The snapshot that was asked for.
        key: String,
        /// One of the layers.
        tree: TreeId,
    },
    /// The layer could not be provided, and the configuration says to fail then.
    #[error("layer {chain_id} of {image}: {message}")]
    Layer {
        /// The ChainID that containerd asked for.
        chain_id: String,
        /// The image's reference.
        image: String,
        /// What failed and what to do.
        message: String,
    },
    /// The pull took longer than it may.
    #[error(
        "layer {chain_id} of {image} was not there after {seconds} s; raise the deadline of a pull or look at the registry"
    )]
    Late {
        /// The ChainID that containerd asked for.
        chain_id: String,
        /// The image's reference.
        image: String,
        /// The deadline, in seconds.
        seconds: u64,
    },
    /// The pull was cancelled, or the daemon goes down.
    #[error("the pull of layer {chain_id} of {image} was cancelled; pull again")]
    Cancelled {
        /// The ChainID that containerd asked for.
        chain_id: String,
        /// The image's reference.
        image: String,
    },
    /// A tree that a snapshot was to be put down for is gone.
    #[error("layer tree {tree} was swept meanwhile; fetch the image again")]
    Swept {
        /// The tree.
        tree: TreeId,
    },
    /// Another daemon works in this directory.
    #[error("{0} is in use by another hoistd; stop it or choose another root")]
    Locked(PathBuf),
    /// The metadata was written by a newer hoist.
    #[error(
        "the metadata has format {found}, this hoist knows up to {known}: it was written by a newer hoist; use that one"
    )]
    Newer {
        /// The format that was found.
        found: i64,
        /// The newest format that is understood.
        known: i64,
    },
    /// The file system cannot carry overlay layers.
    #[error(
        "{0} is on a file system without d_type, on which overlay cannot work; for XFS format it with ftype=1"
    )]
    NoDirectoryTypes(PathBuf),
    /// Layers have to be images, and cannot be.
    #[error(
        "layers cannot be EROFS images here: {reason}; set pull.backend to \"auto\" or \"overlay\""
    )]
    NoImages {
        /// What lacks.
        reason: String,
    },
    /// A layer that is an image is not mounted, and may not be.
    #[error("the layer's image {} is not mounted: {reason}; mend that, or remove the image of containers and pull it again", image.display())]
    NotMounted {
        /// The image's file.
        image: PathBuf,
        /// What is in the way.
        reason: String,
    },
    /// The database refused.
    #[error("snapshot metadata: {0}")]
    Database(#[from] rusqlite::Error),
    /// The file system refused.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The gRPC server on the socket failed.
    #[error("serving containerd: {0}")]
    Serve(String),
    /// Work in the background ended early, because the daemon goes down or because of a defect.
    #[error("the daemon is going down or a task of it failed: {0}")]
    Task(String),
}

impl Error {
    /// An adapter for `map_err`: `doing` something with `path` failed.
    pub(super) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
