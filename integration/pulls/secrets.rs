//! Pulls with known secrets, and a search for them in everything that hoistd says: its log at trace level, metrics, pages,
//! records on disk, traces, and what it tells `hoist`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::daemon::{Daemon, blocking};
use super::faulty_registry::{FaultyRegistry, Reply, Request};
use super::harness::scratch::text_below;
use super::images::{Layer, noise, push};

const PASSWORD: &str = "pa55word-of-the-registry";
const TOKEN: &str = "bearer-t0ken-of-the-pull";
const SIGNATURE: &str = "presigned-s1gnature";
const COLLECTOR_KEY: &str = "key-of-the-c0llector";

/// What a registry with a token service answers to a request without a token.
fn challenge(host: &str) -> Reply {
    let realm = format!(
        "Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"repository:some/image:pull\""
    );
    Reply::new(401, "").with("WWW-Authenticate", realm)
}

/// A registry that wants a password for a token, a token for everything else, and sends readers of blobs elsewhere.
fn guard(server: &FaultyRegistry, elsewhere: String) {
    let host = server.host.clone();
    server.script(move |request: &Request, reply| {
        if request.path == "/token" {
            let asked = request.header("authorization").is_some_and(|a| a.starts_with("Basic "));
            let token = serde_json::json!({ "token": TOKEN, "expires_in": 300 }).to_string();
            return if asked { Reply::new(200, token) } else { Reply::new(401, "") };
        }
        if request.header("authorization") != Some(&format!("Bearer {TOKEN}")) {
            return challenge(&host);
        }
        if request.is_blob() && reply.body.len() > 10_000 {
            let name = request.path.rsplit('/').next().unwrap();
            let to = format!("http://{elsewhere}/blobs/{name}?X-Amz-Signature={SIGNATURE}&X-Amz-Credential={SIGNATURE}");
            return Reply::new(307, "").with("Location", to);
        }
        reply
    });
}

