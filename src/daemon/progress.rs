//! How far a pull is, told to a client that waits for it.

use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tonic::Status;

use crate::control::{Cause, PullProgress};
use crate::fetch::FetchError;
use crate::pull::PullError;
use crate::registry::{Failure, RegistryError};
use crate::timeline::{PullRecorder, PullReport};

/// How often a pull's progress is sent: often enough for a bar that moves.
const INTERVAL: Duration = Duration::from_millis(200);

/// Reports that may wait for a slow reader.
pub(super) const QUEUE: usize = 2;

/// What is sent.
pub(super) type Progress = PullProgress;

/// A report, for programs.
pub(super) fn json(report: &PullReport) -> String {
    serde_json::to_string(report).expect("reports have string keys only")
}

/// Sends progress until `work` has ended; `None` where the client went away first, and `work` was dropped.
pub(super) async fn tell<T>(
    recorder: &PullRecorder,
    sender: &Sender<Result<Progress, Status>>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            ended = &mut work => return Some(ended),
            () = sender.closed() => return None,
            _ = ticks.tick() => {
                let report_json = json(&recorder.report().judged());
                // A reader that is slow gets the next one.
                let _ = sender.try_send(Ok(PullProgress { report_json, ..PullProgress::default() }));
            }
        }
    }
}

/// The last word: how it ended.
pub(super) fn last(recorder: &PullRecorder, error: Option<(String, Cause)>) -> Progress {
    let (error, cause) = error.unwrap_or((String::new(), Cause::Other));
    let report_json = json(&recorder.report().judged());
    PullProgress { report_json, done: true, error, cause: cause.into() }
}

/// What kind of failure an error is.
pub(super) fn cause(error: &PullError) -> Cause {
    let of_registry = |error: &RegistryError| match error.failure() {
        Failure::NotFound => Cause::NotFound,
        Failure::NotAuthorised => Cause::NotAuthorised,
        Failure::Refused => Cause::Other,
        Failure::NotReachable => Cause::NotReachable,
    };
    match error {
        PullError::Registry { source, .. } => of_registry(source),
        PullError::Fetch { source, .. } if !source.is_integrity() => match &**source {
            FetchError::Registry(error) => of_registry(error),
            FetchError::Stopped | FetchError::Panicked { .. } | FetchError::Cancelled => {
                Cause::Other
            }
        },
        _ => Cause::Other,
    }
}
