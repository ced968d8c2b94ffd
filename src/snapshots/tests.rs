//! Tests of the whole room, on real directories and the real database.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

mod pins;
mod prepare;

use super::records::LABEL_REF;
use super::*;
use crate::image::{DiffId, Sha256};
use crate::pull::trees::{Content, HeldTree, StoreError, TreeId, TreeInfo, TreeStore};

const NO_GRACE: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(3600);

fn open(root: &Path, grace: Duration) -> Arc<Snapshots> {
    Snapshots::open(root, Options { grace, ..Options::default() }).unwrap()
}

fn diff_id(name: &str) -> DiffId {
    DiffId(Sha256::of(name.as_bytes()))
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn committed(snapshots: &Snapshots, name: &str, parent: &str) {
    let key = format!("{name}-key");
    snapshots.create(Kind::Active, &key, parent, &Labels::new()).unwrap();
    snapshots.commit(name, &key, &Labels::new()).unwrap();
}

fn names(snapshots: &Snapshots, filter: &str) -> Vec<String> {
    let infos = snapshots.list(&[filter.to_owned()]).unwrap();
    infos.into_iter().map(|info| info.name).collect()
}

fn files(bytes: u64, inodes: u64, implied: Vec<PathBuf>) -> Content {
    Content { is_image: false, bytes, inodes, implied }
}

/// A published tree with one file.
fn publish(snapshots: &Snapshots, name: &str) -> TreeInfo {
    let staged = snapshots.stage(diff_id(name)).unwrap();
    fs::write(staged.path.join("file"), name).unwrap();
    let implied = vec![PathBuf::from("usr/bin"), "tmp".into()];
    snapshots.publish(staged, files(4096, 2, implied)).unwrap()
}

fn held(snapshots: &Arc<Snapshots>, tree: &TreeInfo) -> HeldTree {
    HeldTree::pin(&**snapshots, tree.clone()).unwrap()
}

fn entries(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

#[test]
fn a_root_has_one_daemon() {
    let root = tempfile::tempdir().unwrap();
    let first = open(root.path(), LONG);
    let error = Snapshots::open(root.path(), Options::default()).unwrap_err();
    assert!(matches!(error, Error::Locked(_)), "{error}");
    drop(first);
    open(root.path(), LONG);
}

#[test]
fn commit_keeps_the_files_and_replaces_the_labels() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), LONG);
    let mounts = snapshots.create(Kind::Active, "key", "", &labels(&[("a", "1")])).unwrap();
    let upper = PathBuf::from(&mounts[0].source);
    fs::write(upper.join("file"), "content").unwrap();
    snapshots.commit("name", "key", &labels(&[("b", "2"), ("empty", "")])).unwrap();

    assert!(matches!(snapshots.stat("key"), Err(Error::Missing(_))));
    let info = snapshots.stat("name").unwrap();
    assert_eq!((info.kind, &info.labels), (Kind::Committed, &labels(&[("b", "2")])));
    assert_eq!(info.created_at, info.updated_at);
    let view = snapshots.create(Kind::View, "view", "name", &Labels::new()).unwrap();
    assert_eq!(Path::new(&view[0].source), upper);
    assert_eq!(snapshots.mounts("view").unwrap(), view);
    assert_eq!(snapshots.usage("name").unwrap().inodes, 2);
    // Counted once: a committed layer never changes.
    fs::write(upper.join("another"), "").unwrap();
    assert_eq!(snapshots.usage("name").unwrap().inodes, 2);
    assert_eq!(snapshots.usage("view").unwrap(), Usage::default());
}

