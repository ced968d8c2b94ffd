//! The recipes for EC2 on machines as its images have them: a systemd that starts Docker or containerd, cloud-init's order
//! of the units, the instance's metadata at its address, ECR, and the tarball of this build to be downloaded.
//!
//! Stand-ins: cloud-init, ecs-init and nodeadm are units of a few lines with the order of the real ones; the ECS agent is a
//! program that waits. Real: systemd, containerd 2, Docker 28, runc, curl, and the scripts with their values set.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::faulty_registry::{FaultyRegistry, Reply};
use super::harness::link::Link;
use super::harness::machine::Machine;
use super::*;

#[path = "../pulls/ecr/aws.rs"]
#[allow(dead_code, reason = "the credentials that an instance has are a part of it")]
mod aws;
#[path = "baked.rs"]
mod baked;
#[path = "ecs.rs"]
mod ecs;
#[path = "eks.rs"]
mod eks;

use aws::{Aws, judged};

const REGISTRY: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const METADATA: &str = "169.254.169.254";
/// The user and the password that the fake of ECR gives.
const LOGIN: (&str, &str) = ("AWS", "passw0rd-1");

/// An instance that runs, and what it reaches.
struct Instance {
    machine: Machine,
    aws: Aws,
    /// ECR's registry.
    ecr: FaultyRegistry,
    /// Anybody's web server, with the tarball.
    web: FaultyRegistry,
    sha256: String,
    _link: Link,
}

impl Instance {
    /// Boots `root`, made by [`image`], with this program in the image `app:v1` of ECR.
    fn boot(house: &House, root: PathBuf, program: &[u8], test: &str) -> Option<Self> {
        let link = Link::alone();
        link.has(METADATA);
        let aws = Aws::of(FaultyRegistry::on(link.listener("169.254.169.254:80")));
        let ecr = FaultyRegistry::on(link.listener("127.0.0.1:5000"));
        serve(&ecr, "pause", program);
        // Another layer than the one that Docker or containerd has already.
        serve(&ecr, "v1", &[program, b"of ECR"].concat());
        ecr.script(|request, reply| judged(request, reply, 1));
        let web = FaultyRegistry::on(link.listener("127.0.0.1:8080"));
        let tarball = tarball();
        let sha256 = Sha256::of(&tarball).to_string();
        web.script(move |request, _| match &*request.path {
            "/hoist.tar.gz" => Reply::new(200, tarball.clone()),
            _ => Reply::new(404, ""),
        });
        let beds = super::docker_programs(test)?;
        let beds = beds.map(|programs| programs.parent().expect("a part of the bed").to_owned());
        let machine = house.boot_behind(&link, &beds, root, test)?;
        let sha256 = sha256.trim_start_matches("sha256:").to_owned();
        Some(Self { machine, aws, ecr, web, sha256, _link: link })
    }

    /// The image that ECR has.
    fn image() -> String {
        format!("{REGISTRY}:5000/app:v1")
    }

    /// A script of docs/hosts with these values.
    fn recipe(&self, name: &str, values: &[(&str, &str)]) -> String {
        let ours =
            [("tarball", "http://127.0.0.1:8080/hoist.tar.gz"), ("sha256", self.sha256.as_str())];
        let values = [&ours[..], values].concat();
        set(&recipe(name), &values)
    }

    /// Runs user data as somebody at a root shell; its exit code and all that it said.
    fn runs(&self, script: &str) -> (Option<i32>, String) {
        std::fs::write(self.machine.path("/root/user-data"), script).unwrap();
        let output = self.machine.inside("exec bash /root/user-data");
        (output.status.code(), text(&output))
    }

    /// hoist pulled the image, with the password that the instance's role has from ECR.
    fn pulled_as_the_instance(&self) {
        let pulls = self.machine.must("hoist pulls --json");
        assert!(
            pulls.contains("/app") && pulls.contains("\"done\""),
            "{pulls}\n{}",
            self.machine.journal()
        );
        let asked = self.aws.asked();
        assert!(asked.len() == 1 && asked[0].contains("AKIDINSTANCE"), "{asked:?}");
        let metadata = self.aws.server.requests();
        assert!(metadata.iter().any(|request| request.method == "PUT"), "no token of IMDSv2");
        let hoists = |request: &super::faulty_registry::Request| {
            request.is_blob()
                && request.header("user-agent").is_some_and(|agent| agent.starts_with("hoist"))
        };
        assert!(self.ecr.requests().iter().any(hoists), "{:?}", self.ecr.requests());
    }
}

