//! A part of a pull that panics: the pull fails for that reason, so that containerd goes its ordinary way, and the next is
//! as if nothing had been.

use std::sync::Mutex;

use hoist::image::DiffId;
use hoist::pull::directory::DirectoryStore;
use hoist::pull::trees::{Content, StagedTree, StoreError, TreeId, TreeInfo, TreePin, TreeStore};

use super::*;

/// A store that panics in one of its calls, once.
struct Panicking {
    store: Arc<DirectoryStore>,
    at: Mutex<Option<&'static str>>,
}

impl Panicking {
    fn reach(&self, call: &str) {
        let due = self.at.lock().unwrap().take_if(|at| *at == call).is_some();
        assert!(!due, "a defect in {call}");
    }
}

impl TreeStore for Panicking {
    fn find(&self, diff_id: DiffId) -> Result<Vec<TreeInfo>, StoreError> {
        self.reach("find");
        self.store.find(diff_id)
    }

    fn stage(&self, diff_id: DiffId) -> Result<StagedTree, StoreError> {
        self.reach("stage");
        self.store.stage(diff_id)
    }

    fn publish(&self, tree: StagedTree, content: Content) -> Result<TreeInfo, StoreError> {
        self.reach("publish");
        self.store.publish(tree, content)
    }

    fn settled(&self, id: TreeId, metadata: Vec<u8>) -> Result<(), StoreError> {
        self.reach("settled");
        self.store.settled(id, metadata)
    }

    fn pin(&self, id: TreeId) -> Result<TreePin, StoreError> {
        self.reach("pin");
        self.store.pin(id)
    }

    fn discard(&self, tree: StagedTree) {
        self.store.discard(tree);
    }
}

/// Where the panic is, and how many trees stay: a layer that was published before is used by the next pull.
const CALLS: [(&str, usize); 5] =
    [("find", 0), ("stage", 0), ("publish", 0), ("pin", 1), ("settled", 1)];

async fn panics_once(call: &'static str, trees: usize) {
    let server = FaultyRegistry::start().await;
    // Its directory is implied, and so has to be settled.
    let plan = push(&server, "tag", &[Layer::new("gzip", &tar(&[("etc/one", b"1")]))]);
    let engine =
        Engine::over(|store| Arc::new(Panicking { store, at: Mutex::new(Some(call)) }) as _);
    let error = engine.claim(&server, &plan, 0, &[]).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), "internal", "{call}: {error}");
    let words = format!("panicked: a defect in {call};");
    assert!(error.to_string().contains(&words), "{call}: {error}");
    engine.is_clean(trees).await;

    // A failure is remembered for some seconds.
    eventually("the pull has ended", || engine.ended.lock().unwrap().len() == 1).await;
    let PullState::FellBack(reason) = engine.ended.lock().unwrap()[0].clone() else {
        panic!("{call}: {:?}", engine.ended.lock().unwrap())
    };
    assert_eq!(reason, error.to_string(), "{call}");
    if ["stage", "publish", "pin"].contains(&call) {
        let report = engine.history.get(1).unwrap();
        assert_eq!(report.layers[0].state, LayerState::Failed(reason), "{call}");
    }
    let held = engine.claim(&server, &plan, 0, &[]).await.unwrap();
    assert_eq!(read(&held.tree.path.join("etc/one")), "1", "{call}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_the_pulls_failure_and_the_next_pull_is_well() {
    futures_util::future::join_all(CALLS.map(|(call, trees)| panics_once(call, trees))).await;
}

/// `hoist pull` and prefetches wait for whole images.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_fails_the_pull_of_a_whole_image_with_its_words() {
    for (call, _) in CALLS {
        let server = FaultyRegistry::start().await;
        push(&server, "tag", &[Layer::new("zstd", &tar(&[("etc/one", b"1")]))]);
        let engine =
            Engine::over(|store| Arc::new(Panicking { store, at: Mutex::new(Some(call)) }) as _);
        let image = format!("{}/some/image:tag", server.host);
        let pulling = engine.puller.start(&image, None).unwrap();
        let error = pulling.trees().await.map(drop).unwrap_err();
        assert!(error.to_string().contains(&format!("a defect in {call};")), "{call}: {error}");
        let state = pulling.recorder().report().state;
        assert_eq!(state, PullState::Failed(error.to_string()), "{call}");
    }
}
