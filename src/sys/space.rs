//! How full a file system is.

use std::io;
use std::path::Path;

/// Whether a file system had no room for what was to be written, or its owner no more of it (quotas).
pub fn is_full(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| [libc::ENOSPC, libc::EDQUOT].contains(&code))
}

/// Of one file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// All of it, in bytes.
    pub size_bytes: u64,
    /// What anybody but root may still write, in bytes.
    pub available_bytes: u64,
}

impl Space {
    /// Of the file system that `path` is on.
    ///
    /// # Errors
    /// The system's.
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = nix::sys::statvfs::statvfs(path)?;
        let fragment = found.fragment_size();
        Ok(Self {
            size_bytes: found.blocks() * fragment,
            available_bytes: found.blocks_available() * fragment,
        })
    }
}
