//! Pulls with known secrets, and a search for them in everything that hoistd says: its log at trace level as text and as JSON,
//! metrics, pages, records on disk, traces, what it tells `hoist`, and what it answers containerd; and in what `hoist` says of
//! its own.

#[path = "secrets/sources.rs"]
mod sources;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::daemon::{Daemon, blocking, configure};
use super::faulty_registry::{FaultyRegistry, Reply, Request};
use super::harness::scratch::text_below;
use super::images::{Layer, noise, push};
use super::snapshotter;

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
        said += &daemon.told(&["pulls", "show", &pull.to_string(), "--svg", "a.svg"]);
        said += &std::fs::read_to_string(daemon.home.path().join("a.svg")).unwrap();
        said += &daemon.told(&["pulls", &pull.to_string()]);
    }
    for arguments in [&["pulls"][..], &["pulls", "--json"], &["ls", "--json"], &["top"]] {
        said += &daemon.told(arguments);
    }
    said
}

/// What each of these commands of `hoist` says, whether it succeeds or not.
fn of_commands(daemon: &Daemon, commands: &[&[&str]]) -> String {
    let mut said = String::new();
    for arguments in commands {
        let output = daemon.hoist(arguments);
        said += &String::from_utf8_lossy(&output.stdout);
        said += &String::from_utf8_lossy(&output.stderr);
    }
    said
}

/// What hoistd answers containerd for the last pull of this image, which failed.
async fn refused(daemon: Daemon, image: &str) -> (String, Daemon) {
    let image = image.to_owned();
    let (pull, daemon) = blocking(move || {
        let pulls: Vec<serde_json::Value> =
            serde_json::from_str(&daemon.told(&["pulls", "--json"])).unwrap();
        let pull = pulls.into_iter().find(|pull| pull["image"] == image.as_str());
        (pull.expect("it is kept"), daemon)
    })
    .await;
    let socket = daemon.home.path().join("hoist.sock");
    let answer = snapshotter::prepare(&socket, snapshotter::labels(&pull)).await;
    (answer.expect_err("the layer cannot be had"), daemon)
}

