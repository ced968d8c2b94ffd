//! The pull of one image: its plan, and an interest in the job of each of its layers.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::Instrument as _;

use super::PullError;
use super::caught::caught;
use super::jobs::{Interest, Jobs};
use super::keep::{Keeper, Keeping};
use super::make::{Key, Order};
use super::resolve::{Resolved, Start, resolve};
use super::trees::{HeldTree, TreeStore};
use crate::budget::turns::Class;
use crate::fetch::{Fetcher, ImageFetcher};
use crate::image::{
    BlobDigest, ChainId, Compression, ImageLayer, ImagePlan, NamedDocument, Platform, Reference,
};
use crate::registry::Registry;
use crate::timeline::{LayerRecorder, LayerState, PullRecorder};

/// What pulls need, whatever the image.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) registry: Registry,
    pub(super) fetcher: Fetcher,
    pub(super) jobs: Jobs,
    pub(super) store: Arc<dyn TreeStore>,
}

/// An image that is being pulled. Dropping it drops its interest in its layers.
pub(super) struct ImagePull {
    image: Image,
    recorder: Arc<PullRecorder>,
    started: watch::Receiver<Option<Result<Arc<Started>, PullError>>>,
    starting: AbortHandle,
}

/// Which image, and with what.
#[derive(Clone)]
pub(super) struct Image {
    reference: Reference,
    means: Means,
    fetcher: ImageFetcher,
    class: Class,
    /// Where containerd is to have the blobs.
    keep: Option<Arc<Keeping>>,
}

/// An image whose layers have been started.
pub(super) struct Started {
    pub(super) plan: ImagePlan,
    pub(super) documents: Vec<NamedDocument>,
    /// One for each layer, lowest first.
    layers: Vec<Layer>,
}

/// What is done about a layer.
enum Layer {
    /// It was there already.
    There(HeldTree),
    /// A job makes it.
    Made(Interest),
    /// Nothing: hoist cannot unpack it.
    Unsupported,
}

impl Drop for ImagePull {
    fn drop(&mut self) {
        self.starting.abort();
    }
}

impl ImagePull {
    /// Begins: resolves the image and starts all of its layers, in a task of its own.
    pub(super) fn begin(
        image: Image,
        start: Start,
        platform: Platform,
        recorder: Arc<PullRecorder>,
    ) -> Self {
        let (ready, started) = watch::channel(None);
        let task = {
            let (image, recorder) = (image.clone(), Arc::clone(&recorder));
            async move {
                let start = async {
                    let registry = &image.means.registry;
                    let resolved = resolve(registry, &image.reference, &start, &platform).await?;
                    recorder.resolved(resolved.plan.manifest, resolved.authorizing);
                    image.start_layers(&recorder, resolved).map(Arc::new)
                };
                let result = caught(|| format!("{}: its start", image.reference), start).await;
                // The pull may have been dropped meanwhile.
                let _ = ready.send(Some(result));
            }
        };
        // All that is logged on behalf of it says so.
        let span = tracing::info_span!("pull", id = recorder.id());
        let starting = tokio::spawn(task.instrument(span)).abort_handle();
        Self { image, recorder, started, starting }
    }

    pub(super) fn reference(&self) -> &Reference {
        &self.image.reference
    }

    pub(super) fn recorder(&self) -> &Arc<PullRecorder> {
        &self.recorder
    }

