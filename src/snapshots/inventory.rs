//! What is kept, for people and for metrics.

use std::path::PathBuf;

use super::database::{IMAGE, PUBLISHED};
use super::records::Kind;
use super::{Error, Snapshots};
use crate::pull::trees::TreeId;

/// A published layer tree and who refers to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TreeUse {
    /// The layer, "sha256:…".
    pub diff_id: String,
    /// What it occupies on disk.
    pub bytes: u64,
    /// Files, directories and all else in it.
    pub inodes: u64,
    /// Committed snapshots that refer to it.
    pub snapshots: u64,
    /// Its root directory.
    pub path: PathBuf,
    /// Whether it is an image that is mounted there.
    pub is_image: bool,
}

impl Snapshots {
    /// All published trees, largest first.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn trees(&self) -> Result<Vec<TreeUse>, Error> {
        let sql = "
            SELECT trees.id, trees.diff_id, trees.bytes, trees.inodes, count(snapshots.id), trees.form
            FROM trees LEFT JOIN snapshots ON snapshots.tree_id = trees.id
            WHERE trees.state = ?1 GROUP BY trees.id ORDER BY trees.bytes DESC, trees.id";
        let trees = self.database.read(|db| -> rusqlite::Result<_> {
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement.query_map([PUBLISHED], |row| {
                Ok(TreeUse {
                    path: self.layout.tree_root(TreeId(row.get(0)?)),
                    diff_id: row.get(1)?,
                    bytes: row.get::<_, i64>(2)?.unsigned_abs(),
                    inodes: row.get::<_, i64>(3)?.unsigned_abs(),
                    snapshots: row.get::<_, i64>(4)?.unsigned_abs(),
                    is_image: row.get::<_, i64>(5)? == IMAGE,
                })
            })?;
            rows.collect()
        })?;
        Ok(trees)
    }

    /// How many snapshots there are of each kind; every kind is there.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn kinds(&self) -> Result<[(Kind, u64); 3], Error> {
        let sql = "SELECT count(*) FROM snapshots WHERE kind = ?1";
        let kinds = [Kind::Active, Kind::View, Kind::Committed];
        let counted = self.database.read(|db| -> rusqlite::Result<_> {
            let mut statement = db.prepare_cached(sql)?;
            let mut counts = [0; 3];
            for (count, kind) in counts.iter_mut().zip(kinds) {
                *count = statement.query_row([kind as i64], |row| row.get::<_, i64>(0))?;
            }
            Ok(counts)
        })?;
        Ok(std::array::from_fn(|i| (kinds[i], counted[i].unsigned_abs())))
    }
}
