//! AWS and a registry of it, on loopback.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::faulty_registry::{FaultyRegistry, Reply, Request};
use crate::images::{Layer, noise, push};

pub(crate) const SECRET_KEY: &str = "secret-key-of-the-r0le";
pub(crate) const SESSION: &str = "session-t0ken-of-the-role";

/// AWS as a process meets it: all of its services on one port.
pub(crate) struct Aws {
    pub(crate) server: FaultyRegistry,
    /// The number of the password that is good now.
    pub(crate) current: Arc<AtomicUsize>,
}

pub(crate) fn credentials(key: &str) -> String {
    serde_json::json!({
        "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": key, "SecretAccessKey": SECRET_KEY, "Token": SESSION,
        "Expiration": "2099-01-01T00:00:00Z",
    })
    .to_string()
}

/// What ECR's API hands out, good for twelve hours.
pub(crate) fn password(number: usize, list: bool) -> Reply {
    let token = BASE64_STANDARD.encode(format!("AWS:passw0rd-{number}"));
    let data = serde_json::json!({ "authorizationToken": token, "expiresAt": 4_000_000_000_u64 });
    let data = if list { serde_json::json!([data]) } else { data };
    let body = serde_json::json!({ "authorizationData": data }).to_string();
    Reply::new(200, body).with("Content-Type", "application/x-amz-json-1.1")
}

pub(crate) fn answer(request: &Request, number: usize) -> Reply {
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
                None if path.ends_with("/instance-id") => Reply::new(200, "i-0123456789abcdef0"),
                None if path.ends_with("/placement/region") => Reply::new(200, "eu-west-1"),
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
    pub(crate) async fn start() -> Self {
        Self::of(FaultyRegistry::start().await)
    }

    /// All of AWS at that server.
    pub(crate) fn of(server: FaultyRegistry) -> Self {
        let current = Arc::new(AtomicUsize::new(1));
        let number = Arc::clone(&current);
        server.script(move |request, _| answer(request, number.load(SeqCst)));
        Self { server, current }
    }

    /// The requests for passwords, as they were signed.
    pub(crate) fn asked(&self) -> Vec<String> {
        let requests = self.server.requests().into_iter();
        let of_ecr = requests.filter(|request| request.header("x-amz-target").is_some());
        of_ecr.map(|request| request.header("authorization").unwrap().to_owned()).collect()
    }

    pub(crate) fn environment(&self, more: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
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
pub(crate) fn judged(request: &Request, reply: Reply, number: usize) -> Reply {
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
pub(crate) struct Ecr {
    pub(crate) server: FaultyRegistry,
    pub(crate) image: String,
}

impl Ecr {
    pub(crate) async fn start(aws: &Aws) -> Self {
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
    pub(crate) fn image(&self, host: &str) -> String {
        self.image.replace("127.0.0.1", host)
    }
}
