use super::*;

fn place() -> Place<'static> {
    Place { host: "r.example", stands_for: None, repository: "team/image" }
}

/// One user from each source.
fn all() -> (tempfile::TempDir, Credentials) {
    let dir = tempfile::tempdir().unwrap();
    let auths = |user: &str| {
        format!(r#"{{"auths": {{"r.example": {{"username": "{user}", "password": "p"}}}}}}"#)
    };
    let docker = dir.path().join("config.json");
    std::fs::write(&docker, auths("docker")).unwrap();
    let secrets = dir.path().join("secrets");
    std::fs::create_dir(&secrets).unwrap();
    std::fs::write(secrets.join("a.json"), auths("secret-a")).unwrap();
    std::fs::write(secrets.join("b.json"), auths("secret-b")).unwrap();
    let keychain = Keychain::default();
    let image = "r.example/team/image".parse().unwrap();
    let keep = std::time::Duration::from_secs(60);
    keychain.pass_password(&image, "kubelet".to_owned(), "p".to_owned(), keep);
    let settings = Settings {
        keychain,
        docker_config: Some(docker),
        kubernetes_secrets: vec![secrets],
        ..Settings::default()
    };
    (dir, Credentials::new(&settings))
}

async fn users(credentials: &Credentials, remembered: Option<Origin>) -> Vec<String> {
    let mut walk = Walk::new(remembered);
    let mut users = Vec::new();
    while let Some(candidate) = walk.next(credentials, place()).await {
        let Credential::Password(user, _) = candidate.credential else { panic!() };
        users.push(user);
    }
    users
}

#[tokio::test]
async fn what_was_taken_goes_first_but_for_what_was_passed_for_the_image() {
    let (_dir, credentials) = all();
    let usual = ["kubelet", "docker", "secret-a", "secret-b"];
    assert_eq!(users(&credentials, None).await, usual);
    let mut walk = Walk::new(None);
    let mut last = None;
    while let Some(candidate) = walk.next(&credentials, place()).await {
        last = Some(candidate.origin);
    }
    let order = ["kubelet", "secret-b", "secret-a", "docker"];
    assert_eq!(users(&credentials, last).await, order);
}

#[tokio::test]
async fn a_source_that_fails_is_noted_and_passed_over() {
    let (dir, credentials) = all();
    std::fs::write(dir.path().join("config.json"), "{").unwrap();
    let mut walk = Walk::new(None);
    let kubelet = walk.next(&credentials, place()).await.unwrap();
    assert!(kubelet.expires.is_some());
    walk.refused(&kubelet, "no".to_owned());
    let secret = walk.next(&credentials, place()).await.unwrap();
    assert!(secret.origin.to_string().contains("a.json"), "{}", secret.origin);
    let told = credentials.way_out("r.example", walk.tried());
    assert!(told.contains("what the kubelet passed for r.example/team/image"), "{told}");
    assert!(told.contains("config.json: credentials for r.example cannot be read"), "{told}");
}

#[tokio::test]
async fn a_cached_candidate_that_is_refused_gets_a_successor() {
    let (_dir, credentials) = all();
    let mut walk = Walk::new(None);
    let mut first = walk.next(&credentials, place()).await.unwrap();
    first.cached = true;
    walk.refused(&first, "no".to_owned());
    let again = walk.next(&credentials, place()).await.unwrap();
    assert_eq!(again.origin, first.origin);
    assert!(walk.tried().is_empty(), "the first one's end is nobody's business");
}
