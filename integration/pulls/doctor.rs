//! `hoist doctor` on a host where all is well, with real containerds, and on several where something is not.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::harness::{Generation, Hoistd, House};

/// A host: hoistd, and a containerd with its configuration.
struct Host<'a> {
    hoistd: &'a Hoistd,
    socket: PathBuf,
    settings: PathBuf,
}

/// What was told.
struct Told {
    checks: Vec<serde_json::Value>,
    code: Option<i32>,
}

impl Host<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hoist"));
        command.env_remove("HOIST_CONFIG");
        command.arg("--config").arg(self.hoistd.home().join("hoist.toml")).arg("doctor");
        command.arg("--containerd").arg(&self.socket);
        command.arg("--containerd-config").arg(&self.settings);
        command.args(arguments);
        command
    }

    fn doctor(&self, arguments: &[&str]) -> Told {
        let output =
            self.command(&[&["--json", "--no-disk-test"], arguments].concat()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let checks = serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
        Told { checks, code: output.status.code() }
    }
}

impl Told {
    /// The names of the checks that found something wrong.
    fn wrong(&self) -> Vec<&str> {
        let wrong = self.checks.iter().filter(|check| check["verdict"] == "wrong");
        wrong.map(|check| check["name"].as_str().unwrap()).collect()
    }

    /// Exactly these are wrong, the first one with a way out that has these words.
    fn finds(&self, names: &[&str], fix: &str) {
        assert_eq!(self.wrong(), names, "{:#?}", self.checks);
        assert_eq!(self.code, Some(1));
        let check = self.checks.iter().find(|check| check["name"] == names[0]).unwrap();
        assert!(check["fix"].as_str().unwrap().contains(fix), "{check}");
    }
}

/// A file that is changed, and changed back with the value.
struct Changed {
    path: PathBuf,
    before: String,
}

impl Changed {
    fn new(path: &Path, change: impl FnOnce(&str) -> String) -> Self {
        let before = std::fs::read_to_string(path).unwrap_or_default();
        let after = change(&before);
        assert_ne!(before, after, "{}", path.display());
        std::fs::write(path, after).unwrap();
        Self { path: path.to_owned(), before }
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        std::fs::write(&self.path, &self.before).unwrap();
    }
}

fn on(generation: Generation, test: &str) {
    let Some(house) = House::open(test) else { return };
    let hoistd = house.hoistd("");
    let Some(containerd) = house.containerd(generation, &hoistd, test) else { return };
    let image = house.registry.image("python:zstd");
    let settings = containerd.socket().with_file_name("config.toml");
    let host = Host { hoistd: &hoistd, socket: containerd.socket(), settings };
    containerd.pull(&image);

    let good = host.doctor(&["--image", &image]);
    assert!(good.wrong().is_empty() && good.code == Some(0), "{:#?}", good.checks);
    let labels = good.checks.iter().find(|check| check["name"] == "labels of pulls").unwrap();
    assert!(labels["found"].as_str().unwrap().contains("they arrive"), "{labels}");
    let text = host.command(&[]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.lines().any(|line| line.starts_with("OK      disk rate: "))
            || text.contains("WARNING disk rate: "),
        "{text}"
    );
    let left = std::fs::read_dir(hoistd.root()).unwrap().flatten();
    assert!(!left.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("doctor")));

    containerd_is_not_right(&host);
    hoist_is_not_right(&host, &image);
}

fn containerd_is_not_right(host: &Host<'_>) {
    {
        let _changed = Changed::new(&host.settings, |text| {
            text.replace("disable_snapshot_annotations = false\n", "")
        });
        host.doctor(&[]).finds(&["labels of CRI"], "disable_snapshot_annotations = false");
    }
    {
        let _changed =
            Changed::new(&host.settings, |text| text.replace("h/hoist.sock", "elsewhere.sock"));
        host.doctor(&[]).finds(&["proxy plugin"], "address = ");
    }
    {
        let _changed = Changed::new(&host.settings, |text| format!("{text}\n= broken"));
        host.doctor(&[]).finds(&["containerd's configuration"], "config/containerd-2.x.toml");
    }
    let other = host.doctor(&["--snapshotter", "other"]);
    assert!(other.wrong().starts_with(&["plugin", "proxy plugin"]), "{:#?}", other.checks);
    let nobody = Host {
        socket: "/nonexistent/containerd.sock".into(),
        settings: host.settings.clone(),
        hoistd: host.hoistd,
    };
    nobody.doctor(&[]).finds(&["containerd"], "systemctl status containerd");
}

fn hoist_is_not_right(host: &Host<'_>, image: &str) {
    let home = host.hoistd.home();
    let mode = |mode| {
        std::fs::set_permissions(host.hoistd.socket(), std::fs::Permissions::from_mode(mode))
            .unwrap()
    };
    mode(0o666);
    host.doctor(&[]).finds(&["socket"], "chmod 0600");
    mode(0o600);
    let toml = home.join("hoist.toml");
    {
        let _changed = Changed::new(&toml, |text| text.replace("retries = 2", "retrys = 2"));
        // With the defaults there is no hoistd, nor its sockets.
        assert!(host.doctor(&[]).wrong().starts_with(&["hoist.toml", "hoistd"]));
    }
    {
        let hosts = home.join("certs.d/registry.example");
        std::fs::create_dir(&hosts).unwrap();
        let _changed = Changed::new(&hosts.join("hosts.toml"), |_| "server = 7".to_owned());
        host.doctor(&[]).finds(&["hosts.toml"], "put this line right");
    }
    {
        let secret = home.join("config.json");
        std::fs::write(&secret, "{ \"auths\": pa55word").unwrap();
        let _changed = Changed::new(&toml, |text| {
            text.replace(
                "[registry]",
                &format!("[registry]\ndocker_config = \"{}\"", secret.display()),
            )
        });
        let told = host.doctor(&[]);
        told.finds(&["credentials"], "docker login");
        assert!(!format!("{:?}", told.checks).contains("pa55word"));
    }
    host.doctor(&["--image", &image.replace("python", "nothing")])
        .finds(&["registry"], "docker login");
}

#[test]
fn with_containerd_1() {
    on(Generation::One, "with_containerd_1");
}

#[test]
fn with_containerd_2() {
    on(Generation::Two, "with_containerd_2");
}
