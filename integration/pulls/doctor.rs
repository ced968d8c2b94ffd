//! `hoist doctor` on a host where all is well, with real containerds, and on several where something is not.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::daemon::{Daemon, blocking};
use super::faulty_registry::{FaultyRegistry, Reply};
use super::harness::{Generation, Hoistd, House, must};
use super::images::{Layer, noise, push};

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
    if generation == Generation::Two {
        let _changed = Changed::new(&host.settings, |text| {
            text.replace(
                "linux/amd64\"\nsnapshotter = \"hoist\"",
                "linux/amd64\"\nsnapshotter = \"x\"",
            )
        });
        host.doctor(&[]).finds(&["unpacking"], "unpack_config]]\n  platform = ");
    }
    hoist_is_not_right(&host, &image);
    the_disk_is_not_right(&host);
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

/// A root that is to be on a file system of its own, which is small and in memory.
fn the_disk_is_not_right(host: &Host<'_>) {
    let root = host.hoistd.home().join("small");
    std::fs::create_dir(&root).unwrap();
    let mut mount = Command::new("mount");
    must(mount.args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(&root));
    // The house unmounts it, should this fail.
    let _changed = Changed::new(&host.hoistd.home().join("hoist.toml"), |text| {
        // What has to stay free is a share of it, not what tests ask for.
        text.replace("h/root\"", "h/small\"").replace("\"64MiB\"", "\"auto\"")
    });
    let output = host.command(&["--json"]).output().unwrap();
    let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    for (name, found, fix) in [
        ("hoistd", "h/root", "restart hoistd"),
        ("file system of the root", "is on tmpfs", "put it on ext4 or xfs"),
        ("disk space", "free of 16.8 MB", "a larger volume"),
        // The file of 64 MB does not fit.
        ("disk rate", "could not be measured", "--no-disk-test"),
    ] {
        let check = checks.iter().find(|check| check["name"] == name).unwrap();
        assert_eq!(check["verdict"], "warning", "{check}");
        assert!(check["found"].as_str().unwrap().contains(found), "{check}");
        assert!(check["fix"].as_str().unwrap().contains(fix), "{check}");
    }
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "nothing is left of the test");
    must(Command::new("umount").arg(&root));
}

/// A registry that wants a password, and a host that has none, and then a wrong one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_a_registry_does_not_take() {
    const PASSWORD: &str = "right";
    let server = FaultyRegistry::start().await;
    let image = push(&server, "v1", &[Layer::of("zstd", "one", noise("one", 100_000))]);
    server.script(|request, reply| {
        let right = format!("Basic {}", BASE64_STANDARD.encode(format!("u:{PASSWORD}")));
        if request.header("authorization") == Some(&right) {
            return reply;
        }
        Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"r\"")
    });
    let host = server.host.clone();
    blocking(move || {
        let daemon = Daemon::start("", &serde_json::json!({}));
        let told = |docker: serde_json::Value| {
            std::fs::write(daemon.home.path().join("config.json"), docker.to_string()).unwrap();
            let doctor = ["doctor", "--json", "--no-disk-test", "--image", &image];
            let output = daemon.hoist(&doctor).stdout;
            let checks: Vec<serde_json::Value> = serde_json::from_slice(&output).unwrap();
            checks.into_iter().find(|check| check["name"] == "registry").unwrap()
        };
        let with = |password: &str| {
            let entry = serde_json::json!({ "username": "u", "password": password });
            serde_json::json!({ "auths": { (host.clone()): entry } })
        };
        let none = told(serde_json::json!({}));
        assert_eq!(none["verdict"], "wrong", "{none}");
        let found = none["found"].as_str().unwrap();
        assert!(
            found.contains(&format!("hoist has no credentials for {host}: put them")),
            "{none}"
        );
        assert!(none["fix"].as_str().unwrap().contains("docker login"), "{none}");
        let wrong = told(with("not-this-one"));
        assert_eq!(wrong["verdict"], "wrong", "{wrong}");
        let found = wrong["found"].as_str().unwrap();
        assert!(found.contains("config.json: the registry answered 401"), "{wrong}");
        assert!(!wrong.to_string().contains("not-this-one"), "{wrong}");
        let right = told(with(PASSWORD));
        assert_eq!(right["verdict"], "ok", "{right}");
    })
    .await;
}

/// Every source that has something is named in its order, and a helper, which may ask a person or a cloud, is run once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_credentials_for_an_image() {
    let server = FaultyRegistry::start().await;
    let image = push(&server, "v1", &[Layer::of("zstd", "one", noise("one", 100_000))]);
    server.script(|request, reply| {
        let right = format!("Basic {}", BASE64_STANDARD.encode("u:from-the-helper"));
        if request.header("authorization") == Some(&right) {
            return reply;
        }
        Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"r\"")
    });
    let host = server.host.clone();
    blocking(move || {
        let helper = serde_json::json!({ "credsStore": "hoistdoctor" });
        let daemon = Daemon::start("", &helper);
        let home = daemon.home.path();
        let program = home.join("docker-credential-hoistdoctor");
        let doctor = |script: &str| {
            let script = format!("#!/bin/sh\necho asked >> {}/asked\n{script}\n", home.display());
            std::fs::write(&program, script).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
            let path = format!("{}:{}", home.display(), std::env::var("PATH").unwrap());
            let arguments = ["doctor", "--json", "--no-disk-test", "--image", &image];
            let output = daemon.command(&arguments).env("PATH", path).output().unwrap();
            let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
            let asked = std::fs::read_to_string(home.join("asked")).unwrap();
            assert_eq!(asked, "asked\n", "the helper is asked once");
            std::fs::remove_file(home.join("asked")).unwrap();
            let of =
                |name: &str| checks.iter().find(|check| check["name"] == name).unwrap().clone();
            (of("credentials for it")["found"].as_str().unwrap().to_owned(), of("registry"))
        };
        let answer = "echo '{\"Username\":\"u\",\"Secret\":\"from-the-helper\"}'";
        let file = home.join("config.json").display().to_string();
        let (found, registry) = doctor(answer);
        assert_eq!(found, format!("{host}: {file}"));
        assert_eq!(registry["verdict"], "ok", "{registry}");

        let (found, registry) = doctor("echo credentials not found; exit 1");
        assert_eq!(found, format!("{host}: no credentials"));
        assert_eq!(registry["verdict"], "wrong", "{registry}");

        // A helper that fails is told with what it says, and a pull secret comes after it.
        let secrets = home.join("secrets");
        std::fs::create_dir(&secrets).unwrap();
        let entry = serde_json::json!({ "username": "u", "password": "from-the-helper" });
        let secret = serde_json::json!({ "auths": { (host.clone()): entry } });
        std::fs::write(secrets.join("team.json"), secret.to_string()).unwrap();
        let _changed = Changed::new(&home.join("hoist.toml"), |text| {
            text.replace("[registry]", &format!("[registry]\nkubernetes_secrets = [{secrets:?}]"))
        });
        let (found, registry) = doctor("echo no session >&2; exit 3");
        assert!(
            found.starts_with(&format!("{host}: {file} (")) && found.contains("no session"),
            "{found}"
        );
        assert!(found.ends_with("team.json") && found.contains(", then "), "{found}");
        assert_eq!(registry["verdict"], "ok", "{registry}");
        assert!(!found.contains("from-the-helper"), "{found}");
    })
    .await;
}

#[test]
fn with_containerd_1() {
    on(Generation::One, "with_containerd_1");
}

#[test]
fn with_containerd_2() {
    on(Generation::Two, "with_containerd_2");
}
