//! `hoistd` as built for this test run.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::Daemon;
use super::registry::Registry;

/// What has to stay free on the test bed's file system. The default, 2 GiB, would let a test fail for what others left.
const MIN_FREE: &str = "min_free = \"64MiB\"\n";

/// A test's sections with [`MIN_FREE`], where the test has no bound of its own.
fn with_little_room(extra: &str) -> String {
    if extra.contains("min_free") {
        return extra.to_owned();
    }
    let (before, after) = extra.split_once("[limits]\n").unwrap_or((extra, ""));
    format!("{before}\n[limits]\n{MIN_FREE}{after}")
}

/// A running `hoistd`, or one that just crashed and starts again on the same directory.
pub(crate) struct Hoistd {
    home: PathBuf,
    daemon: Daemon,
}

impl Hoistd {
    /// Starts one with its root, sockets, configuration and log below `home`.
    pub(crate) fn start(home: &Path, registry: &Registry, extra: &str) -> Self {
        std::fs::create_dir_all(home).expect("the scratch directory is writable");
        // A directory without hosts.toml files: how hoistd finds a registry is not left to the machine's own.
        std::fs::create_dir_all(home.join("certs.d")).expect("the scratch directory is writable");
        let home = home.to_owned();
        let extra = with_little_room(extra);
        let text = format!(
            "root = \"{home}/root\"\nsocket = \"{home}/hoist.sock\"\ncontrol_socket = \"{home}/control.sock\"\n\
             [registry]\nhosts_dirs = [\"{home}/certs.d\"]\n\
             [metrics]\naddress = \"127.0.0.1:{port}\"\n\
             [cleanup]\ngrace = \"0s\"\n\
             [fetch]\nretries = 2\n{extra}\n",
            home = home.display(),
            port = super::free_port(),
        );
        // A registry on loopback needs no entry: plain HTTP is allowed there.
        let _ = registry;
        std::fs::write(home.join("hoist.toml"), text).expect("the scratch directory is writable");
        let daemon = Self::launch(&home);
        Self { home, daemon }
    }

    fn launch(home: &Path) -> Daemon {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoistd"));
        command.arg("--config").arg(home.join("hoist.toml"));
        let mut daemon = Daemon::start("hoistd", &command, &home.join("hoistd.log"));
        let socket = home.join("hoist.sock");
        // A crash leaves a socket behind that nobody answers on.
        daemon.wait_for(|| std::os::unix::net::UnixStream::connect(&socket).is_ok());
        daemon
    }

    /// The snapshotter's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.home.join("hoist.sock")
    }

    /// Where it serves metrics and pages.
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        let text = std::fs::read_to_string(self.home.join("hoist.toml")).expect("it was written");
        let line = text.lines().find_map(|line| line.strip_prefix("address = "));
        line.expect("it has an address").trim_matches('"').parse().expect("it is one")
    }

    /// Its directory: configuration, sockets, log.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.home.join("hoist.toml")
    }

    /// Where its trees and snapshots are.
    pub(crate) fn root(&self) -> PathBuf {
        self.home.join("root")
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.daemon.id()
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        self.daemon.log()
    }

    /// kill -9, then a new start on the same root.
    pub(crate) fn crash_and_restart(&mut self) {
        self.daemon.crash();
        self.daemon = Self::launch(&self.home);
    }

    /// Sets what new layers become, `"overlay"` or `"erofs"`, and restarts it (kill -9); `false` where that is so already.
    pub(crate) fn set_backend(&mut self, backend: &str) -> bool {
        let file = self.home.join("hoist.toml");
        let text = std::fs::read_to_string(&file).expect("it was written at the start");
        if text.contains(&format!("backend = \"{backend}\"\n")) {
            return false;
        }
        let others = text.lines().filter(|line| !line.starts_with("backend = "));
        let lines: Vec<&str> = others.filter(|line| *line != "[pull]").collect();
        let text = format!("{}\n[pull]\nbackend = \"{backend}\"\n", lines.join("\n"));
        std::fs::write(&file, text).expect("the scratch directory is writable");
        self.crash_and_restart();
        true
    }

    /// Tells images apart in metrics, and restarts it (kill -9).
    pub(crate) fn set_image_label(&mut self, label: &str) {
        let text = std::fs::read_to_string(self.config()).expect("it was written at the start");
        let line = format!("[metrics]\nimage_label = \"{label}\"\n");
        std::fs::write(self.config(), text.replace("[metrics]\n", &line)).expect("it is writable");
        self.crash_and_restart();
    }

    /// kill -9.
    pub(crate) fn crash(&mut self) {
        self.daemon.crash();
    }

    /// A new start on the same root.
    pub(crate) fn start_again(&mut self) {
        self.daemon = Self::launch(&self.home);
    }

    /// The image files of the layers that are images.
    pub(crate) fn images(&self) -> Vec<PathBuf> {
        let trees = self.stored().into_iter().filter(|p| p.starts_with(self.root().join("trees")));
        trees.map(|tree| tree.join("layer.erofs")).filter(|image| image.exists()).collect()
    }

    /// What is mounted below its root: the mount points, as the kernel tells them.
    pub(crate) fn mounted(&self) -> Vec<PathBuf> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("Linux has it");
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let root = self.root();
        points.filter(|point| point.starts_with(&root) && *point != root).collect()
    }

    /// The directories under `root/trees` and `root/snapshots`: what is stored now.
    pub(crate) fn stored(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for part in ["trees", "snapshots", "trash"] {
            let Ok(entries) = std::fs::read_dir(self.root().join(part)) else {
                continue;
            };
            found.extend(entries.flatten().map(|entry| entry.path()));
        }
        found.sort();
        found
    }

    /// How many layer trees are stored.
    pub(crate) fn trees(&self) -> usize {
        self.stored().iter().filter(|path| path.starts_with(self.root().join("trees"))).count()
    }
}
