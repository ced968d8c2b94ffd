//! What hoist changes in the configuration of others: Docker's `daemon.json` and containerd's `config.toml`.
//!
//! Planning is pure: the texts that are there and what is known of the host go in ([`docker::Facts`],
//! [`containerd::Facts`]), and out come [`Change`]s, whole texts before and after, or a refusal with its reason. Edits are
//! made in the text, so that comments, order and layout stay. [`Plan::apply`] writes them, lets the program itself check
//! the result, and puts everything back where it complains.
//!
//! What was there before is kept beside the file (`config.toml.before-hoist`): the newest text that had nothing of hoist's. So
//! an installation into a file that somebody else has written anew (nodeadm at a boot, say) keeps that one, and an
//! installation into one that was edited with hoist in it keeps what was kept. [`undo`](docker::undo) puts it back byte
//! for byte if nobody has touched the file since, and else takes out only what hoist put in.

pub mod containerd;
pub mod docker;
mod files;
pub mod host;
mod json;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use files::Plan;

/// The name of the snapshotter.
const SNAPSHOTTER: &str = "hoist";

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file cannot be written; what was written before it is put back.
    #[error("cannot write {}: {source}; nothing is changed", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its program reads.
    #[error("{} cannot be understood: {problem}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        problem: String,
    },
    /// It would break the host.
    #[error("{reason}")]
    Refused {
        /// Why, and the way out.
        reason: String,
    },
    /// The program does not accept the result; everything is as before.
    #[error("{program} does not accept the new configuration, so the old one is back: {said}")]
    NotAccepted {
        /// The program.
        program: String,
        /// The end of what it said.
        said: String,
    },
    /// A daemon answers nonsense.
    #[error("{} answers, but not as Docker does: {problem}", socket.display())]
    Daemon {
        /// Its socket.
        socket: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

fn refused(reason: impl Into<String>) -> InstallError {
    InstallError::Refused { reason: reason.into() }
}

/// A file, as it is and as it shall be; `None` where there is none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The file.
    pub path: PathBuf,
    /// What is in it.
    pub before: Option<String>,
    /// What shall be in it.
    pub after: Option<String>,
    /// What is in it has nothing of hoist's: it is what is to come back, whatever was kept before.
    pub without_hoist: bool,
}

impl Change {
    fn new(path: &Path, before: Option<&str>, after: Option<String>) -> Self {
        let before = before.map(str::to_owned);
        Self { path: path.to_owned(), before, after, without_hoist: false }
    }

    fn of_a_file_without_hoist(self, without_hoist: bool) -> Self {
        Self { without_hoist, ..self }
    }

    /// The difference, in the unified form that `diff -u` and `patch` know; empty where there is none.
    pub fn diff(&self) -> String {
        let (before, after) = (self.before.as_deref(), self.after.as_deref());
        if before == after {
            return String::new();
        }
        let name = |text: Option<&str>| match text {
            Some(_) => self.path.display().to_string(),
            None => "/dev/null".to_owned(),
        };
        let lines = similar::TextDiff::from_lines(before.unwrap_or(""), after.unwrap_or(""));
        lines.unified_diff().context_radius(3).header(&name(before), &name(after)).to_string()
    }
}

/// Where the text before hoist is kept.
pub fn backup_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".before-hoist");
    name.into()
}
