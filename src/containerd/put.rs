//! Putting an image into containerd: its documents, its snapshots, its name.
//!
//! As containerd's own pull leaves it: every document refers to the next by a label, the configuration to
//! the topmost snapshot, and the image's name to the first document, so that one deletion takes all of
//! it. Until the name stands a lease keeps the rest; an attempt that ends early ends its lease, and
//! containerd collects what it made.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tonic::{Code, Request, Status};

use super::content::content_client::ContentClient;
use super::images::images_client::ImagesClient;
use super::ingest::{Labels, labelling, source_label};
use super::{Containerd, ContainerdError, content, images};
use crate::image::{BlobDigest, ChainId, ImagePlan, NamedDocument};
use crate::sys::clock::rfc3339;
use containers::containers_client::ContainersClient;
use leases::leases_client::LeasesClient;
use snapshots::snapshots_client::SnapshotsClient;

/// Generated code.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated code")]
mod containers {
    tonic::include_proto!("containerd.services.containers.v1");
}

/// Generated code.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated code")]
mod leases {
    tonic::include_proto!("containerd.services.leases.v1");
}

/// Generated code.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated code")]
mod snapshots {
    tonic::include_proto!("containerd.services.snapshots.v1");
}

/// The name that containerd knows hoistd by.
const SNAPSHOTTER: &str = "hoist";

/// The label by which CRI tells the kubelet that its garbage collection has to leave an image alone
/// (containerd 1.7 and later).
const LABEL_PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// The label that tells whose doing an image's name is.
const LABEL_PREFETCHED: (&str, &str) = ("dev.hoist.prefetched", "true");

/// A lease of a daemon that was killed meanwhile ends by itself: longer than any image takes, one that is pulled after all
/// others too, and as long as containerd keeps half a blob.
const LEASE_TIME: Duration = Duration::from_secs(24 * 3600);

/// What is made under it stays until it ends.
#[derive(Debug)]
pub struct Lease {
    /// Whose requests are made under it.
    containerd: Containerd,
    id: String,
}

/// An image's name in containerd.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// The name.
    pub name: String,
    /// Whether hoist put it there, and nobody else.
    pub is_prefetched: bool,
}

fn answer(what: &str, status: &Status) -> ContainerdError {
    ContainerdError::Answer { what: what.to_owned(), problem: status.message().to_owned() }
}

fn well_if_gone<T>(what: &str, ended: Result<T, Status>) -> Result<(), ContainerdError> {
    match ended {
        Err(status) if status.code() != Code::NotFound => Err(answer(what, &status)),
        _ => Ok(()),
    }
}

fn stat(chain_id: ChainId) -> snapshots::StatSnapshotRequest {
    let (snapshotter, key) = (SNAPSHOTTER.to_owned(), chain_id.to_string());
    snapshots::StatSnapshotRequest { snapshotter, key }
}

