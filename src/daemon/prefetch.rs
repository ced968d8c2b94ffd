//! Images that are pulled ahead of time and kept.
//!
//! A prefetch ends with three things: the image in containerd, name, documents and snapshots, so that a
//! container starts on it without a registry; the mark on the name by which the kubelet's garbage
//! collection leaves it alone; and a pin on its layers in hoistd's own store, so that a prune or another
//! collection that knows no mark costs documents and not layers. The last step of all is the name:
//! before it nothing stands, and what is half done is collected.
//!
//! ```text
//! lease ─▶ pull, of the lower class ─▶ documents ─▶ a snapshot each ─▶ name ─▶ pin
//!   ╰───────── given up: the lease ends, containerd collects ────────────╯
//! ```
//!
//! Under the lease are also the compressed blobs, where the operator wants them kept: they come before anything refers
//! to them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::Sender;
use tonic::Status;

use super::application::State;
use super::progress::{self, Progress};
use crate::containerd::put::Lease;
use crate::containerd::{Address, Containerd, ContainerdError};
use crate::image::{ImagePlan, ManifestError, NamedDocument, Platform};
use crate::pull::trees::{HeldTree, TreeStore as _};
use crate::pull::{self, PullError, Pulling};
use crate::snapshots::{self, ImagePin, Place, Snapshots, Wanted};

/// How soon a release that failed is tried again when its time has come.
const RELEASE_AGAIN: Duration = Duration::from_secs(60);

/// The longest sleep between two looks at the pins; the clock may have been set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Why an image is not there afterwards, or could not be let go.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrefetchError {
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error("{image} was pulled and cannot be put into containerd; nothing of it stays: {source}")]
    Containerd { image: String, source: ContainerdError },
    #[error(transparent)]
    Connect(ContainerdError),
    #[error("{image}: {source}")]
    Documents { image: String, source: ManifestError },
    #[error(transparent)]
    Store(#[from] snapshots::Error),
    #[error("{0} is not pinned; `hoist prefetch --list` lists those that are")]
    NotPinned(String),
    #[error("nobody waits for it any more")]
    Gone,
    #[error("hoistd is about to end")]
    Ending,
}

/// An image to be prefetched.
pub(super) struct Order {
    pub(super) place: Place,
    pub(super) platform: Option<Platform>,
    /// How long it is kept; `None`: until it is released.
    pub(super) keep: Option<Duration>,
}

/// The place that a request names.
pub(super) fn place(
    state: &State,
    image: &str,
    namespace: &str,
    containerd: &str,
) -> Result<Place, PrefetchError> {
    // The name that ctr, nerdctl and CRI know it by: with its registry and its tag.
    let image = pull::parse_reference(image)?.to_string();
    let containerd = match containerd {
        "" => state.containerd.clone(),
        socket => PathBuf::from(socket),
    };
    Ok(Place { containerd, namespace: namespace.to_owned(), image })
}

async fn connect(place: &Place) -> Result<Containerd, ContainerdError> {
    let (socket, namespace) = (place.containerd.clone(), place.namespace.clone());
    Containerd::connect(&Address { socket, namespace }).await
}

/// Begins: containerd is asked for first, since a pull that it cannot be told of is in vain.
pub(super) async fn begin(state: &State, order: &Order) -> Result<(Lease, Pulling), PrefetchError> {
    let containerd = connect(&order.place).await.map_err(PrefetchError::Connect)?;
    let puller = state.engine.puller.as_ref().ok_or(PrefetchError::Ending)?;
    let lease = lease(&order.place, &containerd).await?;
    let (image, platform) = (&order.place.image, order.platform.clone());
    match puller.prefetch(image, platform, Some(lease.containerd())) {
        Ok(pulling) => Ok((lease, pulling)),
        Err(error) => {
            end(lease).await;
            Err(error.into())
        }
    }
}

async fn lease(place: &Place, containerd: &Containerd) -> Result<Lease, PrefetchError> {
    let refused = |source| PrefetchError::Containerd { image: place.image.clone(), source };
    containerd.lease().await.map_err(refused)
}

/// Ends a lease; what was made under it and has no name is collected then.
async fn end(lease: Lease) {
    if let Err(error) = lease.end().await {
        tracing::warn!(%error, "a lease stays for a day at most");
    }
}

/// Carries a prefetch out, and tells whoever asked how far it is.
pub(super) async fn follow(
    state: Arc<State>,
    order: Order,
    (lease, pulling): (Lease, Pulling),
    sender: Sender<Result<Progress, Status>>,
) {
    let recorder = Arc::clone(pulling.recorder());
    let Some(pulled) = progress::tell(&recorder, &sender, pulling.trees()).await else {
        // It cancels the pull; what came whole stays for the grace period.
        drop(pulling);
        return end(lease).await;
    };
    if let Err(error) = &pulled {
        state.engine.metrics.pulls.failed(error.kind());
    }
    let ended = async {
        let trees = pulled?;
        let documents = pulling.documents().await?;
        tokio::select! {
            kept = pulling.keep() => kept?,
            () = sender.closed() => return Err(PrefetchError::Gone),
        }
        put(&state, &order.place, &lease, &documents, &trees, sender.closed()).await?;
        pin_or_remove(&state, &order, &lease, &documents, &trees).await
    };
    let ended = ended.await;
    end(lease).await;
    match &ended {
        Ok(()) => {
            tracing::info!(image = order.place.image, namespace = order.place.namespace, "pinned")
        }
        Err(error) => tracing::warn!(image = order.place.image, %error, "not prefetched"),
    }
    let last = progress::last(&recorder, ended.as_ref().err().map(|e| (e.to_string(), e.cause())));
    // A client that has gone does not need to hear it.
    let _ = sender.send(Ok(last)).await;
}

