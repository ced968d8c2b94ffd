//! The database under the snapshots: SQLite in write-ahead mode.
//!
//! containerd calls Commit and Update from inside its own write transaction, so a write here has
//! milliseconds. An fsync on a file system with gigabytes of freshly extracted pages can take
//! seconds; `synchronous=NORMAL` leaves it to the checkpoints. A daemon that is killed loses
//! nothing by that (the log is in the page cache), a power cut can lose the last transactions but
//! never the consistency, and what a lost transaction named is swept as unreferenced on the next
//! start. Where layers are synced ([`Sync::Layer`]), every transaction is as well: there is little
//! else left to write then.
//!
//! A checkpoint does sync, and so does the first write after it, so none happens on a call's way
//! either: the sweeper asks for it while no layer is being written, or when the log grew so long that
//! it would cost more to wait.
//!
//! One connection writes behind a mutex and another one reads, so that List and Stat wait for
//! nobody. Every method blocks: async callers come through `spawn_blocking`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::Sync;
use super::error::Error;
use crate::metrics::MetadataMetrics;

/// The format that this code writes. Raise it with a step in [`migrate`].
const FORMAT: i64 = 3;

/// How long a connection waits for another one: only our own checkpoints ever hold the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// A log shorter than this is not worth a checkpoint: some hundred small transactions.
const LOG_WORTH_A_CHECKPOINT_BYTES: u64 = 1 << 20;

/// A log longer than this is checkpointed even while layers are written: reading slows down.
const LOG_TOO_LONG_BYTES: u64 = 64 << 20;

