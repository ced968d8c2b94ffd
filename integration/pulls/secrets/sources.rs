//! The sources of credentials: what is in them, and what is said of one that is broken.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::super::daemon::{Daemon, blocking, configure};
use super::super::faulty_registry::{FaultyRegistry, Reply};
use super::super::images::{Layer, noise, push};
use super::{SIGNATURE, TOKEN, guard, of_commands, said, search};

/// A credential helper's answer, what it says when it fails, and the identity token of a `config.json`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_credential_helper_is_said() {
    const HELPED: &str = "s3cret-of-the-helper";
    const IDENTITY: &str = "refresh-t0ken-of-docker";
    let server = FaultyRegistry::start().await;
    let image = push(&server, "v1", &[Layer::of("zstd", "one", noise("helped", 100_000))]);
    guard(&server, server.host.clone());
    let host = server.host.clone();
    let bin = tempfile::tempdir().unwrap();
    let helper = |script: &str| {
        let path = bin.path().join("docker-credential-hoisttest");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
    };
    let good = format!("{{\"ServerURL\":\"x\",\"Username\":\"u\",\"Secret\":\"{HELPED}\"}}");
    let path = format!("{}:{}", bin.path().display(), std::env::var("PATH").unwrap());
    let docker = serde_json::json!({ "credHelpers": { (host.clone()): "hoisttest" } });
    helper(&format!("echo '{good}'"));
    let daemon = blocking(move || {
        let environment = vec![("PATH", path)];
        Daemon::start_with("[log]\nlevel = \"trace\"", &docker, environment)
    })
    .await;
    let pull = |daemon: Daemon, image: String| {
        blocking(move || {
            // Not all of them succeed.
            let output = daemon.hoist(&["pull", "--snapshots", "--quiet", &image]);
            (String::from_utf8_lossy(&output.stderr).into_owned(), daemon)
        })
    };
    let mut heard = String::new();
    let mut daemon = daemon;
    for script in [
        // What it is for; the blob then comes from nowhere, as no presigned address leads to one.
        format!("echo '{good}'"),
        // It answers and fails all the same, on either stream.
        format!("echo '{good}'; exit 3"),
        format!("echo 'bad answer: {good}' >&2; exit 3"),
        // Not the protocol's JSON.
        format!("echo '[{good}'"),
    ] {
        helper(&script);
        // A new daemon has no token.
        daemon = blocking(move || {
            let mut daemon = daemon;
            daemon.crash_and_restart();
            daemon
        })
        .await;
        let (told, back) = pull(daemon, image.clone()).await;
        heard += &told;
        daemon = back;
    }
    let basic = format!("Basic {}", basic(HELPED));
    assert!(server.requests().iter().any(|r| r.header("authorization") == Some(&basic)));
    assert!(heard.contains("docker-credential-hoisttest gave no credentials"), "{heard}");
    let docker = serde_json::json!({ "auths": { (host): { "identitytoken": IDENTITY } } });
    std::fs::write(daemon.home.path().join("config.json"), docker.to_string()).unwrap();
    let (told, daemon) = pull(daemon, image).await;
    heard += &told;
    assert!(server.requests().iter().any(|r| r.body.contains(IDENTITY)), "it was really used");
    heard += &blocking(move || said(&daemon, 2)).await;
    search(&heard, &[HELPED, IDENTITY, TOKEN, SIGNATURE, &basic]);
}

fn basic(password: &str) -> String {
    BASE64_STANDARD.encode(format!("u:{password}"))
}

/// What lies in docker's `config.json` and in Kubernetes' pull secrets, good, refused, and in files of any other form. The
/// token service repeats what it refuses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_files_with_logins_is_said() {
    const REFUSED: &str = "refu5ed-login-of-docker";
    const GOOD: &str = "g00d-login-of-a-secret";
    let server = FaultyRegistry::start().await;
    let image = push(&server, "v1", &[Layer::of("zstd", "one", noise("files", 100_000))]);
    let host = server.host.clone();
    let realm = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
    server.script(move |request, reply| {
        let came = request.header("authorization").unwrap_or_default();
        if request.path == "/token" {
            let good = came == format!("Basic {}", basic(GOOD));
            let token = serde_json::json!({ "token": TOKEN }).to_string();
            return if good {
                Reply::new(200, token)
            } else {
                Reply::new(401, format!("you sent {came}"))
            };
        }
        let known = came == format!("Bearer {TOKEN}");
        if known { reply } else { Reply::new(401, "").with("WWW-Authenticate", realm.clone()) }
    });
    let docker = [
        format!(r#"{{"auths": {{"{host}": {{"username": "u", "password": "{REFUSED}"}}}}}}"#),
        format!(r#"{{"auths": {{"{host}": "{REFUSED}"}}}}"#),
        format!(r#"{{"auths": {{"{host}": {{"auth": "{REFUSED}"}}}}}}"#),
        format!(r#"{{"auths": {{"{host}": {{"auth": ["{REFUSED}"]}}}}}}"#),
        format!(r#"{{"auths": {{"{host}": {{"auth": "{}"}}}}}}"#, BASE64_STANDARD.encode(REFUSED)),
        format!(r#"{{"auths": {{"{host}": {{"password": "{REFUSED}", {REFUSED}"#),
    ];
    let secrets: Vec<_> = docker.iter().map(|text| text.replace(REFUSED, GOOD)).collect();
    let heard = blocking(move || {
        let none = serde_json::json!({});
        let mut daemon =
            Daemon::start_where("[log]\nlevel = \"trace\"", &none, Vec::new(), |home| {
                let directory = home.join("secrets");
                std::fs::create_dir(&directory).unwrap();
                for (number, text) in secrets.iter().enumerate() {
                    std::fs::write(directory.join(format!("{number}.json")), text).unwrap();
                }
                let there = format!("[registry]\nkubernetes_secrets = [{directory:?}]");
                configure(home, "[registry]", &there);
            });
        let mut heard = String::new();
        for text in &docker {
            std::fs::write(daemon.home.path().join("config.json"), text).unwrap();
            // A new daemon has no token.
            daemon.crash_and_restart();
            heard += &of_commands(
                &daemon,
                &[
                    &["pull", "--snapshots", "--quiet", &image],
                    &["pull", "--quiet", &image, "--to", "there"],
                    &["inspect", &image],
                    &["doctor", "--no-disk-test", "--image", &image],
                ],
            );
        }
        heard + &said(&daemon, docker.len())
    })
    .await;
    let came_with = |header: String| {
        server.requests().iter().any(|r| r.header("authorization") == Some(&header))
    };
    for password in [REFUSED, GOOD] {
        assert!(came_with(format!("Basic {}", basic(password))), "{password} was really used");
    }
    assert!(came_with(format!("Bearer {TOKEN}")));
    assert!(heard.contains("a pull secret is passed over"), "{heard}");
    let packed =
        [REFUSED, GOOD].map(|password| [basic(password), BASE64_STANDARD.encode(password)]);
    let packed = packed.as_flattened().iter().map(String::as_str);
    search(&heard, &[REFUSED, GOOD, TOKEN].into_iter().chain(packed).collect::<Vec<_>>());
}
