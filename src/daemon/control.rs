//! The control door: what `hoist` asks, over gRPC on a unix socket.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Code, Request, Response, Status};

use super::application::State;
use super::error::DaemonError;
use crate::control::control_server::{Control, ControlServer};
use crate::control::{
    InfoRequest, InfoResponse, ListPullsRequest, ListPullsResponse, ListTreesRequest,
    ListTreesResponse, PullProgress, PullRequest, ShowPullRequest, ShowPullResponse, Tree,
};
use crate::image::Platform;
use crate::pull::{PullError, Pulling};
use crate::timeline::PullReport;

/// How often a pull's progress is sent: often enough for a bar that moves.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Reports that may wait for a slow reader.
const PROGRESS_QUEUE: usize = 2;

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

fn json(report: &PullReport) -> String {
    serde_json::to_string(report).expect("reports have string keys only")
}

type Progress = Result<PullProgress, Status>;

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

    type PullStream = Pin<Box<dyn tokio_stream::Stream<Item = Progress> + Send>>;

    async fn pull(
        &self,
        request: Request<PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let PullRequest { image, platform } = request.into_inner();
        let puller =
            self.0.engine.puller.as_ref().ok_or_else(|| {
                Status::failed_precondition("this hoistd was started with --no-pull")
            })?;
        if self.0.draining.is_cancelled() {
            return Err(Status::unavailable("hoistd is about to end"));
        }
        let platform = match platform.as_str() {
            "" => None,
            text => {
                let parsed = text.parse::<Platform>();
                Some(parsed.map_err(|error| Status::invalid_argument(error.to_string()))?)
            }
        };
        let pulling = puller.start(&image, platform);
        let pulling = pulling.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (sender, receiver) = mpsc::channel(PROGRESS_QUEUE);
        tokio::spawn(follow(Arc::clone(&self.0), pulling, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// The kind of a failure that a caller can tell others by.
fn code(error: &PullError) -> Code {
    match error {
        PullError::Reference { .. } | PullError::Manifest { .. } => Code::InvalidArgument,
        PullError::Registry { source, .. } if source.is_not_found() => Code::NotFound,
        PullError::Registry { source, .. } if source.is_unauthorized() => Code::Unauthenticated,
        PullError::Registry { .. } => Code::Unavailable,
        _ => Code::Aborted,
    }
}

/// Sends progress until the pull has ended. A client that goes away ends the pull, too: dropping
/// `pulling` cancels it.
async fn follow(state: Arc<State>, pulling: Pulling, sender: mpsc::Sender<Progress>) {
    let recorder = Arc::clone(pulling.recorder());
    let progress =
        |done, error| PullProgress { report_json: json(&recorder.report().judged()), done, error };
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    let mut trees = std::pin::pin!(pulling.trees());
    let ended = loop {
        tokio::select! {
            ended = &mut trees => break ended,
            () = sender.closed() => return,
            _ = ticks.tick() => {
                // A reader that is slow gets the next one.
                let _ = sender.try_send(Ok(progress(false, String::new())));
            }
        }
    };
    if let Err(error) = &ended {
        state.engine.metrics.pulls.failed(error.kind());
    }
    let error = ended.as_ref().err().map(ToString::to_string).unwrap_or_default();
    // A client that has gone does not need to hear it.
    let _ = sender.send(Ok(progress(true, error))).await;
    if let Err(error) = &ended {
        // Its kind comes after the report, as the end of the stream.
        let _ = sender.send(Err(Status::new(code(error), error.to_string()))).await;
    }
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
