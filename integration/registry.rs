//! Registry and fetch against a registry that misbehaves.
//!
//! Pauses between tries are a millisecond and stalls a fifth of a second, so that the matrix of
//! faults runs in seconds; nothing here asserts a time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "registry/blobs.rs"]
mod blobs;
#[path = "registry/credentials.rs"]
mod credentials;
#[path = "registry/faults.rs"]
mod faults;
mod faulty_registry;
#[path = "registry/heads.rs"]
mod heads;
#[path = "registry/patience.rs"]
mod patience;
#[path = "registry/places.rs"]
mod places;
#[path = "registry/sharing.rs"]
mod sharing;
#[path = "registry/sources.rs"]
mod sources;
#[path = "registry/tls.rs"]
mod tls;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use faulty_registry::{FaultyRegistry, Reply, Request, eventually};
use hoist::budget::Budget;
use hoist::fetch::{FetchError, Fetcher, Limits};
use hoist::image::{BlobDigest, Reference, Sha256};
use hoist::registry::{Registry, RegistryError, Settings};
use hoist::timeline::{LayerRecorder, Phase};
use tokio::sync::Barrier;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn settings() -> Settings {
    Settings {
        stall_timeout: Duration::from_millis(200),
        retries: 3,
        backoff_initial: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
        ..Settings::default()
    }
}

fn registry() -> Registry {
    Registry::new(settings()).unwrap()
}

fn reference(host: &str) -> Reference {
    format!("{host}/some/image:v1").parse().unwrap()
}

/// Bytes that are nowhere the same.
fn noise(length: usize) -> Vec<u8> {
    (0..length.div_ceil(32))
        .flat_map(|i| *Sha256::of(&i.to_le_bytes()).as_bytes())
        .take(length)
        .collect()
}

/// One blob's way through a fetcher with chunks of `chunk` bytes and a budget of sixteen.
struct Fetch {
    budget: Budget,
    fetcher: Fetcher,
    recorder: Arc<LayerRecorder>,
}

impl Fetch {
    fn new(registry: Registry, chunk: u64) -> Self {
        let budget = Budget::new((chunk * 16).max(16 << 10));
        let limits = Limits { chunk_bytes: chunk, per_image: 4, per_host: 4, global: 4 };
        let fetcher = Fetcher::new(registry, budget.clone(), limits);
        Self { budget, fetcher, recorder: Arc::new(LayerRecorder::detached()) }
    }

    async fn read(
        &self,
        reference: &Reference,
        digest: BlobDigest,
        size: u64,
    ) -> Result<Vec<u8>, FetchError> {
        let blob = self.fetcher.registry().blob(reference, digest, size);
        let handle = tokio::runtime::Handle::current();
        let recorder = Arc::clone(&self.recorder);
        let mut reader = self.fetcher.image().start(&handle, blob, size, recorder);
        let read = move || {
            let mut bytes = Vec::new();
            while let Some(piece) = reader.next()? {
                assert!(!piece.is_empty());
                bytes.extend_from_slice(&piece);
            }
            assert!(reader.next()?.is_none());
            Ok(bytes)
        };
        let result = tokio::task::spawn_blocking(read).await.unwrap();
        self.is_quiet().await;
        result
    }

    /// Waits until nothing is reserved any more.
    async fn is_quiet(&self) {
        eventually("the budget is free again", || self.budget.in_use() == 0).await;
    }

    fn retries(&self) -> u64 {
        self.recorder.report().retries
    }
}

/// Fetches a blob of `size` bytes in chunks of `chunk` from a registry with `script`.
async fn fetch_with(
    size: usize,
    chunk: u64,
    script: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> (Result<Vec<u8>, FetchError>, FaultyRegistry, Fetch) {
    let server = FaultyRegistry::start().await;
    let digest = server.blob(noise(size));
    server.script(script);
    let fetch = Fetch::new(registry(), chunk);
    let result = fetch.read(&reference(&server.host), digest, size as u64).await;
    (result, server, fetch)
}

fn registry_error(result: Result<Vec<u8>, FetchError>) -> RegistryError {
    match result {
        Err(FetchError::Registry(error)) => error,
        other => panic!("not a registry's error: {:?}", other.map(|bytes| bytes.len())),
    }
}

/// Drops the range from what the client asked for: what a server without ranges does.
fn without_ranges(blob: Vec<u8>) -> impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static {
    move |request, reply| if request.is_blob() { Reply::new(200, blob.clone()) } else { reply }
}
