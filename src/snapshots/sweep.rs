//! Removing what nobody refers to any more.
//!
//! Remove answers at once: it deletes a row and moves a directory to the trash. Here the trash is
//! emptied, and layer trees that no snapshot and no pin refers to follow, unless the
//! [ledger](super::ledger) spares them. A task in the background sweeps whenever something was let
//! go; Cleanup sweeps too, and waits until the files are gone.
//!
//! When a root is opened, everything that has no row is moved to the trash before the first call is
//! answered: half-written trees of an earlier life, directories whose row was never committed or
//! was removed just before the end. That takes one rename each; the files go in the background.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rusqlite::params;

use super::Snapshots;
use super::database::{PUBLISHED, STAGING};
use super::error::Error;
use super::images;
use super::ledger::Verdict;
use crate::pull::trees::TreeId;

/// How long the sweeper sleeps at most: only against a wake-up that a defect might swallow.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);

impl Snapshots {
    /// Sweeps what can be swept now, and says when to look again because of a grace period. Blocks
    /// until the files are removed; a second caller waits for the first.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Io`]. A file that cannot be removed is logged, not an error.
    pub fn sweep(&self) -> Result<Option<Duration>, Error> {
        let _alone = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        let mut again: Option<Duration> = None;
        for id in self.unreferenced()? {
            if let Some(left) = self.sweep_tree(id)? {
                again = Some(again.map_or(left, |before| before.min(left)));
            }
        }
        self.empty_trash()?;
        self.database.checkpoint(!self.is_writing()?)?;
        Ok(again)
    }

    /// Sweeps in the background until it is dropped.
    pub(super) async fn sweep_forever(self: Arc<Self>) {
        loop {
            let this = Arc::clone(&self);
            let again = match tokio::task::spawn_blocking(move || this.sweep()).await {
                Ok(Ok(again)) => again,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "sweeping failed and will be tried again");
                    None
                }
                // The runtime goes down.
                Err(_) => return,
            };
            let sleep = again.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP);
            // Waking or sleeping enough: both lead to the next round.
            let _ = tokio::time::timeout(sleep, self.wake.notified()).await;
        }
    }

    /// Moves everything without a row to the trash. Called before anybody else knows the root.
    pub(super) fn recover(&self) -> Result<(), Error> {
        self.database.write(|db| db.execute("DELETE FROM trees WHERE state = ?1", [STAGING]))?;
        let (snapshots, trees) = self.database.read(|db| -> rusqlite::Result<_> {
            let ids = |sql: &str| {
                let mut statement = db.prepare(sql)?;
                let ids = statement.query_map([], |row| row.get::<_, i64>(0))?;
                ids.map(|id| id.map(|id| id.to_string())).collect::<rusqlite::Result<HashSet<_>>>()
            };
            let own = ids("SELECT id FROM snapshots WHERE tree_id IS NULL")?;
            Ok((own, ids("SELECT id FROM trees")?))
        })?;
        for (directory, known) in
            [(self.layout.snapshots(), snapshots), (self.layout.trees(), trees)]
        {
            for entry in list(&directory)? {
                let name = entry.file_name().map(|name| name.to_string_lossy().into_owned());
                if !name.is_some_and(|name| known.contains(&name)) {
                    tracing::info!(path = %entry.display(), "left by an earlier life, swept");
                    self.layout.discard(&entry)?;
                }
            }
        }
        Ok(())
    }

    /// Whether a pull is writing a tree, so that a sync would have to wait for its pages.
    fn is_writing(&self) -> Result<bool, Error> {
        let sql = "SELECT 1 FROM trees WHERE state = ?1 LIMIT 1";
        self.database.read(|db| Ok(db.prepare_cached(sql)?.exists([STAGING])?))
    }

    fn unreferenced(&self) -> Result<Vec<TreeId>, Error> {
        let sql = "
            SELECT id FROM trees WHERE state = ?1
            AND NOT EXISTS (SELECT 1 FROM snapshots WHERE tree_id = trees.id)
            AND NOT EXISTS (SELECT 1 FROM pinned_trees WHERE tree_id = trees.id)";
        self.database.read(|db| -> Result<_, Error> {
            let mut statement = db.prepare_cached(sql)?;
            let ids = statement.query_map([PUBLISHED], |row| row.get(0).map(TreeId))?;
            Ok(ids.collect::<Result<_, _>>()?)
        })
    }

    /// Moves a tree to the trash, unless somebody counts on it: then says when to look again.
    fn sweep_tree(&self, id: TreeId) -> Result<Option<Duration>, Error> {
        let mut locked = self.ledger.locked();
        match locked.judge(id, self.options.grace) {
            Verdict::Held => return Ok(None),
            Verdict::Grace(left) => return Ok(Some(left)),
            Verdict::Sweep => {}
        }
        let sql = "
            DELETE FROM trees WHERE id = ?1
            AND NOT EXISTS (SELECT 1 FROM snapshots WHERE tree_id = ?1)
            AND NOT EXISTS (SELECT 1 FROM pinned_trees WHERE tree_id = ?1)";
        let removed = self.database.write(|db| db.execute(sql, params![id.0]))?;
        if removed > 0 {
            locked.close(id);
            self.unmount_tree(id);
            self.layout.discard(&self.layout.tree(id))?;
        }
        Ok(None)
    }

    fn empty_trash(&self) -> Result<(), Error> {
        for entry in list(&self.layout.trash())? {
            // What was not unmounted when it was let go, or by a probe that was killed.
            let points = ["merged", "fs"].map(|name| entry.join(name));
            let unmounted = points.iter().try_for_each(|point| images::unmount_all(point));
            if let Err(error) = unmounted.and_then(|()| remove(&entry)) {
                tracing::warn!(path = %entry.display(), %error, "cannot be removed yet");
            }
        }
        Ok(())
    }
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(directory).map_err(Error::io("reading", directory))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.collect::<io::Result<_>>().map_err(Error::io("reading", directory))
}

