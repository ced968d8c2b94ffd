//! The last pulls' reports on disk: a file each, `DIR/ID.json`, the JSON of `docs/timeline.md`.
//!
//! A record is written aside and renamed into place, so that a reader finds all of it or nothing. It
//! is not synced: a record that a power failure takes is no loss, and a torn one is not read. The
//! oldest go when there are too many of them or too many bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::history::Keep;
use super::report::{PullReport, VERSION};

/// Why records cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot keep records of pulls in {}: {source}", path.display())]
pub struct RecordsError {
    path: PathBuf,
    source: io::Error,
}

/// Why one record is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is no record: {0}")]
    Form(#[from] serde_json::Error),
    #[error("it has version {0}, and this hoist reads up to version {VERSION}")]
    Version(u32),
    #[error("it is the record of pull {0}")]
    Id(u64),
}

/// A directory of records.
#[derive(Debug)]
pub(super) struct Records {
    directory: PathBuf,
    keep: Keep,
    /// Sizes by id.
    sizes: Mutex<BTreeMap<u64, u64>>,
}

impl Records {
    /// Opens the directory, makes it if it is not there, and reads what is in it, newest first.
    /// What cannot be read is told in the log and left alone until it is the oldest.
    pub(super) fn open(
        directory: &Path,
        keep: Keep,
    ) -> Result<(Self, Vec<PullReport>), RecordsError> {
        let failed = |source| RecordsError { path: directory.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let mut sizes = BTreeMap::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => {
                    if let Some(id) = id(&path) {
                        sizes.insert(id, entry.metadata().map_err(failed)?.len());
                    }
                }
                // Of a daemon that was killed while it wrote.
                Some("new") => fs::remove_file(&path).map_err(failed)?,
                _ => {}
            }
        }
        let records = Self { directory: directory.to_owned(), keep, sizes: Mutex::new(sizes) };
        records.drop_oldest();
        let ids: Vec<u64> = records.sizes().keys().rev().copied().collect();
        let reports = ids.into_iter().filter_map(|id| records.told(id)).collect();
        Ok((records, reports))
    }

    fn sizes(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, id: u64) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    /// The greatest id that a file has, readable or not.
    pub(super) fn last_id(&self) -> Option<u64> {
        self.sizes().keys().next_back().copied()
    }

    /// Writes a record; blocks for the time of a small file.
    pub(super) fn write(&self, report: &PullReport) -> io::Result<()> {
        let json = serde_json::to_vec(report).map_err(io::Error::other)?;
        let aside = self.directory.join(format!("{}.new", report.id));
        let written =
            fs::write(&aside, &json).and_then(|()| fs::rename(&aside, self.path(report.id)));
        if let Err(error) = written {
            // A full disk: what was begun must not take the rest of it.
            let _ = fs::remove_file(&aside);
            return Err(error);
        }
        self.sizes().insert(report.id, json.len() as u64);
        self.drop_oldest();
        Ok(())
    }

    /// Reads a record; `None`, told in the log, where it cannot be read.
    pub(super) fn told(&self, id: u64) -> Option<PullReport> {
        match self.read(id) {
            Ok(report) => Some(report),
            Err(error) => {
                let record = self.path(id).display().to_string();
                tracing::warn!(record, %error, "the record of a pull is ignored");
                None
            }
        }
    }

    fn read(&self, id: u64) -> Result<PullReport, Unreadable> {
        let text = fs::read(self.path(id))?;
        let version: Version = serde_json::from_slice(&text)?;
        if version.version > VERSION {
            return Err(Unreadable::Version(version.version));
        }
        let report: PullReport = serde_json::from_slice(&text)?;
        if report.id == id { Ok(report) } else { Err(Unreadable::Id(report.id)) }
    }

    fn drop_oldest(&self) {
        let mut sizes = self.sizes();
        while sizes.len() > self.keep.pulls || sizes.values().sum::<u64>() > self.keep.bytes {
            let Some((id, _)) = sizes.pop_first() else { return };
            if let Err(error) = fs::remove_file(self.path(id)) {
                let record = self.path(id).display().to_string();
                tracing::warn!(record, %error, "an old record of a pull stays");
            }
        }
    }
}

/// What every version has.
#[derive(serde::Deserialize)]
struct Version {
    #[serde(default)]
    version: u32,
}

fn id(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}