fn search(heard: &str, secrets: &[&str]) {
    for secret in secrets {
        let lines: Vec<_> = heard.lines().filter(|line| line.contains(secret)).collect();
        assert!(lines.is_empty(), "{secret} is in\n{}", lines.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_ever_said() {
    no_secret_is_said("text", " TRACE ").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_ever_said_in_json() {
    no_secret_is_said("json", "\"level\":\"TRACE\"").await;
}

/// With this form of the log, in which a line of trace level has this word.
async fn no_secret_is_said(form: &'static str, trace: &'static str) {
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
        let log =
            format!("[log]\nlevel = \"trace\"\nformat = \"{form}\"\n[pull]\non_error = \"fail\"");
        let daemon = Daemon::start_with(&log, &docker, environment);
        daemon.told(&["pull", "--snapshots", "--quiet", &good]);
        daemon
    })
    .await;
    // Storage where nobody listens.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let name = denied.clone();
    let (mut heard, daemon) = blocking(move || {
        let output = daemon.hoist(&["pull", "--snapshots", "--quiet", &name]);
        assert!(!output.status.success());
        (String::from_utf8_lossy(&output.stderr).into_owned(), daemon)
    })
    .await;
    let (answer, daemon) = refused(daemon, &denied).await;
    assert!(answer.contains("SignatureDoesNotMatch"), "containerd is told why: {answer}");
    heard += &answer;
    guard(&server, closed.to_string());
    heard += &blocking(move || {
        let output = daemon.hoist(&["pull", "--snapshots", "--quiet", &lost]);
        assert!(!output.status.success());
        let mut told = String::from_utf8_lossy(&output.stderr).into_owned() + &said(&daemon, 3);
        told += &of_commands(
            &daemon,
            &[
                &["doctor", "--no-disk-test", "--image", &lost],
                &["inspect", &lost],
                &["analyze", &lost],
                &["pull", &lost, "--to", "lost"],
                &["convert", &lost, &format!("{lost}-converted")],
            ],
        );
        assert!(told.contains(trace), "the log is at trace level");
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
    search(&heard, &[PASSWORD, TOKEN, SIGNATURE, COLLECTOR_KEY, &encoded]);
}

/// What a `hosts.toml` has of secrets: headers, and a password in an address. The mirror repeats what it was asked with, as
/// some that are meant for finding mistakes do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_hosts_toml_is_said() {
    const HEADER: &str = "key-in-a-he4der";
    const KEY: &str = "pa55word-in-an-address";
    let mirror = FaultyRegistry::start().await;
    let image = push(&mirror, "v1", &[Layer::of("zstd", "one", noise("hosts", 100_000))]);
    let (echo, missing) = (image.replace(":v1", ":echo"), image.replace(":v1", ":missing"));
    mirror.script(|request, reply| {
        let known = request.header("x-api-key") == Some(HEADER);
        if request.path.ends_with("/echo") {
            // Far behind, where the second one is cut in its middle.
            let sent = ["x-api-key", "authorization"].map(|name| request.header(name));
            return Reply::new(400, format!("{}you sent {sent:?}", " ".repeat(250)));
        }
        if request.path.ends_with("/moved") {
            return Reply::new(307, "").with("Location", format!("ftp://user:{KEY}@elsewhere/"));
        }
        if known { reply } else { Reply::new(403, "") }
    });
    let moved = image.replace(":v1", ":moved");
    let (host, port) = mirror.host.split_once(':').unwrap();
    let name = format!("{host}_{port}_");
    let good =
        format!("[host.\"http://user:{KEY}@{}\".header]\nx-api-key = \"{HEADER}\"\n", mirror.host);
    let broken = [
        good.replace("\"\n", "\n"),
        good.replace(".header]\nx-api-key = ", "]\nheader = "),
        good.replace(".header]\n", "]\ncapabilities = [\"pul\"]\n"),
        good.replace(&mirror.host, ":::"),
    ];
    let heard = blocking(move || {
        let none = serde_json::json!({});
        let mut daemon =
            Daemon::start_where("[log]\nlevel = \"trace\"", &none, Vec::new(), |home| {
                std::fs::create_dir(home.join(&name)).unwrap();
                std::fs::write(home.join(&name).join("hosts.toml"), &good).unwrap();
            });
        daemon.told(&["pull", "--snapshots", "--quiet", &image]);
        let all = |daemon: &Daemon, image: &str, word: &str| {
            let said = of_commands(
                daemon,
                &[
                    &["pull", "--snapshots", "--quiet", image],
                    &["pull", "--quiet", image, "--to", "there"],
                    &["inspect", image],
                    &["doctor", "--no-disk-test", "--image", image],
                ],
            );
            assert!(said.contains(word), "{word} is not in {said}");
            said
        };
        let mut heard = all(&daemon, &echo, "you sent");
        heard += &all(&daemon, &moved, "ftp://elsewhere/");
        // The registry itself comes after its mirror, without the mirror's header.
        heard += &all(&daemon, &missing, "refuses manifest missing");
        for text in broken {
            std::fs::write(daemon.home.path().join(&name).join("hosts.toml"), text).unwrap();
            // It reads it anew.
            daemon.crash_and_restart();
            heard += &all(&daemon, &image, "hosts.toml: ");
        }
        heard + &said(&daemon, 4)
    })
    .await;
    // The secrets were really used.
    assert!(mirror.requests().iter().any(|r| r.header("x-api-key") == Some(HEADER)));
    let encoded = BASE64_STANDARD.encode(format!("user:{KEY}"));
    let basic = format!("Basic {encoded}");
    assert!(mirror.requests().iter().any(|r| r.header("authorization") == Some(&basic)));
    search(&heard, &[HEADER, KEY, &encoded]);
}

/// The password of a proxy, which lets nobody through: of the daemon's, and of those of a `hoist` that asks by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_proxy_is_said() {
    const KEY: &str = "pa55word-of-the-pr0xy";
    let proxy = FaultyRegistry::start().await;
    proxy.script(|_, _| Reply::new(407, "").with("Proxy-Authenticate", "Basic realm=\"p\""));
    let address = format!("http://user:{KEY}@{}", proxy.host);
    let (heard, kinds) = blocking(move || {
        let environment = vec![("http_proxy", address.clone()), ("HTTPS_PROXY", address)];
        let plain = "[registry]\nplain_http_hosts = [\"plain.invalid\"]";
        let none = serde_json::json!({});
        let daemon = Daemon::start_where("[log]\nlevel = \"trace\"", &none, environment, |home| {
            configure(home, "[registry]", plain);
        });
        let mut heard = String::new();
        let mut kinds = Vec::new();
        for image in ["plain.invalid/some/image:v1", "secure.invalid/some/image:v1"] {
            let commands: [&[&str]; 6] = [
                &["pull", "--snapshots", "--quiet", image],
                &["pull", "--quiet", image, "--to", "there"],
                &["inspect", image],
                &["analyze", image],
                &["convert", image, &format!("{image}-converted")],
                &["doctor", "--no-disk-test", "--image", image],
            ];
            for command in commands {
                let before = proxy.requests().len();
                heard += &of_commands(&daemon, &[command]);
                let asked = proxy.requests().split_off(before);
                kinds.push((command[0].to_owned(), asked));
            }
        }
        (heard + &said(&daemon, 2), kinds)
    })
    .await;
    let encoded = BASE64_STANDARD.encode(format!("user:{KEY}"));
    let basic = format!("Basic {encoded}");
    for (command, asked) in kinds {
        let used = asked.iter().any(|r| r.header("proxy-authorization") == Some(&basic));
        assert!(used, "{command} did not ask by the proxy: {asked:?}");
    }
    search(&heard, &[KEY, &encoded]);
}
