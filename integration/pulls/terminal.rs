//! `hoist top` and `hoist pull` on a terminal of their own: what they draw, and that they leave the terminal as it was.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hoist::image::{BlobDigest, Sha256};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::{Pid, read, write};

use super::daemon::{Daemon, blocking};
use super::faulty_registry::{FaultyRegistry, Reply};
use super::images::{Layer, noise, push};

const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// A terminal with `hoist` on it.
struct Terminal {
    pty: OpenptyResult,
    before: Termios,
    hoist: Child,
    seen: String,
    /// The begin of a character.
    unread: Vec<u8>,
}

impl Terminal {
    fn with_top(daemon: &Daemon) -> Self {
        let mut terminal = Self::with(&daemon.home.path().join("hoist.toml"), &["top"]);
        terminal.wait_for("PULLS UNDER WAY");
        terminal
    }

    fn with(config: &Path, arguments: &[&str]) -> Self {
        Self::of(100, config, arguments)
    }

    /// With so many columns.
    fn of(columns: u16, config: &Path, arguments: &[&str]) -> Self {
        let size = Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let before = tcgetattr(pty.slave.as_fd()).unwrap();
        let end = || Stdio::from(OwnedFd::try_clone(&pty.slave).unwrap());
        // Its own session on this terminal, so that Ctrl-C comes as a signal.
        let hoist = Command::new("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_hoist"), "--config"])
            .arg(config)
            .args(arguments)
            .env("TERM", "xterm")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        Self { pty, before, hoist, seen: String::new(), unread: Vec::new() }
    }

    /// Reads what is drawn until `word` is.
    fn wait_for(&mut self, word: &str) {
        let began = Instant::now();
        while !self.seen.contains(word) {
            let waited = began.elapsed();
            assert!(waited < Duration::from_secs(60), "{word:?} is not in {:?}", self.seen);
            self.read_for(1000);
        }
    }

    /// Reads what comes next, if something does within so many milliseconds; whether it did.
    fn read_for(&mut self, milliseconds: u16) -> bool {
        // Nothing may come any more, and a read would wait for it.
        let mut ready = [PollFd::new(self.pty.master.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(milliseconds)).unwrap() == 0 {
            return false;
        }
        let mut piece = [0; 4096];
        let length = read(&self.pty.master, &mut piece).unwrap();
        self.unread.extend_from_slice(&piece[..length]);
        // A character may be in two pieces.
        let whole = match std::str::from_utf8(&self.unread) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.unread.len(),
        };
        self.seen += &String::from_utf8_lossy(&self.unread[..whole]);
        self.unread.drain(..whole);
        true
    }

    /// Waits for its end with this exit code, and looks whether the terminal is as it was.
    fn ends_with(&mut self, code: i32, how: &str) {
        assert_eq!(self.hoist.wait().unwrap().code(), Some(code), "{how}: {}", self.seen);
        let after = tcgetattr(self.pty.slave.as_fd()).unwrap();
        assert_eq!(after.input_flags, self.before.input_flags, "{how}");
        assert_eq!(after.output_flags, self.before.output_flags, "{how}");
        assert_eq!(after.local_flags, self.before.local_flags, "{how}");
        assert_eq!(after.control_chars, self.before.control_chars, "{how}");
    }

    fn ends_well(mut self, how: &str) {
        self.wait_for(LEAVE);
        self.ends_with(0, how);
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
        kill(Pid::from_raw(terminal.hoist.id().cast_signed()), Signal::SIGTERM).unwrap();
        terminal.ends_well("SIGTERM");
    })
    .await;
}

