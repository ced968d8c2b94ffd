//! docker-registry over the storage that the test bed filled.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::Daemon;

/// A running registry on loopback, plain HTTP.
pub(crate) struct Registry {
    address: String,
    hosts: PathBuf,
    daemon: Daemon,
}

impl Registry {
    /// A name that leads to this registry through `hosts.toml` alone: a client without it finds nobody there, since
    /// `.invalid` never resolves.
    pub(crate) const ALIAS: &str = "registry.invalid";

    /// Who may read from [`Registry::guarded`].
    pub(crate) const USER: (&str, &str) = ("kubelet", "pa55word-of-the-kubelet");

    /// Starts it on the storage under `bed`; its own files go to `home`.
    pub(crate) fn start(bed: &Path, home: &Path) -> Self {
        Self::start_on(bed, &bed.join("registry"), home, "")
    }

    /// The same, for [`Registry::USER`] alone.
    pub(crate) fn guarded(bed: &Path, home: &Path) -> Self {
        std::fs::create_dir_all(home).expect("the scratch directory is writable");
        let passwords = home.join("passwords");
        // The user's password with bcrypt, which the registry wants; 16 rounds, so that it costs nothing.
        let line = "kubelet:$2b$04$dZQv2eg0wSzPYfbC/Fb.xeU6Ok5kH3WkBz1T.P8GOEAXfjiCFLUxy\n";
        std::fs::write(&passwords, line).expect("the scratch directory is writable");
        let auth = format!("auth: {{htpasswd: {{realm: here, path: {}}}}}\n", passwords.display());
        Self::start_on(bed, &bed.join("registry"), home, &auth)
    }

    /// Starts one that has nothing yet, to be pushed to; all of it lies in `home`.
    pub(crate) fn empty(bed: &Path, home: &Path) -> Self {
        std::fs::create_dir_all(home).expect("the scratch directory is writable");
        Self::start_on(bed, &home.join("storage"), home, "")
    }

    fn start_on(bed: &Path, storage: &Path, home: &Path, more: &str) -> Self {
        let address = format!("127.0.0.1:{}", super::free_port());
        let settings = home.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n{more}",
            storage.display()
        );
        std::fs::write(&settings, text).expect("the scratch directory is writable");
        let mut command = Command::new(bed.join("containerd-1/bin/docker-registry"));
        command.arg("serve").arg(&settings);
        let mut daemon = Daemon::start("the registry", &command, &home.join("registry.log"));
        daemon.wait_for(|| TcpStream::connect(&address).is_ok());
        let hosts = home.join("certs.d");
        for name in [address.as_str(), Self::ALIAS] {
            let directory = hosts.join(name);
            std::fs::create_dir_all(&directory).expect("the scratch directory is writable");
            let text = format!(
                "server = \"http://{address}\"\n[host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
            );
            std::fs::write(directory.join("hosts.toml"), text)
                .expect("the scratch directory is writable");
        }
        Self { address, hosts, daemon }
    }

    /// kill -9: it is gone.
    pub(crate) fn crash(&mut self) {
        self.daemon.crash();
    }

    /// How many bytes of a blob it has sent so far, by its own log of requests.
    pub(crate) fn sent(&self, blob: &str) -> u64 {
        let log = self.daemon.log();
        let gets = log.lines().filter(|line| line.contains("\"GET /") && line.contains(blob));
        // … "GET /v2/NAME/blobs/DIGEST HTTP/1.1" STATUS BYTES "" ""
        let bytes =
            gets.map(|line| line.split('"').nth(2)?.split_whitespace().nth(1)?.parse().ok());
        bytes.map(|bytes: Option<u64>| bytes.expect("a request has a size")).sum()
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A directory in containerd's `certs.d` form that leads to this registry.
    pub(crate) fn hosts(&self) -> &Path {
        &self.hosts
    }

    /// The reference of a test image, `name:form`.
    pub(crate) fn image(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }

    /// The same image by the name that only clients with [`Registry::hosts`] can reach.
    pub(crate) fn hidden_image(image: &str) -> String {
        format!("{}/{image}", Self::ALIAS)
    }
}