#[test]
fn the_rules_of_names_kinds_and_parents() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), LONG);
    let none = Labels::new();
    committed(&snapshots, "base", "");
    snapshots.create(Kind::Active, "active", "base", &none).unwrap();
    snapshots.create(Kind::View, "view", "base", &none).unwrap();

    let create = |key, parent| snapshots.create(Kind::Active, key, parent, &none).unwrap_err();
    assert!(matches!(create("active", ""), Error::Taken(_)));
    assert!(matches!(create("base", ""), Error::Taken(_)));
    assert!(matches!(create("new", "absent"), Error::ParentMissing(_)));
    assert!(matches!(create("new", "active"), Error::ParentNotCommitted(_)));
    assert!(matches!(create("new", "view"), Error::ParentNotCommitted(_)));
    assert!(matches!(create("", ""), Error::EmptyName));

    let commit = |name, key| snapshots.commit(name, key, &none).unwrap_err();
    assert!(matches!(commit("base", "active"), Error::Taken(_)));
    assert!(matches!(commit("new", "view"), Error::NotActive(_)));
    assert!(matches!(commit("new", "base"), Error::NotActive(_)));
    assert!(matches!(commit("new", "absent"), Error::Missing(_)));
    assert!(matches!(snapshots.mounts("base"), Err(Error::NotMountable(_))));
    assert!(matches!(snapshots.mounts("absent"), Err(Error::Missing(_))));
    assert!(matches!(snapshots.usage("absent"), Err(Error::Missing(_))));

    let error = snapshots.remove("base").unwrap_err();
    assert!(matches!(error, Error::HasChildren(_)));
    assert!(error.to_string().contains("remove"));
    for key in ["active", "view", "base"] {
        snapshots.remove(key).unwrap();
    }
    assert!(matches!(snapshots.remove("base"), Err(Error::Missing(_))));
    assert_eq!(entries(&snapshots.layout.snapshots()), 0);
    // What failed left no directory, and ids are not used again.
    snapshots.create(Kind::Active, "again", "", &none).unwrap();
    assert!(!snapshots.layout.snapshot(1).exists());
}

#[test]
fn updates_follow_their_mask() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), LONG);
    snapshots
        .create(Kind::Active, "key", "", &labels(&[("a", "1"), ("b", "2"), ("c", "3")]))
        .unwrap();
    let update = |new: &[(&str, &str)], mask: &[&str]| {
        let mask = mask.iter().map(|&path| path.to_owned()).collect::<Vec<_>>();
        snapshots.update("key", &labels(new), &mask).map(|info| info.labels)
    };
    let some = update(&[("a", "new"), ("d", "4")], &["labels.a", "labels.b"]).unwrap();
    assert_eq!(some, labels(&[("a", "new"), ("c", "3")]));
    assert_eq!(update(&[("d", "4")], &["labels"]).unwrap(), labels(&[("d", "4")]));
    assert_eq!(update(&[("e.f/g", "5")], &[]).unwrap(), labels(&[("e.f/g", "5")]));
    let dotted = update(&[("e.f/g", "6")], &["labels.e.f/g"]).unwrap();
    assert_eq!(dotted, labels(&[("e.f/g", "6")]));
    assert!(matches!(update(&[], &["labels", "parent"]), Err(Error::Immutable { .. })));
    let info = snapshots.stat("key").unwrap();
    assert_eq!(info.labels, dotted, "a refused update changes nothing");
    assert!(info.updated_at > info.created_at);
}

#[test]
fn list_finds_a_layer_as_containerd_asks_for_it() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), LONG);
    committed(&snapshots, "default/1/base", "");
    let reference = Sha256::of(b"chain").to_string();
    let labels = labels(&[(LABEL_REF, &reference)]);
    snapshots.create(Kind::Active, "key", "default/1/base", &labels).unwrap();
    snapshots.commit("layer", "key", &labels).unwrap();
    let asked = format!(r#"labels."{LABEL_REF}"=={reference},parent=="default/1/base""#);
    assert_eq!(names(&snapshots, &asked), ["layer"]);
    assert_eq!(names(&snapshots, "kind==committed"), ["default/1/base", "layer"]);
    assert!(matches!(snapshots.list(&["name=".to_owned()]), Err(Error::Filter { .. })));
}

#[test]
fn mapped_ids_own_the_new_layer() {
    use std::os::unix::fs::MetadataExt as _;
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), LONG);
    let (users, groups) =
        ("containerd.io/snapshot/uidmapping", "containerd.io/snapshot/gidmapping");
    let good = labels(&[(users, "0:1000:65536"), (groups, "0:2000:65536")]);
    assert!(nix::unistd::geteuid().is_root(), "giving files away needs root, as all of ./test");
    let mounts = snapshots.create(Kind::Active, "key", "", &good).unwrap();
    let owner = fs::metadata(&mounts[0].source).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (1000, 2000));
    assert_eq!(mounts[0].options, ["uidmap=0:1000:65536", "gidmap=0:2000:65536", "rw", "rbind"]);
    assert_eq!(snapshots.mounts("key").unwrap(), mounts);
    let bad = labels(&[(users, "0:1000"), (groups, "0:2000:65536")]);
    let error = snapshots.create(Kind::Active, "other", "", &bad).unwrap_err();
    assert!(matches!(error, Error::Mapping { .. }), "{error}");
    assert!(matches!(snapshots.stat("other"), Err(Error::Missing(_))));
}

