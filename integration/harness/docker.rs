//! dockerd on a containerd of its own, each configured as a host has them before hoist comes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::hoistd::Hoistd;
use super::must;
use super::process::Daemon;

/// A host with Docker: its files always, its daemons while they run.
pub(crate) struct Docker {
    home: PathBuf,
    programs: [PathBuf; 2],
    // dockerd goes before containerd.
    dockerd: Option<Daemon>,
    containerd: Option<Daemon>,
}

impl Docker {
    /// Writes the configuration of both below `home`, and starts nothing.
    pub(crate) fn new(programs: [PathBuf; 2], home: &Path) -> Self {
        std::fs::create_dir_all(home.join("client")).expect("the scratch directory is writable");
        let this = Self { home: home.to_owned(), programs, dockerd: None, containerd: None };
        let home = home.display();
        let write = |name: &str, text: String| {
            std::fs::write(this.home.join(name), text).expect("the scratch directory is writable");
        };
        write(
            "config.toml",
            format!(
                "# containerd, as the host has it\nversion = 3\nroot = \"{home}/root\"\nstate = \"{home}/state\"\n\
                 disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\n\
                 [grpc]\n  address = \"{home}/containerd.sock\" # for dockerd\n\n\
                 [plugins.'io.containerd.internal.v1.opt']\n  path = \"{home}/opt\"\n\
                 [plugins.'io.containerd.nri.v1.nri']\n  disable = true\n\
                 [plugins.'io.containerd.image-verifier.v1.bindir']\n  bin_dir = \"{home}/verifier\"\n"
            ),
        );
        write(
            "daemon.json",
            format!(
                "{{\n  \"data-root\": \"{home}/data\",\n  \"exec-root\": \"{home}/exec\",\n  \"pidfile\": \"{home}/docker.pid\",\n  \
                 \"hosts\": [\"unix://{home}/docker.sock\"],\n  \"containerd\": \"{home}/containerd.sock\",\n  \
                 \"bridge\": \"none\", \"iptables\": false, \"ip6tables\": false, \"ip-forward\": false,\n  \
                 \"features\": {{\"containerd-snapshotter\": true}}\n}}\n"
            ),
        );
        let plugins = this.programs[0].join("../root/usr/libexec/docker/cli-plugins");
        write(
            "client/config.json",
            format!("{{\"cliPluginsExtraDirs\": [\"{}\"]}}", plugins.display()),
        );
        this
    }

    /// A file of the host.
    pub(crate) fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.home.join(name))
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The programs of this host before those of the machine.
    fn path(&self) -> String {
        let [docker, containerd] = &self.programs;
        let path = std::env::var("PATH").unwrap_or_default();
        format!("{}:{}:{path}", docker.display(), containerd.display())
    }

    /// Starts containerd and dockerd.
    pub(crate) fn start(&mut self) {
        let mut command = Command::new(self.programs[1].join("containerd"));
        command.arg("--config").arg(self.home.join("config.toml")).env("PATH", self.path());
        let mut daemon = Daemon::start("containerd", &command, &self.home.join("containerd.log"));
        let socket = self.home.join("containerd.sock");
        daemon.wait_for(|| std::os::unix::net::UnixStream::connect(&socket).is_ok());
        self.containerd = Some(daemon);
        self.start_dockerd();
    }

    fn start_dockerd(&mut self) {
        let mut command = Command::new(self.programs[0].join("dockerd"));
        command.arg("--config-file").arg(self.home.join("daemon.json")).env("PATH", self.path());
        let mut daemon = Daemon::start("dockerd", &command, &self.home.join("dockerd.log"));
        daemon.wait_for(|| self.command(&["version"]).output().is_ok_and(|o| o.status.success()));
        self.dockerd = Some(daemon);
    }

    /// Ends dockerd and starts it again.
    pub(crate) fn restart_dockerd(&mut self) {
        drop(self.dockerd.take());
        self.start_dockerd();
    }

    /// Ends both.
    pub(crate) fn stop(&mut self) {
        drop(self.dockerd.take());
        drop(self.containerd.take());
    }

    /// `docker`, ready to be run.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.arg("300").arg(self.programs[0].join("docker"));
        command.arg("--config").arg(self.home.join("client"));
        command.arg("--host").arg(format!("unix://{}/docker.sock", self.home.display()));
        command.args(arguments).stdin(std::process::Stdio::null());
        command
    }

    /// Runs `docker` and gives its output; panics where it fails.
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        must(&mut self.command(arguments))
    }

    /// The digests in containerd's content store.
    pub(crate) fn content(&self) -> Vec<String> {
        let mut command = Command::new(self.programs[1].join("ctr"));
        command.arg("--address").arg(self.home.join("containerd.sock"));
        let list = must(command.args(["--namespace", "moby", "content", "ls"]));
        list.lines().map(str::to_owned).collect()
    }

    /// `hoist install docker` or the like, on this host's files.
    pub(crate) fn hoist(&self, hoistd: &Hoistd, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoist"));
        command.arg("--config").arg(hoistd.config()).args(arguments);
        command.arg("--daemon-json").arg(self.home.join("daemon.json"));
        command.arg("--containerd-config").arg(self.home.join("config.toml"));
        if arguments[1] == "docker" {
            command.arg("--docker-socket").arg(self.home.join("docker.sock"));
        }
        command.env("PATH", self.path()).stdin(std::process::Stdio::null());
        command.output().expect("hoist was built")
    }
}