/// Without the sequences that set colours.
fn plain(seen: &str) -> String {
    let mut parts = seen.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    let rest = parts.map(|part| part.split_once('m').expect("a sequence ends").1);
    first + &rest.collect::<String>()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_is_drawn_as_wide_as_its_terminal() {
    let server = FaultyRegistry::start().await;
    let layers = ["one", "two"].map(|name| Layer::of("gzip", name, noise(name, 400_000)));
    let image = push(&server, "v1", &layers);
    blocking(move || {
        let daemon = Daemon::start("", &serde_json::json!({}));
        daemon.told(&["pull", "--snapshots", "--quiet", &image]);
        let config = daemon.home.path().join("hoist.toml");
        for columns in [80, 120] {
            let mut terminal = Terminal::of(columns, &config, &["pulls", "show", "1"]);
            terminal.wait_for("What would help:");
            terminal.ends_with(0, "pulls show");
            while terminal.read_for(0) {}
            assert!(terminal.seen.contains("\x1b[34m█"), "no colours: {:?}", terminal.seen);
            let lines = plain(&terminal.seen);
            let widths: Vec<_> = lines.lines().map(|line| line.chars().count()).collect();
            assert_eq!(widths.iter().max(), Some(&usize::from(columns)), "{lines}");
        }
    })
    .await;
}

/// Two layers, of which the second has so many bytes and comes with so many a second.
async fn two_layers(bytes: usize, rate: u64) -> (FaultyRegistry, String) {
    let server = FaultyRegistry::start().await;
    let small = Layer::of("zstd", "small", noise("small", 200_000));
    let large = Layer::of("none", "large", noise("large", bytes));
    let digest = BlobDigest(Sha256::of(&large.blob)).to_string();
    let image = push(&server, "v1", &[small, large]);
    server.script(move |request, reply| {
        let slow = request.path.ends_with(&digest);
        if slow { Reply { rate: Some(rate), ..reply } } else { reply }
    });
    (server, image)
}

const HIDE: &str = "\x1b[?25l";
const SHOW: &str = "\x1b[?25h";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_draws_a_bar_for_each_layer_and_clears_them() {
    // Half a minute of it: Ctrl-C comes first.
    let (_server, image) = two_layers(6_000_000, 200_000).await;
    blocking(move || {
        let (_home, config, to) = without_daemon();
        let pull = ["pull", &image, "--to", to.to_str().unwrap()];

        let mut terminal = Terminal::with(&config, &pull);
        // Bytes of bytes, a rate, a phase.
        terminal.wait_for("kB / 6.00 MB");
        terminal.wait_for("/s  fetching and unpacking");
        terminal.wait_for("  done");
        write(&terminal.pty.master, b"\x03").unwrap();
        terminal.wait_for("interrupted");
        terminal.ends_with(130, "Ctrl-C");
        let seen = &terminal.seen;
        assert!(seen.matches(HIDE).count() <= seen.matches(SHOW).count(), "{seen:?}");
        assert_eq!(std::fs::read_dir(&to).map_or(0, Iterator::count), 0, "nothing is left");
        assert!(!to.exists(), "nor the directory that was made for it");
        // A rate that no clock of ours could measure: what was drawn at first once.
        assert!(!seen.contains("GB/s") && !seen.contains("TB/s"), "{seen:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_is_done_leaves_its_summary_alone() {
    let (_server, image) = two_layers(400_000, 800_000).await;
    blocking(move || {
        let (_home, config, to) = without_daemon();
        let pull = ["pull", &image, "--to", to.to_str().unwrap()];
        let mut terminal = Terminal::with(&config, &pull);
        terminal.wait_for("fetching and unpacking");
        terminal.wait_for("LAYER ");
        terminal.ends_with(0, "done");
        assert_eq!(std::fs::read(to.join("small")).unwrap(), noise("small", 200_000));
        // The bars are gone when the summary comes, and none is drawn after it.
        let (_, end) = terminal.seen.rsplit_once("\x1b[2K").unwrap();
        assert!(end.contains(": done in") && !end.contains('\u{2588}'), "{:?}", terminal.seen);

        // The same without a terminal: no bars, no control characters, and quiet where all is soon done.
        std::fs::remove_dir_all(&to).unwrap();
        let mut hoist = Command::new(env!("CARGO_BIN_EXE_hoist"));
        let output = hoist.arg("--config").arg(&config).args(pull).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap());
        assert!(output.status.success(), "{err}");
        assert!(!(out + &err).contains('\x1b'));
    })
    .await;
}

/// A line every five seconds, for logs and for those who wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_without_a_terminal_writes_a_line_now_and_then() {
    // Seven seconds of it.
    let (_server, image) = two_layers(5_600_000, 800_000).await;
    blocking(move || {
        let (_home, config, to) = without_daemon();
        let pull = |more: &[&str]| {
            let mut hoist = Command::new(env!("CARGO_BIN_EXE_hoist"));
            hoist.arg("--config").arg(&config).args(["pull", &image, "--to"]).arg(&to).args(more);
            let output = hoist.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            std::fs::remove_dir_all(&to).unwrap();
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap())
        };
        let [out, err] = pull(&[]);
        assert!(out.starts_with(&image) && out.contains(": done in"), "{out}");
        assert!(!err.is_empty(), "nothing is said for seven seconds");
        for line in err.lines() {
            let told = line
                .strip_prefix(&format!("{image}: 1 of 2 layers, "))
                .unwrap_or_else(|| panic!("{line}"));
            let (fetched, rest) =
                told.split_once(" of 5.8 MB fetched, ").unwrap_or_else(|| panic!("{line}"));
            assert!(fetched.ends_with(" MB") && rest.contains(" MB unpacked, "), "{line}");
            assert!(rest.ends_with(" s") && line.is_ascii(), "{line}");
        }
        let [out, err] = pull(&["--quiet"]);
        assert_eq!(err, "");
        assert!(out.contains(": done in"), "{out}");
    })
    .await;
}

/// A directory, the configuration that lies in it, and a place in it for an image.
fn without_daemon() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    let (config, to) = (home.join("hoist.toml"), home.join("to"));
    let text = format!("[registry]\nhosts_dirs = [{home:?}]\n[fetch]\nretries = 1\n");
    std::fs::write(&config, text).unwrap();
    (dir, config, to)
}
