//! Several sources of credentials: the first that works wins, and is remembered.

use hoist::registry::Keychain;

use super::credentials::docker_config;
use super::*;

const KEEP: Duration = Duration::from_secs(600);

/// Basic's header for a user whose password is `p`.
fn basic(user: &str) -> String {
    const KNOWN: [(&str, &str); 5] = [
        ("kubelet", "a3ViZWxldDpw"),
        ("docker", "ZG9ja2VyOnA="),
        ("secret", "c2VjcmV0OnA="),
        ("other", "b3RoZXI6cA=="),
        ("fresh", "ZnJlc2g6cA=="),
    ];
    let known = KNOWN.iter().find(|(name, _)| *name == user).expect("one of the tests' users");
    format!("Basic {}", known.1)
}

/// The users that were tried, in their order, without repetitions in a row.
fn tried(server: &FaultyRegistry) -> Vec<String> {
    let users = ["kubelet", "docker", "secret", "other", "fresh"];
    let mut seen: Vec<String> = Vec::new();
    for request in server.requests() {
        let header = request.header("authorization");
        let user = users.iter().find(|user| header == Some(&basic(user)));
        if let Some(user) = user.filter(|user| seen.last().is_none_or(|last| last != *user)) {
            seen.push((*user).to_owned());
        }
    }
    seen
}

/// Lets only these in, by their password; all others get `refused`.
fn lets_in(server: &FaultyRegistry, allowed: &'static [&'static str], refused: u16) {
    server.script(move |request, reply| match request.header("authorization") {
        Some(header) if allowed.iter().any(|user| header == basic(user)) => reply,
        Some(_) if refused == 403 => Reply::new(403, "denied"),
        _ => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"here\""),
    });
}

/// A registry client with a user in each source: `kubelet`, `docker`, and `other` and `secret` in
/// Kubernetes' secrets, the former for this image alone.
struct All {
    registry: Registry,
    keychain: Keychain,
    dir: tempfile::TempDir,
    _docker: tempfile::TempDir,
}

