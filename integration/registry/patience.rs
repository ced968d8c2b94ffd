//! `Retry-After`: who is asked to wait, waits.
//!
//! The clock of these tests stands still and goes where a test turns it, so that nobody waits and
//! what is asserted is an order: at 29 of 30 seconds no second request has come, at 30 it does.

use std::time::SystemTime;

use hoist::metrics::Metrics;
use tokio::time::advance;

use super::*;

/// How a host is found overloaded.
#[derive(Clone, Copy, Debug)]
enum Overload {
    Manifest(u16),
    Blob(u16),
    Token(u16),
}

/// What stands in `Retry-After`, and the seconds that it asks for.
#[derive(Clone, Copy, Debug)]
enum After {
    Seconds(u64),
    /// A date an hour from now: more than is obeyed, so that the wait does not depend on when it is read.
    Date,
    /// One that was.
    DateGone,
}

impl After {
    fn field(self) -> String {
        let hour = Duration::from_secs(3600);
        match self {
            Self::Seconds(seconds) => seconds.to_string(),
            Self::Date => httpdate::fmt_http_date(SystemTime::now() + hour),
            Self::DateGone => httpdate::fmt_http_date(SystemTime::now() - hour),
        }
    }

    /// As long as it is obeyed: a minute at most.
    fn obeyed(self) -> Duration {
        match self {
            Self::Seconds(seconds) => Duration::from_secs(seconds.min(60)),
            Self::Date => Duration::from_secs(60),
            Self::DateGone => Duration::ZERO,
        }
    }
}

/// Waits for a condition without a look at the clock that stands.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(10), "never: {what}");
        tokio::task::yield_now().await;
    }
}

/// A registry whose first answer of one kind is that it is overloaded.
async fn overloaded(overload: Overload, after: After) -> (FaultyRegistry, BlobDigest) {
    let server = FaultyRegistry::start().await;
    server.manifest("v1", MANIFEST, "{}");
    let digest = server.blob(noise(5000));
    let (host, refused) = (server.host.clone(), AtomicUsize::new(0));
    server.script(move |request, reply| {
        let (hit, status) = match overload {
            Overload::Manifest(status) => (request.path.ends_with("/manifests/v1"), status),
            Overload::Blob(status) => (request.is_blob(), status),
            Overload::Token(status) => (request.path == "/token", status),
        };
        if hit && refused.fetch_add(1, SeqCst) == 0 {
            return Reply::new(status, "").with("Retry-After", after.field());
        }
        match overload {
            Overload::Token(_) if request.path == "/token" => Reply::new(200, r#"{"token":"t"}"#),
            Overload::Token(_) if request.header("authorization").is_none() => {
                let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
                Reply::new(401, "").with("WWW-Authenticate", challenge)
            }
            _ => reply,
        }
    });
    (server, digest)
}

async fn is_obeyed(overload: Overload, after: After) {
    let (server, digest) = overloaded(overload, after).await;
    let metrics = Metrics::new(hoist::metrics::ImageLabel::Repository);
    let settings = Settings { metrics: metrics.requests.clone(), ..settings() };
    let registry = Registry::new(settings).unwrap();
    let reference = reference(&server.host);
    let asking = tokio::spawn(async move {
        if matches!(overload, Overload::Blob(_)) {
            let fetch = Fetch::new(registry, 8192);
            fetch.read(&reference, digest, 5000).await.map(drop).map_err(|e| e.to_string())
        } else {
            registry.manifest(&reference).await.map(drop).map_err(|e| e.to_string())
        }
    });
    // Counted where the wait begins.
    let waits = || {
        let text = metrics.text();
        text.lines().any(|l| l.starts_with("hoist_registry_retries_total{") && l.ends_with(" 1"))
    };
    until("it waits", waits).await;
    let asked = server.requests().len();
    if let Some(almost) = after.obeyed().checked_sub(Duration::from_secs(1)) {
        advance(almost).await;
        // Somebody else is asked and answers: whatever was under way has come.
        super::registry().manifest(&self::reference(&another().await.host)).await.unwrap();
        assert_eq!(server.requests().len(), asked, "{overload:?} {after:?}: too early");
        advance(Duration::from_secs(1)).await;
    }
    // hoist's own pause is a few milliseconds here.
    advance(Duration::from_millis(10)).await;
    until(&format!("{overload:?} {after:?}: it asks again"), || server.requests().len() > asked)
        .await;
    until("it is done", || asking.is_finished()).await;
    asking.await.unwrap().unwrap_or_else(|error| panic!("{overload:?} {after:?}: {error}"));
}

/// A registry that behaves.
async fn another() -> FaultyRegistry {
    let server = FaultyRegistry::start().await;
    server.manifest("v1", MANIFEST, "{}");
    server
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed() {
    // While a blocking task runs, the clock does not move by itself.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let still = tokio::task::spawn_blocking(move || held.recv());
    let overloads = [
        Overload::Manifest(503),
        Overload::Manifest(429),
        Overload::Blob(503),
        Overload::Blob(429),
        Overload::Token(503),
        Overload::Token(429),
    ];
    for overload in overloads {
        let afters = [
            After::Seconds(30),
            After::Seconds(600),
            After::Seconds(0),
            After::Date,
            After::DateGone,
        ];
        for after in afters {
            is_obeyed(overload, after).await;
        }
    }
    drop(release);
    let _ = still.await;
}
