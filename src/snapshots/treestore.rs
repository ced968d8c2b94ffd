//! Layer trees, one for each DiffID (and each way its implied directories came out).
//!
//! A tree's row says whether it is staged or published; its files lie in `trees/ID/fs`, or are in an
//! image that is mounted there as soon as its implied directories are settled ([`super::images`]). Snapshots
//! refer to trees, the database counts the references, and the [`ledger`](super::ledger) knows who
//! counts on a tree that has none.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{OptionalExtension as _, Row, params};

use super::Snapshots;
use super::database::{FILES, IMAGE, PUBLISHED, STAGING};
use super::error::Error;
use super::records::saturating;
use crate::image::DiffId;
use crate::pull::trees::{
    Content, StagedImage, StagedTree, StoreError, TreeId, TreeInfo, TreePin, TreeStore,
};

/// Bytes of one of the blocks that stat(2) counts in.
const BYTES_A_BLOCK: u64 = 512;

impl TreeStore for Snapshots {
    fn find(&self, diff_id: DiffId) -> Result<Vec<TreeInfo>, StoreError> {
        let sql = "
            SELECT id, bytes, inodes, implied, settled, form FROM trees
            WHERE diff_id = ?1 AND state = ?2 ORDER BY id";
        let mut trees = self.database.read(|db| -> rusqlite::Result<_> {
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement.query_map(params![diff_id.to_string(), PUBLISHED], |row| {
                self.tree_of_row(diff_id, row)
            })?;
            rows.collect::<Result<Vec<_>, _>>()
        })?;
        // An image that a power cut left half written cannot be used by anybody; it goes with its
        // last snapshot, and the layer is fetched again.
        trees.retain(|tree| self.is_usable(tree));
        for tree in &trees {
            self.ledger.want(tree.id);
        }
        Ok(trees)
    }

    fn stage(&self, diff_id: DiffId) -> Result<StagedTree, StoreError> {
        let sql = "INSERT INTO trees (diff_id, state) VALUES (?1, ?2)";
        let id = self.database.write(|db| -> rusqlite::Result<_> {
            db.prepare_cached(sql)?.execute(params![diff_id.to_string(), STAGING])?;
            Ok(TreeId(db.last_insert_rowid()))
        })?;
        // The row of a directory that could not be made goes again; failing that, at the next start.
        let path = self.layout.make_tree(id).inspect_err(|_| self.forget_staged(id))?;
        let staged = |block| StagedImage { path: self.layout.tree_image(id), block };
        let image = self.images.wanted.map(staged);
        Ok(StagedTree { id, path, image })
    }

    fn publish(&self, tree: StagedTree, content: Content) -> Result<TreeInfo, StoreError> {
        self.sync()?;
        let Content { is_image, bytes, inodes, implied } = content;
        let id = tree.id;
        let sql = "
            UPDATE trees SET state = ?2, bytes = ?3, inodes = ?4, implied = ?5, form = ?7
            WHERE id = ?1 AND state = ?6 RETURNING diff_id";
        self.ledger.want(id);
        let form = if is_image { IMAGE } else { FILES };
        let (bytes_kept, inodes_kept) = (saturating(bytes), saturating(inodes));
        let packed = pack(&implied);
        let diff_id: Option<String> = self.database.write(|db| -> rusqlite::Result<_> {
            let values = params![id.0, PUBLISHED, bytes_kept, inodes_kept, packed, STAGING, form];
            db.prepare_cached(sql)?.query_row(values, |row| row.get(0)).optional()
        })?;
        let diff_id = diff_id.ok_or(StoreError::Gone(id))?;
        let diff_id =
            diff_id.parse().map_err(|error| StoreError::Records(format!("tree {id}: {error}")))?;
        let image = is_image.then(|| self.layout.tree_image(id));
        if is_image && implied.is_empty() {
            self.mount_tree(id)?;
        }
        Ok(TreeInfo { id, path: tree.path, image, diff_id, bytes, inodes, implied, settled: None })
    }

    fn settled(&self, id: TreeId, metadata: Vec<u8>) -> Result<(), StoreError> {
        self.sync()?;
        // Settling an image may have made it larger.
        let sql = "
            UPDATE trees SET settled = ?2, bytes = CASE form WHEN ?5 THEN coalesce(?4, bytes) ELSE bytes END
            WHERE id = ?1 AND state = ?3 AND (settled IS NULL OR settled = ?2) RETURNING form";
        let bytes = image_bytes(&self.layout.tree_image(id));
        let form = self.database.write(|db| -> Result<i64, StoreError> {
            let values = params![id.0, metadata, PUBLISHED, bytes, IMAGE];
            let form = db.prepare_cached(sql)?.query_row(values, |row| row.get(0)).optional()?;
            if let Some(form) = form {
                return Ok(form);
            }
            let there = db.prepare_cached(IN_STATE)?.exists(params![id.0, PUBLISHED])?;
            Err(if there { StoreError::SettledOtherwise(id) } else { StoreError::Gone(id) })
        })?;
        if form == IMAGE { Ok(self.mount_tree(id)?) } else { Ok(()) }
    }

