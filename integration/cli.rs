//! The command line as a person or a script meets it: output, exit codes, what stays behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod faulty_registry;

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use faulty_registry::{FaultyRegistry, Reply};
use hoist::image::{DiffId, Sha256};
use tokio::process::Command;

#[path = "cli/platform.rs"]
mod platform;
#[path = "cli/uninstall.rs"]
mod uninstall;
#[path = "cli/words.rs"]
mod words;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A registry with one image of two layers; its reference.
async fn image() -> (FaultyRegistry, String) {
    let server = FaultyRegistry::start().await;
    let layers = [("etc/hello", vec![b'x'; 300_000]), ("etc/world", b"second layer".to_vec())].map(
        |(path, content)| {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o640);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, content.as_slice()).unwrap();
            let archive = builder.into_inner().unwrap();
            let blob = zstd::encode_all(archive.as_slice(), 3).unwrap();
            let size = blob.len();
            (DiffId(Sha256::of(&archive)), server.blob(blob), size)
        },
    );
    let diff_ids: Vec<_> = layers.iter().map(|(diff_id, ..)| diff_id).collect();
    let config =
        serde_json::json!({ "rootfs": { "type": "layers", "diff_ids": diff_ids } }).to_string();
    let config = serde_json::json!({ "mediaType": "c", "size": config.len(), "digest": server.blob(config) });
    let layers: Vec<_> = layers
        .iter()
        .map(|(_, digest, size)| serde_json::json!({ "mediaType": LAYER, "digest": digest, "size": size }))
        .collect();
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers });
    server.manifest("v1", MANIFEST, manifest.to_string());
    let reference = format!("{}/some/image:v1", server.host);
    (server, reference)
}

