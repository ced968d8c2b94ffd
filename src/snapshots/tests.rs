//! Tests of the whole room, on real directories and the real database, with a source that is fake.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

mod pins;

use super::records::LABEL_REF;
use super::*;
use crate::image::{ChainId, DiffId, Sha256};
use crate::pull::trees::{Content, HeldTree, StoreError, TreeId, TreeInfo, TreePin, TreeStore};

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

/// What the fake source answers.
#[derive(Clone)]
enum Answer {
    Tree(HeldTree),
    Error(ClaimError),
    Never,
}

/// Answers claims, once `gate` lets them through, and counts what became of them.
struct Fake {
    answer: Answer,
    gate: Arc<Semaphore>,
    asked: Arc<AtomicUsize>,
    /// Claims that were answered or dropped.
    ended: Arc<AtomicUsize>,
    claims: Mutex<Vec<Claim>>,
}

fn held(snapshots: &Arc<Snapshots>, tree: &TreeInfo) -> HeldTree {
    HeldTree::pin(&**snapshots, tree.clone()).unwrap()
}

impl Fake {
    fn new(answer: Answer, open_gate: bool) -> Arc<Self> {
        let gate = Semaphore::new(if open_gate { Semaphore::MAX_PERMITS } else { 0 });
        Arc::new(Self {
            answer,
            gate: Arc::new(gate),
            asked: Arc::default(),
            ended: Arc::default(),
            claims: Mutex::default(),
        })
    }

    async fn wait_until(&self, counter: &AtomicUsize, value: usize) {
        while counter.load(Ordering::SeqCst) < value {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl LayerSource for Fake {
    fn claim(&self, claim: Claim) -> BoxFuture<'static, Result<HeldTree, ClaimError>> {
        struct Ended(Arc<AtomicUsize>);
        impl Drop for Ended {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        self.claims.lock().unwrap().push(claim);
        self.asked.fetch_add(1, Ordering::SeqCst);
        let (answer, gate) = (self.answer.clone(), Arc::clone(&self.gate));
        let ended = Ended(Arc::clone(&self.ended));
        Box::pin(async move {
            let _ended = ended;
            let _permit = gate.acquire().await.unwrap();
            match answer {
                Answer::Tree(held) => Ok(held),
                Answer::Error(error) => Err(error),
                Answer::Never => std::future::pending().await,
            }
        })
    }
}

fn chain_id(name: &str) -> ChainId {
    ChainId(Sha256::of(name.as_bytes()))
}

fn request(key: &str, parent: &str, chain: &str) -> PrepareRequest {
    let (manifest, layer) = (Sha256::of(b"manifest").to_string(), Sha256::of(b"layer").to_string());
    PrepareRequest {
        namespace: "ns".to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        labels: labels(&[
            (LABEL_REF, &chain_id(chain).to_string()),
            ("containerd.io/snapshot/cri.image-ref", "registry/image:tag"),
            ("containerd.io/snapshot/cri.manifest-digest", &manifest),
            ("containerd.io/snapshot/cri.layer-digest", &layer),
        ]),
        trace_parent: None,
    }
}

async fn prepare(
    snapshots: &Arc<Snapshots>,
    source: &Arc<Fake>,
    request: PrepareRequest,
) -> Result<Vec<Mount>, Error> {
    let source: Arc<dyn LayerSource> = Arc::clone(source) as _;
    snapshots.prepare(Some(&source), request, &CancellationToken::new()).await
}

#[tokio::test]
async fn a_layer_is_provided_once_and_shared_by_chains() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), NO_GRACE);
    let tree = publish(&snapshots, "layer");
    let source = Fake::new(Answer::Tree(held(&snapshots, &tree)), true);

    let first = prepare(&snapshots, &source, request("key", "", "chain")).await;
    assert!(matches!(first, Err(Error::Present { .. })));
    let name = names(&snapshots, "kind==committed").pop().unwrap();
    assert!(name.starts_with("ns/hoist/"), "{name}");
    let info = snapshots.stat(&name).unwrap();
    assert_eq!(info.labels, request("key", "", "chain").labels);
    assert_eq!(snapshots.usage(&name).unwrap(), Usage { bytes: 4096, inodes: 2 });