/// Pins an image that stands in containerd.
async fn pin_or_remove(
    state: &State,
    order: &Order,
    lease: &Lease,
    documents: &[NamedDocument],
    trees: &[HeldTree],
) -> Result<(), PrefetchError> {
    let pinned = pin(state, order, documents, trees).await;
    if pinned.is_err() {
        // All or nothing. What is there without a pin is told as a failure all the same.
        let _ = lease.containerd().remove(&order.place.image).await;
    }
    pinned
}

/// Puts an image with these layers into containerd, unless `gone` comes first.
async fn put(
    state: &State,
    place: &Place,
    lease: &Lease,
    documents: &[NamedDocument],
    trees: &[HeldTree],
    gone: impl Future<Output = ()>,
) -> Result<(), PrefetchError> {
    tokio::select! {
        prepared = prepare(state, place, lease, documents, trees) => prepared?,
        () = gone => return Err(PrefetchError::Gone),
    }
    // From here on nobody can go away: it is a moment.
    let refused = |source| PrefetchError::Containerd { image: place.image.clone(), source };
    lease.containerd().name(&place.image, &documents[0]).await.map_err(refused)
}

/// All of it but the name.
async fn prepare(
    state: &State,
    place: &Place,
    lease: &Lease,
    documents: &[NamedDocument],
    trees: &[HeldTree],
) -> Result<(), PrefetchError> {
    let image = || place.image.clone();
    let refused = |source| PrefetchError::Containerd { image: image(), source };
    let plan = plan_of(place, documents)?;
    let reference = pull::parse_reference(&place.image)?;
    let source = (reference.registry(), reference.repository());
    lease.documents(documents, &plan, source).await.map_err(refused)?;
    let (mut below, mut parent) = (None, String::new());
    for (layer, tree) in plan.layers.iter().zip(trees) {
        let wanted = Wanted {
            image: image(),
            manifest: plan.manifest,
            layer: layer.blob,
            chain_id: layer.chain_id,
        };
        let labels = wanted.labels();
        // So that the Prepare which containerd is about to make asks no registry.
        let (namespace, tree) = (place.namespace.clone(), tree.clone());
        parent =
            blocking(state, move |store| store.put_down_ahead(&namespace, &parent, &wanted, &tree))
                .await?;
        lease.snapshot(layer.chain_id, below, labels).await.map_err(refused)?;
        below = Some(layer.chain_id);
    }
    Ok(())
}

async fn pin(
    state: &State,
    order: &Order,
    documents: &[NamedDocument],
    trees: &[HeldTree],
) -> Result<(), PrefetchError> {
    let expires_at = order.keep.and_then(|keep| SystemTime::now().checked_add(keep));
    let (place, documents, trees) = (order.place.clone(), documents.to_vec(), trees.to_vec());
    let pin = move |store: &Snapshots| store.pin_image(&place, &documents, &trees, expires_at);
    blocking(state, pin).await?;
    state.pins_changed.notify_one();
    Ok(())
}

async fn blocking<T: Send + 'static>(
    state: &State,
    work: impl FnOnce(&Snapshots) -> Result<T, snapshots::Error> + Send + 'static,
) -> Result<T, PrefetchError> {
    let store = Arc::clone(&state.engine.snapshots);
    let done = tokio::task::spawn_blocking(move || work(&store)).await;
    Ok(done.map_err(|error| snapshots::Error::Task(error.to_string()))??)
}

/// All pins.
pub(super) async fn pins(state: &State) -> Result<Vec<ImagePin>, PrefetchError> {
    blocking(state, Snapshots::image_pins).await
}

async fn pin_in(state: &State, place: &Place) -> Result<ImagePin, PrefetchError> {
    let pin = pins(state).await?.into_iter().find(|pin| pin.place == *place);
    pin.ok_or_else(|| PrefetchError::NotPinned(place.image.clone()))
}

/// Whether a pinned image is in containerd, as it was pinned.
pub(super) async fn is_there(state: &State, place: &Place) -> Result<bool, PrefetchError> {
    let ImagePin { documents, .. } = pin_in(state, place).await?;
    let plan = plan_of(place, &documents)?;
    let containerd = connect(place).await.map_err(PrefetchError::Connect)?;
    let target = documents[0].digest;
    containerd.has(&place.image, &plan, target).await.map_err(PrefetchError::Connect)
}

