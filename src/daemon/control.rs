//! The control door: what `hoist` asks, over gRPC on a unix socket.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

use super::application::State;
use super::error::DaemonError;
use super::prefetch::{self, Order, Released};
use super::progress::{self, json};
use crate::control::control_server::{Control, ControlServer};
use crate::control::{
    InfoRequest, InfoResponse, ListPinsRequest, ListPinsResponse, ListPullsRequest,
    ListPullsResponse, ListTreesRequest, ListTreesResponse, Pin as PinMessage, PrefetchRequest,
    PullProgress, PullRequest, ReleaseRequest, ReleaseResponse, ShowPullRequest, ShowPullResponse,
    Tree,
};
use crate::image::Platform;
use crate::pull::{Puller, Pulling};
use crate::snapshots::ImagePin;

/// Answers `hoist`.
pub(super) struct ControlService(Arc<State>);

impl ControlService {
    /// Serves until the doors close.
    pub(super) async fn serve(
        state: Arc<State>,
        listener: UnixListener,
    ) -> Result<(), DaemonError> {
        let closing = state.closing.clone();
        tonic::transport::Server::builder()
            .add_service(ControlServer::new(Self(state)))
            .serve_with_incoming_shutdown(
                UnixListenerStream::new(listener),
                closing.cancelled_owned(),
            )
            .await
            .map_err(|error| DaemonError::Served { door: "hoist", reason: error.to_string() })
    }
}

type Progress = Result<PullProgress, Status>;
type ProgressStream = Pin<Box<dyn tokio_stream::Stream<Item = Progress> + Send>>;

