//! Blobs on their way into containerd's content store.
//!
//! A write is one stream of gRPC: each request is answered, and several may be under way. containerd
//! hashes what comes and compares the digest at the commit; what is not committed is aborted, so that
//! half a blob takes no room. No lease is taken: an ingest without one is collected after a day, and a
//! blob without one stays as long as a manifest's labels `containerd.io/gc.ref.content.…` name it. A
//! client of containerd stores the manifest, with these labels, before it asks for a layer, and holds
//! it by its own lease and then by the image; with the image the blob goes too.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::content::content_client::ContentClient;
use super::content::{self, WriteAction, WriteContentRequest, WriteContentResponse};
use super::{Containerd, ContainerdError};
use crate::image::BlobDigest;

/// What a blob is called until it has been committed. Not the name that containerd's own clients use:
/// those would wait for us.
fn ref_of(digest: BlobDigest) -> String {
    format!("hoist-layer-{digest}")
}

/// Requests that are sent before the answer to the first has come.
const UNANSWERED_MOST: usize = 2;

/// How long, and how often in it, a writer is waited for that has the ref: our own last one, whose end
/// containerd has not seen yet, or another hoistd's.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
const BUSY_TRIES: usize = 50;

/// Labels of a blob.
pub type Labels = HashMap<String, String>;

/// Where a blob came from, as containerd's own pulls note it: `push` mounts it from there.
pub fn source_label(registry: &str, repository: &str) -> (String, String) {
    // containerd takes the name without a port.
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    (format!("containerd.io/distribution.source.{host}"), repository.to_owned())
}

/// The request that sets labels of a blob, and leaves its others as they are.
pub(super) fn labelling(digest: BlobDigest, labels: Labels) -> content::UpdateRequest {
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    content::UpdateRequest {
        info: Some(content::Info { digest: digest.to_string(), labels }),
        update_mask: Some(content::FieldMask { paths }),
    }
}

/// A blob that is being written. Dropped before its commit, it is aborted.
#[derive(Debug)]
pub struct Ingest {
    containerd: Containerd,
    digest: BlobDigest,
    size: u64,
    offset: u64,
    unanswered: usize,
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    committed: bool,
}

impl Containerd {
    /// The labels of a blob; `None` where it is not in the content store.
    ///
    /// # Errors
    /// Where containerd does not say.
    pub async fn labels(&self, digest: BlobDigest) -> Result<Option<Labels>, ContainerdError> {
        let request = self.request(content::InfoRequest { digest: digest.to_string() });
        match ContentClient::new(self.channel.clone()).info(request).await {
            Ok(info) => Ok(Some(info.into_inner().info.unwrap_or_default().labels)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(refused(digest, &status)),
        }
    }

    /// Sets labels of a blob, and leaves its others as they are.
    ///
    /// # Errors
    /// Where it is not there, or containerd does not take them.
    pub async fn label(&self, digest: BlobDigest, labels: Labels) -> Result<(), ContainerdError> {
        let request = self.request(labelling(digest, labels));
        let updated = ContentClient::new(self.channel.clone()).update(request).await;
        updated.map(drop).map_err(|status| refused(digest, &status))
    }

    /// Begins to write a blob of `size` bytes; `None` where the content store has it, in this namespace
    /// or in another one that shares.
    ///
    /// # Errors
    /// Where somebody else is writing it for seconds, or containerd refuses.
    pub async fn ingest(
        &self,
        digest: BlobDigest,
        size: u64,
    ) -> Result<Option<Ingest>, ContainerdError> {
        let mut tries = 0;
        loop {
            match self.try_ingest(digest, size).await {
                // Another namespace has it, and containerd lets this one share; or an earlier try came
                // to its end but for this.
                Ok(ingest) if ingest.offset == size => {
                    ingest.commit(Labels::default()).await?;
                    return Ok(None);
                }
                Ok(mut ingest) => {
                    ingest.offset = 0;
                    return Ok(Some(ingest));
                }
                Err(status) => match status.code() {
                    Code::AlreadyExists => return Ok(None),
                    Code::Unavailable if is_locked(&status) && tries < BUSY_TRIES => {
                        tries += 1;
                        tokio::time::sleep(BUSY_PAUSE).await;
                    }
                    _ => return Err(refused(digest, &status)),
                },
            }
        }
    }

    async fn try_ingest(&self, digest: BlobDigest, size: u64) -> Result<Ingest, Status> {
        let (requests, outgoing) = mpsc::channel(UNANSWERED_MOST);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: ref_of(digest),
            total: i64::try_from(size).unwrap_or(i64::MAX),
            expected: digest.to_string(),
            ..WriteContentRequest::default()
        };
        requests.send(first).await.expect("the receiver is there");
        let outgoing = self.request(ReceiverStream::new(outgoing));
        let answers = ContentClient::new(self.channel.clone()).write(outgoing).await?;
        let mut ingest = Ingest {
            containerd: self.clone(),
            digest,
            size,
            offset: 0,
            unanswered: 1,
            requests,
            answers: answers.into_inner(),
            // Nothing is to be aborted before it has been answered: it may be somebody else's.
            committed: true,
        };
        let there = ingest.answer().await?;
        ingest.offset = u64::try_from(there.offset).unwrap_or(0);
        ingest.committed = false;
        Ok(ingest)
    }

