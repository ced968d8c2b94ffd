//! Unix sockets that only root can use.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use super::error::DaemonError;

/// A socket file that goes when this is dropped.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may have been removed already; a stale one is taken away by the next start.
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens on `path` with mode 0600, in a directory that is made if need be. A socket that nobody
/// answers on is a leftover of a daemon that was killed, and is removed; any other file is not.
pub(super) fn listen(path: &Path) -> Result<(UnixListener, SocketFile), DaemonError> {
    let failed = |source| DaemonError::Socket { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if UnixStream::connect(path).is_ok() {
                return Err(DaemonError::SocketInUse { path: path.to_owned() });
            }
            fs::remove_file(path).map_err(failed)?;
        }
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        // bind says that a file which is no socket is in the way.
        _ => {}
    }
    // Bound under a name of its own and renamed: the socket never stands there with another mode.
    let mut staging = path.as_os_str().to_owned();
    staging.push(".new");
    let staging = PathBuf::from(staging);
    if fs::symlink_metadata(path).is_ok() {
        return Err(failed(ErrorKind::AlreadyExists.into()));
    }
    let _ = fs::remove_file(&staging);
    let listener = UnixListener::bind(&staging).map_err(failed)?;
    fs::set_permissions(&staging, Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&staging, path).map_err(failed)?;
    Ok((listener, SocketFile(path.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn private_and_renewed_but_never_stolen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/hoist.sock");
        let (listener, file) = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(matches!(listen(&path), Err(DaemonError::SocketInUse { .. })));
        // As after kill -9: the file stays and nobody listens.
        std::mem::forget(file);
        drop(listener);
        let (_listener, file) = listen(&path).unwrap();
        drop(file);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(DaemonError::Socket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