    // The same once more, from another namespace: nobody asks the source.
    let mut again = request("key2", "", "chain");
    again.namespace = "other".to_owned();
    assert!(matches!(prepare(&snapshots, &source, again).await, Err(Error::Present { .. })));
    assert_eq!(source.asked.load(Ordering::SeqCst), 1);
    assert_eq!(snapshots.statistics().unwrap().snapshots, 1);
    assert_eq!(snapshots.statistics().unwrap().provided, 2);

    // The same layer on top of another: a second snapshot of one tree.
    let upper = prepare(&snapshots, &source, request("key3", &name, "upper")).await;
    assert!(matches!(upper, Err(Error::Present { .. })));
    let claims = source.claims.lock().unwrap().clone();
    assert!(claims[0].parents.is_empty());
    assert_eq!(claims[1].parents, std::slice::from_ref(&tree.path));
    let upper = names(&snapshots, &format!("parent==\"{name}\"")).pop().unwrap();
    let view = snapshots.create(Kind::View, "view", &upper, &Labels::new()).unwrap();
    // Of one directory alone, which overlay would refuse to have twice.
    assert_eq!((view[0].kind, Path::new(&view[0].source)), ("bind", &*tree.path), "{view:?}");

    // The tree goes with its last snapshot, and then at once.
    drop(source);
    for key in ["view", &upper] {
        snapshots.remove(key).unwrap();
    }
    snapshots.sweep().unwrap();
    assert!(tree.path.exists());
    snapshots.remove(&name).unwrap();
    snapshots.sweep().unwrap();
    assert_eq!(entries(&snapshots.layout.trees()) + entries(&snapshots.layout.trash()), 0);
}

#[tokio::test]
async fn without_grace_for_what_an_image_deletion_leaves() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), LONG);
    let tree = publish(&snapshots, "layer");
    let source = Fake::new(Answer::Tree(held(&snapshots, &tree)), true);
    let _ = prepare(&snapshots, &source, request("key", "", "chain")).await;
    let name = names(&snapshots, "").pop().unwrap();
    drop(source);
    snapshots.remove(&name).unwrap();
    assert_eq!(snapshots.sweep().unwrap(), None);
    assert!(!tree.path.exists());
}

#[tokio::test]
async fn equal_prepares_at_once_make_one_snapshot_and_block_nobody() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), LONG);
    let tree = publish(&snapshots, "layer");
    committed(&snapshots, "unrelated", "");
    let source = Fake::new(Answer::Tree(held(&snapshots, &tree)), false);
    let waiting = ["one", "two"].map(|key| {
        let (snapshots, source) = (Arc::clone(&snapshots), Arc::clone(&source));
        tokio::spawn(async move { prepare(&snapshots, &source, request(key, "", "chain")).await })
    });
    source.wait_until(&source.asked, 2).await;
    // Both hang in the source; everything else is answered.
    snapshots.remove("unrelated").unwrap();
    assert_eq!(names(&snapshots, ""), [""; 0]);
    snapshots.sweep().unwrap();
    source.gate.add_permits(2);
    for task in waiting {
        assert!(matches!(task.await.unwrap(), Err(Error::Present { .. })));
    }
    assert_eq!(names(&snapshots, "").len(), 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_withdraws_its_claim() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), LONG);
    let source = Fake::new(Answer::Never, true);
    let task = tokio::spawn({
        let (snapshots, source) = (Arc::clone(&snapshots), Arc::clone(&source));
        async move { prepare(&snapshots, &source, request("key", "", "chain")).await }
    });
    source.wait_until(&source.asked, 1).await;
    assert_eq!(source.ended.load(Ordering::SeqCst), 0);
    task.abort();
    source.wait_until(&source.ended, 1).await;
    assert_eq!(names(&snapshots, ""), [""; 0]);

    let closing = CancellationToken::new();
    closing.cancel();
    let source: Arc<dyn LayerSource> = source;
    let ended = snapshots.prepare(Some(&source), request("key", "", "chain"), &closing).await;
    assert!(matches!(ended, Err(Error::Cancelled { .. })));
    assert_eq!(names(&snapshots, ""), [""; 0]);
}

