//! Where the result goes when it is whole: into a layout, an archive or a registry.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::Value;

use super::place::Place;
use super::progress::{Phase, Progress};
use super::source::Reach;
use super::{ConvertError, document};
use crate::image::{BlobDigest, Reference};
use crate::layout::Staging;
use crate::registry::{Push, ReadPart};

/// Blobs that are sent at once. Registries limit what one connection gets; memory is a chunk for each.
const UPLOADS: usize = 4;

/// How often a push looks whether it is wanted still.
const LOOK: Duration = Duration::from_millis(100);

/// What a result consists of.
#[derive(Default)]
pub(super) struct Parcel {
    /// Layers and configurations, with their sizes in bytes.
    pub(super) blobs: Vec<(BlobDigest, u64)>,
    /// Manifests of single images, with their sizes.
    pub(super) manifests: Vec<BlobDigest>,
    /// Where layers come from that are as they were.
    pub(super) origins: Vec<(BlobDigest, Reference)>,
}

/// The directory in which a result waits until it is whole. For a layout it has to be beside it.
///
/// # Errors
/// Where nothing can be written to `destination`.
pub(super) fn waiting_room(destination: &Place, scratch: &Path) -> Result<PathBuf, ConvertError> {
    let refuse = |reason: &str| {
        Err(ConvertError::Name { name: destination.to_string(), reason: reason.to_owned() })
    };
    match destination {
        Place::Directory(path, _) => Ok(path.clone()),
        Place::Archive(path, _) => Ok(match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        }),
        Place::Registry(reference) if reference.digest().is_some() => {
            refuse("a destination has a tag, not a digest: nobody knows the digest yet")
        }
        Place::Registry(_) => Ok(scratch.to_owned()),
        Place::Docker(..) | Place::Containerd(_) => {
            refuse("it can only be read; hoist writes to a registry, oci: and oci-archive:")
        }
    }
}

/// Delivers what `descriptor` names. A registry gets blobs first, then manifests, then the tag.
///
/// # Errors
/// Where the destination refuses. Then its tag is what it was.
pub(super) fn deliver(
    staging: Staging,
    destination: &Place,
    descriptor: &Value,
    parcel: &Parcel,
    reach: &Reach,
    progress: &Arc<Progress>,
) -> Result<(), ConvertError> {
    match destination {
        Place::Directory(path, tag) => Ok(staging.publish(path, descriptor, tag.as_deref())?),
        Place::Archive(path, tag) => {
            Ok(staging.publish_archive(path, descriptor, tag.as_deref())?)
        }
        Place::Registry(reference) => {
            let push = reach.registry.push(reference)?;
            let staging = Arc::new(staging);
            let pushing = send(&push, reference, &staging, descriptor, parcel, progress);
            reach.runtime.block_on(async {
                tokio::select! {
                    sent = pushing => sent,
                    () = unwanted(progress) => Err(ConvertError::Cancelled),
                }
            })
        }
        Place::Docker(..) | Place::Containerd(_) => unreachable!("refused before"),
    }
}

async fn unwanted(progress: &Progress) {
    while progress.check().is_ok() {
        tokio::time::sleep(LOOK).await;
    }
}

async fn send(
    push: &Push,
    reference: &Reference,
    staging: &Arc<Staging>,
    descriptor: &Value,
    parcel: &Parcel,
    progress: &Arc<Progress>,
) -> Result<(), ConvertError> {
    let mut blobs = parcel.blobs.clone();
    // The largest first; each once.
    blobs.sort_by_key(|&(digest, size)| (std::cmp::Reverse(size), digest));
    blobs.dedup();
    progress.enter(Phase::Publish, blobs.iter().map(|(_, size)| size).sum());
    let one = |(digest, size): (BlobDigest, u64)| async move {
        let from = parcel
            .origins
            .iter()
            .find(|(other, origin)| *other == digest && origin.registry() == reference.registry());
        let from = from.map(|(_, origin)| origin.repository());
        let told = std::sync::atomic::AtomicU64::new(0);
        let sent = |bytes: u64| {
            told.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
            progress.add(bytes);
        };
        let read = reader(staging, digest);
        push.blob(digest, size, from, &read, &sent).await?;
        // What was there or mounted is done, too.
        progress.add(size.saturating_sub(told.into_inner()));
        Ok::<(), ConvertError>(())
    };
    let sends = futures_util::stream::iter(blobs.into_iter().map(one));
    sends.buffer_unordered(UPLOADS).try_collect::<Vec<()>>().await?;
    let top = descriptor["digest"].as_str().unwrap_or_default().to_owned();
    let document = |digest: BlobDigest| -> Result<Bytes, ConvertError> {
        let path = staging.path(digest);
        let bytes = std::fs::read(&path).map_err(ConvertError::disk("reading", &path))?;
        Ok(bytes.into())
    };
    for &digest in parcel.manifests.iter().filter(|digest| digest.to_string() != top) {
        push.manifest(&digest.to_string(), document::MANIFEST, &document(digest)?).await?;
    }
    let media_type = descriptor["mediaType"].as_str().unwrap_or(document::MANIFEST);
    let bytes = document(top.parse().expect("it was just written"))?;
    push.manifest(reference.tag().unwrap_or("latest"), media_type, &bytes).await?;
    Ok(())
}

fn reader(staging: &Arc<Staging>, digest: BlobDigest) -> ReadPart {
    use std::os::unix::fs::FileExt as _;
    let path = staging.path(digest);
    Arc::new(move |range| {
        let length = usize::try_from(range.end - range.start).map_err(std::io::Error::other)?;
        let mut bytes = vec![0; length];
        std::fs::File::open(&path)?.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes.into())
    })
}
