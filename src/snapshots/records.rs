//! What the room knows of snapshots: the rows of the database and the rules of their life.
//!
//! The semantics are those of containerd's own metadata store. A key is prepared (active) or viewed;
//! an active one is committed under a name and keeps its id, its labels being replaced; a committed
//! one can be the parent of others and cannot be removed while it is.
//!
//! Everything here works inside a transaction that the caller holds and touches no files.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::error::Error;
use crate::pull::trees::TreeId;

/// Labels, as containerd sends them. A label with an empty value is no label.
pub type Labels = BTreeMap<String, String>;

/// The label that carries the ChainID which containerd wants a snapshot for.
pub(super) const LABEL_REF: &str = "containerd.io/snapshot.ref";

/// What a snapshot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A read-only look at its parent.
    View = 1,
    /// Writable, not named yet.
    Active = 2,
    /// Immutable; a possible parent.
    Committed = 3,
}

impl Kind {
    /// The word for it in filters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }

    fn of_row(value: i64) -> Self {
        match value {
            1 => Self::View,
            2 => Self::Active,
            // The schema's CHECK admits nothing else.
            _ => Self::Committed,
        }
    }
}

/// A snapshot as Stat and List tell it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// The name of a committed snapshot, the key of another.
    pub name: String,
    /// The name of its parent; empty: none.
    pub parent: String,
    /// What it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: Labels,
    /// When it was prepared or committed.
    pub created_at: SystemTime,
    /// When its labels were changed last.
    pub updated_at: SystemTime,
}

/// What a snapshot occupies, its parents not counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Bytes on disk.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Where a snapshot's own layer is: in its own directory or in a tree that it shares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layer {
    pub(super) snapshot: i64,
    pub(super) tree: Option<TreeId>,
}

/// A row, without its labels.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) parent_id: Option<i64>,
    pub(super) layer: Layer,
    pub(super) usage: Option<Usage>,
}

/// A row that is to be.
pub(super) struct NewSnapshot<'a> {
    pub(super) name: &'a str,
    pub(super) kind: Kind,
    pub(super) parent_id: Option<i64>,
    pub(super) tree: Option<TreeId>,
    pub(super) usage: Option<Usage>,
    pub(super) labels: &'a Labels,
}

pub(super) fn find(db: &Connection, name: &str) -> Result<Option<Record>, Error> {
    let sql = "SELECT kind, parent_id, id, tree_id, bytes, inodes FROM snapshots WHERE name = ?1";
    Ok(db.prepare_cached(sql)?.query_row([name], record_of_row).optional()?)
}

/// The row of `name`, which has to be there.
pub(super) fn get(db: &Connection, name: &str) -> Result<Record, Error> {
    find(db, name)?.ok_or_else(|| Error::Missing(name.to_owned()))
}

/// The id of a parent, which has to be committed; no name, no parent.
pub(super) fn parent_id(db: &Connection, parent: &str) -> Result<Option<i64>, Error> {
    if parent.is_empty() {
        return Ok(None);
    }
    let record = find(db, parent)?.ok_or_else(|| Error::ParentMissing(parent.to_owned()))?;
    match record.kind {
        Kind::Committed => Ok(Some(record.layer.snapshot)),
        Kind::View | Kind::Active => Err(Error::ParentNotCommitted(parent.to_owned())),
    }
}

/// The layers from `top` down to the lowest, `top` first.
pub(super) fn chain(db: &Connection, top: Option<i64>) -> Result<Vec<Layer>, Error> {
    let sql = "
        WITH RECURSIVE chain (id, parent_id, tree_id, depth) AS (
            SELECT id, parent_id, tree_id, 0 FROM snapshots WHERE id = ?1
            UNION ALL
            SELECT below.id, below.parent_id, below.tree_id, depth + 1
            FROM snapshots AS below JOIN chain ON below.id = chain.parent_id
        )
        SELECT id, tree_id FROM chain ORDER BY depth";
    let mut statement = db.prepare_cached(sql)?;
    let layers = statement.query_map([top], |row| {
        Ok(Layer { snapshot: row.get(0)?, tree: row.get::<_, Option<i64>>(1)?.map(TreeId) })
    })?;
    Ok(layers.collect::<Result<_, _>>()?)
}