    fn pin(&self, id: TreeId) -> Result<TreePin, StoreError> {
        // The sweeper judges under the same lock: the tree is swept before this or held after it.
        let mut locked = self.ledger.locked();
        let there = self.database.read(|db| -> rusqlite::Result<_> {
            db.prepare_cached(IN_STATE)?.exists(params![id.0, PUBLISHED])
        })?;
        if !there {
            return Err(StoreError::Gone(id));
        }
        locked.pin(id);
        let (ledger, wake) = (Arc::clone(&self.ledger), Arc::clone(&self.wake));
        Ok(TreePin::new(id, move || {
            ledger.release(id);
            wake.notify_one();
        }))
    }

    fn discard(&self, tree: StagedTree) {
        // Looked at, and not told by what the row's removal says: on a full disk that fails, and the files are what fills it.
        let staged = self.database.read(|db| -> rusqlite::Result<_> {
            db.prepare_cached(IN_STATE)?.exists(params![tree.id.0, STAGING])
        });
        let discarded = match staged {
            Ok(false) => return,
            Ok(true) => {
                self.forget_staged(tree.id);
                self.layout.discard(&self.layout.tree(tree.id)).map_err(StoreError::from)
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = discarded {
            tracing::warn!(tree = %tree.id, %error, "a discarded layer stays until the next start");
        }
        self.wake.notify_one();
    }
}

const IN_STATE: &str = "SELECT 1 FROM trees WHERE id = ?1 AND state = ?2";

impl Snapshots {
    fn tree_of_row(&self, diff_id: DiffId, row: &Row<'_>) -> rusqlite::Result<TreeInfo> {
        let id = TreeId(row.get(0)?);
        Ok(TreeInfo {
            id,
            path: self.layout.tree_root(id),
            image: (row.get::<_, i64>(5)? == IMAGE).then(|| self.layout.tree_image(id)),
            diff_id,
            bytes: row.get::<_, i64>(1)?.unsigned_abs(),
            inodes: row.get::<_, i64>(2)?.unsigned_abs(),
            implied: unpack(&row.get::<_, Vec<u8>>(3)?),
            settled: row.get(4)?,
        })
    }

    /// Whether a tree's layer can be read, mounted or to be mounted.
    fn is_usable(&self, tree: &TreeInfo) -> bool {
        let settled = tree.settled.is_some() || tree.implied.is_empty();
        if tree.image.is_none() || !settled {
            return true;
        }
        let mounted = self.mount_tree(tree.id);
        mounted.inspect_err(|error| tracing::error!(%error, "a layer is fetched again")).is_ok()
    }

    fn forget_staged(&self, id: TreeId) {
        let sql = "DELETE FROM trees WHERE id = ?1 AND state = ?2";
        if let Err(error) = self.database.write(|db| db.execute(sql, params![id.0, STAGING])) {
            tracing::warn!(tree = %id, %error, "the row of a discarded layer stays until the next start");
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) {
            let source = std::io::Error::from_raw_os_error(libc::ENOSPC);
            return Self::Io { doing: "write the records of layer trees".to_owned(), source };
        }
        Self::Records(error.to_string())
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match error {
            Error::Io { doing, path, source } => {
                Self::Io { doing: format!("{doing} {}", path.display()), source }
            }
            Error::Database(source) => source.into(),
            other => Self::Records(other.to_string()),
        }
    }
}

/// What an image occupies on disk; `None` for a tree without one.
fn image_bytes(image: &Path) -> Option<i64> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = image.symlink_metadata().ok()?;
    Some(saturating(metadata.blocks() * BYTES_A_BLOCK))
}

/// Paths as one blob, each ended by a zero byte, which no path contains.
fn pack(paths: &[PathBuf]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for path in paths {
        bytes.extend_from_slice(path.as_os_str().as_bytes());
        bytes.push(0);
    }
    bytes
}

fn unpack(bytes: &[u8]) -> Vec<PathBuf> {
    let paths = bytes.split_inclusive(|&byte| byte == 0);
    paths
        .map(|path| path.strip_suffix(&[0]).unwrap_or(path))
        .map(|path| Path::new(&OsString::from_vec(path.to_vec())).to_owned())
        .collect()
}
