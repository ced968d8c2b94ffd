//! The names of images: where one is or goes.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::ConvertError;
use crate::image::{Reference, ReferenceError};

/// Where an image is or goes, in the words of containers/image (containers-transports(5)).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// In a registry.
    Registry(Reference),
    /// In an OCI image layout: the directory and the tag.
    Directory(PathBuf, Option<String>),
    /// In an archive of an OCI image layout: the file and the tag.
    Archive(PathBuf, Option<String>),
    /// In an archive of `docker save`: the file and the image's name. Only to read.
    Docker(PathBuf, Option<String>),
    /// In containerd, by its name there. Only to read.
    Containerd(String),
}

impl FromStr for Place {
    type Err = ConvertError;

    fn from_str(name: &str) -> Result<Self, ConvertError> {
        let refuse =
            |reason: &str| ConvertError::Name { name: name.to_owned(), reason: reason.to_owned() };
        let file = |rest: &str| {
            let (path, tag) = rest.split_once(':').map_or((rest, None), |(p, t)| (p, Some(t)));
            if path.is_empty() || tag == Some("") {
                return Err(refuse("a path or a tag is empty"));
            }
            Ok((PathBuf::from(path), tag.map(str::to_owned)))
        };
        match name.split_once(':') {
            Some(("oci", rest)) => file(rest).map(|(path, tag)| Self::Directory(path, tag)),
            Some(("oci-archive", rest)) => file(rest).map(|(path, tag)| Self::Archive(path, tag)),
            Some(("containerd", "")) => Err(refuse("a name is empty")),
            Some(("containerd", rest)) => Ok(Self::Containerd(rest.to_owned())),
            Some(("docker-archive", rest)) => file(rest).map(|(path, tag)| Self::Docker(path, tag)),
            _ => {
                let name = name.strip_prefix("docker://").unwrap_or(name);
                name.parse()
                    .map(Self::Registry)
                    .map_err(|error: ReferenceError| refuse(&error.to_string()))
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path, tag) = match self {
            Self::Registry(reference) => return reference.fmt(f),
            Self::Containerd(name) => return write!(f, "containerd:{name}"),
            Self::Directory(path, tag) => ("oci", path, tag),
            Self::Archive(path, tag) => ("oci-archive", path, tag),
            Self::Docker(path, tag) => ("docker-archive", path, tag),
        };
        write!(f, "{transport}:{}", path.display())?;
        tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_shown() {
        for (name, shown) in [
            ("oci:a/b", "oci:a/b"),
            ("oci:/a:v1", "oci:/a:v1"),
            ("oci-archive:a.tar", "oci-archive:a.tar"),
            ("docker-archive:a.tar:x:1", "docker-archive:a.tar:x:1"),
            ("containerd:registry.example/a:v1", "containerd:registry.example/a:v1"),
            ("registry.example/a/b:v1", "registry.example/a/b:v1"),
            ("docker://registry.example/a/b:v1", "registry.example/a/b:v1"),
        ] {
            assert_eq!(name.parse::<Place>().unwrap().to_string(), shown);
        }
        for name in ["containerd:", "oci:", "oci::x", "oci:a:", "registry.example/a@sha256:x", ""] {
            let error = name.parse::<Place>().unwrap_err().to_string();
            assert!(error.contains("expected registry.example"), "{error}");
        }
    }
}
