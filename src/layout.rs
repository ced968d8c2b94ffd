//! Images in files: OCI image layouts, as a directory or a tar archive of one, and `docker save`.
//!
//! A [`Layout`] reads: its members are files of a directory, or parts of one archive whose headers
//! are read once, so that any blob can be read without reading what lies before it. A [`Staging`]
//! writes: blobs are collected in a directory of its own, and only when all are there does the
//! index that names them change, by a rename. Whatever ends early leaves nothing behind.
//!
//! The form is that of the OCI image layout specification (image-layout.md); the tag is the
//! annotation `org.opencontainers.image.ref.name`, as containers/image writes it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::Value;

use crate::image::{BlobDigest, Sha256};

mod docker;
mod staging;

pub use docker::DockerImage;
pub use staging::Staging;

/// The most bytes of an index, manifest or configuration that are read: containerd's bound.
pub const DOCUMENT_BYTES_MOST: u64 = 8 << 20;

/// Members of an archive that are kept in memory: images have at most 128 layers, so thousands of
/// them are a mistake or an attack.
const MEMBERS_MOST: usize = 100_000;

/// Bytes that are read at once.
const PIECE_BYTES: usize = 256 << 10;

/// Where a tag stands in a layout's index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Why a layout cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The operating system refuses.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done, as "reading".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
    /// It is not an image in the form that was named.
    #[error("{}: {reason}", path.display())]
    Form {
        /// The directory or archive.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No image of this name.
    #[error("{} has no image {wanted:?}; it has {offered}", path.display())]
    NoTag {
        /// The directory or archive.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What is there.
        offered: String,
    },
    /// A blob that a manifest names is not there.
    #[error("{} does not have {name}", path.display())]
    Missing {
        /// The directory or archive.
        path: PathBuf,
        /// The blob.
        name: String,
    },
    /// A document is not the one that its digest names.
    #[error("{}: {expected} has other bytes, with the digest {actual}", path.display())]
    Digest {
        /// The directory or archive.
        path: PathBuf,
        /// Its name.
        expected: BlobDigest,
        /// What is there.
        actual: BlobDigest,
    },
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> LayoutError + 'a {
    move |source| LayoutError::Io { what, path: path.to_owned(), source }
}

/// Images that can be read.
#[derive(Debug)]
pub struct Layout {
    at: PathBuf,
    files: Files,
}

#[derive(Debug)]
enum Files {
    Directory,
    Archive { file: File, members: HashMap<Vec<u8>, Span> },
}

#[derive(Clone, Copy, Debug)]
struct Span {
    offset: u64,
    size: u64,
}

/// One file of a layout, read from its beginning.
#[derive(Debug)]
pub struct Member {
    file: File,
    offset: u64,
    left: u64,
    path: PathBuf,
}

impl Member {
    /// Bytes that were not read yet; at the beginning, its size.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Keeps only the bytes of `range` of those that are left.
    #[must_use]
    pub fn part(mut self, range: std::ops::Range<u64>) -> Self {
        let begin = range.start.min(self.left);
        self.offset += begin;
        self.left = range.end.min(self.left).saturating_sub(begin);
        self
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// What the operating system says; a file that has become shorter ends early.
    pub fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let mut buffer = vec![0; want];
        let count = self.file.read_at(&mut buffer, self.offset).map_err(|error| {
            io::Error::new(error.kind(), format!("reading {}: {error}", self.path.display()))
        })?;
        if count == 0 {
            let what = format!("{} ends too early", self.path.display());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        self.offset += count as u64;
        self.left -= count as u64;
        buffer.truncate(count);
        Ok(Some(Bytes::from(buffer)))
    }
}

impl Layout {
    /// A layout in a directory.
    ///
    /// # Errors
    /// Where there is none.
    pub fn open_directory(at: &Path) -> Result<Self, LayoutError> {
        let layout = Self { at: at.to_owned(), files: Files::Directory };
        if layout.read("index.json")?.is_none() {
            let reason = "it is no OCI image layout: it has no index.json".to_owned();
            return Err(layout.form(reason));
        }
        Ok(layout)
    }

    /// A layout, or what `docker save` writes, in a tar archive that is not compressed.
    ///
    /// # Errors
    /// Where it cannot be read or is no archive.
    pub fn open_archive(at: &Path) -> Result<Self, LayoutError> {
        let file = File::open(at).map_err(failed("opening", at))?;
        let reading = failed("reading the archive", at);
        let members = members(&file).map_err(reading)?;
        Ok(Self { at: at.to_owned(), files: Files::Archive { file, members } })
    }

    fn form(&self, reason: String) -> LayoutError {
        LayoutError::Form { path: self.at.clone(), reason }
    }