/// A text of docs/hosts.
fn recipe(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hosts").join(name);
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Sets values at the top of a script, as its user does.
fn set(script: &str, values: &[(&str, &str)]) -> String {
    let mut lines: Vec<_> = script.lines().map(str::to_owned).collect();
    for (name, value) in values {
        let start = format!("{name}=");
        let line = lines.iter_mut().find(|line| line.starts_with(&start));
        *line.unwrap_or_else(|| panic!("no {name} in the script")) = format!("{name}={value}");
    }
    lines.join("\n") + "\n"
}

/// The tarball of this build.
fn tarball() -> Vec<u8> {
    static MADE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let make = || {
        let files = std::fs::read_dir(harness::packages("tar")).unwrap().flatten();
        let mut files = files.map(|file| file.path());
        let file = files.find(|file| file.to_string_lossy().ends_with(".tar.gz"));
        std::fs::read(file.expect("it was made")).unwrap()
    };
    MADE.get_or_init(make).clone()
}

/// The root of an instance: Debian's systemd, containerd 2 and Docker of the test bed, this machine's curl, and the names
/// and settings that lead to the fakes. `None`, said loudly, where there is none.
fn image(house: &House, test: &str) -> Option<PathBuf> {
    let [docker, containerd] = super::docker_programs(test)?;
    let root = house.debian_without_hoist(test)?;
    for program in ["containerd", "containerd-shim-runc-v2", "ctr", "runc"] {
        let _ = std::fs::remove_file(root.join("usr/sbin").join(program));
        replace(&root, &format!("usr/bin/{program}"), &containerd.join(program));
    }
    for program in ["docker", "docker-proxy", "dockerd"] {
        replace(&root, &format!("usr/bin/{program}"), &docker.join(program));
    }
    // Debian's unit has it there.
    replace(&root, "usr/sbin/dockerd", &docker.join("dockerd"));
    std::fs::copy("/usr/bin/curl", root.join("usr/bin/curl")).unwrap();
    let certificates = "etc/ssl/certs/ca-certificates.crt";
    std::fs::create_dir_all(root.join("etc/ssl/certs")).unwrap();
    std::fs::copy(Path::new("/").join(certificates), root.join(certificates)).unwrap();
    for unit in ["docker.service", "docker.socket"] {
        let from = docker.join("../root/usr/lib/systemd/system").join(unit);
        std::fs::copy(from, root.join("usr/lib/systemd/system").join(unit)).unwrap();
    }
    let mut groups = std::fs::read_to_string(root.join("etc/group")).unwrap();
    groups.push_str("docker:x:999:\n");
    write(&root, "etc/group", &groups);
    write(&root, "etc/hosts", &format!("127.0.0.1 localhost {REGISTRY}\n"));
    write(
        &root,
        &format!("etc/containerd/certs.d/{REGISTRY}:5000/hosts.toml"),
        &format!(
            "server = \"http://{REGISTRY}:5000\"\n[host.\"http://{REGISTRY}:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        ),
    );
    // ECR's API is the one thing that has no way through a name here: it is asked by TLS.
    let api = format!("[Service]\nEnvironment=AWS_ENDPOINT_URL_ECR=http://{METADATA}\n");
    write(&root, "etc/systemd/system/hoistd.service.d/api.conf", &api);
    Some(root)
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// One that root runs.
fn script(root: &Path, path: &str, text: &str) {
    write(root, path, text);
    std::fs::set_permissions(root.join(path), std::fs::Permissions::from_mode(0o700)).unwrap();
}

fn replace(root: &Path, path: &str, with: &Path) {
    let path = root.join(path);
    let _ = std::fs::remove_file(&path);
    symlink(with, path).unwrap();
}

/// A unit that runs the user data, as cloud-init does at the end of a boot.
const CLOUD_FINAL: &str = "[Unit]\nAfter=network-online.target\n[Service]\nType=oneshot\n\
    ExecStart=/bin/bash /var/lib/cloud/instance/scripts/part-001\n[Install]\nWantedBy=multi-user.target\n";

fn user_data(machine: &Machine, text: &str) {
    script(&machine.root, "var/lib/cloud/instance/scripts/part-001", text);
}
