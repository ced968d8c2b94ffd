//! The media types of layers, OCI's and Docker's.

/// How a layer's archive is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// gzip (RFC 1952), of one member or several.
    Gzip,
    /// zstd (RFC 8878), of one frame or several.
    Zstd,
}

impl Compression {
    /// The word for it in reports and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// What a descriptor's media type says of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LayerKind {
    /// A tar archive that hoist can unpack.
    Tar(Compression),
    /// A layer that a registry does not have to serve (Windows base layers); containerd decides.
    Foreign,
    /// A media type that hoist does not know.
    Unknown,
}

impl LayerKind {
    /// Reads the media type of a layer's descriptor.
    pub fn of_media_type(media_type: &str) -> Self {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Self::Tar(Compression::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Self::Tar(Compression::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Self::Tar(Compression::Zstd),
            other if other.contains(".nondistributable.") || other.contains(".foreign.") => {
                Self::Foreign
            }
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_foreign_and_unknown() {
        let kind = LayerKind::of_media_type;
        assert_eq!(
            kind("application/vnd.oci.image.layer.v1.tar+zstd"),
            LayerKind::Tar(Compression::Zstd)
        );
        assert_eq!(
            kind("application/vnd.docker.image.rootfs.diff.tar.gzip"),
            LayerKind::Tar(Compression::Gzip)
        );
        assert_eq!(
            kind("application/vnd.oci.image.layer.v1.tar"),
            LayerKind::Tar(Compression::None)
        );
        assert_eq!(
            kind("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            LayerKind::Foreign
        );
        assert_eq!(
            kind("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
            LayerKind::Foreign
        );
        assert_eq!(kind("application/vnd.oci.image.layer.v1.tar+encrypted"), LayerKind::Unknown);
    }
}