#[tonic::async_trait]
impl Control for ControlService {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let shared = Arc::clone(&self.0);
        let asked = tokio::task::spawn_blocking(move || {
            let snapshots = &shared.engine.snapshots;
            Ok::<_, crate::snapshots::Error>((snapshots.statistics()?, snapshots.disk()?))
        });
        let asked = asked.await.map_err(|error| Status::internal(error.to_string()))?;
        let (statistics, disk) = asked.map_err(|error| Status::internal(error.to_string()))?;
        let engine = &self.0.engine;
        let (connections, in_use) = engine.connections();
        let (waiting, running) = engine.layers();
        let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Ok(Response::new(InfoResponse {
            trees: statistics.trees,
            tree_bytes: statistics.tree_bytes,
            disk_size_bytes: disk.size_bytes,
            disk_available_bytes: disk.available_bytes,
            connections: small(connections),
            connections_in_use: small(in_use),
            layers_waiting: small(waiting),
            layers_running: small(running),
            provided: statistics.provided,
            unlabelled: statistics.unlabelled,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            root: self.0.root.display().to_string(),
            memory_budget_bytes: engine.budget.total(),
            memory_in_use_bytes: engine.budget.in_use(),
        }))
    }

    async fn list_pulls(
        &self,
        request: Request<ListPullsRequest>,
    ) -> Result<Response<ListPullsResponse>, Status> {
        let limit = match request.into_inner().limit {
            0 => usize::MAX,
            limit => limit as usize,
        };
        let reports = self.0.engine.history.list(limit);
        Ok(Response::new(ListPullsResponse { reports_json: reports.iter().map(json).collect() }))
    }

    async fn show_pull(
        &self,
        request: Request<ShowPullRequest>,
    ) -> Result<Response<ShowPullResponse>, Status> {
        let id = request.into_inner().id;
        let history = self.0.engine.history.clone();
        let report = tokio::task::spawn_blocking(move || history.get(id)).await;
        let report = report.map_err(|error| Status::internal(error.to_string()))?;
        let report = report.ok_or_else(|| Status::not_found(format!("no pull {id} is known")))?;
        Ok(Response::new(ShowPullResponse { report_json: json(&report) }))
    }

    async fn list_trees(
        &self,
        _: Request<ListTreesRequest>,
    ) -> Result<Response<ListTreesResponse>, Status> {
        let snapshots = Arc::clone(&self.0.engine.snapshots);
        let trees = tokio::task::spawn_blocking(move || snapshots.trees()).await;
        let trees = trees.map_err(|error| Status::internal(error.to_string()))?;
        let trees = trees.map_err(|error| Status::internal(error.to_string()))?;
        let trees = trees.into_iter().map(|tree| Tree {
            diff_id: tree.diff_id,
            bytes: tree.bytes,
            inodes: tree.inodes,
            snapshots: u32::try_from(tree.snapshots).unwrap_or(u32::MAX),
            path: tree.path.display().to_string(),
            image: tree.is_image,
        });
        Ok(Response::new(ListTreesResponse { trees: trees.collect() }))
    }

    type PullStream = ProgressStream;

    async fn pull(
        &self,
        request: Request<PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let PullRequest { image, platform } = request.into_inner();
        let puller = self.puller()?;
        let pulling = puller.start(&image, parse_platform(&platform)?);
        let pulling = pulling.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (sender, receiver) = mpsc::channel(progress::QUEUE);
        tokio::spawn(follow(Arc::clone(&self.0), pulling, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type PrefetchStream = ProgressStream;

    async fn prefetch(
        &self,
        request: Request<PrefetchRequest>,
    ) -> Result<Response<Self::PrefetchStream>, Status> {
        let PrefetchRequest { image, platform, namespace, containerd, keep_seconds } =
            request.into_inner();
        self.puller()?;
        let place = prefetch::place(&self.0, &image, &namespace, &containerd)?;
        let platform = parse_platform(&platform)?;
        let keep = (keep_seconds > 0).then(|| Duration::from_secs(keep_seconds));
        let order = Order { place, platform, keep };
        let begun = prefetch::begin(&self.0, &order).await?;
        let (sender, receiver) = mpsc::channel(progress::QUEUE);
        tokio::spawn(prefetch::follow(Arc::clone(&self.0), order, begun, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn list_pins(
        &self,
        _: Request<ListPinsRequest>,
    ) -> Result<Response<ListPinsResponse>, Status> {
        let pins = prefetch::pins(&self.0).await?;
        Ok(Response::new(ListPinsResponse { pins: pins.into_iter().map(message).collect() }))
    }

    async fn release(
        &self,
        request: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        let ReleaseRequest { image, namespace, containerd } = request.into_inner();
        let place = prefetch::place(&self.0, &image, &namespace, &containerd)?;
        let Released { removed, containers } = prefetch::release(&self.0, &place).await?;
        Ok(Response::new(ReleaseResponse { removed, containers }))
    }
}

impl ControlService {
    /// Who pulls, if anybody does now.
    fn puller(&self) -> Result<&Puller, Status> {
        if self.0.draining.is_cancelled() {
            return Err(Status::unavailable("hoistd is about to end"));
        }
        let puller = self.0.engine.puller.as_ref();
        puller.ok_or_else(|| Status::failed_precondition("this hoistd was started with --no-pull"))
    }
}

fn parse_platform(text: &str) -> Result<Option<Platform>, Status> {
    let parsed = (!text.is_empty()).then(|| text.parse::<Platform>()).transpose();
    parsed.map_err(|error| Status::invalid_argument(error.to_string()))
}

fn message(pin: ImagePin) -> PinMessage {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    PinMessage {
        image: pin.place.image,
        namespace: pin.place.namespace,
        containerd: pin.place.containerd.display().to_string(),
        digest: pin.documents.first().map(|d| d.digest.to_string()).unwrap_or_default(),
        layers: u32::try_from(pin.layers.len()).unwrap_or(u32::MAX),
        bytes: pin.layers.iter().map(|layer| layer.bytes).sum(),
        pinned_at: seconds(pin.pinned_at),
        expires_at: pin.expires_at.map_or(0, seconds),
    }
}

/// Sends progress until the pull has ended. A client that goes away ends the pull, too: dropping
/// `pulling` cancels it.
async fn follow(state: Arc<State>, pulling: Pulling, sender: mpsc::Sender<Progress>) {
    let recorder = Arc::clone(pulling.recorder());
    let Some(ended) = progress::tell(&recorder, &sender, pulling.trees()).await else { return };
    if let Err(error) = &ended {
        state.engine.metrics.pulls.failed(error.kind());
    }
    let error = ended.as_ref().err().map(|error| (error.to_string(), progress::cause(error)));
    // A client that has gone does not need to hear it.
    let _ = sender.send(Ok(progress::last(&recorder, error))).await;
    drop(sender);
    if let Ok(trees) = ended {
        // No snapshot refers to them yet: held until containerd pulls the image, or nobody does.
        tokio::select! {
            () = tokio::time::sleep(state.prepulled) => {}
            () = state.closing.cancelled() => {}
        }
        drop(trees);
    }
}
