//! The daemon from outside: a process, its sockets, its pages and its signals.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn hoistd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hoistd"));
    command.env_remove("HOIST_CONFIG").env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC");
    command
}

/// A running daemon; killed when dropped.
struct Daemon {
    child: Child,
    dir: TempDir,
    address: SocketAddr,
    notify: UnixDatagram,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Daemon {
    /// Started and ready, as systemd would hear it.
    fn start(more: &str) -> Self {
        Self::start_with(&["--no-pull"], more)
    }

    fn start_with(flags: &[&str], more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = free_address();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "root = \"{}\"\nsocket = \"{}\"\ncontrol_socket = \"{}\"\n{more}\n\
             [metrics]\naddress = \"{address}\"\n",
            path("root"),
            path("run/hoist.sock"),
            path("run/control.sock"),
        );
        fs::write(dir.path().join("hoist.toml"), config).unwrap();
        let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = hoistd()
            .args(flags)
            .arg("--config")
            .arg(dir.path().join("hoist.toml"))
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .env("WATCHDOG_USEC", "200000")
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        let daemon = Self { child, dir, address, notify };
        daemon.hear("READY=1");
        daemon
    }

    /// Waits until systemd is told `word`.
    fn hear(&self, word: &str) {
        let mut buffer = [0; 4096];
        loop {
            let length = match self.notify.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) => panic!("{word} was not told: {error}\n{}", self.log()),
            };
            if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == word) {
                return;
            }
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Status code and whole answer to a GET.
    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: hoistd\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        (status.unwrap_or_else(|| panic!("no status: {answer}")), answer)
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("it did not end\n{}", self.log());
    }

    /// Waits until the log has a line with `words`.
    fn logged(&self, words: &str) {
        let began = Instant::now();
        while !self.log().contains(words) {
            assert!(began.elapsed() < PATIENCE, "{words} is not in the log:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn serves_its_pages_and_drains() {
    let mut daemon = Daemon::start("");
    assert_eq!(mode(&daemon.path("run/hoist.sock")), 0o600);
    assert_eq!(mode(&daemon.path("run/control.sock")), 0o600);
    let (status, metrics) = daemon.get("/metrics");
    assert_eq!(status, 200);
    assert!(metrics.contains("text/plain; version=0.0.4"), "{metrics}");
    for line in [
        // 256 MiB less the process's own 32, less a quarter.
        "hoist_memory_budget_bytes 176160768",
        "hoist_memory_budget_in_use_bytes 0",
        "hoist_snapshots{kind=\"active\"} 0",
        "hoist_pulls_in_progress 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}\nnot in\n{metrics}");
    }
    assert_eq!(daemon.get("/healthz").0, 200);
    assert_eq!(daemon.get("/readyz").0, 200);
    let (status, page) = daemon.get("/");
    assert_eq!(status, 200);
    assert!(page.contains("No pull has ended yet"), "{page}");
    assert_eq!(daemon.get("/nothing").0, 404);
    daemon.hear("WATCHDOG=1");
    daemon.signal(nix::sys::signal::SIGTERM);
    daemon.hear("STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    assert!(!daemon.path("run/hoist.sock").exists());
    assert!(!daemon.path("run/control.sock").exists());
}

/// A pull that never gets an answer: its registry takes connections and says nothing.
struct StalledPull {
    client: Child,
    /// Open and never read from.
    _silent: (TcpListener, TcpStream),
}

impl StalledPull {
    fn start(daemon: &Daemon) -> Self {
        let registry = TcpListener::bind("127.0.0.1:0").unwrap();
        let image = format!("{}/image:tag", registry.local_addr().unwrap());
        let client = Command::new(env!("CARGO_BIN_EXE_hoist"))
            .arg("--control-socket")
            .arg(daemon.path("run/control.sock"))
            .args(["pull", "--quiet", "--snapshots", &image])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (connection, _) = registry.accept().unwrap();
        Self { client, _silent: (registry, connection) }
    }
}

impl Drop for StalledPull {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

#[test]
fn a_second_signal_does_not_wait_for_a_pull() {
    use nix::sys::signal::Signal::{SIGINT, SIGTERM};
    for second in [SIGTERM, SIGINT] {
        // Longer than this test waits for anything.
        let mut daemon = Daemon::start_with(&[], "drain_timeout = \"10m\"");
        let _pull = StalledPull::start(&daemon);
        daemon.signal(SIGTERM);
        daemon.hear("STOPPING=1");
        daemon.logged("draining");
        assert_eq!(daemon.get("/readyz").0, 503, "it drains");
        assert!(daemon.child.try_wait().unwrap().is_none(), "the pull is waited for");
        daemon.signal(second);
        let status = daemon.wait();
        assert_eq!(status.code(), Some(1), "{second} was handled, and the end was none in order");
        daemon.logged("a second signal: ending at once");
    }
}

#[test]
fn a_pull_is_waited_for_no_longer_than_the_bound() {
    let mut daemon = Daemon::start_with(&[], "drain_timeout = \"1s\"");
    let _pull = StalledPull::start(&daemon);
    daemon.signal(nix::sys::signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    daemon.logged("pulls are still under way; they are cancelled");
    assert!(!daemon.path("run/hoist.sock").exists());
}

#[test]
fn a_reload_takes_the_level_over_and_says_what_waits() {
    let daemon = Daemon::start("");
    let file = daemon.path("hoist.toml");
    let before = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{before}[log]\nlevel = \"debug\"\n[limits]\nlayers_at_once = 9\ndisk_rate = \"7MB/s\"\n"))
        .unwrap();
    daemon.signal(nix::sys::signal::SIGHUP);
    daemon.hear("RELOADING=1");
    daemon.hear("READY=1");
    daemon.logged("took the log level over");
    daemon.logged("took the limits on bytes a second and of single registries over");
    daemon.logged("changed=\"[limits]\"");
    let limit = r#"hoist_rate_limit_bytes_per_second{limit="disk",registry=""} 7000000"#;
    assert!(daemon.get("/metrics").1.contains(limit), "{}", daemon.get("/metrics").1);
    fs::write(&file, format!("{before}[log]\nlevel = 3\n")).unwrap();
    daemon.signal(nix::sys::signal::SIGHUP);
    daemon.logged("log.level: is a whole number");
    daemon.hear("READY=1");
    assert_eq!(daemon.get("/healthz").0, 200);
}

#[test]
fn a_root_and_a_socket_have_one_daemon() {
    let daemon = Daemon::start("");
    let config = daemon.path("hoist.toml");
    let second = hoistd()
        .args(["--no-pull", "--config"])
        .arg(&config)
        .arg("--metrics")
        .arg("off")
        .arg("--root")
        .arg(daemon.path("other"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let told = text(&second.stderr);
    assert!(told.contains("another process answers on"), "{told}");
    let second = hoistd()
        .args(["--no-pull", "--config"])
        .arg(&config)
        .arg("--socket")
        .arg(daemon.path("other.sock"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1), "the root has a daemon");
    assert!(text(&second.stderr).contains("cannot use the root"), "{}", text(&second.stderr));
    assert_eq!(daemon.get("/healthz").0, 200, "the first goes on");
}

#[test]
fn killed_and_started_again() {
    let mut daemon = Daemon::start("");
    daemon.signal(nix::sys::signal::SIGKILL);
    daemon.wait();
    assert!(daemon.path("run/hoist.sock").exists(), "a leftover, as after a crash");
    daemon.child = hoistd()
        .args(["--no-pull", "--config"])
        .arg(daemon.path("hoist.toml"))
        .env("NOTIFY_SOCKET", daemon.path("notify"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    daemon.hear("READY=1");
    assert_eq!(daemon.get("/healthz").0, 200);
}

#[test]
fn the_command_line_asks_it() {
    let daemon = Daemon::start("");
    let hoist = |arguments: &[&str]| -> Output {
        Command::new(env!("CARGO_BIN_EXE_hoist"))
            .arg("--control-socket")
            .arg(daemon.path("run/control.sock"))
            .args(arguments)
            .output()
            .unwrap()
    };
    let pulls = hoist(&["pulls", "--json"]);
    assert!(pulls.status.success(), "{}", text(&pulls.stderr));
    assert_eq!(text(&pulls.stdout).trim(), "[]");
    let trees = hoist(&["ls", "--json"]);
    assert_eq!(text(&trees.stdout).trim(), "[]", "{}", text(&trees.stderr));
    let pull = hoist(&["pull", "--snapshots", "127.0.0.1:1/image:tag"]);
    assert!(!pull.status.success());
    assert!(text(&pull.stderr).contains("--no-pull"), "{}", text(&pull.stderr));
}

fn check(config: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hoist.toml");
    fs::write(&file, config).unwrap();
    hoistd().arg("--check").arg("--config").arg(&file).output().unwrap()
}

#[test]
fn without_all_users_it_says_so_and_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    // Root of a namespace that knows one user.
    let mut hoistd = Command::new("unshare");
    hoistd.args(["--user", "--map-root-user", "--", env!("CARGO_BIN_EXE_hoistd")]);
    wants_root(&mut hoistd, dir.path());
}

/// A `hoistd` with its root and socket in `dir` says that it needs root, and makes nothing.
fn wants_root(hoistd: &mut Command, dir: &Path) {
    let root = dir.join("root");
    hoistd.args(["--metrics", "off", "--root"]).arg(&root);
    hoistd.arg("--socket").arg(dir.join("hoist.sock")).env_remove("NOTIFY_SOCKET");
    let refused = hoistd.output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let told = text(&refused.stderr);
    assert!(told.contains("hoistd needs root, outside of user namespaces"), "{told}");
    assert!(!root.exists(), "nothing is made");
}

/// Neither somebody who is not root.
#[test]
fn without_root_it_says_so_and_does_not_start() {
    // Where nobody can come as well.
    let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = dir.path().join("hoistd");
    fs::copy(env!("CARGO_BIN_EXE_hoistd"), &program).unwrap();
    let mut hoistd = Command::new("setpriv");
    hoistd.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(&program);
    wants_root(&mut hoistd, dir.path());
}

#[test]
fn check_tells_all_mistakes_and_does_not_start() {
    let wrong = check("rooot = \"/x\"\n[fetch]\nretries = \"many\"\n");
    assert_eq!(wrong.status.code(), Some(2));
    let told = text(&wrong.stderr);
    assert!(told.contains("2 mistakes"), "{told}");
    assert!(told.contains("line 1: rooot: is not a key; did you mean \"root\"?"), "{told}");
    assert!(told.contains("line 3: fetch.retries:"), "{told}");
    // A root that cannot be made: a start would fail.
    let right = check("root = \"/proc/none\"\n");
    assert_eq!(right.status.code(), Some(0), "{}", text(&right.stderr));
    assert!(text(&right.stderr).ends_with("hoist.toml: the configuration is right\n"));
    // A key that is none is told with those that are, each once.
    let told = text(&check("zzzzzzzzzzzz = 1\n").stderr).to_owned();
    let (_, known) = told.trim_end().split_once("known here: ").unwrap();
    let mut once = std::collections::BTreeSet::new();
    assert!(known.split(", ").all(|key| once.insert(key)), "{known}");
    let documented = concat!(env!("CARGO_MANIFEST_DIR"), "/config/hoist.toml");
    let documented = hoistd().args(["--check", "--config", documented]).output().unwrap();
    assert_eq!(documented.status.code(), Some(0), "{}", text(&documented.stderr));
}

#[test]
fn help_and_usage() {
    let help = hoistd().arg("--help").output().unwrap();
    assert!(help.status.success());
    let told = text(&help.stdout);
    for word in ["--config", "--check", "--root", "--socket", "--no-pull", "Exit codes"] {
        assert!(told.contains(word), "{word} is not in\n{told}");
    }
    let metrics = hoistd().args(["--metrics", "9469"]).output().unwrap();
    assert!(text(&metrics.stderr).contains("neither IP:PORT, as 127.0.0.1:9469, nor off"));
    assert_eq!(hoistd().arg("--wrong").output().unwrap().status.code(), Some(2));
}
