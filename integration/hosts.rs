//! Hosts as people have them: `hoist install`, and what Docker and Kubernetes' runtime interface do with hoist then.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod faulty_registry;
mod harness;

#[path = "hosts/disks.rs"]
mod disks;
#[path = "pulls/images.rs"]
#[allow(dead_code, reason = "the fakes of AWS use a part of it")]
mod images;
#[path = "hosts/instance.rs"]
mod instance;
#[path = "hosts/kept.rs"]
mod kept;
#[path = "hosts/recipes.rs"]
mod recipes;

use std::process::{Command, Output};

use faulty_registry::FaultyRegistry;
use harness::containerd::{NAMESPACE, eventually};
use harness::docker::Docker;
use harness::pod::{Pod, image_usage};
use harness::{Generation, House, docker_programs, must};
use hoist::image::{DiffId, Sha256};

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// The whole life of hoist on a host with Docker: installed, used in every way, taken back.
#[test]
fn docker_pulls_runs_and_builds_with_hoist() {
    let test = "Docker with hoist";
    let Some(programs) = docker_programs(test) else { return };
    let Some(house) = House::open(test) else { return };
    let hoistd = house.hoistd("");
    let mut docker = Docker::new(programs, &house.scratch.path().join("d"));
    let before = ["config.toml", "daemon.json"].map(|name| docker.file(name));

    // A container of today's store would be hidden: said, and nothing is written.
    docker.start();
    let python = house.registry.image("python:gzip");
    docker.docker(&["pull", "--quiet", &python]);
    docker.docker(&["create", "--name", "old", "--network", "host", &python, "true"]);
    let refused = docker.hoist(&hoistd, &["install", "docker", "--yes"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(text(&refused).contains("1 containers with the snapshotter overlayfs"));
    docker.docker(&["rm", "old"]);
    docker.docker(&["rmi", &python]);

    let asked = docker.hoist(&hoistd, &["install", "docker"]);
    assert_eq!(asked.status.code(), Some(2), "{}", text(&asked));
    let shown = docker.hoist(&hoistd, &["install", "docker", "--dry-run"]);
    assert!(text(&shown).contains("+  \"storage-driver\": \"hoist\""), "{}", text(&shown));
    assert_eq!(before, ["config.toml", "daemon.json"].map(|name| docker.file(name)));
    let done = docker.hoist(&hoistd, &["install", "docker", "--yes"]);
    assert!(done.status.success(), "{}", text(&done));
    let again = docker.hoist(&hoistd, &["install", "docker", "--yes"]);
    assert!(again.status.success() && text(&again).contains("Nothing to do"), "{}", text(&again));
    docker.stop();
    docker.start();
    assert_eq!(docker.docker(&["info", "--format", "{{.Driver}}"]).trim(), "hoist");

    used(&house, &hoistd, &mut docker, &python);

    let early = docker.hoist(&hoistd, &["uninstall", "containerd", "--yes"]);
    assert!(text(&early).contains("uninstall docker comes first"), "{}", text(&early));
    let undone = docker.hoist(&hoistd, &["uninstall", "docker", "--yes"]);
    assert!(undone.status.success(), "{}", text(&undone));
    assert_eq!(before, ["config.toml", "daemon.json"].map(|name| docker.file(name)));
    docker.stop();
    docker.start();
    assert_eq!(docker.docker(&["info", "--format", "{{.Driver}}"]).trim(), "overlayfs");
}

fn used(house: &House, hoistd: &harness::Hoistd, docker: &mut Docker, python: &str) {
    let tree = house.registry.image("tree:zstd");
    // Two pulls at once, of images that share a layer.
    let pulls = [python, &tree].map(|image| {
        let mut command = docker.command(&["pull", "--quiet", image]);
        std::thread::spawn(move || command.output().expect("docker is there"))
    });
    for pull in pulls {
        let output = pull.join().expect("the pulling thread does not panic");
        assert!(output.status.success(), "{}\n{}", text(&output), hoistd.log());
    }
    assert_eq!(hoistd.trees(), 5, "four layers and two, one of them shared: {:?}", hoistd.stored());
    let large = docker.content().into_iter().filter(|line| line.contains("MB")).count();
    assert_eq!(large, 0, "Docker downloaded layers itself: {:?}", docker.content());

    let program = "import numpy; print(int(numpy.arange(1000).sum()))";
    let run = ["run", "--rm", "--network", "host", python, "/usr/bin/python3", "-c", program];
    assert_eq!(docker.docker(&run).trim(), "499500");

    // Of a pulled image there are no blobs on the host, and Docker leaves them out without a word (docs/hosts/docker.md).
    let archive = house.scratch.path().join("saved.tar");
    docker.docker(&["save", "-o", &archive.display().to_string(), python]);
    let size = std::fs::metadata(&archive).expect("it was just written").len();
    assert!(size < 1 << 20, "docker save has layers now ({size} bytes): say so in the document");
    built(house, docker, python);

    docker.docker(&[
        "run",
        "--name",
        "kept",
        "--network",
        "host",
        python,
        "sh",
        "-c",
        "echo k >/k",
    ]);
    docker.docker(&["commit", "kept", "committed:latest"]);
    docker.restart_dockerd();
    let said = docker.docker(&["run", "--rm", "--network", "host", "committed", "cat", "/k"]);
    assert_eq!(said.trim(), "k", "a committed image after a restart");
    docker.docker(&["start", "kept"]);

    docker.docker(&["rm", "--force", "kept"]);
    docker.docker(&["system", "prune", "--all", "--force"]);
    let gone = || hoistd.stored().is_empty();
    eventually("everything is gone", gone, || format!("{:?}", hoistd.stored()));
}

/// By BuildKit, which asks the same snapshotter.
fn built(house: &House, docker: &Docker, python: &str) {
    let context = house.scratch.path().join("context");
    std::fs::create_dir_all(&context).expect("the scratch directory is writable");
    let file = format!("FROM {python}\nRUN echo built >/built && rm -rf /usr/share/doc\n");
    std::fs::write(context.join("Dockerfile"), file).expect("the scratch directory is writable");
    let context = context.display().to_string();
    docker.docker(&["build", "--quiet", "--network", "host", "--tag", "built", &context]);
    let said = docker.docker(&["run", "--rm", "--network", "host", "built", "cat", "/built"]);
    assert_eq!(said.trim(), "built");
}

/// A static program that says what it is told to, or else waits.
fn program(house: &House) -> Vec<u8> {
    let [source, program] = ["program.c", "program"].map(|name| house.scratch.path().join(name));
    let text = "#include <unistd.h>\n#include <signal.h>\n#include <stdio.h>\n\
                static void end(int s) { (void)s; _exit(0); }\n\
                int main(int count, char **words) { if (count > 1) return puts(words[1]) < 0;\n\
                signal(SIGTERM, end); signal(SIGINT, end); for (;;) pause(); }\n";
    std::fs::write(&source, text).unwrap();
    must(Command::new("gcc").args(["-static", "-Os", "-o"]).arg(&program).arg(&source));
    std::fs::read(program).unwrap()
}

/// The one layer of an image with this program, as a tar archive.
fn layer_of(program: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    builder.append_data(&mut header, "program", program).unwrap();
    builder.into_inner().unwrap()
}

/// The configuration of an image of that layer.
fn config_of(layer: &[u8]) -> String {
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": { "Entrypoint": ["/program"] },
        "rootfs": { "type": "layers", "diff_ids": [DiffId(Sha256::of(layer))] },
    });
    config.to_string()
}

