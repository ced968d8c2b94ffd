//! Pulls from registries of AWS, with credentials from all that AWS gives a process: fakes of the instance's metadata,
//! of the container's credentials, of the token services and of ECR's API, and a registry that takes ECR's password.
//!
//! The names of the hosts are real; `hoist` finds them on loopback, in a mount name space with an `/etc/hosts` of its own.

use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::daemon::{Daemon, blocking};
use super::faulty_registry::{FaultyRegistry, Reply, Request};
use super::harness::skipped;
use super::images::{Layer, noise, push};
use super::secrets::said;

const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const PUBLIC: &str = "public.ecr.aws";
const SECRET_KEY: &str = "secret-key-of-the-r0le";
const SESSION: &str = "session-t0ken-of-the-role";

/// AWS as a process meets it: all of its services on one port.
struct Aws {
    server: FaultyRegistry,
    /// The number of the password that is good now.
    current: Arc<AtomicUsize>,
}

fn credentials(key: &str) -> String {
    serde_json::json!({
        "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": key, "SecretAccessKey": SECRET_KEY, "Token": SESSION,
        "Expiration": "2099-01-01T00:00:00Z",
    })
    .to_string()
}

/// What ECR's API hands out, good for twelve hours.
fn password(number: usize, list: bool) -> Reply {
    let token = BASE64_STANDARD.encode(format!("AWS:passw0rd-{number}"));
    let data = serde_json::json!({ "authorizationToken": token, "expiresAt": 4_000_000_000_u64 });
    let data = if list { serde_json::json!([data]) } else { data };
    let body = serde_json::json!({ "authorizationData": data }).to_string();
    Reply::new(200, body).with("Content-Type", "application/x-amz-json-1.1")
}

fn answer(request: &Request, number: usize) -> Reply {
    match (&*request.method, &*request.path) {
        // The instance's metadata, version 2 alone.
        ("PUT", "/latest/api/token") => {
            Reply::new(200, "imds-token").with("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "21600")
        }
        ("GET", path) if path.starts_with("/latest/") => {
            if request.header("x-aws-ec2-metadata-token") != Some("imds-token") {
                return Reply::new(401, "");
            }
            match path.rsplit_once("security-credentials/") {
                Some((_, "")) => Reply::new(200, "the-role"),
                Some((_, "the-role")) => Reply::new(200, credentials("AKIDINSTANCE")),
                _ => Reply::new(404, ""),
            }
        }
        ("GET", "/container") if request.header("authorization") == Some("container-token") => {
            Reply::new(200, credentials("AKIDCONTAINER"))
        }
        ("POST", "/") if request.body.contains("AssumeRoleWithWebIdentity") => {
            assert!(request.body.contains("WebIdentityToken=a-web-identity"), "{}", request.body);
            Reply::new(200, format!(
                "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
                 <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>AKIDWEB</AccessKeyId>\
                 <SecretAccessKey>{SECRET_KEY}</SecretAccessKey><SessionToken>{SESSION}</SessionToken>\
                 <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
                 </AssumeRoleWithWebIdentityResponse>"
            )).with("Content-Type", "text/xml")
        }
        ("POST", "/") => match request.header("x-amz-target") {
            Some("AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken") => {
                password(number, true)
            }
            Some("SpencerFrontendService.GetAuthorizationToken") => password(number, false),
            _ => Reply::new(400, ""),
        },
        _ => Reply::new(404, ""),
    }
}

impl Aws {
    async fn start() -> Self {
        let server = FaultyRegistry::start().await;
        let current = Arc::new(AtomicUsize::new(1));
        let number = Arc::clone(&current);
        server.script(move |request, _| answer(request, number.load(SeqCst)));
        Self { server, current }
    }

    /// The requests for passwords, as they were signed.
    fn asked(&self) -> Vec<String> {
        let requests = self.server.requests().into_iter();
        let of_ecr = requests.filter(|request| request.header("x-amz-target").is_some());
        of_ecr.map(|request| request.header("authorization").unwrap().to_owned()).collect()
    }

    fn environment(&self, more: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        let url = format!("http://{}", self.server.host);
        let services = [
            "AWS_ENDPOINT_URL_ECR",
            "AWS_ENDPOINT_URL_ECR_PUBLIC",
            "AWS_ENDPOINT_URL_STS",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        ];
        let more = more.iter().map(|(name, value)| (*name, value.replace("@AWS@", &url)));
        services.map(|name| (name, url.clone())).into_iter().chain(more).collect()
    }
}

/// What the registry answers: `reply` to whoever has the password of this number.
fn judged(request: &Request, reply: Reply, number: usize) -> Reply {
    let expected = BASE64_STANDARD.encode(format!("AWS:passw0rd-{number}"));
    match request.header("authorization") {
        Some(header) if header == format!("Basic {expected}") => reply,
        Some(_) => {
            Reply::new(403, "Your authorization token has expired. Reauthenticate and try again.")
        }
        None => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"ecr\""),
    }
}

