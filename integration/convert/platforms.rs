//! Images of several platforms: every one of them arrives, the index last, and `--platform` picks one.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;

use serde_json::{Value, json};
use sha2::Digest as _;

use crate::harness::registry::Registry;
use crate::harness::{House, must};
use crate::hoist;
use crate::push::{Fault, Proxy};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry, asked by hand: its code and ours have nothing in common then.
struct Client<'a>(&'a Registry);

impl Client<'_> {
    /// Status and body of an answer.
    fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (u16, Vec<u8>) {
        let mut socket = TcpStream::connect(self.0.address()).unwrap();
        let mut head = format!("{method} {path} HTTP/1.0\r\nHost: {}\r\n", self.0.address());
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        socket.write_all(head.as_bytes()).unwrap();
        socket.write_all(body).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&answer[..end]);
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap();
        (status, answer[end..].to_vec())
    }

    fn document(&self, repository: &str, name: &str) -> Option<Value> {
        let accept = format!("{INDEX}, {MANIFEST}");
        let path = format!("/v2/{repository}/manifests/{name}");
        let (status, body) = self.ask("GET", &path, &[("Accept", &accept)], b"");
        (status == 200).then(|| serde_json::from_slice(&body).unwrap())
    }

    fn put(&self, repository: &str, name: &str, media_type: &str, document: &Value) -> String {
        let body = document.to_string();
        let path = format!("/v2/{repository}/manifests/{name}");
        let (status, said) =
            self.ask("PUT", &path, &[("Content-Type", media_type)], body.as_bytes());
        assert_eq!(status, 201, "{}", String::from_utf8_lossy(&said));
        format!("sha256:{}", hex::encode(sha2::Sha256::digest(body.as_bytes())))
    }
}