    /// Waits for the plan.
    pub(super) async fn started(&self) -> Result<Arc<Started>, PullError> {
        let mut started = self.started.clone();
        match started.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Err(PullError::Cancelled)),
            Err(_) => Err(PullError::Cancelled),
        }
    }

    /// The topmost layer's ChainID, once it is known.
    pub(super) fn top(&self) -> Option<ChainId> {
        let started = self.started.borrow();
        let top = started.as_ref()?.as_ref().ok()?.plan.layers.last()?;
        Some(top.chain_id)
    }

    /// Waits for the tree of layer `index`, as it came out of its archive.
    pub(super) async fn tree(
        &self,
        started: &Started,
        index: usize,
    ) -> Result<HeldTree, PullError> {
        match &started.layers[index] {
            Layer::There(tree) => Ok(tree.clone()),
            Layer::Made(job) => job.outcome().await,
            Layer::Unsupported => Err(unsupported(&started.plan.layers[index])),
        }
    }

    /// Makes one more tree of a layer, for implied directories that are settled otherwise.
    pub(super) async fn variant(
        &self,
        layer: &ImageLayer,
        settled: Vec<u8>,
    ) -> Result<HeldTree, PullError> {
        let key = Key { diff_id: layer.diff_id, settled: Some(settled) };
        let recorder = self.recorder.layer(layer.clone());
        let compression = layer.compression().ok_or_else(|| unsupported(layer))?;
        // Its blob has been looked after with the first tree.
        let order = Order { keep: None, ..self.image.order(key, layer, compression, recorder) };
        self.image.means.jobs.join(order).outcome().await
    }

    /// Waits until containerd has the blobs of all layers, where it is to have them. The topmost layer's
    /// claim is the last that comes, and the only one that comes for each image that has something new.
    pub(super) async fn keep(&self, started: &Started, keeper: &Keeper, namespace: &str) {
        // Another namespace's claim may have begun the pull.
        let own = self.image.keep.as_ref().filter(|keep| keep.namespace() == namespace);
        match own {
            Some(own) => self.complete(started, own).await,
            None => {
                let other = keeper.image(namespace, &self.image.reference);
                self.complete(started, &other).await;
            }
        }
    }

    /// The same for the namespace that it was begun for, if one was.
    pub(super) async fn keep_own(&self, started: &Started) {
        if let Some(keep) = &self.image.keep {
            self.complete(started, keep).await;
        }
    }

    async fn complete(&self, started: &Started, keep: &Keeping) {
        let Image { reference, means, fetcher, class, .. } = &self.image;
        let layers = started.plan.layers.iter().filter(|layer| layer.compression().is_some());
        let blob = |l: &ImageLayer| means.registry.blob(reference, l.blob, l.size);
        let blobs = layers.map(blob).collect();
        keep.complete(blobs, (fetcher, *class), means.jobs.budget()).await;
    }
}

impl Started {
    /// Where in the stack the layer is that a Prepare asks for.
    pub(super) fn position(&self, layer: BlobDigest, chain_id: ChainId) -> Option<usize> {
        self.plan.layers.iter().position(|l| l.chain_id == chain_id && l.blob == layer)
    }
}

fn unsupported(layer: &ImageLayer) -> PullError {
    PullError::Unsupported { layer: layer.blob, media_type: layer.media_type.clone() }
}

impl Image {
    pub(super) fn new(
        means: Means,
        reference: Reference,
        class: Class,
        keep: Option<Arc<Keeping>>,
    ) -> Self {
        let fetcher = means.fetcher.image();
        Self { reference, means, fetcher, class, keep }
    }

    fn order(
        &self,
        key: Key,
        layer: &ImageLayer,
        compression: Compression,
        recorder: Arc<LayerRecorder>,
    ) -> Order {
        Order {
            key,
            layer: layer.clone(),
            compression,
            blob: self.means.registry.blob(&self.reference, layer.blob, layer.size),
            fetcher: self.fetcher.clone(),
            recorder,
            standing: Order::standing(&self.fetcher, layer, self.class),
            keep: self.keep.clone(),
        }
    }

    /// Starts the layers that are not there yet; whose turn comes when goes by their standing, and among
    /// equals the largest is first. (The DiffID's job may run already, for another image.)
    fn start_layers(
        &self,
        recorder: &PullRecorder,
        resolved: Resolved,
    ) -> Result<Started, PullError> {
        let Resolved { plan, documents, .. } = resolved;
        let mut recorders = Vec::new();
        let mut layers = Vec::new();
        let mut orders = Vec::new();
        for (index, layer) in plan.layers.iter().enumerate() {
            let own = Arc::new(LayerRecorder::new(recorder.began(), layer.clone()));
            recorders.push(Arc::clone(&own));
            layers.push(Layer::Unsupported);
            if let Some(tree) = HeldTree::find(&*self.means.store, layer.diff_id)? {
                own.state(LayerState::Shared);
                layers[index] = Layer::There(tree);
            } else if let Some(compression) = layer.compression() {
                let key = Key { diff_id: layer.diff_id, settled: None };
                orders.push((index, self.order(key, layer, compression, own)));
            } else {
                own.state(LayerState::Failed(unsupported(layer).to_string()));
            }
        }
        let expected = orders.iter().map(|(_, order)| self.means.jobs.expected(order)).sum();
        self.means
            .jobs
            .admit(expected)
            .map_err(|source| PullError::NoRoom { image: self.reference.to_string(), source })?;
        orders.sort_by_key(|(_, order)| std::cmp::Reverse(order.layer.size));
        for (index, order) in orders {
            let job = self.means.jobs.join(order);
            recorders[index] = Arc::clone(job.recorder());
            layers[index] = Layer::Made(job);
        }
        for layer in recorders {
            recorder.attach(layer);
        }
        Ok(Started { plan, documents, layers })
    }
}