pub(super) fn insert(db: &Connection, new: &NewSnapshot<'_>) -> Result<i64, Error> {
    if new.name.is_empty() {
        return Err(Error::EmptyName);
    }
    if find(db, new.name)?.is_some() {
        return Err(Error::Taken(new.name.to_owned()));
    }
    let sql = "
        INSERT INTO snapshots
            (name, kind, parent_id, tree_id, created_at, updated_at, bytes, inodes)
        VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7)";
    db.prepare_cached(sql)?.execute(params![
        new.name,
        new.kind as i64,
        new.parent_id,
        new.tree.map(|tree| tree.0),
        now(),
        new.usage.map(|usage| saturating(usage.bytes)),
        new.usage.map(|usage| saturating(usage.inodes)),
    ])?;
    let id = db.last_insert_rowid();
    write_labels(db, id, new.labels)?;
    Ok(id)
}

pub(super) fn rename(db: &Connection, id: i64, name: &str) -> Result<(), Error> {
    db.prepare_cached("UPDATE snapshots SET name = ?2 WHERE id = ?1")?
        .execute(params![id, name])?;
    Ok(())
}

/// Turns the active snapshot `key` into the committed snapshot `name`, under the id that it has.
/// Its usage is left open: counting it here would walk the tree inside containerd's transaction.
pub(super) fn commit(db: &Connection, key: &str, name: &str, labels: &Labels) -> Result<(), Error> {
    if name.is_empty() {
        return Err(Error::EmptyName);
    }
    let record = get(db, key)?;
    if find(db, name)?.is_some() {
        return Err(Error::Taken(name.to_owned()));
    }
    if record.kind != Kind::Active {
        return Err(Error::NotActive(key.to_owned()));
    }
    let sql = "
        UPDATE snapshots
        SET name = ?2, kind = ?3, created_at = ?4, updated_at = ?4, bytes = NULL, inodes = NULL
        WHERE id = ?1";
    let id = record.layer.snapshot;
    db.prepare_cached(sql)?.execute(params![id, name, Kind::Committed as i64, now()])?;
    write_labels(db, id, labels)
}

/// Removes a row and says which layer it had.
pub(super) fn remove(db: &Connection, name: &str) -> Result<Layer, Error> {
    let layer = get(db, name)?.layer;
    let children = "SELECT 1 FROM snapshots WHERE parent_id = ?1 LIMIT 1";
    if db.prepare_cached(children)?.exists([layer.snapshot])? {
        return Err(Error::HasChildren(name.to_owned()));
    }
    db.prepare_cached("DELETE FROM snapshots WHERE id = ?1")?.execute([layer.snapshot])?;
    Ok(layer)
}

/// Changes labels as a field mask says: `labels` replaces all, `labels.KEY` one, an empty mask all.
pub(super) fn update(
    db: &Connection,
    name: &str,
    labels: &Labels,
    mask: &[String],
) -> Result<Info, Error> {
    let id = get(db, name)?.layer.snapshot;
    let mut updated = read_labels(db, id)?;
    if mask.is_empty() {
        updated = labels.clone();
    }
    for field in mask {
        if field == "labels" {
            updated = labels.clone();
        } else if let Some(key) = field.strip_prefix("labels.") {
            // A label that the request does not carry is taken away.
            let value = labels.get(key).cloned().unwrap_or_default();
            updated.insert(key.to_owned(), value);
        } else {
            return Err(Error::Immutable { field: field.clone(), name: name.to_owned() });
        }
    }
    db.prepare_cached("UPDATE snapshots SET updated_at = ?2 WHERE id = ?1")?
        .execute(params![id, now()])?;
    write_labels(db, id, &updated)?;
    info(db, name)
}

/// One snapshot as Stat tells it.
pub(super) fn info(db: &Connection, name: &str) -> Result<Info, Error> {
    let sql = format!("{INFO} WHERE snapshots.name = ?1");
    let row = db.prepare_cached(&sql)?.query_row([name], info_of_row).optional()?;
    let (id, mut info) = row.ok_or_else(|| Error::Missing(name.to_owned()))?;
    info.labels = read_labels(db, id)?;
    Ok(info)
}

