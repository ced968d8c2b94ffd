//! `hoist uninstall` on a host whose containerd has been removed already.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A host: a directory with configurations, and one of programs that may be there.
struct Host {
    home: tempfile::TempDir,
}

impl Host {
    /// With a containerd of this version, which takes every configuration.
    fn new(version: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let program = home.path().join("bin/containerd");
        std::fs::create_dir_all(program.parent().unwrap()).unwrap();
        std::fs::create_dir(home.path().join("etc")).unwrap();
        let script =
            format!("#!/bin/sh\necho containerd github.com/containerd/containerd {version} 0\n");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(home.path().join("hoist.toml"), "").unwrap();
        Self { home }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join("etc").join(name)
    }

    fn hoist(&self, arguments: &[&str]) -> String {
        let mut hoist = Command::new(env!("CARGO_BIN_EXE_hoist"));
        hoist.env("PATH", self.home.path().join("bin")).arg("--config");
        hoist.arg(self.home.path().join("hoist.toml")).args(arguments);
        hoist.arg("--containerd-config").arg(self.file("config.toml"));
        let Output { status, stdout, stderr } =
            hoist.arg("--daemon-json").arg(self.file("daemon.json")).output().unwrap();
        let text = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        assert!(status.success(), "{arguments:?}: {text}");
        text
    }

    fn remove_containerd(&self) {
        std::fs::remove_file(self.home.path().join("bin/containerd")).unwrap();
    }

    /// All files, with what is in them.
    fn configuration(&self) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        let mut left = vec![self.home.path().join("etc")];
        while let Some(directory) = left.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => left.push(path),
                    false => found.push((path.clone(), std::fs::read_to_string(path).unwrap())),
                }
            }
        }
        found.sort();
        found
    }
}

const FORMS: [(&str, &str); 2] = [
    (
        "2.1.4",
        "version = 3\n# a remark\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = \"overlayfs\"\n",
    ),
    (
        "1.7.24",
        "version = 2 # two\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  default_runtime_name = \"runc\"\n",
    ),
];

#[test]
fn what_was_there_comes_back_without_containerd() {
    for (version, text) in FORMS {
        let host = Host::new(version);
        std::fs::write(host.file("config.toml"), text).unwrap();
        let before = host.configuration();
        assert!(host.hoist(&["install", "containerd", "--yes"]).contains("systemctl restart"));
        assert_ne!(host.configuration(), before);
        host.remove_containerd();
        let told = host.hoist(&["uninstall", "containerd", "--yes"]);
        assert!(told.contains("no containerd any more") && !told.contains("systemctl"), "{told}");
        assert_eq!(host.configuration(), before, "containerd {version}");
    }
}

/// A purge takes `config.toml` and leaves what the package did not bring.
#[test]
fn nothing_of_hoist_stays_where_the_configuration_went_too() {
    for (version, text) in FORMS {
        let host = Host::new(version);
        std::fs::write(host.file("config.toml"), text).unwrap();
        host.hoist(&["install", "containerd", "--yes"]);
        host.remove_containerd();
        std::fs::remove_file(host.file("config.toml")).unwrap();
        host.hoist(&["uninstall", "containerd", "--yes"]);
        assert_eq!(host.configuration(), [], "containerd {version}");
        let again = host.hoist(&["uninstall", "containerd", "--yes"]);
        assert!(again.contains("Nothing to do"), "{again}");
    }
}

/// Edited since: our keys go, and the rest stays.
#[test]
fn what_others_changed_since_stays_without_containerd() {
    let (version, text) = FORMS[0];
    let host = Host::new(version);
    let config = host.file("config.toml");
    std::fs::write(&config, text).unwrap();
    host.hoist(&["install", "containerd", "--yes"]);
    let installed = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{installed}[debug]\n  level = \"debug\"\n")).unwrap();
    host.remove_containerd();
    host.hoist(&["uninstall", "containerd", "--yes"]);
    let left = std::fs::read_to_string(&config).unwrap();
    assert!(left.contains("level = \"debug\"") && left.contains("# a remark"), "{left}");
    assert!(!left.contains("hoist") && left.contains("snapshotter = \"overlayfs\""), "{left}");
    assert!(!Path::new(&host.file("conf.d/hoist.toml")).exists());
}