/// Removes whatever is at `path`. The library's recursion holds a descriptor for every level, and an
/// archive can nest deeper than there are descriptors.
fn remove(path: &Path) -> io::Result<()> {
    if !path.symlink_metadata()?.is_dir() {
        return fs::remove_file(path);
    }
    fs::remove_dir_all(path).or_else(|_| take_apart(path))
}

/// Removes a directory however deep: inner directories move up next to `path` until none is deep.
fn take_apart(path: &Path) -> io::Result<()> {
    let mut waiting = vec![path.to_owned()];
    let mut moved = 0_u64;
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                let aside = path.with_extension(format!("part{moved}"));
                moved += 1;
                fs::rename(entry.path(), &aside)?;
                waiting.push(aside);
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        fs::remove_dir(&directory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of 3,000 levels, deeper than a path can name and than most limits of descriptors.
    fn deep(below: &Path) -> PathBuf {
        let mut inner = below.join("d0");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("file"), "").unwrap();
        // From the inside out.
        for level in 1..3000 {
            let outer = below.join(format!("d{level}"));
            fs::create_dir(&outer).unwrap();
            fs::write(outer.join("file"), "").unwrap();
            fs::rename(&inner, outer.join("d")).unwrap();
            inner = outer;
        }
        inner
    }

    #[test]
    fn what_is_deep_is_removed_and_symlinks_are_not_followed() {
        for removes in [remove, take_apart] {
            let directory = tempfile::tempdir().unwrap();
            let outside = tempfile::tempdir().unwrap();
            fs::write(outside.path().join("kept"), "").unwrap();
            let path = deep(directory.path());
            std::os::unix::fs::symlink(outside.path(), path.join("out")).unwrap();
            removes(&path).unwrap();
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
            assert!(outside.path().join("kept").exists());
        }
    }
}
