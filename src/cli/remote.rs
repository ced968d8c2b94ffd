//! What is asked of a running hoistd, over its control socket.

use std::path::Path;

use clap::Args;
use tonic::{Code, Response, Streaming};

use super::args::{EXIT_CODES, Pull};
use super::error::CliError;
use super::progress::Progress;
use super::table::{bytes, counted, short, table, text};
use super::{print, print_json, summary};
use crate::control::control_client::ControlClient;
use crate::control::{Cause, ListTreesRequest, PullProgress, PullRequest, Tree};
use crate::timeline::PullReport;

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Ls {
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) type Client = ControlClient<tonic::transport::Channel>;

/// Reaches hoistd.
pub(super) async fn connect(socket: &Path) -> Result<Client, CliError> {
    let refused = |reason: String| CliError::NoDaemon { socket: socket.to_owned(), reason };
    // tonic takes a path after "unix:"; it has to be absolute.
    let absolute = std::path::absolute(socket).map_err(|e| refused(e.to_string()))?;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix:{}", absolute.display()))
        .map_err(|e| refused(e.to_string()))?;
    let channel = endpoint.connect().await.map_err(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        refused(source.unwrap_or_else(|| error.to_string()))
    })?;
    // Reports of images with many layers are larger than tonic's default of 4 MiB in bad cases.
    Ok(ControlClient::new(channel).max_decoding_message_size(64 << 20))
}

/// What hoistd said instead of an answer.
pub(super) fn told(status: &tonic::Status) -> CliError {
    CliError::Refused { code: status.code(), text: format!("hoistd: {}", status.message()) }
}

/// Shows how far a pull is until it has ended, and gives its last report. What hoistd says of a failure is told
/// behind `whose`; a stream that ends before the pull is `lost`.
pub(super) async fn followed(
    answer: Response<Streaming<PullProgress>>,
    quiet: bool,
    whose: &str,
    lost: &str,
) -> Result<PullReport, CliError> {
    let mut stream = answer.into_inner();
    let mut progress = Progress::new(quiet);
    let mut last = None;
    while let Some(message) = stream.message().await.map_err(|s| told(&s))? {
        if !message.report_json.is_empty() {
            let report = read(&message.report_json)?;
            progress.show(&report);
            last = Some(report);
        }
        if !message.error.is_empty() {
            let code = match message.cause() {
                Cause::Other => Code::Aborted,
                Cause::NotFound => Code::NotFound,
                Cause::NotAuthorised => Code::Unauthenticated,
                Cause::NotReachable => Code::Unavailable,
            };
            return Err(CliError::Refused { code, text: format!("{whose}{}", message.error) });
        }
        if message.done {
            progress.end();
            return last.ok_or_else(|| CliError::Daemon("it sent no report".to_owned()));
        }
    }
    Err(CliError::Daemon(lost.to_owned()))
}

/// Reads a report.
pub(super) fn read(json: &str) -> Result<PullReport, CliError> {
    serde_json::from_str(json).map_err(|e| {
        CliError::Daemon(format!(
            "its report cannot be read ({e}); are hoist and hoistd of one version?"
        ))
    })
}

/// `hoist ls`.
pub(super) async fn ls(args: &Ls, socket: &Path) -> Result<(), CliError> {
    let answer =
        connect(socket).await?.list_trees(ListTreesRequest {}).await.map_err(|s| told(&s))?;
    let trees = answer.into_inner().trees;
    if args.json {
        return print_json(&trees.iter().map(json).collect::<Vec<_>>());
    }
    let mut table = table(&["layer (DiffID)", "form", "snapshots", "inodes", "size"], 2);
    for tree in &trees {
        table.add_row([
            short(&tree.diff_id),
            form(tree).to_owned(),
            tree.snapshots.to_string(),
            tree.inodes.to_string(),
            bytes(tree.bytes),
        ]);
    }
    let total = bytes(trees.iter().map(|tree| tree.bytes).sum());
    print(&format!("{}\n{}, {total}\n", text(&table), counted(trees.len(), "layer")))
}

/// What a layer is on disk.
fn form(tree: &Tree) -> &'static str {
    if tree.image { "erofs" } else { "files" }
}

fn json(tree: &Tree) -> serde_json::Value {
    serde_json::json!({
        "diff_id": tree.diff_id,
        "bytes": tree.bytes,
        "inodes": tree.inodes,
        "form": form(tree),
        "snapshots": tree.snapshots,
        "path": tree.path,
    })
}

/// `hoist pull IMAGE --snapshots`.
pub(super) async fn pull(args: &Pull, socket: &Path) -> Result<(), CliError> {
    let platform = args.wanted.platform.clone().unwrap_or_default();
    let request = PullRequest { image: args.image.clone(), platform };
    let answer = connect(socket).await?.pull(request).await.map_err(|s| told(&s))?;
    let lost = "it ended in the middle of the pull";
    let report = followed(answer, args.quiet || args.json, "hoistd: ", lost).await?;
    if args.json { print_json(&report) } else { print(&summary::whole(&report)) }
}
