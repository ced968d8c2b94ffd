//! A hoistd for the duration of one command.
//!
//! A machine image is often built where nothing is started by systemd (a chroot, a container). The hoistd
//! beside this program is started then, with the same configuration, and ended when the command is.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use super::super::error::CliError;

/// Its start mounts what is there; its end waits for what is under way.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// A hoistd of ours. Killed when it is dropped; [`OwnDaemon::end`] ends it in order.
pub(super) struct OwnDaemon(Child);

impl OwnDaemon {
    /// Starts it and waits until it listens on `socket`.
    pub(super) async fn start(config: Option<&Path>, socket: &Path) -> Result<Self, CliError> {
        let failed = |reason: String| CliError::OwnDaemon(reason);
        let beside = std::env::current_exe().ok().map(|path| path.with_file_name("hoistd"));
        let program = beside.filter(|path| path.exists()).unwrap_or_else(|| "hoistd".into());
        let mut command = Command::new(&program);
        if let Some(config) = config {
            command.arg("--config").arg(config);
        }
        command.arg("--control-socket").arg(socket);
        // Its log goes where this program's errors go. Ctrl-C is for this program, which ends it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).kill_on_drop(true);
        let child = command.spawn().map_err(|e| failed(format!("{}: {e}", program.display())))?;
        let mut own = Self(child);
        let listens = async {
            loop {
                if let Ok(Some(ended)) = own.0.try_wait() {
                    return Err(failed(format!("it ended at once ({ended}); its log is above")));
                }
                if tokio::net::UnixStream::connect(socket).await.is_ok() {
                    return Ok(());
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let ready = tokio::time::timeout(PATIENCE, listens).await;
        ready.unwrap_or_else(|_| {
            Err(failed(format!("it does not listen on {}", socket.display())))
        })?;
        Ok(own)
    }

    /// Ends it: SIGTERM, so that its store is closed in order.
    pub(super) async fn end(mut self) -> Result<(), CliError> {
        use nix::sys::signal::{Signal, kill};
        use nix::unistd::Pid;
        if let Some(id) = self.0.id() {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(id.cast_signed()), Signal::SIGTERM);
        }
        match tokio::time::timeout(PATIENCE, self.0.wait()).await {
            Ok(Ok(ended)) if ended.success() => Ok(()),
            Ok(Ok(ended)) => Err(CliError::OwnDaemon(format!("it ended with {ended}"))),
            Ok(Err(error)) => Err(CliError::OwnDaemon(error.to_string())),
            Err(_) => Err(CliError::OwnDaemon("it does not end".to_owned())),
        }
    }
}
