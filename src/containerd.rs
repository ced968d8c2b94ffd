//! Images that containerd has: which manifest a name leads to, and the blobs in its content store; and
//! images that are put there ([`put`]).
//!
//! Only a few calls of its API are asked (`proto/containerd/`). What is read is not verified here; whoever
//! reads a blob to its end knows its digest.

mod ingest;
pub mod put;

use std::path::PathBuf;

use bytes::Bytes;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Streaming};

use crate::image::{BlobDigest, Sha256};
use content::content_client::ContentClient;
use images::images_client::ImagesClient;
pub use ingest::{Ingest, Labels, source_label};

/// Generated code.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated code")]
mod content {
    tonic::include_proto!("containerd.services.content.v1");
}

/// Generated code.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated code")]
mod images {
    tonic::include_proto!("containerd.services.images.v1");
}

/// containerd's own bound of a message.
const MESSAGE_BYTES_MOST: usize = 16 << 20;

/// Which containerd, and whose images.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    /// Its socket.
    pub socket: PathBuf,
    /// The namespace.
    pub namespace: String,
}

impl Default for Address {
    /// What `ctr` takes.
    fn default() -> Self {
        let socket = "/run/containerd/containerd.sock".into();
        Self { socket, namespace: "default".to_owned() }
    }
}

/// Why containerd does not give an image.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// Nobody answers.
    #[error(
        "no containerd answers at {}: {reason}; --containerd-address names another socket, for hoistd cri.containerd does", socket.display()
    )]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The namespace's name is none.
    #[error("{0:?} is not the name of a namespace of containerd")]
    Namespace(String),
    /// It has no such image.
    #[error(
        "containerd has no image {name:?} in the namespace {namespace}; `ctr --namespace {namespace} image ls` lists \
         those it has, and --containerd-namespace names another one (the kubelet's is k8s.io)"
    )]
    NoImage {
        /// The image.
        name: String,
        /// The namespace.
        namespace: String,
    },
    /// It has the image, but not all of its blobs.
    #[error(
        "containerd does not have {digest}: the image was pulled for another platform, or its layers were discarded or \
         came through a snapshotter that fetches them itself (hoistd does); `ctr content fetch` brings them, or \
         pull.content_store = \"keep\" with the next pull"
    )]
    NoBlob {
        /// The blob.
        digest: BlobDigest,
    },
    /// It does not take a blob.
    #[error("containerd does not take {digest} into its content store: {problem}")]
    Refused {
        /// The blob.
        digest: BlobDigest,
        /// What it says.
        problem: String,
    },
    /// Another answer than expected.
    #[error("containerd, asked for {what}: {problem}")]
    Answer {
        /// What was asked for.
        what: String,
        /// What it says.
        problem: String,
    },
    /// A document is not what its digest says.
    #[error("containerd has other bytes under {expected}, with the digest {actual}")]
    Digest {
        /// The name.
        expected: BlobDigest,
        /// What is there.
        actual: BlobDigest,
    },
    /// A document that is too large to be one.
    #[error(
        "{digest} in containerd is larger than {limit} bytes, which is the most that is read of a document"
    )]
    TooLarge {
        /// The document.
        digest: BlobDigest,
        /// The bound.
        limit: u64,
    },
}

/// A connection to containerd.
#[derive(Clone, Debug)]
pub struct Containerd {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
    shown: String,
    /// What is made belongs to it.
    lease: Option<MetadataValue<Ascii>>,
}

/// A blob's bytes on their way.
#[derive(Debug)]
pub struct Reading {
    stream: Streaming<content::ReadContentResponse>,
    digest: BlobDigest,
}

impl Containerd {
    /// Connects.
    ///
    /// # Errors
    /// Where nobody answers, or the namespace cannot be one.
    pub async fn connect(address: &Address) -> Result<Self, ContainerdError> {
        let refused =
            |reason: String| ContainerdError::Connect { socket: address.socket.clone(), reason };
        let shown = address.namespace.clone();
        let namespace = shown.parse().map_err(|_| ContainerdError::Namespace(shown.clone()))?;
        let absolute = std::path::absolute(&address.socket).map_err(|e| refused(e.to_string()))?;
        let endpoint = Endpoint::from_shared(format!("unix:{}", absolute.display()))
            .map_err(|e| refused(e.to_string()))?;
        let channel = endpoint.connect().await.map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            refused(source.unwrap_or_else(|| error.to_string()))
        })?;
        Ok(Self { channel, namespace, shown, lease: None })
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.shown
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert("containerd-lease", lease.clone());
        }
        request
    }

    /// The manifest or index that an image's name leads to.
    ///
    /// # Errors
    /// Where there is no such image.
    pub async fn image(&self, name: &str) -> Result<BlobDigest, ContainerdError> {
        let answer = |problem: String| ContainerdError::Answer { what: name.to_owned(), problem };
        let request = self.request(images::GetImageRequest { name: name.to_owned() });
        let got = ImagesClient::new(self.channel.clone()).get(request).await;
        let got = got.map_err(|status| match status.code() {
            Code::NotFound => {
                ContainerdError::NoImage { name: name.to_owned(), namespace: self.shown.clone() }
            }
            _ => answer(status.message().to_owned()),
        })?;
        let target = got.into_inner().image.and_then(|image| image.target);
        let target = target.ok_or_else(|| answer("an image without a target".to_owned()))?;
        target.digest.parse().map_err(|error| answer(format!("{error}")))
    }

    /// A manifest, index or configuration, verified; `limit` bytes at most.
    ///
    /// # Errors
    /// Where it is not there, too large, or other bytes are.
    pub async fn document(
        &self,
        digest: BlobDigest,
        limit: u64,
    ) -> Result<Vec<u8>, ContainerdError> {
        let mut reading = self.blob(digest).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = reading.next().await? {
            if (bytes.len() + piece.len()) as u64 > limit {
                return Err(ContainerdError::TooLarge { digest, limit });
            }
            bytes.extend_from_slice(&piece);
        }
        let actual = BlobDigest(Sha256::of(&bytes));
        if actual != digest {
            return Err(ContainerdError::Digest { expected: digest, actual });
        }
        Ok(bytes)
    }

    /// Begins to read a blob.
    ///
    /// # Errors
    /// Where it is not there.
    pub async fn blob(&self, digest: BlobDigest) -> Result<Reading, ContainerdError> {
        let message =
            content::ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let mut client =
            ContentClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MOST);
        let stream = client.read(self.request(message)).await;
        let stream = stream.map_err(|status| told(digest, &status))?.into_inner();
        Ok(Reading { stream, digest })
    }
}

impl Reading {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// Where the blob is not there, or the connection ends.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ContainerdError> {
        let message = self.stream.message().await;
        let message = message.map_err(|status| told(self.digest, &status))?;
        Ok(message.map(|message| message.data.into()))
    }
}

fn told(digest: BlobDigest, status: &tonic::Status) -> ContainerdError {
    match status.code() {
        Code::NotFound => ContainerdError::NoBlob { digest },
        _ => ContainerdError::Answer {
            what: digest.to_string(),
            problem: status.message().to_owned(),
        },
    }
}
