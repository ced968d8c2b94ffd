//! Writing a plan, whole or not at all.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Change, InstallError, backup_of};

/// Changes, and the programs that have to accept them.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    changes: Vec<Change>,
    checks: Vec<Vec<String>>,
    undo: bool,
}

impl Plan {
    /// A plan that keeps what is there beside the changed files.
    pub fn install(changes: Vec<Change>) -> Self {
        Self { changes: differing(changes), checks: Vec::new(), undo: false }
    }

    /// A plan that removes what was kept.
    pub fn uninstall(changes: Vec<Change>) -> Self {
        Self { changes: differing(changes), checks: Vec::new(), undo: true }
    }

    /// Runs this command after writing; where it fails, everything is put back.
    #[must_use]
    pub fn checked_by(mut self, command: Vec<String>) -> Self {
        self.checks.push(command);
        self
    }

    /// What differs.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// Where a file cannot be written or a program does not accept the result; everything is as before then.
    pub fn apply(&self) -> Result<(), InstallError> {
        let mut copies = Vec::new();
        for (done, change) in self.changes.iter().enumerate() {
            if let Err(source) = self.write(change, &mut copies) {
                self.back(done + 1, &copies);
                return Err(InstallError::Write { path: change.path.clone(), source });
            }
        }
        for check in &self.checks {
            if let Err(said) = accepted(check) {
                self.back(self.changes.len(), &copies);
                let program = check[0].clone();
                return Err(InstallError::NotAccepted { program, said });
            }
        }
        if self.undo {
            for change in &self.changes {
                // What is left over says nothing wrong.
                let _ = std::fs::remove_file(backup_of(&change.path));
            }
        }
        Ok(())
    }

    fn write(&self, change: &Change, copies: &mut Vec<Copy>) -> std::io::Result<()> {
        if let Some(before) = &change.before
            && !self.undo
        {
            let path = backup_of(&change.path);
            let kept = match std::fs::read_to_string(&path) {
                Ok(text) => Some(text),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            let due = kept.as_ref().is_none_or(|kept| change.without_hoist && kept != before);
            if due {
                // Whoever may not read the one may not read the other.
                replace(&path, Some(before), &change.path)?;
                copies.push(Copy { path, kept });
            }
        }
        replace(&change.path, change.after.as_deref(), &change.path)
    }

    /// Puts the first `count` changes back, and the copies that were made for them.
    fn back(&self, count: usize, copies: &[Copy]) {
        for change in &self.changes[..count] {
            if let Err(error) = replace(&change.path, change.before.as_deref(), &change.path) {
                tracing::error!(file = %change.path.display(), %error, "cannot be put back");
                return;
            }
        }
        for Copy { path, kept } in copies {
            if let Err(error) = replace(path, kept.as_deref(), path) {
                tracing::error!(file = %path.display(), %error, "cannot be put back");
            }
        }
    }
}

/// A copy that was written, and what an earlier installation had kept there.
struct Copy {
    path: PathBuf,
    kept: Option<String>,
}

fn differing(changes: Vec<Change>) -> Vec<Change> {
    changes.into_iter().filter(|change| change.before != change.after).collect()
}

/// Replaces a file at once, with the mode and owner of `like` where that is there; or removes it.
fn replace(path: &Path, text: Option<&str>, like: &Path) -> std::io::Result<()> {
    let Some(text) = text else {
        return match std::fs::remove_file(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        };
    };
    // A configuration that is a link stays one.
    let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".hoist-new");
    let new = directory.join(name);
    let written = (|| {
        let mut file = std::fs::File::create(&new)?;
        file.write_all(text.as_bytes())?;
        if let Ok(old) = std::fs::metadata(like) {
            use std::os::unix::fs::MetadataExt as _;
            file.set_permissions(old.permissions())?;
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.sync_all()?;
        std::fs::rename(&new, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written
}

fn accepted(command: &[String]) -> Result<(), String> {
    let output = Command::new(&command[0]).args(&command[1..]).output();
    match output {
        // What is not there cannot complain.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(said.lines().last().unwrap_or_default().to_owned())
        }
    }
}

/// The text of a file; `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, InstallError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(InstallError::Read { path: PathBuf::from(path), source }),
    }
}