    /// Opens a file of the layout; `None` where there is none.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn member(&self, name: &str) -> Result<Option<Member>, LayoutError> {
        match &self.files {
            Files::Directory => {
                let path = self.at.join(name);
                let file = match File::open(&path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(failed("opening", &path)(error)),
                };
                let left = file.metadata().map_err(failed("reading", &path))?.len();
                Ok(Some(Member { file, offset: 0, left, path }))
            }
            Files::Archive { file, members } => {
                let Some(&Span { offset, size }) = members.get(name.as_bytes()) else {
                    return Ok(None);
                };
                let file = file.try_clone().map_err(failed("opening", &self.at))?;
                Ok(Some(Member { file, offset, left: size, path: self.at.clone() }))
            }
        }
    }

    /// A small file, whole.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, LayoutError> {
        let Some(mut member) = self.member(name)? else { return Ok(None) };
        if member.left > DOCUMENT_BYTES_MOST {
            let reason = format!("{name} is larger than {DOCUMENT_BYTES_MOST} bytes");
            return Err(self.form(reason));
        }
        let mut all = Vec::new();
        while let Some(piece) = member.next_piece().map_err(failed("reading", &self.at))? {
            all.extend_from_slice(&piece);
        }
        Ok(Some(all))
    }

    fn json(&self, name: &str) -> Result<Value, LayoutError> {
        let bytes = self
            .read(name)?
            .ok_or_else(|| LayoutError::Missing { path: self.at.clone(), name: name.to_owned() })?;
        serde_json::from_slice(&bytes)
            .map_err(|error| self.form(format!("{name} cannot be read: {error}")))
    }

    /// The digest of the manifest or index with this tag; without one, of the only one there is.
    ///
    /// # Errors
    /// Where there is no such image, or several to choose from.
    pub fn resolve(&self, tag: Option<&str>) -> Result<BlobDigest, LayoutError> {
        let index = self.json("index.json")?;
        let all = index["manifests"].as_array().cloned().unwrap_or_default();
        let name_of = |m: &Value| m["annotations"][REF_NAME].as_str().map(str::to_owned);
        let found: Vec<&Value> = match tag {
            Some(tag) => all.iter().filter(|m| name_of(m).as_deref() == Some(tag)).collect(),
            None => all.iter().collect(),
        };
        let [one] = found.as_slice() else {
            let names: Vec<_> = all.iter().filter_map(name_of).collect();
            return Err(LayoutError::NoTag {
                path: self.at.clone(),
                wanted: tag.unwrap_or("without a tag").to_owned(),
                offered: if names.is_empty() {
                    format!("{} without tags", all.len())
                } else {
                    names.join(", ")
                },
            });
        };
        let digest = one["digest"].as_str().unwrap_or_default();
        digest.parse().map_err(|error| self.form(format!("index.json: {error}")))
    }

    /// A manifest, index or configuration, verified.
    ///
    /// # Errors
    /// Where it is not there, or other bytes are.
    pub fn document(&self, digest: BlobDigest) -> Result<Vec<u8>, LayoutError> {
        let bytes = self.read(&blob_name(digest))?.ok_or_else(|| LayoutError::Missing {
            path: self.at.clone(),
            name: digest.to_string(),
        })?;
        let actual = BlobDigest(Sha256::of(&bytes));
        if actual != digest {
            return Err(LayoutError::Digest { path: self.at.clone(), expected: digest, actual });
        }
        Ok(bytes)
    }

    /// A blob, not verified: who reads it to its end does that.
    ///
    /// # Errors
    /// Where it is not there.
    pub fn blob(&self, digest: BlobDigest) -> Result<Member, LayoutError> {
        self.member(&blob_name(digest))?
            .ok_or_else(|| LayoutError::Missing { path: self.at.clone(), name: digest.to_string() })
    }
}

/// Where a blob lies in a layout.
fn blob_name(digest: BlobDigest) -> String {
    format!("blobs/sha256/{}", digest.0.hex())
}

/// Where the files of an archive lie in it. Symbolic links, by which old versions of `docker save`
/// named a layer twice, are followed once.
fn members(file: &File) -> io::Result<HashMap<Vec<u8>, Span>> {
    let mut members = HashMap::new();
    let mut links = Vec::new();
    let mut archive = tar::Archive::new(io::BufReader::new(file));
    for entry in archive.entries_with_seek()? {
        let mut entry = entry?;
        let name = clean(&entry.path_bytes());
        if entry.header().entry_type().is_file() {
            let span = Span { offset: entry.raw_file_position(), size: entry.size() };
            members.insert(name, span);
        } else if entry.header().entry_type().is_symlink() {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            links.push((name, target));
        }
        if members.len() + links.len() > MEMBERS_MOST {
            return Err(io::Error::other(format!("it has more than {MEMBERS_MOST} members")));
        }
        // What is skipped is sought over, not read.
        let _ = entry.read(&mut [])?;
    }
    for (name, target) in links {
        let parent = name.iter().rposition(|&b| b == b'/').map_or(&b""[..], |at| &name[..at]);
        let target = clean(&[parent, &target].join(&b'/'));
        if let Some(&span) = members.get(&target) {
            members.insert(name, span);
        }
    }
    Ok(members)
}

fn clean(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// Removes a directory that this process made and nobody else uses.
fn remove(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(directory = %directory.display(), %error, "a temporary directory stays");
    }
}

#[cfg(test)]
mod tests;
