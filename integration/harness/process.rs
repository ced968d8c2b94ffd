//! A daemon as a child process: its log in a file, ended by its id when the value goes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a daemon may take to start, and to end when it is asked to. Generous: other tests run on the same cores.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much of a log is shown when a test fails.
const SHOWN_LINES: usize = 60;

/// A figure of `file`, the `status` of a process or thread in `/proc`; memory is in KiB. `None` where there is none.
pub(crate) fn status(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.strip_prefix(':')?.split_whitespace().next()?.parse().ok()
}

/// A running daemon.
pub(crate) struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with its output in the file `log`, which is appended to.
    pub(crate) fn start(name: &str, command: &Command, log: &Path) -> Self {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("the log's directory is there");
        let errors = output.try_clone().expect("a file can be shared");
        // A test program that is killed drops nothing: the kernel ends its daemons then. The thread that starts a daemon
        // is the test's own, which outlives it.
        let mut tied = Command::new("setpriv");
        tied.args(["--pdeathsig", "KILL", "--"])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            tied.env(name, value.unwrap_or_default());
        }
        let child = tied
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// Waits until `ready` says so; panics if the daemon ends before that or takes too long.
    pub(crate) fn wait_for(&mut self, mut ready: impl FnMut() -> bool) {
        let began = Instant::now();
        while !ready() {
            let ended = self.child.try_wait().expect("our own child can be waited for");
            assert!(ended.is_none(), "{} ended at once ({ended:?})", self.name);
            assert!(began.elapsed() < PATIENCE, "{} is not ready after {PATIENCE:?}", self.name);
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The whole log so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Ends the process at once, as a crash would (SIGKILL).
    pub(crate) fn crash(&mut self) {
        self.child.kill().expect("our own child can be killed");
        self.child.wait().expect("our own child can be waited for");
    }

    /// Asks the process to end (SIGTERM) and waits for it; one that does not is killed. Says whether it ended by itself.
    pub(crate) fn stop(&mut self) -> bool {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return true;
        }
        let id = Pid::from_raw(self.child.id().cast_signed());
        // It may have ended between the two calls.
        let _ = kill(id, Signal::SIGTERM);
        let began = Instant::now();
        while began.elapsed() < PATIENCE / 3 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.crash();
        false
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            super::loudly(&format!("--- the end of {}'s log", self.name));
            for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
                super::loudly(line);
            }
        }
    }
}