/// Puts a pinned image into containerd again; its registry is not asked.
pub(super) async fn restore(state: &State, place: &Place) -> Result<(), PrefetchError> {
    let ImagePin { documents, layers, .. } = pin_in(state, place).await?;
    let containerd = connect(place).await.map_err(PrefetchError::Connect)?;
    let store = Arc::clone(&state.engine.snapshots);
    let held = blocking(state, move |_| {
        let held = layers.iter().map(|layer| {
            let found = store.find(layer.diff_id).unwrap_or_default();
            let tree = found.into_iter().find(|tree| tree.id == layer.tree);
            let swept = || snapshots::Error::Swept { tree: layer.tree };
            HeldTree::pin(&*store, tree.ok_or_else(swept)?).map_err(|_| swept())
        });
        held.collect::<Result<Vec<_>, _>>()
    });
    let held = held.await?;
    let lease = lease(place, &containerd).await?;
    let restored = put(state, place, &lease, &documents, &held, std::future::pending()).await;
    end(lease).await;
    restored
}

fn plan_of(place: &Place, documents: &[NamedDocument]) -> Result<ImagePlan, PrefetchError> {
    let image = place.image.clone();
    ImagePlan::of_documents(documents).map_err(|source| PrefetchError::Documents { image, source })
}

/// What became of a release.
pub(super) struct Released {
    /// It is not in containerd any more.
    pub(super) removed: bool,
    /// Who uses it, so that it stays there.
    pub(super) containers: Vec<String>,
}

/// Lets an image go: the pin on its layers, the mark on its name, and the name itself where a prefetch
/// put it there and no container uses it.
pub(super) async fn release(state: &State, place: &Place) -> Result<Released, PrefetchError> {
    let pin = pin_in(state, place).await?;
    let released = match connect(place).await {
        Ok(containerd) => let_go(&containerd, &pin).await.map_err(PrefetchError::Connect)?,
        // It has been taken off this host, and its images with it.
        Err(_) if !place.containerd.exists() => Released { removed: true, containers: Vec::new() },
        Err(error) => return Err(PrefetchError::Connect(error)),
    };
    let place = place.clone();
    blocking(state, move |store| store.unpin_image(&place)).await?;
    Ok(released)
}

async fn let_go(containerd: &Containerd, pin: &ImagePin) -> Result<Released, ContainerdError> {
    let image = &pin.place.image;
    let Some(target) = pin.documents.first() else {
        return Ok(Released { removed: false, containers: Vec::new() });
    };
    let names = containerd.names(target.digest).await?;
    let Some(own) = names.iter().find(|named| named.name == *image) else {
        return Ok(Released { removed: true, containers: Vec::new() });
    };
    let containers = containerd.containers_of(&names).await?;
    if !containers.is_empty() || !own.is_prefetched {
        containerd.unpin(image).await?;
        return Ok(Released { removed: false, containers });
    }
    containerd.remove(image).await?;
    // CRI knows every image by its id as well; that name goes with the last one that people gave.
    let (ids, others): (Vec<_>, Vec<_>) = names
        .iter()
        .filter(|named| named.name != *image)
        .partition(|n| n.name.starts_with("sha256:"));
    if others.is_empty() {
        for id in ids {
            containerd.remove(&id.name).await?;
        }
    }
    Ok(Released { removed: true, containers })
}

/// Lets images go when their time has come, until the daemon ends.
pub(super) async fn expire(state: Arc<State>) {
    loop {
        let now = SystemTime::now();
        let mut sleep = LONGEST_SLEEP;
        let mut some = false;
        for pin in pins(&state).await.unwrap_or_default() {
            let Some(expires_at) = pin.expires_at else { continue };
            some = true;
            let mut left = expires_at.duration_since(now).unwrap_or_default();
            if left.is_zero() {
                match release(&state, &pin.place).await {
                    Ok(_) => tracing::info!(image = pin.place.image, "its time is over: released"),
                    Err(error) => {
                        tracing::warn!(image = pin.place.image, %error, "cannot be released yet");
                        left = RELEASE_AGAIN;
                    }
                }
            }
            sleep = if left.is_zero() { sleep } else { sleep.min(left) };
        }
        // Without a time nobody is woken.
        let changed = state.pins_changed.notified();
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(sleep), if some => {}
        }
    }
}

impl PrefetchError {
    /// What kind of failure it is.
    pub(super) fn cause(&self) -> crate::control::Cause {
        match self {
            Self::Pull(error) => progress::cause(error),
            Self::Connect(_) => crate::control::Cause::NotReachable,
            Self::NotPinned(_) => crate::control::Cause::NotFound,
            _ => crate::control::Cause::Other,
        }
    }
}

impl From<PrefetchError> for Status {
    fn from(error: PrefetchError) -> Self {
        let text = error.to_string();
        match error {
            PrefetchError::Pull(PullError::Reference { .. }) => Self::invalid_argument(text),
            PrefetchError::NotPinned(_) => Self::not_found(text),
            PrefetchError::Connect(_) | PrefetchError::Ending => Self::unavailable(text),
            _ => Self::internal(text),
        }
    }
}
