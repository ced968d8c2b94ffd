//! The gRPC shell: containerd's messages in, calls of [`Snapshots`], answers and status codes out.
//!
//! The crate `containerd-snapshots` brings the generated service. Its own adapter drops the metadata
//! of a request, and with it the namespace, so the generated trait is implemented here. It speaks an
//! older tonic than the rest of hoist; nothing of it leaves this file.

use std::future::Future;
use std::sync::Arc;

use containerd_snapshots::api::snapshots::v1 as grpc;
use containerd_snapshots::api::types;
use containerd_snapshots::tonic::transport::Server;
use containerd_snapshots::tonic::transport::server::UdsConnectInfo;
use containerd_snapshots::tonic::{self, Code, Request, Response, Status};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use grpc::snapshots_server::{Snapshots as Service, SnapshotsServer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

#[cfg(test)]
mod tests;

use super::caller::Caller;
use super::error::Error;
use super::prepare::{PrepareRequest, blocking};
use super::records::{Info, Kind, Labels, Usage};
use super::source::LayerSource;
use super::timed::Timed;
use super::{Mount, Snapshots};

/// Infos in one message of List. A label can have 4,096 bytes; gRPC clients take 4 MiB a message.
const INFOS_A_MESSAGE: usize = 100;

/// The metadata key with containerd's namespace.
const NAMESPACE: &str = "containerd-namespace";

/// The metadata key with the caller's trace context, by the W3C's Trace Context.
const TRACE_PARENT: &str = "traceparent";

impl Snapshots {
    /// Serves containerd on `listener` until `shutdown`, and sweeps in the background meanwhile.
    /// Then calls that wait for a layer are refused and what is left is answered: that ends within
    /// milliseconds unless a Usage is counting. Without a `source` every Prepare is an ordinary one.
    ///
    /// # Errors
    /// [`Error::Serve`] if the socket fails.
    pub async fn serve(
        self: Arc<Self>,
        source: Option<Arc<dyn LayerSource>>,
        listener: UnixListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), Error> {
        let closing = CancellationToken::new();
        let shell = Shell { snapshots: Arc::clone(&self), source, closing: closing.clone() };
        let on_call = self.options.on_call.clone();
        let caller = Arc::new(Caller::default());
        #[allow(clippy::result_large_err, reason = "the older tonic takes its status as it is")]
        let admit = move |request: Request<()>| match caller.admit(process_of(&request)) {
            Ok(()) => Ok(request),
            Err(error) => Err(Status::from(error)),
        };
        let timed = Timed { inner: SnapshotsServer::with_interceptor(shell, admit), on_call };
        let sweeper = tokio::spawn(self.sweep_forever());
        let served = Server::builder()
            .add_service(timed)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
                shutdown.await;
                closing.cancel();
            })
            .await;
        sweeper.abort();
        served.map_err(|error| Error::Serve(error.to_string()))
    }
}

struct Shell {
    snapshots: Arc<Snapshots>,
    source: Option<Arc<dyn LayerSource>>,
    closing: CancellationToken,
}

impl Shell {
    /// Runs one call that blocks for milliseconds.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Snapshots) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        let snapshots = Arc::clone(&self.snapshots);
        Ok(blocking(move || work(&snapshots)).await?)
    }
}

#[tonic::async_trait]
impl Service for Shell {
    async fn prepare(
        &self,
        request: Request<grpc::PrepareSnapshotRequest>,
    ) -> Result<Response<grpc::PrepareSnapshotResponse>, Status> {
        let namespace = namespace_of(&request);
        let trace_parent = text_of(&request, TRACE_PARENT);
        let grpc::PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let namespace = namespace.unwrap_or_else(|| namespace_in(&key));
        let labels = labels.into_iter().collect();
        let request = PrepareRequest { namespace, key, parent, labels, trace_parent };
        let mounts = self.snapshots.prepare(self.source.as_ref(), request, &self.closing).await?;
        Ok(Response::new(grpc::PrepareSnapshotResponse { mounts: to_grpc(mounts) }))
    }

    async fn view(
        &self,
        request: Request<grpc::ViewSnapshotRequest>,
    ) -> Result<Response<grpc::ViewSnapshotResponse>, Status> {
        let grpc::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let labels = labels.into_iter().collect();
        let mounts = self.snapshots.create_for_caller(Kind::View, key, parent, labels).await?;
        Ok(Response::new(grpc::ViewSnapshotResponse { mounts: to_grpc(mounts) }))
    }

    async fn mounts(
        &self,
        request: Request<grpc::MountsRequest>,
    ) -> Result<Response<grpc::MountsResponse>, Status> {
        let key = request.into_inner().key;
        let mounts = self.call(move |snapshots| snapshots.mounts(&key)).await?;
        Ok(Response::new(grpc::MountsResponse { mounts: to_grpc(mounts) }))
    }

    async fn commit(
        &self,
        request: Request<grpc::CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let grpc::CommitSnapshotRequest { name, key, labels, .. } = request.into_inner();
        let labels: Labels = labels.into_iter().collect();
        self.call(move |snapshots| snapshots.commit(&name, &key, &labels)).await.map(Response::new)
    }