/// An index of two images in an empty registry: the `debian` for amd64, the `odd` one for arm64.
fn index(house: &House, registry: &Registry) -> String {
    let mut manifests = Vec::new();
    for (image, architecture) in [("debian:gzip", "amd64"), ("odd:gzip", "arm64")] {
        let (from, to) = (house.registry.image(image), registry.image("app:one"));
        let copy =
            ["--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"];
        let places = [format!("docker://{from}"), format!("docker://{to}")];
        must(Command::new("skopeo").args(copy).args(places));
        let client = Client(registry);
        let mut manifest = client.document("app", "one").unwrap();
        // Which platform it is stands in the configuration, too.
        let mut config = blob(&client, &manifest["config"]);
        config["architecture"] = architecture.into();
        manifest["config"] = upload(&client, &manifest["config"], &config);
        let digest = client.put("app", architecture, MANIFEST, &manifest);
        let platform = json!({ "os": "linux", "architecture": architecture });
        let size = manifest.to_string().len();
        manifests.push(
            json!({ "mediaType": MANIFEST, "digest": digest, "size": size, "platform": platform }),
        );
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    Client(registry).put("app", "both", INDEX, &index);
    registry.image("app:both")
}

fn blob(client: &Client<'_>, descriptor: &Value) -> Value {
    let path = format!("/v2/app/blobs/{}", descriptor["digest"].as_str().unwrap());
    serde_json::from_slice(&client.ask("GET", &path, &[], b"").1).unwrap()
}

/// Puts a configuration in one request, and gives its descriptor.
fn upload(client: &Client<'_>, descriptor: &Value, config: &Value) -> Value {
    let body = config.to_string();
    let digest = format!("sha256:{}", hex::encode(sha2::Sha256::digest(body.as_bytes())));
    let mut socket = TcpStream::connect(client.0.address()).unwrap();
    let post =
        "POST /v2/app/blobs/uploads/ HTTP/1.0\r\nHost: registry\r\nContent-Length: 0\r\n\r\n";
    socket.write_all(post.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let location = answer.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
    let path = location.strip_prefix("http://registry").unwrap_or(location);
    let path = format!("{path}{}digest={digest}", if path.contains('?') { '&' } else { '?' });
    let kind = [("Content-Type", "application/octet-stream")];
    let (status, said) = client.ask("PUT", &path, &kind, body.as_bytes());
    assert_eq!(status, 201, "{}", String::from_utf8_lossy(&said));
    let mut descriptor = descriptor.clone();
    descriptor["digest"] = digest.into();
    descriptor["size"] = body.len().into();
    descriptor
}

fn platforms(index: &Value) -> Vec<&str> {
    let all = index["manifests"].as_array().unwrap().iter();
    all.map(|manifest| manifest["platform"]["architecture"].as_str().unwrap()).collect()
}

#[test]
fn every_platform_is_pushed_and_the_index_is_last() {
    let Some(house) = House::open("every_platform_is_pushed_and_the_index_is_last") else { return };
    let registry = house.empty_registry();
    let source = index(&house, &registry);
    // The connection breaks twice in the middle of a blob.
    let proxy = Proxy::start(registry.address(), Fault::Break(1 << 20, 2));
    let result = format!("{}/fast:v1", proxy.address());
    let options = ["--layers", "2", "--dedupe", "off", "--quiet"];
    must(&mut hoist(&house, &[&["convert", &source, &result], &options[..]].concat()));
    assert_eq!(proxy.breaks_left(), 0, "both breaks have happened");
    let puts: Vec<String> = proxy
        .seen()
        .into_iter()
        .filter(|line| line.starts_with("PUT /v2/fast/manifests/"))
        .collect();
    assert_eq!(puts.len(), 3, "{puts:?}");
    assert!(puts[2].contains("/manifests/v1 "), "{puts:?}");
    assert!(puts[..2].iter().all(|line| line.contains("/manifests/sha256:")), "{puts:?}");
    let seen = proxy.seen();
    let last_blob = seen.iter().rposition(|line| line.starts_with("PUT /v2/fast/blobs/")).unwrap();
    let first_manifest = seen.iter().position(|line| *line == puts[0]).unwrap();
    assert!(last_blob < first_manifest, "{seen:?}");
    let client = Client(&registry);
    let pushed = client.document("fast", "v1").unwrap();
    assert_eq!(pushed["mediaType"], INDEX);
    assert_eq!(platforms(&pushed), ["amd64", "arm64"]);
    for manifest in pushed["manifests"].as_array().unwrap() {
        let document = client.document("fast", manifest["digest"].as_str().unwrap()).unwrap();
        assert_eq!(document["mediaType"], MANIFEST);
    }
    for platform in ["linux/amd64", "linux/arm64"] {
        let direct = registry.image("fast:v1");
        must(&mut hoist(&house, &["diff", &source, &direct, "--platform", platform, "--quiet"]));
    }
}

#[test]
fn one_platform_is_picked_and_one_that_is_not_there_is_told() {
    let Some(house) = House::open("one_platform_is_picked_and_one_that_is_not_there_is_told")
    else {
        return;
    };
    let registry = house.empty_registry();
    let (source, result) = (index(&house, &registry), registry.image("fast:v1"));
    let pick = |platform: &str| {
        let options = ["--platform", platform, "--dedupe", "off", "--quiet"];
        hoist(&house, &[&["convert", &source, &result], &options[..]].concat()).output().unwrap()
    };
    let client = Client(&registry);
    let refused = pick("linux/s390x");
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success(), "{text}");
    assert!(text.contains("linux/s390x") && text.contains("linux/arm64"), "{text}");
    assert_eq!(client.document("fast", "v1"), None, "no tag was made");
    let picked = pick("linux/arm64");
    assert!(picked.status.success(), "{}", String::from_utf8_lossy(&picked.stderr));
    let pushed = client.document("fast", "v1").unwrap();
    assert_eq!(pushed["mediaType"], MANIFEST);
    let odd = house.registry.image("odd:gzip");
    let same = hoist(&house, &["diff", &source, &result, "--platform", "linux/arm64", "--quiet"]);
    must(&mut { same });
    // Which is not the other one.
    let other =
        hoist(&house, &["diff", &source, &odd, "--platform", "linux/amd64", "--quiet"]).output();
    assert_eq!(other.unwrap().status.code(), Some(1));
}

/// The index is refused when all else is there: no tag leads to half of it.
#[test]
fn an_index_that_is_refused_leaves_no_tag() {
    let Some(house) = House::open("an_index_that_is_refused_leaves_no_tag") else { return };
    let registry = house.empty_registry();
    let source = index(&house, &registry);
    let refusal = "HTTP/1.1 415 Unsupported Media Type\r\nContent-Length: 16\r\nConnection: close\r\n\r\nMANIFEST_INVALID";
    let proxy =
        Proxy::start(registry.address(), Fault::Answer("PUT /v2/fast/manifests/v1", refusal));
    let result = format!("{}/fast:v1", proxy.address());
    let output = hoist(&house, &["convert", &source, &result, "--quiet"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("415") && text.contains("v1"), "{text}");
    assert_eq!(Client(&registry).document("fast", "v1"), None);
}