/// A registry with an image, that lets in whoever has the current password.
struct Ecr {
    server: FaultyRegistry,
    image: String,
}

impl Ecr {
    async fn start(aws: &Aws) -> Self {
        let server = FaultyRegistry::start().await;
        let layers: Vec<_> = (0..4)
            .map(|n| Layer::of("zstd", &format!("f{n}"), noise(&n.to_string(), 50_000)))
            .collect();
        let image = push(&server, "v1", &layers);
        let current = Arc::clone(&aws.current);
        server.script(move |request, reply| judged(request, reply, current.load(SeqCst)));
        Self { server, image }
    }

    /// The image by the name of a registry of AWS.
    fn image(&self, host: &str) -> String {
        self.image.replace("127.0.0.1", host)
    }
}

/// `hoist pull IMAGE --to …` on a host that finds AWS's names on loopback, with this environment and nothing else of
/// AWS's in it.
fn pull(image: &str, environment: Vec<(&'static str, String)>, config: &str) -> Output {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let file = home.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    };
    let (host, _) = image.split_once('/').unwrap();
    let (name, _) = host.split_once(':').unwrap();
    let hosts = write("hosts", format!("127.0.0.1 localhost {name}\n"));
    let config = write(
        "hoist.toml",
        format!(
            "[registry]\nhosts_dirs = []\ndocker_config = \"/nonexistent\"\nplain_http_hosts = [\"{host}\"]\n{config}\n\
         [fetch]\nretries = 1\nbackoff_initial = \"1ms\"\nbackoff_max = \"2ms\"\n[log]\nlevel = \"debug\"\n"
        ),
    );
    let script = "mount --make-rprivate / && mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(hosts)
        .arg(env!("CARGO_BIN_EXE_hoist"))
        .arg("--config")
        .arg(config)
        .args(["pull", image, "--quiet", "--to"])
        .arg(home.path().join("to"))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home.path())
        .envs(environment)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn can(test: &str) -> bool {
    let unshared = Command::new("unshare").args(["--mount", "true"]).output();
    let can = unshared.is_ok_and(|output| output.status.success());
    if !can {
        skipped(test, "no mount name space can be made");
    }
    can
}

async fn pulled(image: String, environment: Vec<(&'static str, String)>, config: &'static str) {
    let output = blocking(move || pull(&image, environment, config)).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    assert_no_secret(&error);
}

fn assert_no_secret(said: &str) {
    for secret in [SECRET_KEY, SESSION, "passw0rd", "imds-token", "container-token"] {
        assert!(!said.contains(secret), "{secret} is in {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_credentials_leads_to_a_password() {
    if !can("credentials of AWS") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let profile = file(
        "credentials",
        &format!(
            "[of-hoist]\naws_access_key_id = AKIDPROFILE\naws_secret_access_key = {SECRET_KEY}\n"
        ),
    );
    let web = file("web-identity", "a-web-identity");
    let pod = file("pod-identity", "container-token");
    let off = ("AWS_EC2_METADATA_DISABLED", "true");
    let cases: [(&str, &[(&'static str, &str)]); 6] = [
        ("AKIDINSTANCE", &[]),
        (
            "AKIDENV",
            &[("AWS_ACCESS_KEY_ID", "AKIDENV"), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY), off],
        ),
        (
            "AKIDPROFILE",
            &[("AWS_SHARED_CREDENTIALS_FILE", &profile), ("AWS_PROFILE", "of-hoist"), off],
        ),
        (
            "AKIDWEB",
            &[
                ("AWS_WEB_IDENTITY_TOKEN_FILE", &web),
                ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/r"),
                off,
            ],
        ),
        (
            "AKIDCONTAINER",
            &[
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "@AWS@/container"),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "container-token"),
                off,
            ],
        ),
        (
            "AKIDCONTAINER",
            &[
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "@AWS@/container"),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &pod),
                off,
            ],
        ),
    ];
    for (key, environment) in cases {
        let aws = Aws::start().await;
        let ecr = Ecr::start(&aws).await;
        pulled(ecr.image(ECR), aws.environment(environment), "").await;
        let asked = aws.asked();
        // Four layers and two documents: one question.
        assert_eq!(asked.len(), 1, "{key}: {asked:?}");
        assert!(asked[0].contains(key) && asked[0].contains("/eu-west-1/ecr/"), "{key}: {asked:?}");
        let metadata = aws.server.requests().into_iter().filter(|r| r.path.starts_with("/latest"));
        assert_eq!(metadata.count() > 0, environment.is_empty(), "{key}");
        assert!(ecr.server.requests().iter().any(Request::is_blob));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_is_refused_is_renewed_once() {
    if !can("a refused password of ECR") {
        return;
    }
    let aws = Aws::start().await;
    let ecr = Ecr::start(&aws).await;
    // With the first blob it is over, for all four at once.
    let (current, revoked) = (Arc::clone(&aws.current), AtomicUsize::new(0));
    ecr.server.script(move |request, reply| {
        if request.is_blob() && reply.body.len() > 10_000 && revoked.swap(1, SeqCst) == 0 {
            current.store(2, SeqCst);
        }
        judged(request, reply, current.load(SeqCst))
    });
    pulled(ecr.image(ECR), aws.environment(&[]), "").await;
    assert_eq!(aws.asked().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_region_is_that_of_the_name() {
    if !can("regions of ECR") {
        return;
    }
    for (host, signed) in [
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "/cn-north-1/ecr/"),
        ("vpce-0a1b-2c3d.dkr.ecr.us-east-2.vpce.amazonaws.com", "/us-east-2/ecr/"),
    ] {
        let aws = Aws::start().await;
        let ecr = Ecr::start(&aws).await;
        // That the host lives elsewhere changes nothing.
        pulled(ecr.image(host), aws.environment(&[("AWS_REGION", "eu-north-1")]), "").await;
        assert!(aws.asked()[0].contains(signed), "{:?}", aws.asked());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_public_gallery_is_asked_by_name_or_by_nobody() {
    if !can("the public gallery of ECR") {
        return;
    }
    let aws = Aws::start().await;
    let ecr = Ecr::start(&aws).await;
    let host = ecr.server.host.clone();
    ecr.server.script(move |request, reply| match request.header("authorization") {
        Some(header) if request.path == "/token" => {
            assert_eq!(header, format!("Basic {}", BASE64_STANDARD.encode("AWS:passw0rd-1")));
            Reply::new(200, r#"{"token":"of-aws"}"#)
        }
        None if request.path == "/token" => Reply::new(200, r#"{"token":"of-nobody"}"#),
        Some("Bearer of-aws" | "Bearer of-nobody") => reply,
        _ => Reply::new(401, "")
            .with("WWW-Authenticate", format!("Bearer realm=\"http://{host}/token\"")),
    });
    let came_with = |token: &str| {
        let header = format!("Bearer {token}");
        ecr.server.requests().iter().any(|r| r.header("authorization") == Some(&header))
    };
    // Nobody to AWS: no credentials anywhere.
    let nobody = aws.environment(&[("AWS_EC2_METADATA_DISABLED", "true")]);
    pulled(ecr.image(PUBLIC), nobody, "").await;
    assert!(came_with("of-nobody") && !came_with("of-aws"));
    pulled(ecr.image(PUBLIC), aws.environment(&[]), "").await;
    assert!(came_with("of-aws"));
    assert!(aws.asked()[0].contains("/us-east-1/ecr-public/"), "{:?}", aws.asked());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_asks_aws_who_need_not() {
    if !can("hosts that are not ECR's") {
        return;
    }
    let aws = Aws::start().await;
    let ecr = Ecr::start(&aws).await;
    for (image, config) in [
        (ecr.image("registry.example"), ""),
        (ecr.image("123456789012.dkr.ecr.eu-west-1.amazonaws.com.example"), ""),
        (ecr.image(ECR), "ecr = \"off\""),
    ] {
        let environment = aws.environment(&[]);
        let output = blocking(move || pull(&image, environment, config)).await;
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains("hoist has no credentials for"), "{error}");
    }
    assert_eq!(aws.server.requests().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_aws_refuses_is_told() {
    if !can("refusals of ECR's API") {
        return;
    }
    let aws = Aws::start().await;
    let ecr = Ecr::start(&aws).await;
    let role = |request: &Request| request.header("x-amz-target").is_some();
    aws.server.script(move |request, _| {
        if role(request) {
            let body = r#"{"__type":"AccessDeniedException","message":"the role may not do ecr:GetAuthorizationToken"}"#;
            return Reply::new(400, body).with("Content-Type", "application/x-amz-json-1.1");
        }
        answer(request, 1)
    });
    let (image, environment) = (ecr.image(ECR), aws.environment(&[]));
    let output = blocking(move || pull(&image, environment, "")).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("AWS (ECR in eu-west-1)"), "{error}");
    assert!(error.contains("the role may not do ecr:GetAuthorizationToken"), "{error}");
    assert_no_secret(&error);
}

const PRESIGNED: &str = "presigned-s1gnature-of-s3";

/// The way to AWS of a daemon whose every word is read afterwards: at trace level the crates of AWS tell what they sign.
async fn pulled_at_trace(environment: &[(&'static str, &str)]) -> (Aws, String) {
    let (aws, storage) = (Aws::start().await, FaultyRegistry::start().await);
    let ecr = Ecr::start(&aws).await;
    // ECR's layers come from S3.
    let (current, elsewhere) = (Arc::clone(&aws.current), storage.host.clone());
    storage.script(|request, _| match request.query.contains(PRESIGNED) {
        true => Reply::new(200, noise("s3", 50_000)),
        false => Reply::new(403, ""),
    });
    let moved = AtomicUsize::new(0);
    ecr.server.script(move |request, reply| {
        let reply = judged(request, reply, current.load(SeqCst));
        // One of them, and other bytes than the layer's: the refusal is told as well.
        let layer = reply.status == 200 && request.is_blob() && reply.body.len() > 10_000;
        let moves = layer && moved.swap(1, SeqCst) == 0;
        let to = format!(
            "http://{elsewhere}/b?X-Amz-Security-Token={PRESIGNED}&X-Amz-Signature={PRESIGNED}"
        );
        if moves { Reply::new(307, "").with("Location", to) } else { reply }
    });
    let image = ecr.image(ECR);
    let (host, _) = image.split_once('/').unwrap();
    let (host, environment) = (host.to_owned(), aws.environment(environment));
    let heard = blocking(move || {
        let furnish = |home: &std::path::Path| {
            let (name, _) = host.split_once(':').unwrap();
            std::fs::write(home.join("hosts"), format!("127.0.0.1 localhost {name}\n")).unwrap();
            std::fs::create_dir(home.join(&host)).unwrap();
            let text = format!("server = \"http://{host}\"\n");
            std::fs::write(home.join(&host).join("hosts.toml"), text).unwrap();
        };
        let none = serde_json::json!({});
        let trace = "[log]\nlevel = \"trace\"";
        let daemon = Daemon::start_where(trace, &none, environment, furnish);
        let mut heard = String::new();
        for _ in 0..2 {
            let output = daemon.hoist(&["pull", "--snapshots", "--quiet", &image]);
            heard += &String::from_utf8_lossy(&output.stderr);
        }
        heard + &said(&daemon, 2)
    })
    .await;
    assert!(storage.requests().iter().any(|request| request.query.contains(PRESIGNED)));
    (aws, heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_aws_is_said_at_trace_level() {
    if !can("secrets of AWS at trace level") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let web = dir.path().join("web-identity");
    std::fs::write(&web, "a-web-identity").unwrap();
    let web = web.display().to_string();
    let off = ("AWS_EC2_METADATA_DISABLED", "true");
    let cases: [&[(&'static str, &str)]; 4] = [
        &[],
        &[
            ("AWS_ACCESS_KEY_ID", "AKIDENV"),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_SESSION_TOKEN", SESSION),
            off,
        ],
        &[
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "@AWS@/container"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "container-token"),
            off,
        ],
        &[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", &web),
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/r"),
            off,
        ],
    ];
    for environment in cases {
        let (aws, heard) = pulled_at_trace(environment).await;
        assert!(heard.contains(" TRACE "), "the log is at trace level");
        let mut asked = aws.server.requests().into_iter();
        let asked = asked.find(|request| request.header("x-amz-target").is_some());
        let asked = asked.expect("ECR's API was asked");
        assert_eq!(asked.header("x-amz-security-token"), Some(SESSION), "the session was used");
        // A signed request can be sent again for some minutes, and what it asks for is a password.
        let signature = asked.header("authorization").unwrap().split("Signature=").nth(1).unwrap();
        let encoded = ["1", "2"].map(|n| BASE64_STANDARD.encode(format!("AWS:passw0rd-{n}")));
        let secrets = [
            SECRET_KEY,
            SESSION,
            "passw0rd",
            "imds-token",
            "container-token",
            "a-web-identity",
            PRESIGNED,
            signature,
            &encoded[0],
            &encoded[1],
        ];
        let mut found: Vec<_> = secrets
            .iter()
            .flat_map(|secret| {
                heard.lines().filter(move |l| l.contains(secret)).map(move |l| (secret, l))
            })
            // Who says it stands before the first ": ".
            .map(|(secret, line)| {
                format!(
                    "{secret} by {}",
                    line.rsplit_once("}: ").map_or(line, |(_, l)| &l[..l.len().min(80)])
                )
            })
            .collect();
        found.dedup();
        assert!(found.is_empty(), "{environment:?}\n{}", found.join("\n"));
    }
}
