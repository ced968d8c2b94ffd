//! Prepares that belong to a pull, with a source of layers that is fake.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::image::ChainId;
use crate::pull::trees::TreePin;

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

pub(super) fn chain_id(name: &str) -> ChainId {
    ChainId(Sha256::of(name.as_bytes()))
}

pub(super) fn request(key: &str, parent: &str, chain: &str) -> PrepareRequest {
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
    // Started once, then dropped. While this holds the database, the call that was started cannot be answered first.
    let started: Result<_, rusqlite::Error> = snapshots.database.write(|_| {
        let future =
            snapshots.create_for_caller(Kind::Active, "k".into(), String::new(), Labels::new());
        Ok(std::pin::pin!(future)
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending())
    });
    assert!(started.unwrap());
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
