//! What stands in a directory, noted entry by entry, and compared later.
//!
//! A listing is JSON, one line an entry, a directory's entries by name behind the directory: path, mode, owner,
//! device, size, time, a digest of the extended attributes, and of a file the digest of its content or
//! of a link where it leads. Paths are relative, with odd bytes escaped as in Rust's literals. What an
//! image's layer needs not be the same for (link counts, access times, sizes of directories) is not noted.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, BufRead, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::hashing::Hasher;
use crate::sys::xattrs;

/// Read at once of a file.
const READ_BYTES: usize = 256 << 10;

/// How closely is looked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// At everything but the content of files: no file is read.
    Metadata,
    /// At the content too.
    Content,
}

/// How much was noted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Noted {
    /// Entries, the directory itself included.
    pub entries: u64,
    /// Bytes in files.
    pub bytes: u64,
}

/// A place where something else stands than was noted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Where, as in the listing; "." is the directory itself.
    pub path: String,
    /// What is wrong.
    pub what: String,
}

/// Why a listing could not be made or compared.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// The directory itself cannot be looked at.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The listing cannot be written or read.
    #[error("the listing: {0}")]
    Listing(io::Error),
    /// A line of it is none.
    #[error("the listing, line {line}: {source}")]
    Line {
        /// From 1.
        line: usize,
        /// What the parser says.
        source: serde_json::Error,
    },
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Entry {
    path: String,
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u64,
    size: u64,
    /// Seconds and nanoseconds.
    mtime: (i64, i64),
    #[serde(default, skip_serializing_if = "Option::is_none")]
    xattrs: Option<String>,
    /// A file's digest, or where a link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

/// Notes what stands in `root` into `out`. Reads every byte.
///
/// # Errors
/// What cannot be read or written.
pub fn note(root: &Path, mut out: impl Write) -> Result<Noted, ListingError> {
    let mut noted = Noted::default();
    walk(root, &mut |relative, path| {
        let entry = look(relative, path, Depth::Content).map_err(failed(path))?;
        noted.entries += 1;
        noted.bytes += if entry.mode & libc::S_IFMT == libc::S_IFREG { entry.size } else { 0 };
        let line = serde_json::to_string(&entry).expect("strings and numbers");
        writeln!(out, "{line}").map_err(ListingError::Listing)
    })?;
    out.flush().map_err(ListingError::Listing)?;
    Ok(noted)
}

/// Compares what stands in `root` with a listing of it, and gives the differences by path.
///
/// # Errors
/// Where the listing cannot be read, or `root` not be looked at. What is in it and cannot be read is a
/// difference.
pub fn compare(
    root: &Path,
    listing: impl BufRead,
    depth: Depth,
) -> Result<Vec<Difference>, ListingError> {
    let mut expected = BTreeMap::new();
    for (number, line) in listing.lines().enumerate() {
        let line = line.map_err(ListingError::Listing)?;
        let entry: Entry = serde_json::from_str(&line)
            .map_err(|source| ListingError::Line { line: number + 1, source })?;
        expected.insert(entry.path.clone(), entry);
    }
    let mut differences = Vec::new();
    let mut differs = |path: String, what: String| differences.push(Difference { path, what });
    walk(root, &mut |relative, path| {
        let name = named(relative);
        match (expected.remove(&name), look(relative, path, depth)) {
            (None, _) => differs(name, "nobody put it there".to_owned()),
            (Some(_), Err(error)) => differs(name, error.to_string()),
            (Some(before), Ok(now)) => {
                if let Some(what) = changed(&before, &now, depth) {
                    differs(name, what);
                }
            }
        }
        Ok(())
    })?;
    for path in expected.into_keys() {
        differs(path, "is missing".to_owned());
    }
    differences.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(differences)
}

/// What of an entry changed, if anything did.
fn changed(before: &Entry, now: &Entry, depth: Depth) -> Option<String> {
    let kind = |entry: &Entry| entry.mode & libc::S_IFMT;
    if kind(before) != kind(now) {
        return Some("is of another type".to_owned());
    }
    if before.size != now.size {
        return Some(format!("has {} bytes instead of {}", now.size, before.size));
    }
    let is_file = kind(before) == libc::S_IFREG;
    if before.content != now.content && (depth == Depth::Content || !is_file) {
        return Some("has another content".to_owned());
    }
    let pairs = [
        (before.mode == now.mode, "another mode"),
        ((before.uid, before.gid) == (now.uid, now.gid), "another owner"),
        (before.rdev == now.rdev, "another device number"),
        (before.xattrs == now.xattrs, "other extended attributes"),
        (before.mtime == now.mtime, "another time"),
    ];
    pairs.iter().find(|(same, _)| !same).map(|(_, what)| format!("has {what}"))
}

type Visit<'a> = dyn FnMut(&Path, &Path) -> Result<(), ListingError> + 'a;

/// Visits everything in `root`, itself first, with relative and whole path.
fn walk(root: &Path, visit: &mut Visit<'_>) -> Result<(), ListingError> {
    let mut waiting = vec![PathBuf::new()];
    while let Some(relative) = waiting.pop() {
        let path =
            if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(&relative) };
        visit(&relative, &path)?;
        let is_directory = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        if is_directory || relative.as_os_str().is_empty() {
            let entries = fs::read_dir(&path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            let entries = entries.map_err(failed(&path))?;
            let mut names: Vec<_> = entries.iter().map(fs::DirEntry::file_name).collect();
            // The last is taken first.
            names.sort_by(|one, other| other.cmp(one));
            waiting.extend(names.iter().map(|name| relative.join(name)));
        }
    }
    Ok(())
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> ListingError {
    let path = path.to_owned();
    move |source| ListingError::Io { path, source }
}

fn named(relative: &Path) -> String {
    match relative.as_os_str().as_bytes() {
        b"" => ".".to_owned(),
        bytes => bytes.escape_ascii().to_string(),
    }
}

/// One entry; without reading a file where only `depth` Metadata is wanted.
fn look(relative: &Path, path: &Path, depth: Depth) -> io::Result<Entry> {
    let metadata = path.symlink_metadata()?;
    let content = if metadata.is_symlink() {
        let target = fs::read_link(path)?;
        Some(target.as_os_str().as_bytes().escape_ascii().to_string())
    } else if metadata.is_file() && depth == Depth::Content {
        Some(digest(path)?)
    } else {
        None
    };
    Ok(Entry {
        path: named(relative),
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: metadata.rdev(),
        size: if metadata.is_dir() { 0 } else { metadata.size() },
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        xattrs: attributes(path)?,
        content,
    })
}

fn digest(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish().hex()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// A digest of all extended attributes; `None` where there are none.
fn attributes(path: &Path) -> io::Result<Option<String>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut names = xattrs::list_path(&path)?;
    if names.is_empty() {
        return Ok(None);
    }
    names.sort();
    let mut hasher = Hasher::default();
    for name in names {
        let value = xattrs::get_path(&path, &name)?.unwrap_or_default();
        // Lengths before both, so that no two sets are the same bytes.
        for part in [name.as_bytes(), &value] {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
    }
    Ok(Some(hasher.finish().hex()))
}

#[cfg(test)]
mod tests;
