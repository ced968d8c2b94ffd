//! Where an entry's name leads below a layer's root.
//!
//! A name is cleaned as text, as if the layer were all there is: `a//b/./c/../d`, `/a/b/d` and
//! `../a/b/d` are all `a/b/d`. So no name leads outside; what a symbolic link on the way does to it
//! is the unpacker's business.

use std::ffi::{CString, OsStr};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Marks a name that hides one of a lower layer (OCI image specification, layer.md).
const WHITEOUT: &[u8] = b".wh.";

/// Marks a directory that hides the lower layers' directory of its name.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A path below a layer's root: relative, cleaned, without `.`, `..` and empty parts; the root
/// itself is empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LayerPath(Box<[u8]>);

impl fmt::Debug for LayerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl LayerPath {
    /// Cleans `name`.
    pub fn clean(name: &[u8]) -> Self {
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in name.split(|&b| b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop();
                }
                part => parts.push(part),
            }
        }
        Self(parts.join(&b'/').into())
    }

    /// Whether it is the root itself.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes, parts joined by `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a relative path of the operating system; the root is the empty path.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The directory it is in, and its name there; `None` for the root.
    pub fn split(&self) -> Option<(Self, &[u8])> {
        if self.is_root() {
            return None;
        }
        let slash = self.0.iter().rposition(|&b| b == b'/');
        Some(match slash {
            Some(at) => (Self(self.0[..at].into()), &self.0[at + 1..]),
            None => (Self::default(), &self.0),
        })
    }

    /// The name `part` in it. `part` has no slash in it and is neither empty nor a dot name.
    pub fn join(&self, part: &[u8]) -> Self {
        debug_assert!(!part.is_empty() && !part.contains(&b'/'), "one part of a path");
        if self.is_root() {
            return Self(part.into());
        }
        Self([&self.0, part].join(&b'/').into())
    }

    /// Its parts, outermost first.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|part| !part.is_empty())
    }
}

/// What an entry does at the place that its name leads to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// It names the root, whose metadata are not the archive's to say.
    Root,
    /// It puts something there.
    Put {
        /// The directory.
        parent: LayerPath,
        /// The name in it.
        name: CString,
    },
    /// It hides what lower layers have there.
    Whiteout {
        /// The directory.
        parent: LayerPath,
        /// The name in it that is hidden.
        name: CString,
    },
    /// It hides all that lower layers have in a directory.
    Opaque(LayerPath),
}

/// Why a name leads nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PathError {
    /// A whiteout of `.`, `..` or nothing.
    #[error("a whiteout that names no file")]
    Whiteout,
    /// A zero byte inside.
    #[error("a zero byte in the name")]
    Nul,
}

/// Where `name` leads. Only its last part can be a whiteout, whatever the entry's kind.
///
/// # Errors
/// For a whiteout that hides no name, and for a name with a zero byte.
pub fn place(name: &[u8]) -> Result<Place, PathError> {
    let path = LayerPath::clean(name);
    let Some((parent, base)) = path.split() else { return Ok(Place::Root) };
    if base == OPAQUE {
        return Ok(Place::Opaque(parent));
    }
    let owned = |part: &[u8]| CString::new(part).map_err(|_| PathError::Nul);
    match base.strip_prefix(WHITEOUT) {
        Some(b"" | b"." | b"..") => Err(PathError::Whiteout),
        Some(hidden) => Ok(Place::Whiteout { name: owned(hidden)?, parent }),
        None => Ok(Place::Put { name: owned(base)?, parent }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_inside_the_root() {
        for (name, cleaned) in [
            ("./", ""),
            ("", ""),
            ("..", ""),
            ("../..", ""),
            ("a/..", ""),
            ("./a", "a"),
            ("/etc/passwd", "etc/passwd"),
            ("../../etc/passwd", "etc/passwd"),
            ("a//b/./c/../d/", "a/b/d"),
            ("a/../../b", "b"),
            ("...", "..."),
        ] {
            assert_eq!(LayerPath::clean(name.as_bytes()).as_bytes(), cleaned.as_bytes(), "{name}");
        }
    }

    #[test]
    fn whiteouts_are_told_by_the_last_part() {
        let put = |parent: &str, name: &str| Place::Put {
            parent: LayerPath::clean(parent.as_bytes()),
            name: CString::new(name).unwrap(),
        };
        let out = |parent: &str, name: &str| Place::Whiteout {
            parent: LayerPath::clean(parent.as_bytes()),
            name: CString::new(name).unwrap(),
        };
        for (name, expected) in [
            ("a/b", Ok(put("a", "b"))),
            ("a/.wh.b", Ok(out("a", "b"))),
            (".wh.b/", Ok(out("", "b"))),
            ("a/.wh..wh..opq", Ok(Place::Opaque(LayerPath::clean(b"a")))),
            ("a/.wh..wh.plnk", Ok(out("a", ".wh.plnk"))),
            ("a/.wh.b/c", Ok(put("a/.wh.b", "c"))),
            ("a/.wh.", Err(PathError::Whiteout)),
            ("a/.wh..", Err(PathError::Whiteout)),
            ("a/.wh...", Err(PathError::Whiteout)),
            ("a/.wh....", Ok(out("a", "..."))),
            ("a/.", Ok(put("", "a"))),
            ("/", Ok(Place::Root)),
        ] {
            assert_eq!(place(name.as_bytes()), expected, "{name}");
        }
        assert_eq!(place(b"a\0b"), Err(PathError::Nul));
    }
}