/// Format 1. Ids are AUTOINCREMENT because directories are named after them and a removed one may
/// still lie in the trash. `bytes` and `inodes` of a snapshot are NULL until they are counted.
/// Paths in `implied` end with a zero byte each. Times are nanoseconds since 1970.
const FORMAT_1: &str = "
CREATE TABLE trees (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    diff_id  TEXT NOT NULL,
    state    INTEGER NOT NULL CHECK (state IN (0, 1)), -- staging, published
    bytes    INTEGER NOT NULL DEFAULT 0,
    inodes   INTEGER NOT NULL DEFAULT 0,
    implied  BLOB NOT NULL DEFAULT x'',
    settled  BLOB
) STRICT;
CREATE INDEX trees_by_diff_id ON trees (diff_id);
CREATE TABLE snapshots (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL UNIQUE,
    kind       INTEGER NOT NULL CHECK (kind IN (1, 2, 3)), -- view, active, committed
    parent_id  INTEGER REFERENCES snapshots (id) ON DELETE RESTRICT,
    tree_id    INTEGER REFERENCES trees (id) ON DELETE RESTRICT,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    bytes      INTEGER,
    inodes     INTEGER
) STRICT;
CREATE INDEX snapshots_by_parent ON snapshots (parent_id);
CREATE INDEX snapshots_by_tree ON snapshots (tree_id);
CREATE TABLE labels (
    snapshot_id INTEGER NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
    key         TEXT NOT NULL,
    value       TEXT NOT NULL,
    PRIMARY KEY (snapshot_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX labels_by_value ON labels (key, value);
";

/// `trees.state`
pub(super) const STAGING: i64 = 0;
/// `trees.state`
pub(super) const PUBLISHED: i64 = 1;

/// Format 2: a tree says whether it is files or an image.
const FORMAT_2: &str = "
ALTER TABLE trees ADD COLUMN form INTEGER NOT NULL DEFAULT 0 CHECK (form IN (0, 1)); -- files, image
";

/// `trees.form`
pub(super) const FILES: i64 = 0;
/// `trees.form`
pub(super) const IMAGE: i64 = 1;

/// Format 3: images are pinned, with their trees and documents ([`super::pins`]). Documents are in the order in which
/// one leads to the next, layers lowest first.
const FORMAT_3: &str = "
CREATE TABLE pins (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    containerd TEXT NOT NULL,
    namespace  TEXT NOT NULL,
    image      TEXT NOT NULL,
    pinned_at  INTEGER NOT NULL,
    expires_at INTEGER,
    UNIQUE (containerd, namespace, image)
) STRICT;
CREATE TABLE pinned_trees (
    pin_id   INTEGER NOT NULL REFERENCES pins (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    tree_id  INTEGER NOT NULL REFERENCES trees (id) ON DELETE RESTRICT,
    PRIMARY KEY (pin_id, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX pinned_trees_by_tree ON pinned_trees (tree_id);
CREATE TABLE pinned_documents (
    pin_id     INTEGER NOT NULL REFERENCES pins (id) ON DELETE CASCADE,
    position   INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    digest     TEXT NOT NULL,
    content    BLOB NOT NULL,
    PRIMARY KEY (pin_id, position)
) STRICT;
";

#[derive(Debug)]
pub(super) struct Database {
    writer: Mutex<Connection>,
    reader: Mutex<Connection>,
    log: PathBuf,
    metrics: MetadataMetrics,
}

impl Database {
    /// Opens the database, creating or upgrading it where needed.
    pub(super) fn open(path: &Path, sync: Sync) -> Result<Self, Error> {
        let mut writer = Connection::open(path)?;
        configure(&writer)?;
        if sync == Sync::Layer {
            writer.pragma_update(None, "synchronous", "FULL")?;
        }
        writer.pragma_update(None, "journal_mode", "WAL")?;
        writer.pragma_update(None, "wal_autocheckpoint", 0)?;
        migrate(&mut writer)?;
        let reader = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        configure(&reader)?;
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Ok(Self {
            writer: Mutex::new(writer),
            reader: Mutex::new(reader),
            log: log.into(),
            metrics: MetadataMetrics::default(),
        })
    }

    /// The same, its transactions counted in `metrics`.
    pub(super) fn counted(self, metrics: MetadataMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// Moves the log into the database, if it is long enough for the moment. Syncs.
    pub(super) fn checkpoint(&self, idle: bool) -> Result<(), Error> {
        let bytes = fs::metadata(&self.log).map_or(0, |metadata| metadata.len());
        let enough = if idle { LOG_WORTH_A_CHECKPOINT_BYTES } else { LOG_TOO_LONG_BYTES };
        if bytes < enough {
            return Ok(());
        }
        let _took = Took { metrics: &self.metrics, operation: "checkpoint", began: Instant::now() };
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        // The first write after it syncs the log's new header: better here than in a call.
        writer.pragma_update(None, "user_version", FORMAT)?;
        Ok(())
    }

    /// Runs `work` in a write transaction, which is kept if `work` succeeds.
    pub(super) fn write<T, E: From<rusqlite::Error>>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let _took = Took { metrics: &self.metrics, operation: "write", began: Instant::now() };
        // A panic inside `work` rolled its transaction back, so the connection is as good as before.
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = work(&transaction)?;
        transaction.commit()?;
        Ok(value)
    }

    /// Runs `work` on a consistent view of what is committed.
    pub(super) fn read<T, E: From<rusqlite::Error>>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let _took = Took { metrics: &self.metrics, operation: "read", began: Instant::now() };
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = reader.transaction()?;
        work(&transaction)
    }
}

/// A transaction under way; its time is counted when this is dropped, however it ends.
struct Took<'a> {
    metrics: &'a MetadataMetrics,
    operation: &'static str,
    began: Instant,
}

impl Drop for Took<'_> {
    fn drop(&mut self) {
        self.metrics.took(self.operation, self.began.elapsed().as_secs_f64());
    }
}

fn configure(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // Closing would move the log into the database and sync it, for as long as the disk is busy with
    // layers, and a daemon that is told to end has a bound. The next start reads the log.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn migrate(connection: &mut Connection) -> Result<(), Error> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > FORMAT {
        return Err(Error::Newer { found, known: FORMAT });
    }
    if found < 1 {
        transaction.execute_batch(FORMAT_1)?;
    }
    if found < 2 {
        transaction.execute_batch(FORMAT_2)?;
    }
    if found < 3 {
        transaction.execute_batch(FORMAT_3)?;
    }
    transaction.pragma_update(None, "user_version", FORMAT)?;
    Ok(transaction.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_a_newer_hoist_wrote() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metadata.db");
        drop(Database::open(&path, Sync::None).unwrap());
        let raw = Connection::open(&path).unwrap();
        raw.pragma_update(None, "user_version", FORMAT + 1).unwrap();
        drop(raw);
        let error = Database::open(&path, Sync::None).err().unwrap();
        assert!(matches!(error, Error::Newer { found: 4, known: 3 }), "{error}");
        assert!(error.to_string().contains("newer hoist"));
    }

    #[test]
    fn trees_of_format_1_are_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metadata.db");
        let raw = Connection::open(&path).unwrap();
        raw.execute_batch(FORMAT_1).unwrap();
        raw.execute("INSERT INTO trees (diff_id, state) VALUES ('x', 1)", []).unwrap();
        raw.pragma_update(None, "user_version", 1).unwrap();
        drop(raw);
        let database = Database::open(&path, Sync::None).unwrap();
        let form = database
            .read(|db| db.query_row("SELECT form FROM trees", [], |row| row.get::<_, i64>(0)));
        assert_eq!(form.unwrap(), 0);
        drop(database);
        Database::open(&path, Sync::None).unwrap();
    }

    #[test]
    fn the_log_is_emptied_where_it_is_worth_it() {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::open(&directory.path().join("metadata.db"), Sync::None).unwrap();
        let length = || fs::metadata(&database.log).unwrap().len();
        let insert =
            "INSERT INTO trees (diff_id, state, implied) VALUES ('x', 0, zeroblob(1000000))";
        let mut before = 0;
        for _ in 0..20 {
            database.write(|tx| tx.execute(insert, [])).unwrap();
            assert!(length() > before, "no write does a checkpoint by itself");
            before = length();
        }
        database.checkpoint(false).unwrap();
        assert_eq!(length(), before);
        database.checkpoint(true).unwrap();
        assert!(length() < LOG_WORTH_A_CHECKPOINT_BYTES);
        let sql = "SELECT count(*) FROM trees";
        assert_eq!(database.read(|tx| tx.query_row(sql, [], |r| r.get::<_, i64>(0))).unwrap(), 20);
    }

    #[test]
    fn a_transaction_that_fails_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let database = Database::open(&directory.path().join("metadata.db"), Sync::None).unwrap();
        let insert = "INSERT INTO trees (diff_id, state) VALUES ('x', 0)";
        let failed: Result<(), Error> = database.write(|tx| {
            tx.execute(insert, [])?;
            Err(Error::EmptyName)
        });
        assert!(matches!(failed, Err(Error::EmptyName)));
        let count = || {
            database
                .read(|tx| tx.query_row("SELECT count(*) FROM trees", [], |r| r.get::<_, i64>(0)))
        };
        assert_eq!(count().unwrap(), 0);
        database.write(|tx| tx.execute(insert, [])).unwrap();
        assert_eq!(count().unwrap(), 1);
    }
}
