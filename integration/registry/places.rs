//! Where from: redirects, mirrors, certificates.

use super::credentials::docker_config;
use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_kept_until_refused_and_gets_no_credentials() {
    let store = FaultyRegistry::start().await;
    let server = FaultyRegistry::start().await;
    let digest = server.blob(noise(20_000));
    store.blob(noise(20_000));
    let target = store.host.clone();
    let signatures = Arc::new(AtomicUsize::new(0));
    let signed = Arc::clone(&signatures);
    server.script(move |request, _| {
        if request.header("authorization").is_none() {
            return Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"here\"");
        }
        let signature = signed.fetch_add(1, SeqCst) + 1;
        let path = &request.path;
        Reply::new(307, "").with("Location", format!("http://{target}{path}?sig={signature}"))
    });
    // A signature is good for five requests.
    let uses = Arc::new(Mutex::new(std::collections::HashMap::<String, usize>::new()));
    store.script(move |request, reply| {
        let mut uses = uses.lock().unwrap();
        let used = uses.entry(request.query.clone()).or_default();
        *used += 1;
        if *used > 5 { Reply::new(403, "Request has expired") } else { reply }
    });
    let (_dir, file) =
        docker_config(&format!(r#""{}": {{"auth": "dXNlcjpzZWNyZXQ="}}"#, server.host));
    let settings = Settings { docker_config: Some(file), ..settings() };
    let fetch = Fetch::new(Registry::new(settings).unwrap(), 1024);
    let read = fetch.read(&reference(&server.host), digest, 20_000).await;
    assert!(read.unwrap() == noise(20_000));
    assert!(store.requests().iter().all(|request| request.header("authorization").is_none()));
    assert!(store.requests().iter().all(|request| request.query.starts_with("sig=")));
    let asked = signatures.load(SeqCst);
    // Twenty chunks: one signature at first, then one for each task that was refused.
    assert!((4..20).contains(&asked), "{asked} signatures");
    assert_eq!(fetch.recorder.report().host, Some(store.host.clone()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_without_an_end_or_an_aim_are_errors() {
    for location in ["/v2/some/image/manifests/v1", "ftp://elsewhere/", "http://["] {
        let server = FaultyRegistry::start().await;
        server.script(move |_, _| Reply::new(302, "").with("Location", location));
        let error = registry().manifest(&reference(&server.host)).await.unwrap_err();
        assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
        assert!(server.requests().len() <= 6);
    }
}

/// Settings with a `hosts.toml` for `server`.
pub(super) fn mirrored(server: &FaultyRegistry, toml: &str) -> (tempfile::TempDir, Settings) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join(&server.host);
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("hosts.toml"), toml).unwrap();
    let settings = Settings { hosts_dirs: vec![root.path().to_owned()], ..settings() };
    (root, settings)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirrors_are_asked_first_in_their_own_way() {
    let (server, first) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
    let second = FaultyRegistry::start().await;
    let digest = second.blob(noise(5000));
    second.manifest("v1", MANIFEST, "{}");
    // The first may not say what a tag means, and has nothing.
    let (_root, settings) = mirrored(
        &server,
        &format!(
            r#"
            [host."http://{}"]
            capabilities = ["pull"]
            [host."http://{}/over/here"]
            override_path = true
            [host."http://{}/over/here".header]
            x-team = ["a", "b"]
            "#,
            first.host, second.host, second.host
        ),
    );
    let registry = Registry::new(settings).unwrap();
    let reference = reference(&server.host);
    registry.manifest(&reference).await.unwrap();
    assert_eq!((first.requests().len(), server.requests().len()), (0, 0));
    let request = &second.requests()[0];
    assert_eq!(request.path, "/over/here/some/image/manifests/v1");
    let ns = format!("ns={}", server.host.replace(':', "%3A"));
    assert_eq!(request.query, ns);
    assert!(request.header("x-team").is_some());

    let fetch = Fetch::new(registry, 1024);
    assert!(fetch.read(&reference, digest, 5000).await.unwrap() == noise(5000));
    // What it does not have it is asked for once.
    assert_eq!(first.requests().len(), 1);
    assert_eq!(server.requests().len(), 0);
    assert_eq!(fetch.recorder.report().host, Some(second.host.clone()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_fails_is_passed_over() {
    type Fault = fn(&Request, Reply) -> Reply;
    let faults: [Fault; 8] = [
        |_, _| Reply::new(500, ""),
        |_, _| Reply::new(403, ""),
        |_, _| Reply::new(404, ""),
        |_, _| Reply::new(401, ""),
        |_, reply| Reply { reset_after: Some(0), ..reply },
        |_, reply| reply.with("Content-Range", "bytes 7-9/10"),
        |_, _| Reply::new(200, "rubbish"),
        |_, _| Reply::new(302, ""),
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        let (server, mirror) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
        let digest = server.blob(noise(5000));
        let manifest = server.manifest("v1", MANIFEST, "{}");
        mirror.blob(noise(5000));
        mirror.manifest("v1", MANIFEST, "{}");
        mirror.script(fault);
        let (_root, settings) = mirrored(&server, &format!("[host.\"http://{}\"]", mirror.host));
        let registry = Registry::new(settings).unwrap();
        let reference = reference(&server.host);
        if number != 5 {
            registry.manifest_by_digest(&reference, manifest).await.unwrap();
            assert!(!mirror.requests().is_empty(), "{number}");
        }
        let fetch = Fetch::new(registry, 1024);
        let read = fetch.read(&reference, digest, 5000).await;
        assert!(read.unwrap() == noise(5000), "{number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_is_down_is_passed_over() {
    let server = FaultyRegistry::start().await;
    let digest = server.blob(noise(5000));
    server.manifest("v1", MANIFEST, "{}");
    // A port that nobody listens at: bound, then given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (_root, settings) = mirrored(&server, &format!("[host.\"http://127.0.0.1:{port}\"]"));
    let registry = Registry::new(settings).unwrap();
    let reference = reference(&server.host);
    registry.manifest(&reference).await.unwrap();
    let fetch = Fetch::new(registry, 1024);
    assert!(fetch.read(&reference, digest, 5000).await.unwrap() == noise(5000));
    assert_eq!(fetch.retries(), 0, "a mirror that is down costs no try");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_is_down_is_an_error_that_names_it() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = format!("127.0.0.1:{port}");
    let error = registry().manifest(&reference(&host)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Send { .. }) && error.is_transient(), "{error}");
    assert!(error.to_string().contains(&host), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_in_a_hosts_toml_names_file_and_key() {
    let server = FaultyRegistry::start().await;
    let (_root, settings) =
        mirrored(&server, "[host.\"http://m.example\"]\ncapabilities = [\"pul\"]");
    let error =
        Registry::new(settings).unwrap().manifest(&reference(&server.host)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("hosts.toml") && text.contains("capabilities"), "{text}");
    assert!(server.requests().is_empty());
    let none = "[host.\"http://m.example\"]\ncapabilities = [\"push\"]\n";
    let (_root, settings) = mirrored(&server, &format!("capabilities = [\"push\"]\n{none}"));
    let error =
        Registry::new(settings).unwrap().manifest(&reference(&server.host)).await.unwrap_err();
    assert!(matches!(error, RegistryError::NoHost { .. }), "{error}");
}

#[test]
fn a_ca_file_that_is_none_is_named() {
    let file = Path::new("/nonexistent/ca.pem").to_owned();
    let error = Registry::new(Settings { ca_files: vec![file], ..settings() }).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/ca.pem"), "{error}");
}