    async fn abort(self, digest: BlobDigest) {
        let request = self.request(content::AbortRequest { r#ref: ref_of(digest) });
        if let Err(status) = ContentClient::new(self.channel.clone()).abort(request).await
            && status.code() != Code::NotFound
        {
            let reason = status.message();
            tracing::debug!(%digest, reason, "half a blob stays in containerd for a day");
        }
    }
}

impl Ingest {
    /// Writes the next bytes. A first write begins at the blob's begin, whatever an earlier try left.
    ///
    /// # Errors
    /// Where containerd does not take them: its disk is full, or it has ended.
    pub async fn write(&mut self, data: Vec<u8>) -> Result<(), ContainerdError> {
        let length = data.len() as u64;
        self.send(WriteAction::Write, data, Labels::default()).await?;
        self.offset += length;
        Ok(())
    }

    /// Makes it a blob of the content store, if its digest and size are right.
    ///
    /// # Errors
    /// Where they are not, or containerd does not take it.
    pub async fn commit(mut self, labels: Labels) -> Result<(), ContainerdError> {
        self.send(WriteAction::Commit, Vec::new(), labels).await?;
        while self.unanswered > 0 {
            match self.answer().await {
                Ok(_) => {}
                // Another writer was faster.
                Err(status) if status.code() == Code::AlreadyExists => break,
                Err(status) => return Err(refused(self.digest, &status)),
            }
        }
        self.committed = true;
        Ok(())
    }

    async fn send(
        &mut self,
        action: WriteAction,
        data: Vec<u8>,
        labels: Labels,
    ) -> Result<(), ContainerdError> {
        while self.unanswered >= UNANSWERED_MOST {
            self.answer().await.map_err(|status| refused(self.digest, &status))?;
        }
        let total = i64::try_from(self.size).unwrap_or(i64::MAX);
        let request = WriteContentRequest {
            action: action.into(),
            r#ref: ref_of(self.digest),
            total,
            expected: self.digest.to_string(),
            offset: i64::try_from(self.offset).unwrap_or(i64::MAX),
            data,
            labels,
        };
        if self.requests.send(request).await.is_err() {
            // The stream has ended; its last answer says why.
            self.answer().await.map_err(|status| refused(self.digest, &status))?;
        }
        self.unanswered += 1;
        Ok(())
    }

    async fn answer(&mut self) -> Result<WriteContentResponse, Status> {
        let answer = self.answers.message().await?;
        self.unanswered -= 1;
        answer.ok_or_else(|| Status::unknown("it ended the stream"))
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(self.containerd.clone().abort(self.digest));
        }
    }
}

/// Whether the ref has another writer now (containerd, `plugins/content/local/locks.go`); an
/// `Unavailable` without that word is a containerd that is not there.
fn is_locked(status: &Status) -> bool {
    status.message().contains("locked")
}

fn refused(digest: BlobDigest, status: &Status) -> ContainerdError {
    ContainerdError::Refused { digest, problem: status.message().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_noted_as_containerd_notes_it() {
        let label = |registry| source_label(registry, "a/b").0;
        assert_eq!(label("registry.example"), "containerd.io/distribution.source.registry.example");
        assert_eq!(label("127.0.0.1:5000"), "containerd.io/distribution.source.127.0.0.1");
        assert_eq!(source_label("r", "a/b").1, "a/b");
    }
}
