//! Layouts written and read again.

use serde_json::json;

use super::*;

fn staged(parent: &Path, blob: &[u8]) -> (Staging, Value) {
    let staging = Staging::new(parent).unwrap();
    let digest = staging.put(blob).unwrap();
    let descriptor = json!({ "mediaType": "m", "digest": digest, "size": blob.len() });
    (staging, descriptor)
}

#[test]
fn an_image_is_published_beside_others_or_replaces_its_tag() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("a/b");
    for (tag, blob) in [(Some("one"), "1"), (Some("two"), "2"), (Some("one"), "3")] {
        let (staging, descriptor) = staged(&root, blob.as_bytes());
        staging.publish(&root, &descriptor, tag).unwrap();
    }
    let layout = Layout::open_directory(&root).unwrap();
    let read = |tag| layout.document(layout.resolve(Some(tag)).unwrap()).unwrap();
    assert_eq!((read("one"), read("two")), (b"3".to_vec(), b"2".to_vec()));
    let error = layout.resolve(Some("three")).unwrap_err().to_string();
    assert!(
        error.contains("\"three\"") && error.contains("one") && error.contains("two"),
        "{error}"
    );
    assert!(layout.resolve(None).is_err(), "two to choose from");
    let names: Vec<_> = fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "nothing temporary stays: {names:?}");
}

#[test]
fn what_is_not_published_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    drop(staged(&home.path().join("a/b"), b"1"));
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

#[test]
fn an_archive_is_read_like_a_directory() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("image.tar");
    let (staging, descriptor) = staged(home.path(), b"content");
    staging.publish_archive(&file, &descriptor, None).unwrap();
    let layout = Layout::open_archive(&file).unwrap();
    let digest = layout.resolve(None).unwrap();
    assert_eq!(layout.document(digest).unwrap(), b"content");
    let mut blob = layout.blob(digest).unwrap();
    assert_eq!(blob.left(), 7);
    assert_eq!(blob.next_piece().unwrap().unwrap(), "content");
    assert!(blob.next_piece().unwrap().is_none());
    assert!(Layout::open_directory(home.path()).is_err());
}

#[test]
fn other_bytes_than_the_digest_says_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let (staging, descriptor) = staged(home.path(), b"content");
    staging.publish(home.path(), &descriptor, Some("t")).unwrap();
    let layout = Layout::open_directory(home.path()).unwrap();
    let digest = layout.resolve(Some("t")).unwrap();
    fs::write(home.path().join(blob_name(digest)), "c0ntent").unwrap();
    assert!(matches!(layout.document(digest), Err(LayoutError::Digest { .. })));
    fs::remove_file(home.path().join(blob_name(digest))).unwrap();
    assert!(matches!(layout.document(digest), Err(LayoutError::Missing { .. })));
}

#[test]
fn docker_save_is_read_links_and_all() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("saved.tar");
    let mut archive = tar::Builder::new(File::create(&file).unwrap());
    let mut put = |name: &str, text: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        archive.append_data(&mut header, name, text.as_bytes()).unwrap();
    };
    put("a/layer.tar", "layer");
    put("c.json", "{}");
    let manifest =
        r#"[{"Config":"c.json","RepoTags":["x:1"],"Layers":["a/layer.tar","b/layer.tar"]}]"#;
    put("manifest.json", manifest);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    archive.append_link(&mut header, "b/layer.tar", "../a/layer.tar").unwrap();
    archive.finish().unwrap();
    let layout = Layout::open_archive(&file).unwrap();
    for tag in [None, Some("x:1")] {
        let image = layout.docker_image(tag).unwrap();
        assert_eq!((image.config.as_slice(), image.layers.len()), (&b"{}"[..], 2));
        for layer in &image.layers {
            assert_eq!(layout.read(layer).unwrap().unwrap(), b"layer", "{layer}");
        }
    }
    assert!(matches!(layout.docker_image(Some("y")), Err(LayoutError::NoTag { .. })));
}