impl Containerd {
    /// Begins a lease.
    ///
    /// # Errors
    /// Where containerd refuses.
    pub async fn lease(&self) -> Result<Lease, ContainerdError> {
        let expires = rfc3339(SystemTime::now() + LEASE_TIME);
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expires)]);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = format!("hoist-{}-{}", std::process::id(), since.as_nanos());
        let request = self.request(leases::CreateRequest { id: id.clone(), labels });
        let made = LeasesClient::new(self.channel.clone()).create(request).await;
        made.map_err(|status| answer("a lease", &status))?;
        let lease = Some(id.parse().expect("letters, digits and dashes"));
        Ok(Lease { containerd: Self { lease, ..self.clone() }, id })
    }

    /// Whether the image's name leads to `target` and its topmost snapshot stands.
    ///
    /// # Errors
    /// Where containerd does not answer.
    pub async fn has(
        &self,
        name: &str,
        plan: &ImagePlan,
        target: BlobDigest,
    ) -> Result<bool, ContainerdError> {
        match self.image(name).await {
            Ok(found) if found == target => {}
            Ok(_) | Err(ContainerdError::NoImage { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        match plan.layers.last() {
            Some(top) => self.stands(self.request(stat(top.chain_id))).await,
            None => Ok(true),
        }
    }

    async fn stands(
        &self,
        request: Request<snapshots::StatSnapshotRequest>,
    ) -> Result<bool, ContainerdError> {
        let key = request.get_ref().key.clone();
        match SnapshotsClient::new(self.channel.clone()).stat(request).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(answer(&format!("snapshot {key}"), &status)),
        }
    }

    /// Gives an image its name, pinned: from here on it stands.
    ///
    /// # Errors
    /// Where containerd refuses.
    pub async fn name(&self, name: &str, target: &NamedDocument) -> Result<(), ContainerdError> {
        let labels = [LABEL_PINNED, LABEL_PREFETCHED];
        let image = images::Image {
            name: name.to_owned(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            target: Some(images::Descriptor {
                media_type: target.media_type.clone(),
                digest: target.digest.to_string(),
                size: i64::try_from(target.bytes.len()).unwrap_or(i64::MAX),
            }),
        };
        let mut client = ImagesClient::new(self.channel.clone());
        let create = images::CreateImageRequest { image: Some(image.clone()) };
        match client.create(self.request(create)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                // It stays whose it is; what it leads to and the pin are ours.
                let paths = vec!["target".to_owned(), format!("labels.{}", LABEL_PINNED.0)];
                let update_mask = Some(images::FieldMask { paths });
                let update = images::UpdateImageRequest { image: Some(image), update_mask };
                let updated = client.update(self.request(update)).await;
                updated.map(drop).map_err(|status| answer(name, &status))
            }
            Err(status) => Err(answer(name, &status)),
        }
    }

    /// The names that lead to `target`.
    ///
    /// # Errors
    /// Where containerd does not answer.
    pub async fn names(&self, target: BlobDigest) -> Result<Vec<Named>, ContainerdError> {
        let filters = vec![format!("target.digest=={target}")];
        let list = self.request(images::ListImagesRequest { filters });
        let found = ImagesClient::new(self.channel.clone()).list(list).await;
        let found = found.map_err(|status| answer("its images", &status))?.into_inner();
        let named = found.images.into_iter().map(|image| Named {
            is_prefetched: image.labels.contains_key(LABEL_PREFETCHED.0),
            name: image.name,
        });
        Ok(named.collect())
    }

    /// The containers that were made of an image with one of these names.
    ///
    /// # Errors
    /// Where containerd does not answer.
    pub async fn containers_of(&self, names: &[Named]) -> Result<Vec<String>, ContainerdError> {
        let list = self.request(containers::ListContainersRequest { filters: Vec::new() });
        let found = ContainersClient::new(self.channel.clone())
            .max_decoding_message_size(super::MESSAGE_BYTES_MOST)
            .list(list)
            .await;
        let found = found.map_err(|status| answer("its containers", &status))?.into_inner();
        let uses = |image: &str| names.iter().any(|named| named.name == image);
        Ok(found.containers.into_iter().filter(|c| uses(&c.image)).map(|c| c.id).collect())
    }

    /// Takes the pin off an image's name, which stays.
    ///
    /// # Errors
    /// Where containerd refuses; a name that is not there is well.
    pub async fn unpin(&self, name: &str) -> Result<(), ContainerdError> {
        let mut client = ImagesClient::new(self.channel.clone());
        let get = self.request(images::GetImageRequest { name: name.to_owned() });
        let found = match client.get(get).await {
            Err(status) => return well_if_gone::<()>(name, Err(status)),
            Ok(found) => found.into_inner().image,
        };
        // Whole, whatever the mask says: containerd ends with a panic over an image without a target.
        let Some(target) = found.and_then(|image| image.target) else { return Ok(()) };
        let (name, labels) = (name.to_owned(), HashMap::new());
        let image = images::Image { name: name.clone(), labels, target: Some(target) };
        let paths = [LABEL_PINNED.0, LABEL_PREFETCHED.0].map(|key| format!("labels.{key}")).into();
        let update_mask = Some(images::FieldMask { paths });
        let update = images::UpdateImageRequest { image: Some(image), update_mask };
        well_if_gone(&name, client.update(self.request(update)).await)
    }

    /// Takes an image's name away; what nobody refers to then is gone when this returns.
    ///
    /// # Errors
    /// Where containerd refuses; a name that is not there is well.
    pub async fn remove(&self, name: &str) -> Result<(), ContainerdError> {
        let delete = images::DeleteImageRequest { name: name.to_owned(), sync: true };
        let deleted = ImagesClient::new(self.channel.clone()).delete(self.request(delete)).await;
        well_if_gone(name, deleted)
    }
}

impl Lease {
    /// A connection by which whatever is made belongs to the lease.
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    fn request<T>(&self, message: T) -> Request<T> {
        self.containerd.request(message)
    }

    /// Puts the documents of an image into the content store, from the configuration up; `source` names
    /// the registry and the repository that they come from.
    ///
    /// # Errors
    /// Where containerd refuses.
    pub async fn documents(
        &self,
        documents: &[NamedDocument],
        plan: &ImagePlan,
        source: (&str, &str),
    ) -> Result<(), ContainerdError> {
        for (index, document) in documents.iter().enumerate().rev() {
            let mut labels = references(documents, index, plan);
            labels.extend([source_label(source.0, source.1)]);
            self.document(document, labels).await?;
        }
        Ok(())
    }

    async fn document(
        &self,
        document: &NamedDocument,
        labels: Labels,
    ) -> Result<(), ContainerdError> {
        let digest = document.digest.to_string();
        let write = content::WriteContentRequest {
            action: content::WriteAction::Commit.into(),
            r#ref: format!("hoist-{digest}"),
            total: i64::try_from(document.bytes.len()).unwrap_or(i64::MAX),
            expected: digest.clone(),
            offset: 0,
            data: document.bytes.to_vec(),
            labels: labels.clone(),
        };
        let mut client = ContentClient::new(self.containerd.channel.clone());
        let written = async {
            let written = client.write(self.request(tokio_stream::once(write))).await;
            let mut answers = written?.into_inner();
            while answers.message().await?.is_some() {}
            Ok::<_, Status>(())
        };
        match written.await {
            Ok(()) => Ok(()),
            // Of another image, or of a pull before: what it refers to may be new.
            Err(status) if status.code() == Code::AlreadyExists => {
                let update = self.request(labelling(document.digest, labels));
                let updated = client.update(update).await;
                updated.map(drop).map_err(|status| answer(&digest, &status))
            }
            Err(status) => Err(answer(&digest, &status)),
        }
    }

    /// Has containerd take the snapshot of a layer that the snapshotter has, on `parent`.
    ///
    /// # Errors
    /// Where the snapshotter does not have it, or containerd refuses.
    pub async fn snapshot(
        &self,
        chain_id: ChainId,
        parent: Option<ChainId>,
        labels: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), ContainerdError> {
        if self.containerd.stands(self.request(stat(chain_id))).await? {
            return Ok(());
        }
        let snapshotter = SNAPSHOTTER.to_owned();
        let key = format!("{} {chain_id}", self.id);
        let prepare = snapshots::PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: parent.map(|parent| parent.to_string()).unwrap_or_default(),
            labels: labels.into_iter().collect(),
        };
        let mut client = SnapshotsClient::new(self.containerd.channel.clone());
        let what = format!("snapshot {chain_id}");
        match client.prepare(self.request(prepare)).await {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(answer(&what, &status)),
            Ok(_) => {
                let remove = snapshots::RemoveSnapshotRequest { snapshotter, key };
                // Where this fails, it goes with the lease.
                let _ = client.remove(self.request(remove)).await;
                let problem = "its snapshotter \"hoist\" does not have the layer that hoistd has: \
                               proxy_plugins.hoist.address has to be the socket of this hoistd";
                Err(ContainerdError::Answer { what, problem: problem.to_owned() })
            }
        }
    }

    /// Ends the lease. What was made under it and nobody refers to is gone when this returns.
    ///
    /// # Errors
    /// Where containerd does not answer; it ends the lease by itself then, within a day.
    pub async fn end(self) -> Result<(), ContainerdError> {
        // Not under itself.
        let outside = Containerd { lease: None, ..self.containerd };
        let delete = outside.request(leases::DeleteRequest { id: self.id, sync: true });
        let deleted = LeasesClient::new(outside.channel.clone()).delete(delete).await;
        well_if_gone("a lease", deleted)
    }
}

/// The labels by which document `index` keeps what it names.
fn references(documents: &[NamedDocument], index: usize, plan: &ImagePlan) -> Labels {
    let content = |name: &str| format!("containerd.io/gc.ref.content.{name}");
    let mut labels = HashMap::new();
    match documents.len() - index {
        1 => {
            if let Some(top) = plan.layers.last() {
                let key = format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}");
                labels.insert(key, top.chain_id.to_string());
            }
        }
        2 => {
            labels.insert(content("config"), documents[index + 1].digest.to_string());
            // They are not there; whoever brings them finds them kept.
            for (layer, number) in plan.layers.iter().zip(0..) {
                labels.insert(content(&format!("l.{number}")), layer.blob.to_string());
            }
        }
        _ => {
            labels.insert(content("m.0"), documents[index + 1].digest.to_string());
        }
    }
    labels
}