fn all(host: &str) -> All {
    let (docker, file) =
        docker_config(&format!(r#""{host}": {{"username": "docker", "password": "p"}}"#));
    let dir = tempfile::tempdir().unwrap();
    let secret = |name: &str, key: &str, user: &str| {
        let text =
            format!(r#"{{"auths": {{"{key}": {{"username": "{user}", "password": "p"}}}}}}"#);
        std::fs::write(dir.path().join(name), text).unwrap();
    };
    secret("a.json", host, "secret");
    secret("b.json", &format!("{host}/some/image"), "other");
    let keychain = Keychain::default();
    keychain.pass_password(&reference(host), "kubelet".to_owned(), "p".to_owned(), KEEP);
    let settings = Settings {
        keychain: keychain.clone(),
        docker_config: Some(file),
        kubernetes_secrets: vec![dir.path().to_owned()],
        ..settings()
    };
    All { registry: Registry::new(settings).unwrap(), keychain, dir, _docker: docker }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_that_works_wins_and_is_remembered() {
    for refused in [401, 403] {
        let server = FaultyRegistry::start().await;
        let digest = server.blob(noise(40_000));
        server.manifest("v1", MANIFEST, "{}");
        lets_in(&server, &["secret"], refused);
        let all = all(&server.host);
        all.registry.manifest(&reference(&server.host)).await.unwrap();
        let order = ["kubelet", "docker", "other", "secret"];
        assert_eq!(tried(&server), order, "{refused}");
        // Nobody asks with the others again, whatever else is wanted.
        let before = server.requests().len();
        let fetch = Fetch::new(all.registry.clone(), 1024);
        let read = fetch.read(&reference(&server.host), digest, 40_000).await;
        assert!(read.unwrap() == noise(40_000));
        let elsewhere = format!("{}/another/image:v1", server.host).parse().unwrap();
        all.registry.manifest(&elsewhere).await.unwrap();
        assert_eq!(tried(&server), order, "{refused}");
        // The challenge of the other repository is the only refusal.
        let bare = |request: &&Request| request.header("authorization").is_none();
        assert_eq!(server.requests()[before..].iter().filter(bare).count(), 1, "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_names_who_was_tried_and_what_each_was_told() {
    let server = FaultyRegistry::start().await;
    server.manifest("v1", MANIFEST, "{}");
    lets_in(&server, &[], 403);
    let all = all(&server.host);
    let error = all.registry.manifest(&reference(&server.host)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { status: 403, .. }), "{error}");
    let text = error.to_string();
    for part in [
        "what the kubelet passed for",
        "config.json: the registry answered 403",
        "a.json: the registry answered 403",
        "b.json: the registry answered 403",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    for secret in ["\"p\"", ":p", "a3ViZWxldDpw"] {
        assert!(!text.contains(secret), "{text}");
    }
    // The next one tries all of it again, and finds what has been put right.
    let text =
        format!(r#"{{"auths": {{"{}": {{"username": "fresh", "password": "p"}}}}}}"#, server.host);
    std::fs::write(all.dir.path().join("c.json"), text).unwrap();
    lets_in(&server, &["fresh"], 403);
    all.registry.manifest(&reference(&server.host)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_source_takes_over_in_the_middle() {
    let server = FaultyRegistry::start().await;
    let digest = server.blob(noise(40_000));
    server.manifest("v1", MANIFEST, "{}");
    lets_in(&server, &["kubelet"], 401);
    let all = all(&server.host);
    all.registry.manifest(&reference(&server.host)).await.unwrap();
    assert_eq!(tried(&server), ["kubelet"]);
    // What the kubelet passed is no longer good, while many requests are under way.
    lets_in(&server, &["docker"], 401);
    let fetch = Fetch::new(all.registry.clone(), 1024);
    let read = fetch.read(&reference(&server.host), digest, 40_000).await;
    assert!(read.unwrap() == noise(40_000));
    assert_eq!(tried(&server).last().unwrap(), "docker");
    assert_eq!(fetch.retries(), 0);
    let others = tried(&server).into_iter().filter(|user| user == "other" || user == "secret");
    assert_eq!(others.count(), 0, "it was not even looked at");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_passed_is_used_no_longer_than_it_is_kept() {
    let server = FaultyRegistry::start().await;
    server.manifest("v1", MANIFEST, "{}");
    lets_in(&server, &["kubelet", "docker"], 401);
    let all = all(&server.host);
    let short = Duration::from_millis(300);
    let begun = std::time::Instant::now();
    all.keychain.pass_password(
        &reference(&server.host),
        "kubelet".to_owned(),
        "p".to_owned(),
        short,
    );
    all.registry.manifest(&reference(&server.host)).await.unwrap();
    while begun.elapsed() < short {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    all.registry.manifest(&reference(&server.host)).await.unwrap();
    let last = server.requests().pop().unwrap();
    assert_eq!(last.header("authorization"), Some(&*basic("docker")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_service_that_refuses_makes_the_next_be_tried() {
    let server = FaultyRegistry::start().await;
    server.manifest("v1", MANIFEST, "{}");
    let host = server.host.clone();
    // Two that are refused by the service, one whose token the registry refuses, and nobody at all.
    server.script(move |request, reply| match request.header("authorization") {
        Some(header) if request.path == "/token" => match header {
            header if header == basic("other") => Reply::new(200, r#"{"token":"weak"}"#),
            _ => Reply::new(401, ""),
        },
        _ if request.path == "/token" => Reply::new(200, r#"{"token":"anonymous"}"#),
        Some("Bearer anonymous") => reply,
        Some("Bearer weak") => Reply::new(403, ""),
        _ => Reply::new(401, "")
            .with("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\"")),
    });
    let all = all(&server.host);
    // A public image is pulled in spite of credentials that are good for nothing.
    all.registry.manifest(&reference(&server.host)).await.unwrap();
    assert_eq!(tried(&server), ["kubelet", "docker", "other", "secret"]);
}
