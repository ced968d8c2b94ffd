//! A `hoistd` of its own, and what it answers on each of its doors.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::harness::free_port;
use super::harness::scratch::unmount_below;

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Replaces a text in the configuration of a daemon whose directory is `home`.
pub(crate) fn configure(home: &Path, from: &str, to: &str) {
    let file = home.join("hoist.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, text.replace(from, to)).unwrap();
}

/// A running daemon; killed when dropped.
pub(crate) struct Daemon {
    child: std::process::Child,
    pub(crate) home: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    environment: Vec<(&'static str, String)>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        unmount_below(self.home.path());
    }
}

impl Daemon {
    /// One that is ready, with these sections in its configuration and this `config.json` of docker's.
    pub(crate) fn start(sections: &str, docker: &serde_json::Value) -> Self {
        Self::start_with(sections, docker, Vec::new())
    }

    /// The same with these variables in its environment.
    pub(crate) fn start_with(
        sections: &str,
        docker: &serde_json::Value,
        environment: Vec<(&'static str, String)>,
    ) -> Self {
        Self::start_where(sections, docker, environment, |_| ())
    }

    /// The same, after `furnish` has put more files into its directory. With a file `hosts` among them it runs in a mount
    /// name space where that is `/etc/hosts`; with a file `namespace` in one that this script makes, which is
    /// given the directory.
    pub(crate) fn start_where(
        sections: &str,
        docker: &serde_json::Value,
        environment: Vec<(&'static str, String)>,
        furnish: impl FnOnce(&Path),
    ) -> Self {
        let home = tempfile::tempdir().unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let at = home.path().display();
        std::fs::write(home.path().join("config.json"), docker.to_string()).unwrap();
        let config = format!(
            "root = \"{at}/root\"\nsocket = \"{at}/hoist.sock\"\ncontrol_socket = \"{at}/control.sock\"\n\
             [registry]\nhosts_dirs = [\"{at}\"]\ndocker_config = \"{at}/config.json\"\n\
             [metrics]\naddress = \"{address}\"\n\
             [fetch]\nretries = 1\nbackoff_initial = \"1ms\"\nbackoff_max = \"2ms\"\n{sections}\n"
        );
        std::fs::write(home.path().join("hoist.toml"), config).unwrap();
        furnish(home.path());
        let child = Self::launch(home.path(), &environment);
        let daemon = Self { child, home, address, environment };
        daemon.wait();
        daemon
    }

    fn launch(home: &Path, environment: &[(&'static str, String)]) -> std::process::Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(home.join("log"));
        let in_namespace = |script: &str, argument: &Path| {
            let mut command = Command::new("unshare");
            let script = format!("mount --make-rprivate / && {script} && exec \"$@\"");
            command.args(["--mount", "sh", "-c", &script]).arg(argument);
            command.arg(env!("CARGO_BIN_EXE_hoistd"));
            command
        };
        let mut command = match (home.join("hosts"), home.join("namespace")) {
            (hosts, _) if hosts.exists() => in_namespace("mount --bind \"$0\" /etc/hosts", &hosts),
            (_, script) if script.exists() => in_namespace(". \"$0/namespace\"", home),
            _ => Command::new(env!("CARGO_BIN_EXE_hoistd")),
        };
        command
            .env_remove("HOIST_CONFIG")
            .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .arg("--config")
            .arg(home.join("hoist.toml"))
            .stderr(Stdio::from(log.unwrap()))
            .spawn()
            .unwrap()
    }

    fn wait(&self) {
        let began = Instant::now();
        while self.try_get("/readyz").is_none_or(|(status, _)| status != 200) {
            assert!(began.elapsed() < PATIENCE, "hoistd does not become ready:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// kill -9, and a new start on the same root.
    pub(crate) fn crash_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::launch(self.home.path(), &self.environment);
        self.wait();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("log")).unwrap()
    }

    fn try_get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: hoistd\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some((answer.split(' ').nth(1)?.parse().ok()?, answer))
    }

    /// Status and whole answer, headers too.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        self.try_get(path).unwrap_or_else(|| panic!("no answer to {path}\n{}", self.log()))
    }

    /// The body of an answer that has to be a good one.
    pub(crate) fn body(&self, path: &str) -> String {
        let (status, answer) = self.get(path);
        assert_eq!(status, 200, "{path}: {answer}");
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// `hoist` against it, in the same environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoist"));
        command
            .env_remove("HOIST_CONFIG")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.home.path())
            .arg("--config")
            .arg(self.home.path().join("hoist.toml"))
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub(crate) fn hoist(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What `hoist` printed, where it has to succeed.
    pub(crate) fn told(&self, arguments: &[&str]) -> String {
        let output = self.hoist(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {error}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Runs something that blocks beside the registry that answers it.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}
