//! Why an image cannot be converted or compared.

use std::io;
use std::path::{Path, PathBuf};

use crate::containerd::ContainerdError;
use crate::fetch::FetchError;
use crate::image::{BlobDigest, ManifestError};
use crate::layout::LayoutError;
use crate::registry::RegistryError;
use crate::units::Size;

/// Why an image cannot be converted or compared.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// A name of an image that is none.
    #[error(
        "{name:?} names no image ({reason}): expected registry.example/repository:tag, oci:DIR[:TAG], \
         oci-archive:FILE[:TAG], docker-archive:FILE[:NAME] or containerd:NAME"
    )]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A layout or an archive cannot be read or written.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A registry does not give or take something.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// containerd does not give something.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// A blob could not be fetched.
    #[error("blob {blob}: {source}")]
    Fetch {
        /// The blob.
        blob: BlobDigest,
        /// What the fetch says.
        source: Box<FetchError>,
    },
    /// A manifest, index or configuration cannot be used.
    #[error("{image}: {source}")]
    Manifest {
        /// The image.
        image: String,
        /// What is wrong.
        source: Box<ManifestError>,
    },
    /// The source has other bytes than its manifest or its configuration names.
    #[error(
        "layer {layer} has {what} {actual}, and its image says {expected}; nothing was written"
    )]
    Mismatch {
        /// The layer.
        layer: String,
        /// "the digest", "the size" or "the DiffID".
        what: &'static str,
        /// What the image says.
        expected: String,
        /// What is there.
        actual: String,
    },
    /// A layer of a kind that has no files that could be read.
    #[error("layer {layer} has the media type {media_type:?}, which hoist cannot read")]
    Unsupported {
        /// The layer.
        layer: String,
        /// Its media type.
        media_type: String,
    },
    /// A layer's bytes do not arrive, or are no archive.
    #[error("layer {layer}: {source}")]
    Layer {
        /// The layer.
        layer: String,
        /// What the reader says.
        source: io::Error,
    },
    /// An entry of a layer that cannot be applied.
    #[error("layer {layer}, entry {entry:?}: {reason}")]
    Entry {
        /// The layer.
        layer: String,
        /// The entry's name.
        entry: String,
        /// Why not.
        reason: String,
    },
    /// An image that is no base of the source.
    #[error("--keep-base {base}: {reason}")]
    Base {
        /// The image.
        base: String,
        /// Why not.
        reason: &'static str,
    },
    /// What was asked for cannot be planned.
    #[error("no plan: {0}")]
    Plan(String),
    /// The disk refuses.
    #[error("{what} {}: {source}", path.display())]
    Disk {
        /// What was being done, as "writing".
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The disk has no room for what is made.
    #[error(
        "{}: {source}. Converting {} takes up to twice as much there, for the contents and the result: {way_out}",
        directory.display(), Size(source_bytes.div_ceil(1_000_000) as f64 * 1e6)
    )]
    Full {
        /// Where there is no room.
        directory: PathBuf,
        /// The source's compressed bytes.
        source_bytes: u64,
        /// What helps.
        way_out: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
    /// The result is not what the source was. This is a defect of hoist.
    #[error(
        "the result's file system differs from the source's, so it was not written; this is a defect of hoist. \
         {count} differences, the first: {first}"
    )]
    Differs {
        /// How many.
        count: usize,
        /// The first of them.
        first: String,
    },
    /// Somebody wants it no longer.
    #[error("interrupted")]
    Cancelled,
}

impl ConvertError {
    pub(super) fn disk(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Disk { what, path: path.to_owned(), source }
    }

    /// What is to be said where an error comes of a disk without room, and else the error itself.
    pub(super) fn or_full(self, directory: &Path, source_bytes: u64, to_registry: bool) -> Self {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        let source = match self {
            Self::Disk { source, .. } | Self::Layout(LayoutError::Io { source, .. })
                if matches!(source.kind(), StorageFull | QuotaExceeded) =>
            {
                source
            }
            other => return other,
        };
        let way_out = if to_registry {
            "make room, or name another place with --scratch"
        } else {
            "make room, or choose a destination that has it"
        };
        Self::Full { directory: directory.to_owned(), source_bytes, way_out, source }
    }

    /// An error that came through a reader: what it was, if it was one of these.
    pub(super) fn of_layer(layer: &str, source: io::Error) -> Self {
        match source.downcast::<Self>() {
            Ok(own) => own,
            Err(source) => Self::Layer { layer: layer.to_owned(), source },
        }
    }
}

impl From<RegistryError> for ConvertError {
    fn from(source: RegistryError) -> Self {
        Self::Registry(Box::new(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_room_is_told_with_the_way_out() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let told = |error: ConvertError, to_registry| {
            error.or_full(Path::new("/small"), 179_400_001, to_registry).to_string()
        };
        let disk = ConvertError::disk("writing", Path::new("a temporary file"))(full());
        let text = told(disk, false);
        for word in ["/small", "180MB", "no storage space", "a destination that has it"] {
            assert!(text.contains(word), "{text}");
        }
        let (what, path) = ("writing", PathBuf::from("/small/layer"));
        let layout = LayoutError::Io { what, path, source: full() };
        assert!(told(layout.into(), true).contains("--scratch"));
        let other = ConvertError::disk("writing", Path::new("here"));
        let denied = told(other(io::ErrorKind::PermissionDenied.into()), true);
        assert_eq!(denied, "writing here: permission denied");
    }
}
