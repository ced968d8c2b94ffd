//! Trees for a chain: implied directories take their metadata from the layers below.
//!
//! Layers are unpacked without waiting for their parents, so a directory that an archive implies
//! but never names is made plain and settled here, when the layers below are known. The first
//! chain that claims a tree settles it in place. A later chain for which it would have come out
//! differently gets a tree of its own; that is rare (the same archive over other parents which
//! differ in the metadata of a directory that both have).

use std::path::PathBuf;
use std::sync::Arc;

use super::PullError;
use super::image::{ImagePull, Started};
use super::make::blocking;
use super::trees::{HeldTree, TreeInfo, TreeStore};
use crate::image::ImageLayer;
use crate::unpack;

/// What a tree is for a given chain.
enum Fit {
    /// It serves, now settled if it was not.
    Serves,
    /// This chain needs a tree settled like this.
    Wants(Vec<u8>),
}

/// One settling at a time: two chains may want to settle the same tree at once.
#[derive(Default)]
pub(super) struct Settler(tokio::sync::Mutex<()>);

impl Settler {
    /// The tree of layer `index` for a chain whose layers below are `parents`, topmost first.
    pub(super) async fn tree(
        &self,
        pull: &ImagePull,
        started: &Started,
        index: usize,
        parents: Vec<PathBuf>,
        store: &Arc<dyn TreeStore>,
    ) -> Result<HeldTree, PullError> {
        let layer = &started.plan.layers[index];
        let first = pull.tree(started, index).await?;
        let Fit::Wants(wanted) = self.fit(layer, &first.tree, parents.clone(), store).await? else {
            return Ok(first);
        };
        for other in store.find(layer.diff_id)? {
            if other.settled.as_ref() == Some(&wanted) {
                return Ok(HeldTree::pin(&**store, other)?);
            }
        }
        let own = pull.variant(layer, wanted).await?;
        match self.fit(layer, &own.tree, parents, store).await? {
            Fit::Serves => Ok(own),
            Fit::Wants(_) => Err(PullError::Internal { layer: layer.blob, what: "settling" }),
        }
    }

    async fn fit(
        &self,
        layer: &ImageLayer,
        tree: &TreeInfo,
        parents: Vec<PathBuf>,
        store: &Arc<dyn TreeStore>,
    ) -> Result<Fit, PullError> {
        if tree.implied.is_empty() {
            return Ok(Fit::Serves);
        }
        let _one_at_a_time = self.0.lock().await;
        let (tree, store) = (tree.clone(), Arc::clone(store));
        let blob = layer.blob;
        blocking(layer, move || {
            let failed = |source| PullError::Unpack { layer: blob, source: Arc::new(source) };
            let lowers: Vec<_> = parents.iter().map(PathBuf::as_path).collect();
            // What the caller holds may be older than what another chain has settled since.
            let known = store.find(tree.diff_id)?.into_iter().find(|t| t.id == tree.id);
            match known.and_then(|t| t.settled).or(tree.settled) {
                Some(settled) => {
                    let wanted = unpack::implied_metadata(&tree.implied, &lowers)
                        .map_err(failed)?
                        .to_bytes();
                    Ok(if settled == wanted { Fit::Serves } else { Fit::Wants(wanted) })
                }
                None => {
                    // No image is mounted before it is settled.
                    let settled = match &tree.image {
                        Some(image) => unpack::settle_image(image, &tree.implied, &lowers),
                        None => unpack::settle(&tree.path, &tree.implied, &lowers),
                    };
                    let settled = settled.map_err(failed)?;
                    store.settled(tree.id, settled.to_bytes())?;
                    Ok(Fit::Serves)
                }
            }
        })
        .await?
    }
}