#[tokio::test]
async fn fallback_failure_and_deadline() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), LONG);
    let reason = "no credentials".to_owned();
    let source = Fake::new(Answer::Error(ClaimError::Fallback { reason }), true);
    let mounts = prepare(&snapshots, &source, request("key", "", "chain")).await.unwrap();
    assert_eq!(mounts, snapshots.mounts("key").unwrap());
    assert_eq!(snapshots.statistics().unwrap().fallbacks, 1);
    // What containerd applies and commits itself is found like any other layer.
    snapshots.commit("applied", "key", &request("key", "", "chain").labels).unwrap();
    let found = prepare(&snapshots, &source, request("key2", "", "chain")).await;
    assert!(matches!(found, Err(Error::Present { .. })));

    let message = "digest mismatch".to_owned();
    let source = Fake::new(Answer::Error(ClaimError::Failed { message }), true);
    let failed = prepare(&snapshots, &source, request("key3", "", "other")).await.unwrap_err();
    assert!(matches!(&failed, Error::Layer { .. }));
    assert!(
        failed.to_string().contains("digest mismatch") && failed.to_string().contains("image:tag")
    );
    assert!(matches!(snapshots.stat("key3"), Err(Error::Missing(_))));

    // A client that does not say which image it pulls.
    let mut bare = request("key4", "", "other");
    bare.labels.retain(|key, _| key == LABEL_REF);
    assert!(prepare(&snapshots, &source, bare).await.is_ok());
    assert_eq!(source.asked.load(Ordering::SeqCst), 1);

    let never = Fake::new(Answer::Never, true);
    for (on_late, key) in [(OnLate::Fail, "late1"), (OnLate::Fallback, "late2")] {
        let claim_timeout = Duration::from_millis(1);
        let options = Options { claim_timeout, on_late, ..Options::default() };
        let root = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(root.path(), options).unwrap();
        let answer = prepare(&snapshots, &never, request(key, "", "late")).await;
        match on_late {
            OnLate::Fail => assert!(matches!(answer, Err(Error::Late { .. }))),
            OnLate::Fallback => assert_eq!(answer.unwrap(), snapshots.mounts(key).unwrap()),
        }
    }
}

#[tokio::test]
async fn a_tree_that_was_swept_is_claimed_again() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), LONG);
    let swept = TreeInfo {
        id: TreeId(4711),
        path: root.path().join("trees/4711/fs"),
        image: None,
        diff_id: diff_id("layer"),
        bytes: 1,
        inodes: 1,
        implied: vec![],
        settled: None,
    };
    let gone = HeldTree::new(swept, TreePin::new(TreeId(4711), || ()));
    let source = Fake::new(Answer::Tree(gone), true);
    let mounts = prepare(&snapshots, &source, request("key", "", "chain")).await.unwrap();
    assert_eq!(mounts, snapshots.mounts("key").unwrap());
    assert_eq!(source.asked.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn nothing_stays_of_a_prepare_whose_caller_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let snapshots = open(root.path(), LONG);
    {
        let future =
            snapshots.create_for_caller(Kind::Active, "k".into(), String::new(), Labels::new());
        let mut future = std::pin::pin!(future);
        // Started once, then dropped.
        assert!(futures_util::poll!(&mut future).is_pending());
    }
    // The row may come and go; what counts is that it is gone in the end.
    loop {
        let made = snapshots.database.read(|db| {
            db.query_row("SELECT count(*) FROM sqlite_sequence WHERE name = 'snapshots'", [], |r| {
                r.get::<_, i64>(0)
            })
        });
        if made.unwrap() == 1 && names(&snapshots, "").is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(entries(&snapshots.layout.snapshots()), 0);
}
