//! The registry over a socket, asked by a client of its own.

use std::path::Path as FilePath;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::image::{DiffId, Platform, Sha256};
use crate::layout::{Layout, Staging};

#[test]
fn ranges_are_read() {
    for (text, expected) in [
        ("bytes=0-9", Part::Of(0..10)),
        ("bytes=90-", Part::Of(90..100)),
        ("bytes=90-1000", Part::Of(90..100)),
        ("bytes=-10", Part::Of(90..100)),
        ("bytes=-1000", Part::Of(0..100)),
        ("bytes=0-18446744073709551615", Part::Of(0..100)),
        ("bytes=100-", Part::Beyond),
        ("bytes=100-200", Part::Beyond),
        ("bytes=9-0", Part::Whole),
        ("bytes=-0", Part::Whole),
        ("bytes=1-2,5-6", Part::Whole),
        ("bytes=x-", Part::Whole),
        ("chunks=1-2", Part::Whole),
        ("", Part::Whole),
    ] {
        assert_eq!(part(text, 100), expected, "{text}");
    }
    assert_eq!(part("bytes=-5", 0), Part::Whole);
}

/// An image of one layer as `oci:DIR:v1`.
fn layout(dir: &FilePath, layer: &[u8]) -> Layout {
    let staging = Staging::new(dir).unwrap();
    let digest = staging.put(layer).unwrap();
    let config = json!({ "os": "linux", "architecture": "amd64",
        "rootfs": { "type": "layers", "diff_ids": [DiffId(Sha256::of(layer))] } })
    .to_string();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({ "schemaVersion": 2, "mediaType": media_type,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": staging.put(config.as_bytes()).unwrap(), "size": config.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest, "size": layer.len() }] })
    .to_string();
    let descriptor = json!({ "mediaType": media_type, "size": manifest.len(),
        "digest": staging.put(manifest.as_bytes()).unwrap() });
    staging.publish(dir, &descriptor, Some("v1")).unwrap();
    Layout::open_directory(dir).unwrap()
}

struct Client(std::net::SocketAddr);

impl Client {
    /// Head and body of an answer, on a connection of its own.
    async fn ask(&self, request: &str, headers: &str) -> (String, Vec<u8>) {
        let mut socket = tokio::net::TcpStream::connect(self.0).await.unwrap();
        let text = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        socket.write_all(text.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        socket.read_to_end(&mut all).await.unwrap();
        let end = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        (String::from_utf8_lossy(&all[..end]).to_lowercase(), all[end..].to_vec())
    }
}

#[tokio::test]
async fn a_pull_is_served_and_seen() {
    let home = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let digest = BlobDigest(Sha256::of(&bytes));
    let mut shelf = Shelf::default();
    let amd64: Platform = "linux/amd64".parse().unwrap();
    let name = shelf.add_layout(layout(home.path(), &bytes), Some("v1"), "app/x", &amd64).unwrap();
    assert_eq!(name, "app/x:v1");
    let again = Layout::open_directory(home.path()).unwrap();
    let twice = shelf.add_layout(again, Some("v1"), "app/x", &amd64).unwrap_err();
    assert!(twice.to_string().contains("app/x:v1"), "{twice}");
    let watcher = Watcher::new(shelf);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client(listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let served = tokio::spawn({
        let (watcher, stop) = (watcher.clone(), stop.clone());
        async move { watcher.serve(listener, stop).await }
    });
    let ok = |head: &str| head.starts_with("http/1.1 200");
    assert!(ok(&client.ask("GET /v2/", "").await.0));
    let (head, body) = client.ask("HEAD /v2/app/x/manifests/v1", "").await;
    assert!(
        ok(&head) && head.contains("docker-content-digest: sha256:") && body.is_empty(),
        "{head}"
    );
    let (head, manifest) = client.ask("GET /v2/app/x/manifests/v1", "").await;
    assert!(ok(&head) && head.contains("image.manifest.v1+json"), "{head}");
    let own = BlobDigest(Sha256::of(&manifest));
    assert_eq!(client.ask(&format!("GET /v2/app/x/manifests/{own}"), "").await.1, manifest);
    assert!(watcher.pulls()[0].transfers.is_empty());
    // Nobody has fetched anything that could have ended.
    assert!(client.ask("GET /ended/app/x:v1", "").await.0.starts_with("http/1.1 404"));
    let blob = format!("/v2/app/x/blobs/{digest}");
    let (head, body) = client.ask(&format!("HEAD {blob}"), "").await;
    assert!(head.contains("content-length: 3000000") && body.is_empty(), "{head}");
    let (head, body) = client.ask(&format!("GET {blob}"), "range: bytes=1000-2999\r\n").await;
    assert!(head.starts_with("http/1.1 206"), "{head}");
    assert!(head.contains("content-range: bytes 1000-2999/3000000"), "{head}");
    assert_eq!(body, bytes[1000..3000]);
    let (head, _) = client.ask(&format!("GET {blob}"), "range: bytes=3000000-\r\n").await;
    assert!(head.starts_with("http/1.1 416") && head.contains("bytes */3000000"), "{head}");
    assert!(client.ask(&format!("GET {blob}"), "").await.1 == bytes);
    let told = tokio::spawn({
        let watcher = watcher.clone();
        async move { watcher.until_ended(1).await }
    });
    assert!(ok(&client.ask("GET /ended/app/x:v1", "").await.0));
    told.await.unwrap();
    let pulls = watcher.pulls();
    let [pull] = pulls.as_slice() else { panic!("one pull: {pulls:?}") };
    assert_eq!((pull.name.as_str(), pull.peer.as_str()), ("app/x:v1", "127.0.0.1"));
    let sent: Vec<u64> = pull.transfers.iter().map(|transfer| transfer.sent).collect();
    assert_eq!(sent, [2000, 3_000_000]);
    for transfer in &pull.transfers {
        assert_eq!(transfer.buckets.iter().sum::<u64>(), transfer.sent);
        assert!(transfer.begin <= transfer.end && transfer.end <= pull.ended.unwrap());
    }
    // The same host once more is another pull; one behind a proxy another host.
    client.ask("GET /v2/app/x/manifests/v1", "").await;
    client.ask("GET /v2/app/x/manifests/v1", "x-forwarded-for: 192.0.2.7, 10.0.0.1\r\n").await;
    let peers: Vec<_> = watcher.pulls().into_iter().map(|pull| pull.peer).collect();
    assert_eq!(peers, ["127.0.0.1", "127.0.0.1", "192.0.2.7"]);
    let others = [
        ("GET /v2/app/y/manifests/v1", "404"),
        ("GET /v2/app/x/manifests/v2", "404"),
        ("GET /v2/app/x/blobs/sha256:00", "400"),
        ("GET /v2/app/x/tags/list", "404"),
        ("PUT /v2/app/x/manifests/v1", "405"),
        ("POST /v2/app/x/blobs/uploads/", "405"),
    ];
    for (request, status) in others {
        let (head, _) = client.ask(request, "").await;
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{request}: {head}");
    }
    let absent = format!("GET /v2/app/x/blobs/{}", BlobDigest(Sha256::of(b"x")));
    assert!(client.ask(&absent, "").await.0.starts_with("http/1.1 404"));
    stop.cancel();
    served.await.unwrap().unwrap();
}