    async fn remove(
        &self,
        request: Request<grpc::RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let key = request.into_inner().key;
        self.call(move |snapshots| snapshots.remove(&key)).await.map(Response::new)
    }

    async fn stat(
        &self,
        request: Request<grpc::StatSnapshotRequest>,
    ) -> Result<Response<grpc::StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        let info = self.call(move |snapshots| snapshots.stat(&key)).await?;
        Ok(Response::new(grpc::StatSnapshotResponse { info: Some(info.into()) }))
    }

    async fn update(
        &self,
        request: Request<grpc::UpdateSnapshotRequest>,
    ) -> Result<Response<grpc::UpdateSnapshotResponse>, Status> {
        let grpc::UpdateSnapshotRequest { info, update_mask, .. } = request.into_inner();
        let info = info.ok_or_else(|| Status::invalid_argument("an Update needs an info"))?;
        let mask = update_mask.map(|mask| mask.paths).unwrap_or_default();
        let labels: Labels = info.labels.into_iter().collect();
        let name = info.name;
        let info = self.call(move |snapshots| snapshots.update(&name, &labels, &mask)).await?;
        Ok(Response::new(grpc::UpdateSnapshotResponse { info: Some(info.into()) }))
    }

    type ListStream = BoxStream<'static, Result<grpc::ListSnapshotsResponse, Status>>;

    async fn list(
        &self,
        request: Request<grpc::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = request.into_inner().filters;
        let infos = self.call(move |snapshots| snapshots.list(&filters)).await?;
        let messages = stream::iter(infos).map(grpc::Info::from).chunks(INFOS_A_MESSAGE);
        let messages = messages.map(|info| grpc::ListSnapshotsResponse { info });
        Ok(Response::new(messages.map(Ok).boxed()))
    }

    async fn usage(
        &self,
        request: Request<grpc::UsageRequest>,
    ) -> Result<Response<grpc::UsageResponse>, Status> {
        let key = request.into_inner().key;
        let Usage { bytes, inodes } = self.call(move |snapshots| snapshots.usage(&key)).await?;
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Ok(Response::new(grpc::UsageResponse { size: count(bytes), inodes: count(inodes) }))
    }

    async fn cleanup(
        &self,
        _request: Request<grpc::CleanupRequest>,
    ) -> Result<Response<()>, Status> {
        self.call(|snapshots| snapshots.sweep().map(drop)).await.map(Response::new)
    }
}

/// The process at the other end of the connection, as the kernel noted it.
fn process_of(request: &Request<()>) -> Option<u32> {
    let process = request.extensions().get::<UdsConnectInfo>()?.peer_cred?.pid()?;
    u32::try_from(process).ok()
}

/// The namespace that containerd sends beside each request.
fn namespace_of<T>(request: &Request<T>) -> Option<String> {
    text_of(request, NAMESPACE)
}

fn text_of<T>(request: &Request<T>, key: &str) -> Option<String> {
    let value = request.metadata().get(key)?.to_str().ok()?;
    (!value.is_empty()).then(|| value.to_owned())
}

/// The namespace in a key, which containerd forms as `namespace/sequence/key`.
fn namespace_in(key: &str) -> String {
    match key.split_once('/') {
        Some((namespace, _)) if !namespace.is_empty() => namespace.to_owned(),
        _ => "default".to_owned(),
    }
}

fn to_grpc(mounts: Vec<Mount>) -> Vec<types::Mount> {
    let convert = |mount: Mount| types::Mount {
        r#type: mount.kind.to_owned(),
        source: mount.source,
        target: String::new(),
        options: mount.options,
    };
    mounts.into_iter().map(convert).collect()
}

impl From<Info> for grpc::Info {
    fn from(info: Info) -> Self {
        Self {
            name: info.name,
            parent: info.parent,
            kind: match info.kind {
                Kind::View => grpc::Kind::View,
                Kind::Active => grpc::Kind::Active,
                Kind::Committed => grpc::Kind::Committed,
            }
            .into(),
            created_at: Some(info.created_at.into()),
            updated_at: Some(info.updated_at.into()),
            labels: info.labels.into_iter().collect(),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Missing(_) | Error::ParentMissing(_) => Code::NotFound,
            Error::Taken(_) | Error::Present { .. } => Code::AlreadyExists,
            Error::ParentNotCommitted(_)
            | Error::EmptyName
            | Error::Immutable { .. }
            | Error::Filter { .. }
            | Error::Mapping { .. } => Code::InvalidArgument,
            Error::HasChildren(_)
            | Error::NotActive(_)
            | Error::NotMountable(_)
            | Error::MappedImage { .. } => Code::FailedPrecondition,
            Error::OtherCaller { .. } => Code::PermissionDenied,
            Error::Late { .. } => Code::DeadlineExceeded,
            Error::Cancelled { .. } | Error::Task(_) | Error::Serve(_) => Code::Unavailable,
            Error::Layer { .. }
            | Error::Swept { .. }
            | Error::Locked(_)
            | Error::Newer { .. }
            | Error::NoDirectoryTypes(_)
            | Error::NoImages { .. }
            | Error::NotMounted { .. }
            | Error::Database(_)
            | Error::Io { .. } => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}
