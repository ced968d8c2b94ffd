//! Who asks: challenges, tokens, credentials.

use super::*;

/// A docker `config.json` with `auths` in a directory of its own.
pub(super) fn docker_config(auths: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    std::fs::write(&file, format!(r#"{{"auths": {{{auths}}}}}"#)).unwrap();
    (dir, file)
}

/// Serves only whoever brings the current token; hands out a new one to whoever asks at `/token`
/// as `authorized` allows. Tokens are numbers, and so many are good as `current` says.
fn with_tokens(
    server: &FaultyRegistry,
    current: Arc<AtomicUsize>,
    refused: u16,
    authorized: fn(&Request) -> bool,
) {
    let host = server.host.clone();
    server.script(move |request, reply| {
        if request.path == "/token" {
            if !authorized(request) {
                return Reply::new(401, "");
            }
            let token = current.load(SeqCst);
            return Reply::new(200, format!(r#"{{"token":"{token}","expires_in":300}}"#));
        }
        let expected = format!("Bearer {}", current.load(SeqCst));
        match request.header("authorization") {
            Some(token) if token == expected => reply,
            Some(_) if refused == 403 => Reply::new(403, "expired"),
            _ => {
                let challenge = format!(
                    "Bearer realm=\"http://{host}/token\",service=\"s v\",scope=\"repository:some/image:pull\""
                );
                Reply::new(401, "").with("WWW-Authenticate", challenge)
            }
        }
    });
}

fn token_requests(server: &FaultyRegistry) -> Vec<Request> {
    server.requests().into_iter().filter(|request| request.path == "/token").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_asked_for_once_and_again_when_it_has_expired() {
    for refused in [401, 403] {
        let server = FaultyRegistry::start().await;
        let digest = server.blob(noise(40_000));
        server.manifest("v1", MANIFEST, "{}");
        let current = Arc::new(AtomicUsize::new(1));
        with_tokens(&server, Arc::clone(&current), refused, |_| true);
        let registry = registry();
        let reference = reference(&server.host);
        registry.manifest(&reference).await.unwrap();
        let fetch = Fetch::new(registry.clone(), 1024);
        assert!(fetch.read(&reference, digest, 40_000).await.unwrap() == noise(40_000));
        assert_eq!(token_requests(&server).len(), 1);
        let query = &token_requests(&server)[0].query;
        assert_eq!(query, "service=s+v&scope=repository%3Asome%2Fimage%3Apull");

        // The token expires, and many requests find out at once.
        current.store(2, SeqCst);
        let fetch = Fetch::new(registry, 1024);
        assert!(fetch.read(&reference, digest, 40_000).await.unwrap() == noise(40_000));
        assert_eq!(token_requests(&server).len(), 2, "{refused}");
        assert_eq!(fetch.retries(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_whose_time_is_over_is_renewed_unasked() {
    let server = FaultyRegistry::start().await;
    server.manifest("v1", MANIFEST, "{}");
    let host = server.host.clone();
    server.script(move |request, reply| match request.header("authorization") {
        _ if request.path == "/token" => Reply::new(200, r#"{"token":"t","expires_in":0}"#),
        Some("Bearer t") => reply,
        _ => Reply::new(401, "")
            .with("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\"")),
    });
    let registry = registry();
    for _ in 0..3 {
        registry.manifest(&reference(&server.host)).await.unwrap();
    }
    let refused = server.requests().iter().filter(|r| r.header("authorization").is_none()).count();
    // The first manifest's request alone is refused; the others are for tokens.
    assert_eq!(refused - token_requests(&server).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_go_to_the_token_service() {
    let server = FaultyRegistry::start().await;
    server.manifest("v1", MANIFEST, "{}");
    with_tokens(&server, Arc::default(), 401, |request| {
        // "user:secret"
        request.header("authorization") == Some("Basic dXNlcjpzZWNyZXQ=")
    });
    let (_dir, file) =
        docker_config(&format!(r#""{}": {{"auth": "dXNlcjpzZWNyZXQ="}}"#, server.host));
    let with = |file: Option<PathBuf>| {
        Registry::new(Settings { docker_config: file, ..settings() }).unwrap()
    };
    with(Some(file)).manifest(&reference(&server.host)).await.unwrap();

    let (_dir, empty) = docker_config("");
    let error = with(Some(empty.clone())).manifest(&reference(&server.host)).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, RegistryError::Unauthorized { status: 401, .. }), "{text}");
    let says =
        format!("hoist has no credentials for {}: put them into {}", server.host, empty.display());
    assert!(text.contains(&says), "{text}");
    assert!(text.contains("manifest v1 of some/image"), "{text}");
    let error = with(None).manifest(&reference(&server.host)).await.unwrap_err().to_string();
    assert!(error.contains("name a docker config.json"), "{error}");
    let (_dir, wrong) =
        docker_config(&format!(r#""{}": {{"auth": "dXNlcjp3cm9uZw=="}}"#, server.host));
    let error = with(Some(wrong)).manifest(&reference(&server.host)).await.unwrap_err().to_string();
    let says = format!("config.json: {}, which gives out tokens, answered 401", server.host);
    assert!(error.contains(&says), "{error}");
    assert!(!error.contains("wrong"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_token_service_is_asked_again() {
    let server = FaultyRegistry::start().await;
    server.manifest("v1", MANIFEST, "{}");
    let (host, refusals) = (server.host.clone(), AtomicUsize::new(0));
    server.script(move |request, reply| match request.header("authorization") {
        _ if request.path == "/token" && refusals.fetch_add(1, SeqCst) < 2 => Reply::new(503, ""),
        _ if request.path == "/token" => Reply::new(200, r#"{"access_token":"t"}"#),
        Some("Bearer t") => reply,
        _ => Reply::new(401, "")
            .with("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\"")),
    });
    registry().manifest(&reference(&server.host)).await.unwrap();
    assert_eq!(token_requests(&server).len(), 3);
    // A challenge is not to lead credentials astray.
    server.script(|_, _| {
        Reply::new(401, "").with("WWW-Authenticate", "Bearer realm=\"ftp://a.example/token\"")
    });
    let error = registry().manifest(&reference(&server.host)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Token { transient: false, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_token_is_exchanged() {
    let server = FaultyRegistry::start().await;
    server.manifest("v1", MANIFEST, "{}");
    with_tokens(&server, Arc::default(), 401, |request| {
        let has = |field| request.body.split('&').any(|other| other == field);
        request.method == "POST"
            && has("grant_type=refresh_token")
            && has("refresh_token=id%2Ftoken")
            && has("service=s+v")
            && has("scope=repository%3Asome%2Fimage%3Apull")
    });
    let (_dir, file) =
        docker_config(&format!(r#""{}": {{"identitytoken": "id/token"}}"#, server.host));
    let settings = Settings { docker_config: Some(file), ..settings() };
    Registry::new(settings).unwrap().manifest(&reference(&server.host)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn basic_is_answered_with_a_password() {
    let server = FaultyRegistry::start().await;
    let digest = server.blob(noise(3000));
    server.script(|request, reply| match request.header("authorization") {
        Some("Basic dXNlcjpzZWNyZXQ=") => reply,
        _ => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"here\""),
    });
    let (_dir, file) = docker_config(&format!(
        r#""http://{}": {{"username": "user", "password": "secret"}}"#,
        server.host
    ));
    let settings = Settings { docker_config: Some(file), ..settings() };
    let fetch = Fetch::new(Registry::new(settings).unwrap(), 1024);
    let read = fetch.read(&reference(&server.host), digest, 3000).await;
    assert!(read.unwrap() == noise(3000));
    let refused = server.requests().iter().filter(|r| r.header("authorization").is_none()).count();
    assert_eq!(refused, 1);
}
