//! hoistd's socket as containerd uses it: what its errors say is what containerd, the kubelet and `kubectl` show.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use containerd_snapshots::api::snapshots::v1 as grpc;
use containerd_snapshots::tonic::Request;
use containerd_snapshots::tonic::codegen::{Service, http::Uri};
use containerd_snapshots::tonic::transport::Endpoint;
use grpc::snapshots_client::SnapshotsClient;
use tokio::net::UnixStream;

/// Connects to a socket whatever the address says.
#[derive(Clone)]
struct Connector(PathBuf);

impl Service<Uri> for Connector {
    type Response = UnixStream;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<UnixStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(UnixStream::connect(self.0.clone()))
    }
}

/// The labels with which containerd asks for the lowest layer of an image, as a pull's record has it.
pub(crate) fn labels(pull: &serde_json::Value) -> Vec<(&'static str, String)> {
    let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let layer = &pull["layers"][0];
    vec![
        ("containerd.io/snapshot.ref", word(&layer["diff_id"])),
        ("containerd.io/snapshot/cri.image-ref", word(&pull["image"])),
        ("containerd.io/snapshot/cri.manifest-digest", word(&pull["manifest"])),
        ("containerd.io/snapshot/cri.layer-digest", word(&layer["digest"])),
    ]
}

/// Asks for a layer with these labels; why it cannot be had.
pub(crate) async fn prepare(
    socket: &Path,
    labels: Vec<(&'static str, String)>,
) -> Result<(), String> {
    let connector = Connector(socket.to_owned());
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let message = grpc::PrepareSnapshotRequest {
        key: format!("k8s.io/{}/extract-{}", labels.len(), labels[0].1),
        labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..Default::default()
    };
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().unwrap());
    let answer = SnapshotsClient::new(channel).prepare(request).await;
    answer.map(drop).map_err(|status| status.message().to_owned())
}
