//! Images that are kept although nobody uses them: what `hoist prefetch` pinned.
//!
//! A pin holds the layer trees of an image in the database, as snapshots do, so they stay over restarts
//! and whatever containerd's garbage collector, a prune or a kubelet does with the image. It has the
//! image's documents too (manifest and configuration, some kilobytes), so that the image can be put
//! into containerd again without its registry. It ends when it is released, or at its time.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::{Connection, OptionalExtension as _, params};

use super::Snapshots;
use super::database::PUBLISHED;
use super::error::Error;
use super::layout::Layout;
use super::records::{nanoseconds, time_of};
use crate::image::{BlobDigest, DiffId, NamedDocument};
use crate::pull::trees::{HeldTree, TreeId};

/// Whose image: a name in a namespace of a containerd.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    /// Its socket.
    pub containerd: PathBuf,
    /// The namespace.
    pub namespace: String,
    /// The image's name there.
    pub image: String,
}

/// A layer of a pinned image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PinnedLayer {
    /// Where it is kept.
    pub tree: TreeId,
    /// Its root directory.
    pub path: PathBuf,
    /// What it is.
    pub diff_id: DiffId,
    /// What it occupies, in bytes.
    pub bytes: u64,
}

/// A pinned image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImagePin {
    /// Whose.
    pub place: Place,
    /// From what its name leads to down to the configuration: an index if there is one, the manifest,
    /// the configuration.
    pub documents: Vec<NamedDocument>,
    /// Lowest first.
    pub layers: Vec<PinnedLayer>,
    /// Since when.
    pub pinned_at: SystemTime,
    /// Until when; `None`: until it is released.
    pub expires_at: Option<SystemTime>,
}

impl Snapshots {
    /// Pins an image with `trees`, lowest first. What was pinned in this place before is replaced.
    ///
    /// # Errors
    /// [`Error::Database`], also where one of the trees is gone.
    pub fn pin_image(
        &self,
        place: &Place,
        documents: &[NamedDocument],
        trees: &[HeldTree],
        expires_at: Option<SystemTime>,
    ) -> Result<(), Error> {
        self.sync()?;
        let before = self.database.write(|db| -> Result<_, Error> {
            let before = remove(db, place, &self.layout)?;
            let sql = "
                INSERT INTO pins (containerd, namespace, image, pinned_at, expires_at)
                VALUES (?1, ?2, ?3, ?4, ?5)";
            let (containerd, now) = (text(&place.containerd), nanoseconds(SystemTime::now()));
            let until = expires_at.map(nanoseconds);
            let values = params![containerd, place.namespace, place.image, now, until];
            db.prepare_cached(sql)?.execute(values)?;
            let id = db.last_insert_rowid();
            let sql = "INSERT INTO pinned_trees (pin_id, position, tree_id) VALUES (?1, ?2, ?3)";
            for (position, held) in trees.iter().enumerate() {
                let values = params![id, position as i64, held.tree.id.0];
                db.prepare_cached(sql)?.execute(values)?;
            }
            let sql = "
                INSERT INTO pinned_documents (pin_id, position, media_type, digest, content)
                VALUES (?1, ?2, ?3, ?4, ?5)";
            for (position, document) in documents.iter().enumerate() {
                let digest = document.digest.to_string();
                let content = &document.bytes[..];
                let values = params![id, position as i64, document.media_type, digest, content];
                db.prepare_cached(sql)?.execute(values)?;
            }
            Ok(before)
        })?;
        self.abandon(before.unwrap_or_default());
        Ok(())
    }

    /// All pins, the oldest first.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn image_pins(&self) -> Result<Vec<ImagePin>, Error> {
        self.database.read(|db| {
            let sql = "
                SELECT id, containerd, namespace, image, pinned_at, expires_at FROM pins ORDER BY id";
            let mut statement = db.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            let mut pins = Vec::new();
            while let Some(row) = rows.next()? {
                let id: i64 = row.get(0)?;
                pins.push(ImagePin {
                    place: Place {
                        containerd: row.get::<_, String>(1)?.into(),
                        namespace: row.get(2)?,
                        image: row.get(3)?,
                    },
                    documents: documents(db, id)?,
                    layers: layers(db, id, &self.layout)?,
                    pinned_at: time_of(row.get(4)?),
                    expires_at: row.get::<_, Option<i64>>(5)?.map(time_of),
                });
            }
            Ok(pins)
        })
    }

    /// Lets an image go; whether it was pinned. Layers that nobody else refers to go in the background,
    /// at once.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn unpin_image(&self, place: &Place) -> Result<bool, Error> {
        let trees = self.database.write(|db| remove(db, place, &self.layout))?;
        let was_pinned = trees.is_some();
        self.abandon(trees.unwrap_or_default());
        Ok(was_pinned)
    }

    fn abandon(&self, trees: Vec<TreeId>) {
        for tree in trees {
            self.ledger.abandon(tree);
        }
        self.wake.notify_one();
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Removes a pin and gives its trees; `None` where there is none.
fn remove(db: &Connection, place: &Place, layout: &Layout) -> Result<Option<Vec<TreeId>>, Error> {
    let sql = "SELECT id FROM pins WHERE containerd = ?1 AND namespace = ?2 AND image = ?3";
    let values = params![text(&place.containerd), place.namespace, place.image];
    let id: Option<i64> = db.prepare_cached(sql)?.query_row(values, |row| row.get(0)).optional()?;
    let Some(id) = id else { return Ok(None) };
    let trees = layers(db, id, layout)?.into_iter().map(|layer| layer.tree).collect();
    db.prepare_cached("DELETE FROM pins WHERE id = ?1")?.execute([id])?;
    Ok(Some(trees))
}

fn layers(db: &Connection, pin: i64, layout: &Layout) -> Result<Vec<PinnedLayer>, Error> {
    let sql = "
        SELECT trees.id, trees.diff_id, trees.bytes
        FROM pinned_trees JOIN trees ON trees.id = pinned_trees.tree_id
        WHERE pin_id = ?1 AND state = ?2 ORDER BY position";
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map(params![pin, PUBLISHED], |row| {
        Ok((TreeId(row.get(0)?), row.get::<_, String>(1)?, row.get::<_, i64>(2)?))
    })?;
    rows.map(|row| {
        let (tree, diff_id, bytes) = row?;
        let path = layout.tree_root(tree);
        Ok(PinnedLayer { tree, path, diff_id: parsed(&diff_id)?, bytes: bytes.unsigned_abs() })
    })
    .collect()
}

fn documents(db: &Connection, pin: i64) -> Result<Vec<NamedDocument>, Error> {
    let sql = "
        SELECT media_type, digest, content FROM pinned_documents WHERE pin_id = ?1 ORDER BY position";
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map([pin], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, Vec<u8>>(2)?))
    })?;
    rows.map(|row| {
        let (media_type, digest, content) = row?;
        let digest: BlobDigest = parsed(&digest)?;
        Ok(NamedDocument { media_type, digest, bytes: content.into() })
    })
    .collect()
}

/// A digest that was written here.
fn parsed<T: std::str::FromStr>(text: &str) -> Result<T, Error>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let failed = |error| {
        rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(error))
    };
    text.parse().map_err(|error| Error::Database(failed(error)))
}
