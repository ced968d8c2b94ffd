//! The engine as these tests have it: over a directory, with small bounds.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hoist::budget::Budget;
use hoist::budget::rate::RateLimit;
use hoist::compression::{Pool, Speculation, WINDOW_BYTES_MAX};
use hoist::fetch::{Fetcher, Limits};
use hoist::image::{ImagePlan, Platform};
use hoist::pull::directory::DirectoryStore;
use hoist::pull::trees::{HeldTree, TreeStore};
use hoist::pull::{Claim, Decompression, PullError, Puller, Settings};
use hoist::registry::{Registry, Settings as RegistrySettings};
use hoist::timeline::{History, PullState};
use hoist::unpack;

use super::faulty_registry::{FaultyRegistry, eventually};

/// An engine over a directory.
pub(super) struct Engine {
    pub(super) puller: Puller,
    pub(super) store: Arc<DirectoryStore>,
    pub(super) budget: Budget,
    pub(super) pool: Pool,
    pub(super) history: History,
    pub(super) ended: Arc<Mutex<Vec<PullState>>>,
    pub(super) directory: tempfile::TempDir,
}

impl Engine {
    pub(super) fn new() -> Self {
        Self::with(96 << 20, 1 << 30)
    }

    pub(super) fn with(budget_bytes: u64, max_unpacked: u64) -> Self {
        Self::connected(4, Duration::from_millis(500), budget_bytes, max_unpacked)
    }

    /// Whose helpers guess at a single gzip member, or leave it alone. Its writers are slow, so that the
    /// bytes for helpers to begin with have come before the decoder needs them.
    pub(super) fn guessing(speculation: Speculation) -> Self {
        let slow = RateLimit::new(Some(16_000_000));
        Self::of(4, Duration::from_millis(500), 96 << 20, 1 << 30, (speculation, slow))
    }

    /// With so many connections, each of which may be silent for so long.
    pub(super) fn connected(
        connections: usize,
        stall_timeout: Duration,
        budget_bytes: u64,
        max_unpacked: u64,
    ) -> Self {
        Self::of(connections, stall_timeout, budget_bytes, max_unpacked, Default::default())
    }

    /// Over a directory that is reached through what `through` makes of it.
    pub(super) fn over(through: impl FnOnce(Arc<DirectoryStore>) -> Arc<dyn TreeStore>) -> Self {
        Self::build(4, Duration::from_millis(500), 96 << 20, 1 << 30, Default::default(), through)
    }

    fn of(
        connections: usize,
        stall_timeout: Duration,
        budget_bytes: u64,
        max_unpacked: u64,
        how: (Speculation, RateLimit),
    ) -> Self {
        let itself = |store| store as Arc<dyn TreeStore>;
        Self::build(connections, stall_timeout, budget_bytes, max_unpacked, how, itself)
    }

    fn build(
        connections: usize,
        stall_timeout: Duration,
        budget_bytes: u64,
        max_unpacked: u64,
        (speculation, rate): (Speculation, RateLimit),
        through: impl FnOnce(Arc<DirectoryStore>) -> Arc<dyn TreeStore>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(DirectoryStore::new(&directory.path().join("to")).unwrap());
        let registry = Registry::new(RegistrySettings {
            stall_timeout,
            retries: 2,
            backoff_initial: Duration::from_millis(1),
            backoff_max: Duration::from_millis(2),
            ..RegistrySettings::default()
        })
        .unwrap();
        let budget = Budget::new(budget_bytes);
        let limits = Limits {
            chunk_bytes: 64 << 10,
            per_image: connections.min(4),
            per_host: connections,
            global: connections,
        };
        let fetcher = Fetcher::new(registry.clone(), budget.clone(), limits);
        let ended = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&ended);
        let pool = Pool::new(3, budget.clone(), budget_bytes / 4);
        let settings = Settings {
            layers_at_once: 3,
            decompression: Decompression {
                pool: Some(pool.clone()),
                window_bytes: (budget_bytes / 2).min(WINDOW_BYTES_MAX),
                speculation,
            },
            unpack: unpack::Options {
                writers: 2,
                max_bytes: max_unpacked,
                rate,
                ..unpack::Options::default()
            },
            platform: Platform::host(),
            keeper: None,
            on_end: Arc::new(move |report| told.lock().unwrap().push(report.state.clone())),
        };
        let history = History::new(9);
        let puller = Puller::new(
            registry,
            fetcher,
            budget.clone(),
            through(Arc::clone(&store)),
            history.clone(),
            settings,
        );
        Self { puller, store, budget, pool, history, ended, directory }
    }

    /// Asks as a Prepare does, for layer `index` over `below`, lowest first.
    pub(super) async fn claim(
        &self,
        server: &FaultyRegistry,
        plan: &ImagePlan,
        index: usize,
        below: &[HeldTree],
    ) -> Result<HeldTree, PullError> {
        let layer = &plan.layers[index];
        let claim = Claim {
            namespace: "default".to_owned(),
            image: format!("{}/some/image:tag", server.host),
            manifest: plan.manifest,
            layer: layer.blob,
            chain_id: layer.chain_id,
            parents: below.iter().rev().map(|held| held.tree.path.clone()).collect(),
            trace_parent: None,
        };
        self.puller.claim(claim).await
    }

    pub(super) fn staged(&self) -> usize {
        std::fs::read_dir(self.directory.path().join("to/.hoist-pull")).unwrap().count()
    }

    /// Nothing is in flight and nothing half done is left.
    pub(super) async fn is_clean(&self, trees: usize) {
        eventually("nothing is left", || self.budget.in_use() == 0 && self.staged() == trees).await;
    }
}
