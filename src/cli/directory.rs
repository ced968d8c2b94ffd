//! `hoist pull IMAGE --to DIR`: the engine in this process, no daemon and no containerd.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::args::Pull;
use super::error::CliError;
use super::progress::{Progress, TICK};
use super::{print, print_json, summary};
use crate::config::Config;
use crate::fetch::Fetcher;
use crate::image::Platform;
use crate::pull::directory::DirectoryStore;
use crate::pull::{Puller, Settings};
use crate::registry::Registry;
use crate::timeline::{History, PullReport};
use crate::unpack;

/// Pulls into `dest`.
pub(super) async fn pull(args: &Pull, dest: &Path, mut config: Config) -> Result<(), CliError> {
    let platform = args.wanted.asked()?;
    args.wanted.registries.apply(&mut config);
    if let Some(connections) = args.connections.map(usize::from) {
        config.fetch.connections_per_image = connections;
        config.fetch.connections_per_host = connections;
        config.fetch.connections = connections;
    }
    if let Some(rate) = args.limit_rate {
        // Less than one byte a second would be no limit.
        config.fetch.bytes_per_second = Some(rate.whole_bytes().max(1));
    }
    let store = Whole(Arc::new(DirectoryStore::new(dest)?));
    let report = run(args, &config, platform, &store.0).await?;
    drop(store);
    if args.json { print_json(&report) } else { print(&summary::whole(&report)) }
}

/// How long the threads of a pull that was cancelled may take to let go of its files. Each looks
/// after every piece of work, which is a few megabytes.
const LET_GO: Duration = Duration::from_secs(10);

/// The store of a whole command. Threads that still write into it while it is removed would leave
/// their files behind, so its drop waits until nobody else holds it.
struct Whole(Arc<DirectoryStore>);

impl Drop for Whole {
    fn drop(&mut self) {
        let began = Instant::now();
        while Arc::strong_count(&self.0) > 1 && began.elapsed() < LET_GO {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

async fn run(
    args: &Pull,
    config: &Config,
    platform: Option<Platform>,
    store: &Arc<DirectoryStore>,
) -> Result<PullReport, CliError> {
    let registry = Registry::new(config.registry_settings())?;
    let budget = config.budget();
    let fetcher = Fetcher::new(registry.clone(), budget.clone(), config.fetch_limits());
    fetcher.restrain(&config.restraints());
    let room = unpack::Room::of(store.dest(), config.limits.min_free);
    let settings = Settings {
        layers_at_once: config.limits.layers_at_once,
        // What the daemon leaves free of its root has to stay free of wherever this goes.
        unpack: unpack::Options { room, ..config.unpack_options() },
        decompression: config.decompression(&budget),
        platform: Platform::host(),
        keeper: None,
        on_end: Arc::new(|_| ()),
    };
    let history = History::bounded(1, config.pull_bounds());
    let puller = Puller::new(registry, fetcher, budget, Arc::clone(store) as _, history, settings);
    let pulling = puller.start(&args.image, platform)?;
    let recorder = Arc::clone(pulling.recorder());
    let mut progress = Progress::new(args.quiet || args.json);
    let trees = {
        let mut trees = std::pin::pin!(pulling.trees());
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                ended = &mut trees => break ended,
                _ = tick.tick() => progress.show(&recorder.report()),
            }
        }
    };
    progress.end();
    let trees = trees?;
    let merging = Arc::clone(store);
    let dest = store.dest().to_owned();
    tokio::task::spawn_blocking(move || merging.merge(&trees))
        .await
        .expect("merging does not panic")
        .map_err(|source| CliError::Merge { dest, source })?;
    Ok(recorder.report().judged())
}
