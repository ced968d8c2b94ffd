//! What is pinned stays, and what was released goes.

use std::time::SystemTime;

use tokio_util::sync::CancellationToken;

use super::prepare::{chain_id, request};
use super::*;
use crate::image::{BlobDigest, NamedDocument};

fn place(image: &str) -> Place {
    let containerd = "/run/containerd/containerd.sock".into();
    Place { containerd, namespace: "k8s.io".to_owned(), image: image.to_owned() }
}

fn documents(image: &str) -> Vec<NamedDocument> {
    let of = |kind: &str| {
        let bytes = format!("{kind} of {image}");
        let digest = BlobDigest(Sha256::of(bytes.as_bytes()));
        NamedDocument { media_type: kind.to_owned(), digest, bytes: bytes.into() }
    };
    ["manifest", "config"].map(of).into()
}

fn pin(snapshots: &Arc<Snapshots>, image: &str, trees: &[&TreeInfo]) {
    let trees: Vec<_> = trees.iter().map(|tree| held(snapshots, tree)).collect();
    snapshots.pin_image(&place(image), &documents(image), &trees, None).unwrap();
}

/// The layers that are there after a sweep.
fn left(snapshots: &Snapshots) -> Vec<String> {
    snapshots.sweep().unwrap();
    let mut left: Vec<_> = snapshots.trees().unwrap().into_iter().map(|t| t.diff_id).collect();
    left.sort();
    left
}

fn names_of(names: &[&str]) -> Vec<String> {
    let mut names: Vec<_> = names.iter().map(|name| diff_id(name).to_string()).collect();
    names.sort();
    names
}

#[test]
fn a_pin_outlives_the_daemon_and_is_told_as_it_was_made() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), NO_GRACE);
    let (low, high) = (publish(&snapshots, "low"), publish(&snapshots, "high"));
    let until = SystemTime::UNIX_EPOCH + Duration::from_secs(9_000_000_000);
    let trees = [&low, &high].map(|tree| held(&snapshots, tree));
    let documents = documents("a");
    snapshots.pin_image(&place("a"), &documents, &trees, Some(until)).unwrap();
    drop(trees);
    assert_eq!(left(&snapshots), names_of(&["low", "high"]));
    drop(snapshots);

    let snapshots = open(root.path(), NO_GRACE);
    assert_eq!(left(&snapshots), names_of(&["low", "high"]));
    let pins = snapshots.image_pins().unwrap();
    assert_eq!(pins.len(), 1);
    assert_eq!((&pins[0].place, &pins[0].documents), (&place("a"), &documents));
    assert_eq!(pins[0].expires_at, Some(until));
    let layers: Vec<_> = pins[0].layers.iter().map(|layer| (layer.tree, layer.diff_id)).collect();
    assert_eq!(layers, [(low.id, low.diff_id), (high.id, high.diff_id)]);
}

#[test]
fn what_is_released_goes_unless_somebody_else_has_it() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), NO_GRACE);
    let [low, one, two] = ["low", "one", "two"].map(|name| publish(&snapshots, name));
    pin(&snapshots, "a", &[&low, &one]);
    pin(&snapshots, "b", &[&low, &two]);
    assert_eq!(left(&snapshots), names_of(&["low", "one", "two"]));
    assert!(snapshots.unpin_image(&place("a")).unwrap());
    assert!(!snapshots.unpin_image(&place("a")).unwrap());
    assert_eq!(left(&snapshots), names_of(&["low", "two"]));
    let other = Place { namespace: "default".to_owned(), ..place("b") };
    assert!(!snapshots.unpin_image(&other).unwrap(), "of another namespace");
    assert!(snapshots.unpin_image(&place("b")).unwrap());
    assert_eq!(left(&snapshots), names_of(&[]));
    assert_eq!(entries(&root.path().join("trees")), 0, "their bytes are free");
}

#[test]
fn a_tag_that_moved_is_pinned_where_it_is_now() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), NO_GRACE);
    let [old, new] = ["old", "new"].map(|name| publish(&snapshots, name));
    pin(&snapshots, "a", &[&old]);
    pin(&snapshots, "a", &[&new]);
    assert_eq!(left(&snapshots), names_of(&["new"]));
    assert_eq!(snapshots.image_pins().unwrap().len(), 1);
}

#[test]
fn an_image_that_containerd_drops_stays_pinned() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), NO_GRACE);
    let tree = publish(&snapshots, "layer");
    pin(&snapshots, "a", &[&tree]);
    let name = put_down(&snapshots, "", "chain", &tree);
    snapshots.remove(&name).unwrap();
    assert_eq!(left(&snapshots), names_of(&["layer"]));
    // Released while a snapshot has it: it goes with that.
    let name = put_down(&snapshots, "", "chain", &tree);
    snapshots.unpin_image(&place("a")).unwrap();
    assert_eq!(left(&snapshots), names_of(&["layer"]));
    snapshots.remove(&name).unwrap();
    assert_eq!(left(&snapshots), names_of(&[]));
}

fn wanted(chain: &str) -> Wanted {
    let digest = |text: &str| BlobDigest(Sha256::of(text.as_bytes()));
    let (manifest, layer) = (digest("manifest"), digest("layer"));
    Wanted { image: "host/image:tag".to_owned(), manifest, layer, chain_id: chain_id(chain) }
}

fn put_down(snapshots: &Arc<Snapshots>, parent: &str, chain: &str, tree: &TreeInfo) -> String {
    let tree = held(snapshots, tree);
    snapshots.put_down_ahead("k8s.io", parent, &wanted(chain), &tree).unwrap()
}

/// containerd asks as it always does, and nobody has to be asked for the layers.
#[tokio::test]
async fn what_is_put_down_ahead_is_found_by_a_prepare() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), NO_GRACE);
    let [low, high] = ["low", "high"].map(|name| publish(&snapshots, name));
    let first = put_down(&snapshots, "", "low", &low);
    assert_eq!(put_down(&snapshots, "", "low", &low), first, "once is enough");
    let second = put_down(&snapshots, &first, "high", &high);
    assert_eq!(snapshots.stat(&second).unwrap().parent, first);
    for (parent, chain) in [("", "low"), (first.as_str(), "high")] {
        let mut request = request(&format!("key of {chain}"), parent, chain);
        request.labels = wanted(chain).labels();
        let source = None;
        let answer = snapshots.prepare(source, request, &CancellationToken::new()).await;
        assert!(matches!(answer, Err(Error::Present { .. })), "{answer:?}");
    }
}
