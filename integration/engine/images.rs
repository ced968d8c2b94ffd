//! Layers that become EROFS images, and the one that cannot.

use hoist::budget::Budget;
use hoist::compression::Speculation;
use hoist::fetch::{Fetcher, Limits};
use hoist::image::Platform;
use hoist::pull::trees::TreeStore;
use hoist::pull::{Decompression, Puller, Settings};
use hoist::registry::{Registry, Settings as RegistrySettings};
use hoist::snapshots::{Backend, Error, Options, Snapshots};
use hoist::timeline::History;
use hoist::unpack;

use super::skipped::skipped;
use super::*;

/// Names and metadata that an image may take here: some twenty entries.
const IMAGE_TREE_BYTES: u64 = 8 << 10;

fn puller(store: Arc<dyn TreeStore>, budget: &Budget) -> Puller {
    let registry = Registry::new(RegistrySettings::default()).unwrap();
    let limits = Limits { chunk_bytes: 64 << 10, per_image: 4, per_host: 4, global: 4 };
    let settings = Settings {
        layers_at_once: 3,
        decompression: Decompression {
            pool: None,
            window_bytes: 8 << 20,
            speculation: Speculation::Off,
        },
        unpack: unpack::Options {
            writers: 2,
            image_tree_bytes: IMAGE_TREE_BYTES,
            ..unpack::Options::default()
        },
        platform: Platform::host(),
        keeper: None,
        on_end: Arc::new(|_| ()),
    };
    let fetcher = Fetcher::new(registry.clone(), budget.clone(), limits);
    Puller::new(registry, fetcher, budget.clone(), store, History::new(9), settings)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_is_too_much_for_an_image_becomes_files() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { backend: Backend::Erofs, grace: Duration::ZERO, ..Options::default() };
    let store = match Snapshots::open(&directory.path().join("root"), options) {
        Ok(store) => store,
        Err(Error::NoImages { reason }) => return skipped("engine::images", &reason),
        Err(error) => panic!("{error}"),
    };
    let server = FaultyRegistry::start().await;
    let names: Vec<String> = (0..500).map(|n| format!("directory/file{n}")).collect();
    let many: Vec<_> = names.iter().map(|name| (&**name, name.as_bytes())).collect();
    let small = tar(&[("directory/", b""), ("directory/small", b"small")]);
    push(&server, "tag", &[Layer::new("gzip", &small), Layer::new("zstd", &tar(&many))]);
    let budget = Budget::new(96 << 20);
    let puller = puller(Arc::clone(&store) as _, &budget);
    let pulling = puller.start(&format!("{}/some/image:tag", server.host), None).unwrap();
    let trees = pulling.trees().await.unwrap();
    assert_eq!(pulling.recorder().report().state, PullState::Done);
    let forms: Vec<bool> = trees.iter().map(|held| held.tree.image.is_some()).collect();
    assert_eq!(forms, [true, false], "the second has too many names");
    assert_eq!(read(&trees[0].tree.path.join("directory/small")), "small");
    assert_eq!(read(&trees[1].tree.path.join("directory/file499")), "directory/file499");
    drop((pulling, trees));
    // Nothing is left of the attempt either.
    eventually("the budget is free", || budget.in_use() == 0).await;
    eventually("all is swept", || {
        store.sweep().unwrap();
        let kept =
            |part| std::fs::read_dir(directory.path().join("root").join(part)).unwrap().count();
        kept("trees") + kept("trash") == 0
    })
    .await;
}
