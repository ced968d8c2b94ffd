//! The time that each call of containerd took, told to whoever wants to know.
//!
//! A shell around the generated service: it sees a call's path before and its status after, and so
//! needs no line in any of the ten calls. A call that its caller gives up counts as `cancelled`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use containerd_snapshots::tonic::codegen::{Service, http};
use containerd_snapshots::tonic::server::NamedService;

type Tell = dyn Fn(&'static str, &'static str, Duration) + Send + Sync;

/// Is told the call (`"prepare"`), the code of the answer (`"ok"`) and the time it took.
#[derive(Clone)]
pub struct OnCall(Arc<Tell>);

impl OnCall {
    /// Tells `tell`.
    pub fn new(
        tell: impl Fn(&'static str, &'static str, Duration) + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(tell))
    }
}

impl Default for OnCall {
    /// Tells nobody.
    fn default() -> Self {
        Self::new(|_, _, _| ())
    }
}

impl fmt::Debug for OnCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnCall")
    }
}

/// A service whose calls are timed.
#[derive(Clone)]
pub(super) struct Timed<S> {
    pub(super) inner: S,
    pub(super) on_call: OnCall,
}

impl<S: NamedService> NamedService for Timed<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B, R> Service<http::Request<B>> for Timed<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let call = call_of_path(request.uri().path());
        let on_call = self.on_call.clone();
        let mut running = Running { on_call, call, code: "cancelled", began: Instant::now() };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            running.code = answer.as_ref().map_or("internal", |answer| {
                // An error comes as headers alone; an answer's status follows its body.
                answer.headers().get("grpc-status").map_or("ok", |v| code_of_status(v.as_bytes()))
            });
            drop(running);
            answer
        })
    }
}

/// A call under way; it is told when this is dropped, also by a caller that went away.
struct Running {
    on_call: OnCall,
    call: &'static str,
    code: &'static str,
    began: Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        (self.on_call.0)(self.call, self.code, self.began.elapsed());
    }
}

/// The word for a call; paths that are none of the service's are one word together, so that a
/// stranger cannot make up labels.
fn call_of_path(path: &str) -> &'static str {
    match path.rsplit('/').next().unwrap_or_default() {
        "Prepare" => "prepare",
        "View" => "view",
        "Mounts" => "mounts",
        "Commit" => "commit",
        "Remove" => "remove",
        "Stat" => "stat",
        "Update" => "update",
        "List" => "list",
        "Usage" => "usage",
        "Cleanup" => "cleanup",
        _ => "unknown",
    }
}

/// The word for a gRPC status as it stands in a header.
fn code_of_status(status: &[u8]) -> &'static str {
    match status {
        b"0" => "ok",
        b"1" => "cancelled",
        b"3" => "invalid_argument",
        b"4" => "deadline_exceeded",
        b"5" => "not_found",
        b"6" => "already_exists",
        b"7" => "permission_denied",
        b"9" => "failed_precondition",
        b"12" => "unimplemented",
        b"13" => "internal",
        b"14" => "unavailable",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Mutex;

    use futures_util::FutureExt as _;

    use super::*;

    /// Answers with a status of its own.
    #[derive(Clone)]
    struct Answers(Option<&'static str>);

    impl Service<http::Request<()>> for Answers {
        type Response = http::Response<()>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<()>) -> Self::Future {
            let mut answer = http::Response::new(());
            if let Some(status) = self.0 {
                answer.headers_mut().insert("grpc-status", status.parse().unwrap());
            }
            std::future::ready(Ok(answer))
        }
    }

    #[test]
    fn calls_are_told_with_their_codes() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&told);
        let on_call = OnCall::new(move |call, code, _| seen.lock().unwrap().push((call, code)));
        let call = |path: &str, status| {
            let mut timed = Timed { inner: Answers(status), on_call: on_call.clone() };
            timed.call(http::Request::get(path).body(()).unwrap())
        };
        let service = "/containerd.services.snapshots.v1.Snapshots";
        call(&format!("{service}/Prepare"), Some("6")).now_or_never().unwrap().unwrap();
        call(&format!("{service}/List"), None).now_or_never().unwrap().unwrap();
        call("/made/Up", Some("99")).now_or_never().unwrap().unwrap();
        drop(call(&format!("{service}/Commit"), None));
        let expected = [
            ("prepare", "already_exists"),
            ("list", "ok"),
            ("unknown", "other"),
            ("commit", "cancelled"),
        ];
        assert_eq!(*told.lock().unwrap(), expected);
    }
}
