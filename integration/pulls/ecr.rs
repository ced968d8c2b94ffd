//! Pulls from registries of AWS, with credentials from all that AWS gives a process: fakes of the instance's metadata,
//! of the container's credentials, of the token services and of ECR's API, and a registry that takes ECR's password.
//!
//! The names of the hosts are real; `hoist` finds them on loopback, in a mount name space with an `/etc/hosts` of its own.

#[path = "ecr/aws.rs"]
mod aws;
#[path = "ecr/trace.rs"]
mod trace;

use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::daemon::blocking;
use super::faulty_registry::{Reply, Request};
use super::harness::skipped;
use aws::{Aws, Ecr, SECRET_KEY, SESSION, answer, judged};

const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const PUBLIC: &str = "public.ecr.aws";

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
