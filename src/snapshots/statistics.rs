//! What stands in a root and what was counted, for metrics.

use std::sync::atomic::Ordering;

use super::Snapshots;
use super::database::PUBLISHED;
use super::error::Error;
use crate::sys::space::Space;

/// What was counted since the start and what stands now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Snapshots of every kind.
    pub snapshots: u64,
    /// Published layer trees.
    pub trees: u64,
    /// Bytes in published layer trees.
    pub tree_bytes: u64,
    /// What the trees would take more, were there one for each snapshot.
    pub saved_bytes: u64,
    /// Prepares that were answered with *already exists* since the start.
    pub provided: u64,
    /// Prepares of a pull that were left to containerd since the start.
    pub fallbacks: u64,
    /// Those of them that came without the labels that name image and layer.
    pub unlabelled: u64,
}

impl Snapshots {
    /// Counts and sizes, for metrics.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn statistics(&self) -> Result<Statistics, Error> {
        let sql = "
            SELECT (SELECT count(*) FROM snapshots), count(*), coalesce(sum(bytes), 0),
                coalesce(sum(bytes * max(0, users - 1)), 0)
            FROM (SELECT bytes, (SELECT count(*) FROM snapshots WHERE tree_id = trees.id) AS users
                FROM trees WHERE state = ?1)";
        let numbers: (i64, i64, i64, i64) = self.database.read(|db| -> rusqlite::Result<_> {
            db.query_row(sql, [PUBLISHED], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
        })?;
        Ok(Statistics {
            snapshots: numbers.0.unsigned_abs(),
            trees: numbers.1.unsigned_abs(),
            tree_bytes: numbers.2.unsigned_abs(),
            saved_bytes: numbers.3.unsigned_abs(),
            provided: self.provided.load(Ordering::Relaxed),
            fallbacks: self.fallbacks.load(Ordering::Relaxed),
            unlabelled: self.unlabelled.load(Ordering::Relaxed),
        })
    }

    /// The file system that the root is on.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn disk(&self) -> Result<Space, Error> {
        let root = self.layout.root();
        Space::of(root).map_err(Error::io("asking for the free space of", root))
    }
}
