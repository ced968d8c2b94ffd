//! `hoist top` on a terminal of its own: what it draws, and that it leaves the terminal as it was.

use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::{Pid, read, write};

use super::daemon::{Daemon, blocking};
use super::faulty_registry::FaultyRegistry;
use super::images::{Layer, noise, push};

const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// A terminal with `hoist top` on it.
struct Terminal {
    pty: OpenptyResult,
    before: Termios,
    top: Child,
    seen: String,
}

impl Terminal {
    fn with_top(daemon: &Daemon) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let before = tcgetattr(pty.slave.as_fd()).unwrap();
        let end = || Stdio::from(OwnedFd::try_clone(&pty.slave).unwrap());
        // Its own session on this terminal, so that Ctrl-C comes as a signal.
        let top = Command::new("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_hoist"), "--config"])
            .arg(daemon.home.path().join("hoist.toml"))
            .arg("top")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let mut terminal = Self { pty, before, top, seen: String::new() };
        terminal.wait_for("PULLS UNDER WAY");
        terminal
    }

    /// Reads what is drawn until `word` is.
    fn wait_for(&mut self, word: &str) {
        let began = Instant::now();
        while !self.seen.contains(word) {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "{word:?} is not in {:?}",
                self.seen
            );
            let mut piece = [0; 4096];
            let length = read(&self.pty.master, &mut piece).unwrap();
            self.seen += &String::from_utf8_lossy(&piece[..length]);
        }
    }

    fn ends_well(mut self, how: &str) {
        self.wait_for(LEAVE);
        assert_eq!(self.top.wait().unwrap().code(), Some(0), "{how}: {}", self.seen);
        let after = tcgetattr(self.pty.slave.as_fd()).unwrap();
        assert_eq!(after.local_flags, self.before.local_flags, "{how}");
        assert_eq!(after.control_chars, self.before.control_chars, "{how}");
        assert!(self.seen.starts_with("\x1b[?1049h\x1b[?25l"), "{how}");
        assert!(self.seen.ends_with(LEAVE), "{how}: nothing is drawn after it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn top_draws_and_leaves_the_terminal_as_it_was() {
    let server = FaultyRegistry::start().await;
    let image = push(&server, "v1", &[Layer::of("zstd", "one", noise("one", 200_000))]);
    blocking(move || {
        let daemon = Daemon::start("", &serde_json::json!({}));
        daemon.told(&["pull", "--snapshots", "--quiet", &image]);
        let once = daemon.told(&["top"]);
        assert!(once.contains(&image) && !once.contains('\x1b'), "{once}");

        let mut terminal = Terminal::with_top(&daemon);
        terminal.wait_for(&image);
        write(&terminal.pty.master, b"xq").unwrap();
        terminal.ends_well("q");

        let terminal = Terminal::with_top(&daemon);
        write(&terminal.pty.master, b"\x03").unwrap();
        terminal.ends_well("Ctrl-C");

        let terminal = Terminal::with_top(&daemon);
        kill(Pid::from_raw(terminal.top.id().cast_signed()), Signal::SIGTERM).unwrap();
        terminal.ends_well("SIGTERM");
    })
    .await;
}
