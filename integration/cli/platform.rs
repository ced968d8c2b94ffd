//! An image that is for one platform, asked for by another.

use super::faulty_registry::FaultyRegistry;
use super::{LAYER, MANIFEST, run};
use hoist::image::{DiffId, Sha256};

/// An image for arm64 with an empty layer, not in an index.
async fn image() -> (FaultyRegistry, String) {
    let server = FaultyRegistry::start().await;
    let archive = tar::Builder::new(Vec::new()).into_inner().unwrap();
    let blob = zstd::encode_all(archive.as_slice(), 3).unwrap();
    let config = serde_json::json!({
        "os": "linux", "architecture": "arm64", "variant": "v8",
        "rootfs": { "type": "layers", "diff_ids": [DiffId(Sha256::of(&archive))] },
    });
    let config = config.to_string();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": { "mediaType": "c", "size": config.len(), "digest": server.blob(config) },
        "layers": [{ "mediaType": LAYER, "size": blob.len(), "digest": server.blob(blob) }],
    });
    server.manifest("arm", MANIFEST, manifest.to_string());
    let reference = format!("{}/some/image:arm", server.host);
    (server, reference)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_another_platform_is_an_error_that_names_both() {
    let (_server, image) = image().await;
    let home = tempfile::tempdir().unwrap();
    let to = home.path().join("to");
    let pull = |platform: &'static str| ["pull", "--platform", platform, "--to"];
    for arguments in [&pull("linux/amd64")[..], &["inspect", "--platform", "linux/amd64"]] {
        let mut arguments = arguments.to_vec();
        if arguments[0] == "pull" {
            arguments.push(to.to_str().unwrap());
        }
        arguments.push(&image);
        let (code, _, err) = run(home.path(), &arguments).await;
        assert_eq!(code, 1, "{arguments:?}: {err}");
        for word in ["linux/arm64/v8", "linux/amd64", "some/image:arm"] {
            assert!(err.contains(word), "{word} is not in {err}");
        }
        assert!(!to.exists(), "nothing is left");
    }
    // Its own, or whichever it is.
    for more in [&["--platform", "linux/arm64"][..], &[]] {
        let arguments = [&["pull", &image, "--to", to.to_str().unwrap()][..], more].concat();
        let (code, _, err) = run(home.path(), &arguments).await;
        assert_eq!(code, 0, "{more:?}: {err}");
        std::fs::remove_dir(&to).unwrap();
    }
}