#[test]
fn a_tree_is_staged_published_found_and_settled_once() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), NO_GRACE);
    let staged = snapshots.stage(diff_id("a")).unwrap();
    assert_eq!(entries(&staged.path), 0);
    assert_eq!(snapshots.find(diff_id("a")).unwrap(), []);
    assert!(matches!(snapshots.pin(staged.id), Err(StoreError::Gone(_))));
    let implied = vec![PathBuf::from("usr/bin"), "tmp".into()];
    let tree = snapshots.publish(staged, files(4096, 2, implied)).unwrap();
    assert_eq!(snapshots.find(diff_id("a")).unwrap(), std::slice::from_ref(&tree));
    assert_eq!(snapshots.find(diff_id("b")).unwrap(), []);

    snapshots.settled(tree.id, b"one".to_vec()).unwrap();
    snapshots.settled(tree.id, b"one".to_vec()).unwrap();
    let other = snapshots.settled(tree.id, b"other".to_vec());
    assert!(matches!(other, Err(StoreError::SettledOtherwise(_))));
    assert_eq!(snapshots.find(diff_id("a")).unwrap()[0].settled.as_deref(), Some(&b"one"[..]));
    let statistics = snapshots.statistics().unwrap();
    assert_eq!((statistics.trees, statistics.tree_bytes), (1, 4096));

    let staged = snapshots.stage(diff_id("a")).unwrap();
    let (id, path) = (staged.id, staged.path.clone());
    snapshots.discard(staged);
    assert!(!path.exists());
    assert!(matches!(snapshots.settled(id, vec![]), Err(StoreError::Gone(_))));
}

#[test]
fn the_sweeper_spares_what_is_held_wanted_or_referred_to() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), NO_GRACE);
    let (held, free) = (publish(&snapshots, "held"), publish(&snapshots, "free"));
    let (pin, second) = (snapshots.pin(held.id).unwrap(), snapshots.pin(held.id).unwrap());
    assert_eq!(snapshots.sweep().unwrap(), None);
    assert!(held.path.exists() && !free.path.exists());
    assert_eq!(entries(&snapshots.layout.trash()), 0);
    assert!(matches!(snapshots.pin(free.id), Err(StoreError::Gone(_))));
    drop(pin);
    snapshots.sweep().unwrap();
    assert!(held.path.exists());
    drop(second);
    snapshots.sweep().unwrap();
    assert!(!held.path.exists());

    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), LONG);
    let tree = publish(&snapshots, "wanted");
    assert!(snapshots.sweep().unwrap().is_some_and(|again| again <= LONG));
    assert!(tree.path.exists());
}

#[test]
fn a_restart_keeps_what_stands_and_sweeps_the_rest() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), LONG);
    committed(&snapshots, "base", "");
    let mounts = snapshots.create(Kind::Active, "active", "base", &Labels::new()).unwrap();
    let tree = publish(&snapshots, "published");
    let staged = snapshots.stage(diff_id("half")).unwrap();
    fs::write(staged.path.join("file"), "half").unwrap();
    // As a kill would leave it: a directory whose row was not committed, another whose row is gone.
    fs::create_dir_all(snapshots.layout.upper(77)).unwrap();
    fs::create_dir_all(snapshots.layout.tree_root(TreeId(78))).unwrap();
    fs::create_dir_all(snapshots.layout.trash().join("0/fs")).unwrap();
    drop(snapshots);

    let snapshots = open(root.path(), LONG);
    assert_eq!(snapshots.mounts("active").unwrap(), mounts);
    assert_eq!(snapshots.find(diff_id("published")).unwrap(), std::slice::from_ref(&tree));
    assert_eq!(snapshots.find(diff_id("half")).unwrap(), []);
    assert!(!staged.path.exists());
    assert_eq!(entries(&snapshots.layout.snapshots()), 2);
    assert_eq!(entries(&snapshots.layout.trees()), 1);
    snapshots.sweep().unwrap();
    assert_eq!(entries(&snapshots.layout.trash()), 0);
    assert!(tree.path.exists(), "an interrupted pull finds its layers for the grace period");
    // A staged tree of the earlier life cannot come back.
    assert!(matches!(snapshots.publish(staged, files(1, 1, vec![])), Err(StoreError::Gone(_))));
}