/// All snapshots, in the order in which they were made.
pub(super) fn all(db: &Connection) -> Result<Vec<Info>, Error> {
    let mut labels = BTreeMap::<i64, Labels>::new();
    let mut statement = db.prepare_cached("SELECT snapshot_id, key, value FROM labels")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        labels.entry(row.get(0)?).or_default().insert(row.get(1)?, row.get(2)?);
    }
    let sql = format!("{INFO} ORDER BY snapshots.id");
    let mut statement = db.prepare_cached(&sql)?;
    let infos = statement.query_map([], info_of_row)?;
    infos
        .map(|row| {
            let (id, mut info) = row?;
            info.labels = labels.remove(&id).unwrap_or_default();
            Ok(info)
        })
        .collect()
}

/// The name of the committed snapshot that stands for `reference` on top of `parent`, if there is one: this
/// pair, not the name, is how containerd finds a layer that a snapshotter provided.
pub(super) fn find_reference(
    db: &Connection,
    reference: &str,
    parent: Option<i64>,
) -> Result<Option<String>, Error> {
    let sql = "
        SELECT snapshots.name FROM labels JOIN snapshots ON snapshots.id = labels.snapshot_id
        WHERE labels.key = ?1 AND labels.value = ?2
          AND snapshots.parent_id IS ?3 AND snapshots.kind = ?4
        LIMIT 1";
    let parameters = params![LABEL_REF, reference, parent, Kind::Committed as i64];
    Ok(db.prepare_cached(sql)?.query_row(parameters, |row| row.get(0)).optional()?)
}

/// Notes a usage that was counted after the commit.
pub(super) fn set_usage(db: &Connection, id: i64, usage: Usage) -> Result<(), Error> {
    let sql = "UPDATE snapshots SET bytes = ?2, inodes = ?3 WHERE id = ?1 AND kind = 3";
    let (bytes, inodes) = (saturating(usage.bytes), saturating(usage.inodes));
    db.prepare_cached(sql)?.execute(params![id, bytes, inodes])?;
    Ok(())
}

/// A count as SQLite keeps it.
pub(super) fn saturating(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

const INFO: &str = "
    SELECT snapshots.id, snapshots.name, coalesce(parents.name, ''), snapshots.kind,
           snapshots.created_at, snapshots.updated_at
    FROM snapshots LEFT JOIN snapshots AS parents ON parents.id = snapshots.parent_id";

fn info_of_row(row: &Row<'_>) -> rusqlite::Result<(i64, Info)> {
    let info = Info {
        name: row.get(1)?,
        parent: row.get(2)?,
        kind: Kind::of_row(row.get(3)?),
        labels: Labels::new(),
        created_at: time_of(row.get(4)?),
        updated_at: time_of(row.get(5)?),
    };
    Ok((row.get(0)?, info))
}

fn record_of_row(row: &Row<'_>) -> rusqlite::Result<Record> {
    let (bytes, inodes): (Option<i64>, Option<i64>) = (row.get(4)?, row.get(5)?);
    Ok(Record {
        kind: Kind::of_row(row.get(0)?),
        parent_id: row.get(1)?,
        layer: Layer { snapshot: row.get(2)?, tree: row.get::<_, Option<i64>>(3)?.map(TreeId) },
        usage: bytes.zip(inodes).map(|(bytes, inodes)| Usage {
            bytes: bytes.unsigned_abs(),
            inodes: inodes.unsigned_abs(),
        }),
    })
}

fn read_labels(db: &Connection, id: i64) -> Result<Labels, Error> {
    let mut statement =
        db.prepare_cached("SELECT key, value FROM labels WHERE snapshot_id = ?1")?;
    let pairs = statement.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(pairs.collect::<Result<_, _>>()?)
}

/// Replaces the labels of a snapshot.
fn write_labels(db: &Connection, id: i64, labels: &Labels) -> Result<(), Error> {
    db.prepare_cached("DELETE FROM labels WHERE snapshot_id = ?1")?.execute([id])?;
    let sql = "INSERT INTO labels (snapshot_id, key, value) VALUES (?1, ?2, ?3)";
    let mut insert = db.prepare_cached(sql)?;
    for (key, value) in labels.iter().filter(|(_, value)| !value.is_empty()) {
        insert.execute(params![id, key, value])?;
    }
    Ok(())
}

fn now() -> i64 {
    nanoseconds(SystemTime::now())
}

/// A time as SQLite keeps it.
pub(super) fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

pub(super) fn time_of(nanoseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanoseconds.unsigned_abs())
}