/// Everything that can be read of the daemon, but for what it was given. It tells of so many pulls at
/// least: one that ended right before a crash may be lost.
pub(crate) fn said(daemon: &Daemon, least: usize) -> String {
    let mut said = daemon.log();
    text_below(&daemon.home.path().join("root"), &mut said);
    for path in ["/", "/metrics", "/pulls.json", "/healthz"] {
        said += &daemon.get(path).1;
    }
    let listed: Vec<serde_json::Value> =
        serde_json::from_str(&daemon.told(&["pulls", "--json"])).unwrap();
    assert!(listed.len() >= least, "{listed:?}");
    for pull in listed.iter().map(|pull| &pull["id"]) {
        for form in ["", ".json", ".trace.json"] {
            said += &daemon.body(&format!("/pulls/{pull}{form}"));
        }
        said += &daemon.told(&["pulls", "show", &pull.to_string()]);
        said += &daemon.told(&["pulls", &pull.to_string()]);
    }
    said + &daemon.told(&["pulls", "--json"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_ever_said() {
    let storage = FaultyRegistry::start().await;
    let server = FaultyRegistry::start().await;
    let layer = |name: &str| Layer::of("zstd", name, noise(name, 300_000));
    let good = push(&server, "good", &[layer("good")]);
    let denied = push(&server, "denied", &[layer("denied")]);
    let lost = push(&server, "lost", &[layer("lost")]);
    storage.blob(layer("good").blob);
    guard(&server, storage.host.clone());
    // Storage that refuses, and says in its answer what it was asked with, as S3 does.
    storage.script(|request, reply| {
        if reply.status == 404 {
            return Reply::new(
                403,
                format!(
                    "<Error><Code>SignatureDoesNotMatch</Code><SignatureProvided>{SIGNATURE}</SignatureProvided>{}</Error>",
                    request.query
                ),
            );
        }
        if request.number == 0 { Reply { reset_after: Some(9), ..reply } } else { reply }
    });
    let docker = serde_json::json!({ "auths": { (server.host.clone()): {
        "username": "somebody", "password": PASSWORD,
    } } });
    let collector = FaultyRegistry::start().await;
    // One trace is refused, so that the failure is told too.
    collector.script(|request, _| Reply::new(if request.number == 1 { 400 } else { 200 }, "{}"));
    let environment = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://user:{COLLECTOR_KEY}@{}", collector.host)),
        ("OTEL_EXPORTER_OTLP_HEADERS", format!("x-api-key={COLLECTOR_KEY}")),
    ];
    let daemon = blocking(move || {
        let daemon = Daemon::start_with("[log]\nlevel = \"trace\"", &docker, environment);
        daemon.told(&["pull", "--snapshots", "--quiet", &good]);
        daemon
    })
    .await;
    // Storage where nobody listens.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (mut heard, daemon) = blocking(move || {
        let output = daemon.hoist(&["pull", "--snapshots", "--quiet", &denied]);
        assert!(!output.status.success());
        (String::from_utf8_lossy(&output.stderr).into_owned(), daemon)
    })
    .await;
    guard(&server, closed.to_string());
    heard += &blocking(move || {
        let output = daemon.hoist(&["pull", "--snapshots", "--quiet", &lost]);
        assert!(!output.status.success());
        let mut told = String::from_utf8_lossy(&output.stderr).into_owned() + &said(&daemon, 3);
        told += &daemon.told(&["top"]);
        // Its end is asked for by what comes before; what it finds is told either way.
        let doctor = daemon.hoist(&["doctor", "--no-disk-test", "--image", &lost]);
        told += &String::from_utf8_lossy(&doctor.stdout);
        assert!(told.contains(" TRACE "), "the log is at trace level");
        told
    })
    .await;
    while collector.requests().len() < 3 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for request in collector.requests() {
        assert_eq!(request.header("x-api-key"), Some(COLLECTOR_KEY), "the key was really used");
        heard += &request.body;
    }
    assert!(heard.contains("resourceSpans") && heard.contains("a trace could not be sent"));
    // The secrets were really used.
    let authorised =
        |request: &Request| request.header("authorization").is_some_and(|a| a.contains(TOKEN));
    assert!(server.requests().iter().any(authorised));
    assert!(storage.requests().iter().any(|request| request.query.contains(SIGNATURE)));
    let encoded = BASE64_STANDARD.encode(format!("somebody:{PASSWORD}"));
    let basic = format!("Basic {encoded}");
    assert!(server.requests().iter().any(|r| r.header("authorization") == Some(&basic)));
    assert!(heard.contains("SignatureDoesNotMatch"), "what storage calls its error is told");
    for secret in [PASSWORD, TOKEN, SIGNATURE, COLLECTOR_KEY, &encoded] {
        let lines: Vec<_> = heard.lines().filter(|line| line.contains(secret)).collect();
        assert!(lines.is_empty(), "{secret} is in\n{}", lines.join("\n"));
    }
}

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
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("u:{HELPED}")));
    assert!(server.requests().iter().any(|r| r.header("authorization") == Some(&basic)));
    assert!(heard.contains("docker-credential-hoisttest gave no credentials"), "{heard}");
    let docker = serde_json::json!({ "auths": { (host): { "identitytoken": IDENTITY } } });
    std::fs::write(daemon.home.path().join("config.json"), docker.to_string()).unwrap();
    let (told, daemon) = pull(daemon, image).await;
    heard += &told;
    assert!(server.requests().iter().any(|r| r.body.contains(IDENTITY)), "it was really used");
    heard += &blocking(move || said(&daemon, 2)).await;
    for secret in [HELPED, IDENTITY, TOKEN, SIGNATURE, &basic] {
        let lines: Vec<_> = heard.lines().filter(|line| line.contains(secret)).collect();
        assert!(lines.is_empty(), "{secret} is in\n{}", lines.join("\n"));
    }
}