fn hoist(directory: &Path, arguments: &[&str]) -> Command {
    let config = directory.join("hoist.toml");
    if !config.exists() {
        let certs = directory.display();
        let text = format!(
            "control_socket = \"{certs}/control.sock\"\n[registry]\nhosts_dirs = [\"{certs}\"]\n\
             [fetch]\nretries = 1\nbackoff_initial = \"1ms\"\nbackoff_max = \"2ms\"\n"
        );
        std::fs::write(&config, text).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_hoist"));
    command
        .env_remove("HOIST_CONFIG")
        .arg("--config")
        .arg(config)
        .args(arguments)
        .kill_on_drop(true);
    command
}

async fn run(directory: &Path, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = hoist(directory, arguments).output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_comes_into_a_directory_and_the_time_is_told() {
    let (_server, image) = image().await;
    let home = tempfile::tempdir().unwrap();
    let to = home.path().join("to");
    let (code, out, err) = run(home.path(), &["pull", &image, "--to", to.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(std::fs::read_to_string(to.join("etc/world")).unwrap(), "second layer");
    assert_eq!(std::fs::metadata(to.join("etc/hello")).unwrap().len(), 300_000);
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 1, "nothing but the image");
    for word in ["done", "download", "decompress", "write", &image] {
        assert!(out.contains(word), "{word} is not in {out}");
    }
    // A second pull into the same directory would mix two images.
    let (code, _, err) = run(home.path(), &["pull", &image, "--to", to.to_str().unwrap()]).await;
    assert_eq!(code, 1);
    assert!(err.contains("not empty"), "{err}");
    assert!(to.join("etc/world").exists(), "what was there stays");

    let json = home.path().join("json");
    let (code, out, err) =
        run(home.path(), &["pull", "--json", &image, "--to", json.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{err}");
    let report: hoist::timeline::PullReport = serde_json::from_str(&out).unwrap();
    assert_eq!(report.layers.len(), 2);

    let slow = home.path().join("slow");
    let slow = ["pull", "--json", &image, "--limit-rate", "1kB/s", "--to", slow.to_str().unwrap()];
    let (code, out, err) = run(home.path(), &slow).await;
    assert_eq!(code, 0, "{err}");
    let report: hoist::timeline::PullReport = serde_json::from_str(&out).unwrap();
    let limits = report.layers.iter().flat_map(|layer| &layer.limits);
    assert!(limits.clone().any(|limit| limit.bytes_per_second == 1000), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inspect_shows_layers_for_people_and_programs() {
    let (_server, image) = image().await;
    let home = tempfile::tempdir().unwrap();
    let (code, out, err) = run(home.path(), &["inspect", &image]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(LAYER) && out.contains("zstd") && out.contains("layers    2"), "{out}");
    let (code, out, _) = run(home.path(), &["inspect", &image, "--json"]).await;
    assert_eq!(code, 0);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["layers"].as_array().unwrap().len(), 2);
    assert_eq!(json["layers"][0]["media_type"], LAYER);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simulate_predicts_from_sizes_and_from_a_manifest() {
    let (_server, image) = image().await;
    let home = tempfile::tempdir().unwrap();
    let (svg, html) = (home.path().join("p.svg"), home.path().join("p.html"));
    let sizes = ["simulate", "--layer-sizes", "490.9MB,736.4MB,1472.7MB"];
    let with = |more: &[&'static str]| sizes.iter().chain(more).copied().collect::<Vec<_>>();
    let mut files = with(&["--model", "containerd,hoist", "--svg"]);
    files.extend([svg.to_str().unwrap(), "--html", html.to_str().unwrap()]);
    let (code, out, err) = run(home.path(), &files).await;
    assert_eq!(code, 0, "{err}");
    for word in ["containerd  18.5 s", "hoist  12.0 s", "736.4 MB", "waiting"] {
        assert!(out.contains(word), "{word} is not in {out}");
    }
    // No terminal: no escapes and no letters that a log cannot show.
    assert!(out.is_ascii() && !out.contains('\x1b'), "{out}");
    assert!(std::fs::read_to_string(svg).unwrap().ends_with("</svg>\n"));
    assert!(std::fs::read_to_string(html).unwrap().starts_with("<!doctype html>"));

    // The manifest's own sizes, at rates of a profile.
    let profile = home.path().join("profile.toml");
    std::fs::write(&profile, "name = \"slow\"\n[rates]\ndownload = \"100kB/s\"\n").unwrap();
    let named = ["simulate", &image, "--json", "--profile", profile.to_str().unwrap()];
    let (code, out, err) = run(home.path(), &named).await;
    assert_eq!(code, 0, "{err}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    let bytes: f64 =
        json["layers"].as_array().unwrap().iter().map(|l| l["bytes"].as_f64().unwrap()).sum();
    assert_eq!(json["predictions"].as_array().unwrap().len(), 3);
    for prediction in json["predictions"].as_array().unwrap() {
        let seconds = prediction["seconds"].as_f64().unwrap();
        assert!((seconds - bytes / 1e5).abs() < 1e-3, "{prediction}");
    }

    // Each layer of an analysis with its own archive: 1 MB becomes 1 or 100, at 10 MB/s of them.
    let analysis = home.path().join("app.json");
    let layer =
        |unpacked| serde_json::json!({ "size": 1e6, "archive_bytes": unpacked, "entries": 1 });
    let found = serde_json::json!({ "image": "app:v1", "layers": [layer(1e6), layer(100e6)] });
    std::fs::write(&analysis, found.to_string()).unwrap();
    let rates = "[rates]\ndownload = \"1TB/s\"\nextract = \"1TB/s\"\nunpack = \"10MB/s\"\n";
    std::fs::write(&profile, format!("name = \"slow\"\n{rates}")).unwrap();
    let (analysis, profile) = (analysis.to_str().unwrap(), profile.to_str().unwrap());
    let told = ["simulate", "--analysis", analysis, "--json", "--profile", profile];
    let (code, out, err) = run(home.path(), &told).await;
    assert_eq!(code, 0, "{err}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["subject"], "app:v1");
    let seconds = json["predictions"][0]["seconds"].as_f64().unwrap();
    assert!((seconds - 10.1).abs() < 1e-3, "{json}");

    // What is wrong is told before anything is asked or drawn.
    for wrong in [
        vec!["simulate"],
        vec!["simulate", "--analysis", "/nonexistent"],
        vec!["simulate", "--analysis", profile],
        vec!["simulate", "--layer-sizes", "5"],
        with(&["--download", "0MB/s"]),
        with(&["--model", "docker"]),
        with(&["--profile", "/nonexistent"]),
    ] {
        let (code, out, err) = run(home.path(), &wrong).await;
        assert_eq!((code, out.as_str()), (2, ""), "{wrong:?}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_are_as_the_help_says() {
    let (server, image) = image().await;
    let home = tempfile::tempdir().unwrap();
    let missing = format!("{}/some/image:v2", server.host);
    let to = home.path().join("to");
    let to = to.to_str().unwrap();
    // A port that nobody listens on: taken, and given back.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let closed = format!("{closed}/some/image:v1");
    let cases: [(&[&str], i32, &str); 7] = [
        (&["inspect", &missing], 3, "v2"),
        (&["inspect", &closed], 5, &closed),
        (&["inspect", "UPPER/CASE"], 2, "UPPER/CASE"),
        (&["inspect", &image, "--platform", "linux"], 2, "linux/amd64"),
        (&["pull", &image], 2, "--to"),
        (&["pulls"], 5, "control.sock"),
        (&["pull", &missing, "--to", to], 3, "v2"),
    ];
    for (arguments, expected, word) in cases {
        let (code, out, err) = run(home.path(), arguments).await;
        assert_eq!(code, expected, "{arguments:?}: {err}");
        assert!(err.contains(word), "{arguments:?}: {word} is not in {err:?}");
        assert!(out.is_empty(), "{arguments:?}: {out}");
    }
    server.script(|_, _| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"r\""));
    let (code, _, err) = run(home.path(), &["inspect", &image]).await;
    assert_eq!(code, 4, "{err}");
    let (_, help, _) = run(home.path(), &["pull", "--help"]).await;
    assert!(help.contains("4 not authorised") && help.contains("--snapshots"), "{help}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_pull_leaves_nothing() {
    let (server, image) = image().await;
    server.script(|request, reply| {
        let layer = request.is_blob() && reply.body.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
        if layer { Reply { stall_after: Some(5), ..reply } } else { reply }
    });
    let home = tempfile::tempdir().unwrap();
    let to = home.path().join("to");
    let child = hoist(home.path(), &["pull", &image, "--to", to.to_str().unwrap()])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Both layers are being unpacked when Ctrl-C comes.
    let staged = || std::fs::read_dir(to.join(".hoist-pull")).map_or(0, Iterator::count);
    while staged() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!to.exists(), "what was half done is gone, and the directory that was made for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_shell_gets_its_completions() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, err) = run(home.path(), &["completion", shell]).await;
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("inspect") && out.contains("snapshots"), "{shell}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_converted_and_compared() {
    let (server, image) = image().await;
    let home = tempfile::tempdir().unwrap();
    let layout = format!("oci:{}", home.path().join("layout").display());
    let archive = format!("oci-archive:{}", home.path().join("image.tar").display());
    let (code, out, err) = run(home.path(), &["convert", &image, &layout, "--layers", "2"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("the file system is the same"), "{out}");
    let gzip = ["convert", &layout, &archive, "--compression", "gzip", "--json"];
    let (code, out, err) = run(home.path(), &gzip).await;
    assert_eq!(code, 0, "{err}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["images"][0]["layers"].as_array().unwrap().len(), 1);
    let (code, out, err) = run(home.path(), &["diff", &image, &archive]).await;
    assert_eq!((code, out.as_str()), (0, ""), "{err}");

    // Another image differs; one that is not there is trouble.
    let (_other, other) = {
        let config =
            serde_json::json!({ "rootfs": { "type": "layers", "diff_ids": [] } }).to_string();
        let config = serde_json::json!({ "mediaType": "c", "size": config.len(), "digest": server.blob(config) });
        let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": [] });
        (
            server.manifest("empty", MANIFEST, manifest.to_string()),
            format!("{}/some/image:empty", server.host),
        )
    };
    let (code, out, err) = run(home.path(), &["diff", &image, &other]).await;
    assert_eq!(code, 1, "{err}");
    assert!(
        out.contains("/etc/hello: only in the first") && err.contains("3 places"),
        "{out}{err}"
    );
    let missing = format!("{}/some/image:v2", server.host);
    let nowhere = "oci:/nowhere/at/all";
    let refused = format!("{}/some/image:new", server.host);
    let cases: [(&[&str], i32, &str); 6] = [
        (&["diff", &image, &missing], 3, "v2"),
        (&["diff", &image, nowhere], 2, "index.json"),
        (&["convert", nowhere, &layout], 1, "index.json"),
        // A registry that takes nothing in.
        (&["convert", &image, &refused], 1, "404"),
        (&["convert", &image, &layout, "--layers", "0"], 2, "1..=127"),
        (&["convert", &image, &layout, "--level", "23"], 2, "1 to 22"),
    ];
    for (arguments, expected, word) in cases {
        let (code, _, err) = run(home.path(), arguments).await;
        assert_eq!(code, expected, "{arguments:?}: {err}");
        assert!(err.contains(word), "{arguments:?}: {word} is not in {err:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_conversion_leaves_nothing() {
    let (server, image) = image().await;
    server.script(|request, reply| {
        let layer = request.is_blob() && reply.body.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
        if layer { Reply { stall_after: Some(5), ..reply } } else { reply }
    });
    let home = tempfile::tempdir().unwrap();
    let to = home.path().join("to");
    let layout = format!("oci:{}", to.display());
    let child = hoist(home.path(), &["convert", &image, &layout])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    while server.requests().iter().filter(|request| request.is_blob()).count() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(to.exists(), "it has begun");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!to.exists(), "what was half done is gone");
}
