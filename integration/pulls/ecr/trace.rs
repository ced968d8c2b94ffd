//! What a daemon says at its most talkative: nothing that is a secret of AWS's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::aws::{Aws, Ecr, SECRET_KEY, SESSION, judged};
use super::{ECR, can};
use crate::daemon::{Daemon, blocking};
use crate::faulty_registry::{FaultyRegistry, Reply};
use crate::images::noise;
use crate::secrets::said;

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
