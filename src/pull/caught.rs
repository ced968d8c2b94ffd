//! A panic in a part of a pull is an error of that pull.
//!
//! It must not look as if somebody had cancelled the pull: containerd would be told so and would fail, where for
//! any other error it goes its ordinary way. What the part held goes with it as it unwinds; what is locked
//! meanwhile is used on (`PoisonError::into_inner`), and what was staged is discarded by who staged it.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use tokio::task::JoinError;

use super::PullError;
use crate::panics;

/// Does `work`; where that panics, `what` did.
pub(super) async fn caught<T>(
    what: impl FnOnce() -> String,
    work: impl Future<Output = Result<T, PullError>>,
) -> Result<T, PullError> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.unwrap_or_else(|payload| Err(panicked(what(), &*payload)))
}

/// The error of a task that has no answer.
pub(super) fn without_answer(what: String, error: JoinError) -> PullError {
    match error.try_into_panic() {
        Ok(payload) => panicked(what, &*payload),
        // Nobody aborts it: the runtime is going down.
        Err(_) => PullError::Cancelled,
    }
}

/// The error of a thread or task that ended with this payload; told here, where it is known whose it was.
pub(super) fn panicked(what: String, payload: &(dyn Any + Send)) -> PullError {
    let said = panics::said(payload);
    tracing::error!(what, said, "a part of a pull panicked");
    PullError::Panicked { what, said }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_and_an_end_of_the_runtime_is_none() {
        let what = || "the test".to_owned();
        let work = async { if what().is_empty() { Ok(1) } else { panic!("no {}", "way") } };
        let error = caught(what, work).await.unwrap_err();
        assert_eq!(error.kind(), "internal");
        assert!(error.to_string().starts_with("the test panicked: no way;"), "{error}");
        assert_eq!(caught(what, async { Ok(1) }).await.unwrap(), 1);

        let joined = tokio::spawn(async { panic!("never {}", "ever") }).await;
        let error = without_answer(what(), joined.unwrap_err());
        assert!(error.to_string().starts_with("the test panicked: never ever;"), "{error}");
        let task = tokio::spawn(std::future::pending::<()>());
        task.abort();
        let error = without_answer(what(), task.await.unwrap_err());
        assert!(matches!(error, PullError::Cancelled), "{error}");
    }
}
