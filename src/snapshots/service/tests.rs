//! The shell over a real socket, with the client that the crate generates beside the server.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use containerd_snapshots::tonic::codegen::{Service as Tower, http::Uri};
use containerd_snapshots::tonic::transport::{Channel, Endpoint};
use futures_util::future::BoxFuture;
use grpc::snapshots_client::SnapshotsClient;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::image::Sha256;
use crate::pull::trees::HeldTree;
use crate::snapshots::{Claim, ClaimError, Options};

/// Connects to a socket whatever the address says.
#[derive(Clone)]
struct Connector(PathBuf);

impl Tower<Uri> for Connector {
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

/// A source that never answers and counts who asks and who gives up.
#[derive(Default)]
struct Silent {
    asked: Arc<AtomicUsize>,
    withdrawn: Arc<AtomicUsize>,
}

impl LayerSource for Silent {
    fn claim(&self, claim: Claim) -> BoxFuture<'static, Result<HeldTree, ClaimError>> {
        struct OnDrop(Arc<AtomicUsize>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        assert_eq!(claim.namespace, "from-metadata");
        self.asked.fetch_add(1, Ordering::SeqCst);
        let withdrawn = OnDrop(Arc::clone(&self.withdrawn));
        Box::pin(async move {
            let _withdrawn = withdrawn;
            std::future::pending().await
        })
    }
}

async fn reaches(counter: &AtomicUsize, value: usize) {
    while counter.load(Ordering::SeqCst) < value {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

struct Running {
    snapshots: Arc<Snapshots>,
    client: SnapshotsClient<Channel>,
    shutdown: oneshot::Sender<()>,
    server: JoinHandle<Result<(), Error>>,
}

async fn serve(root: &Path, source: Option<Arc<dyn LayerSource>>) -> Running {
    let snapshots = Snapshots::open(&root.join("root"), Options::default()).unwrap();
    let socket = root.join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let (shutdown, ended) = oneshot::channel();
    let ended = async { drop(ended.await) };
    let server = tokio::spawn(Arc::clone(&snapshots).serve(source, listener, ended));
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(Connector(socket)).await.unwrap();
    Running { snapshots, client: SnapshotsClient::new(channel), shutdown, server }
}

fn prepare(key: &str, parent: &str) -> grpc::PrepareSnapshotRequest {
    grpc::PrepareSnapshotRequest {
        key: key.to_owned(),
        parent: parent.to_owned(),
        ..Default::default()
    }
}

/// A Prepare as a pull sends it.
fn prepare_layer() -> Request<grpc::PrepareSnapshotRequest> {
    let digest = Sha256::of(b"x").to_string();
    let mut message = prepare("ns/1/key", "");
    for (label, value) in [
        ("containerd.io/snapshot.ref", &*digest),
        ("containerd.io/snapshot/cri.image-ref", "registry/image:tag"),
        ("containerd.io/snapshot/cri.manifest-digest", &digest),
        ("containerd.io/snapshot/cri.layer-digest", &digest),
    ] {
        message.labels.insert(label.to_owned(), value.to_owned());
    }
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE, "from-metadata".parse().unwrap());
    request
}

#[tokio::test]
async fn codes_and_pages_on_the_wire() {
    let root = tempfile::tempdir().unwrap();
    let Running { snapshots, mut client, shutdown, server } = serve(root.path(), None).await;
    let stat = |key: &str| grpc::StatSnapshotRequest { key: key.to_owned(), ..Default::default() };

    assert_eq!(client.stat(stat("absent")).await.unwrap_err().code(), Code::NotFound);
    let orphan = client.prepare(prepare("key", "absent")).await.unwrap_err();
    assert_eq!(orphan.code(), Code::NotFound);
    let mounts = client.prepare(prepare("key", "")).await.unwrap().into_inner().mounts;
    assert_eq!((mounts.len(), &*mounts[0].r#type), (1, "bind"));
    let twice = client.prepare(prepare("key", "")).await.unwrap_err();
    assert_eq!(twice.code(), Code::AlreadyExists);
    let on_active = client.prepare(prepare("other", "key")).await.unwrap_err();
    assert_eq!(on_active.code(), Code::InvalidArgument);

    let commit = grpc::CommitSnapshotRequest {
        name: "name".to_owned(),
        key: "key".to_owned(),
        ..Default::default()
    };
    client.commit(commit).await.unwrap();
    client.prepare(prepare("child", "name")).await.unwrap();
    let remove = grpc::RemoveSnapshotRequest { key: "name".to_owned(), ..Default::default() };
    let busy = client.remove(remove).await.unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition);
    assert!(busy.message().contains("remove"));
    let mounts = grpc::MountsRequest { key: "name".to_owned(), ..Default::default() };
    let committed = client.mounts(mounts).await.unwrap_err();
    assert_eq!(committed.code(), Code::FailedPrecondition);

    let info = client.stat(stat("name")).await.unwrap().into_inner().info.unwrap();
    assert_eq!(info.kind, grpc::Kind::Committed as i32);
    let mut update = grpc::UpdateSnapshotRequest { info: Some(info), ..Default::default() };
    update.update_mask.get_or_insert_default().paths.push("parent".to_owned());
    let refused = client.update(update).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    for number in 0..INFOS_A_MESSAGE {
        snapshots.create(Kind::Active, &format!("k{number}"), "", &Labels::new()).unwrap();
    }
    let mut pages = client.list(grpc::ListSnapshotsRequest::default()).await.unwrap().into_inner();
    let mut lengths = Vec::new();
    while let Some(page) = pages.message().await.unwrap() {
        lengths.push(page.info.len());
    }
    assert_eq!(lengths, [INFOS_A_MESSAGE, 2]);
    let filters = vec!["name=".to_owned()];
    let bad = grpc::ListSnapshotsRequest { filters, ..Default::default() };
    assert_eq!(client.list(bad).await.unwrap_err().code(), Code::InvalidArgument);
    client.cleanup(grpc::CleanupRequest::default()).await.unwrap();

    // With a client that stays connected.
    shutdown.send(()).unwrap();
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_pull_ends_when_its_client_or_the_daemon_goes() {
    let root = tempfile::tempdir().unwrap();
    let silent = Silent::default();
    let (asked, withdrawn) = (Arc::clone(&silent.asked), Arc::clone(&silent.withdrawn));
    let running = serve(root.path(), Some(Arc::new(silent))).await;
    let Running { mut client, shutdown, server, .. } = running;

    let mut leaving = client.clone();
    let call = tokio::spawn(async move { leaving.prepare(prepare_layer()).await });
    reaches(&asked, 1).await;
    // Everybody else is answered meanwhile.
    client.prepare(prepare("ordinary", "")).await.unwrap();
    call.abort();
    reaches(&withdrawn, 1).await;

    let mut staying = client.clone();
    let call = tokio::spawn(async move { staying.prepare(prepare_layer()).await });
    reaches(&asked, 2).await;
    shutdown.send(()).unwrap();
    assert_eq!(call.await.unwrap().unwrap_err().code(), Code::Unavailable);
    server.await.unwrap().unwrap();
    reaches(&withdrawn, 2).await;
}