/// Gives a registry an image with this program.
fn serve(server: &FaultyRegistry, tag: &str, program: &[u8]) {
    let layer = layer_of(program);
    let blob = zstd::encode_all(layer.as_slice(), 3).unwrap();
    let config = config_of(&layer);
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "size": config.len(), "digest": server.blob(config),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
            "size": blob.len(), "digest": server.blob(blob),
        }],
    });
    server.manifest(tag, "application/vnd.oci.image.manifest.v1+json", manifest.to_string());
}

/// A registry with a pause image, and its reference.
async fn pause(house: &House) -> (FaultyRegistry, String) {
    let server = FaultyRegistry::start().await;
    serve(&server, "v1", &program(house));
    let hosts = house.registry.hosts().join(&server.host);
    std::fs::create_dir_all(&hosts).unwrap();
    let text = format!(
        "server = \"http://{0}\"\n[host.\"http://{0}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        server.host
    );
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let reference = format!("{}/pause:v1", server.host);
    (server, reference)
}

/// What the kubelet does for a pod, from the pull to the removal of the image.
async fn a_pod_lives(generation: Generation) {
    let test = format!("a pod on containerd {generation:?}");
    let Some(house) = House::open(&test) else { return };
    let (_server, pause) = pause(&house).await;
    let hoistd = house.hoistd("");
    // The daemons are waited for by a thread of its own: the registry lives in this one's runtime.
    let lived = tokio::task::block_in_place(|| {
        let containerd = house.containerd_with_pause(generation, &hoistd, &test, &pause)?;
        let (socket, image) = (containerd.socket(), house.registry.image("python:zstd"));
        containerd.pull_by_cri(&image);
        let pod = format!("hoist-{}", house.scratch.path().file_name()?.display());
        let pod = Pod::run(&socket, house.scratch.path(), &pod);
        let pod = pod.unwrap_or_else(|error| panic!("no sandbox: {error}"));
        let content = containerd.content(NAMESPACE);
        for image in [&image, &pause] {
            let layers = containerd.layers(NAMESPACE, image);
            assert!(!layers.iter().any(|layer| content.contains(layer)), "{image} was downloaded");
        }
        let program = "import numpy; print('sum', int(numpy.arange(1000).sum()))";
        let ran = pod.container(&image, &["/usr/bin/python3", "-c", program]).unwrap();
        assert!(ran.0 == 0 && ran.1.contains("stdout F sum 499500"), "{ran:?}");
        let failed = pod.container(&image, &["sh", "-c", "exit 7"]).unwrap();
        assert_eq!(failed.0, 7);

        // containerd asks for it every ten seconds.
        let whole = || image_usage(&socket).unwrap().iter().any(|(_, bytes, _)| *bytes > 100 << 20);
        eventually("the image is counted", whole, || format!("{:?}", image_usage(&socket)));

        pod.remove().unwrap();
        containerd.remove(&image);
        // The pause image is pinned; it alone stays.
        let one = || hoistd.trees() == 1;
        eventually("only the pause image is left", one, || containerd.inventory());
        Some(())
    });
    let _ = lived;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_lives_on_1() {
    a_pod_lives(Generation::One).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_lives_on_2() {
    a_pod_lives(Generation::Two).await;
}
