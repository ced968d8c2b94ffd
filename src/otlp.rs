//! Pulls as traces, for a collector that speaks OpenTelemetry's protocol (OTLP over HTTP, JSON).
//!
//! Every ended pull becomes one request: `spans` makes a span for the pull, for each layer and for each
//! phase out of the pull's report, which has all the times already; [`Exporter`] sends them from a
//! task of its own. A collector that is slow or away costs its traces and a line in the log, never a
//! pull.
//!
//! Source: the OTLP specification 1.x (`/v1/traces`, JSON mapping) and the OpenTelemetry
//! specification's environment variables.

mod spans;

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use tokio::sync::{mpsc, oneshot};

use crate::timeline::PullReport;

pub use spans::{Parent, request};

/// Pulls that may wait for a slow collector: a burst of an hour's pulls. Each is some kilobytes.
const QUEUE: usize = 64;

/// How long a collector may take to answer; the specification's default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Pauses before another try where the collector asks for one, by its status.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// Where traces go, as the environment says. `Debug` leaves the headers out: they hold keys.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`: `/v1/traces` is put behind it.
    pub endpoint: Option<String>,
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`: taken as it is.
    pub traces_endpoint: Option<String>,
    /// `OTEL_EXPORTER_OTLP_HEADERS`: `key=value,…`, percent-encoded.
    pub headers: Option<String>,
    /// `OTEL_SERVICE_NAME`.
    pub service_name: Option<String>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("service_name", &self.service_name).finish_non_exhaustive()
    }
}

/// Why no traces can be sent.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The endpoint is no address. What was given may hold credentials and is not repeated.
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT is not an address such as http://collector:4318")]
    Endpoint,
    /// A header cannot be one.
    #[error("OTEL_EXPORTER_OTLP_HEADERS: part {0} is not name=value")]
    Header(usize),
    /// The client cannot be made.
    #[error("no HTTP client can be built: {0}")]
    Client(String),
}

/// Sends ended pulls. Clones share one queue.
#[derive(Clone, Debug)]
pub struct Exporter {
    queue: mpsc::Sender<Message>,
}

#[derive(Debug)]
enum Message {
    Pull(Box<PullReport>),
    Flush(oneshot::Sender<()>),
}

impl Exporter {
    /// Starts the task that sends; `None` where no endpoint is set. To be called inside a runtime.
    ///
    /// # Errors
    /// What was set cannot be used.
    pub fn start(settings: &Settings) -> Result<Option<Self>, OtlpError> {
        let Some(url) = address(settings)? else { return Ok(None) };
        let sender = Sender {
            url,
            client: client(settings)?,
            service: settings.service_name.clone().unwrap_or_else(|| "hoistd".to_owned()),
        };
        let (queue, messages) = mpsc::channel(QUEUE);
        tokio::spawn(sender.run(messages));
        Ok(Some(Self { queue }))
    }

    /// Queues an ended pull; does not wait.
    pub fn send(&self, report: &PullReport) {
        if self.queue.try_send(Message::Pull(Box::new(report.clone()))).is_err() {
            tracing::warn!(
                pull = report.id,
                "the collector of traces is too slow: a trace is lost"
            );
        }
    }

    /// Waits until all that was queued has been sent or given up, but no longer than `bound`.
    pub async fn flush(&self, bound: Duration) {
        let (done, all) = oneshot::channel();
        let flushed = async {
            if self.queue.send(Message::Flush(done)).await.is_ok() {
                // The task ends only with the runtime.
                let _ = all.await;
            }
        };
        let _ = tokio::time::timeout(bound, flushed).await;
    }
}

fn address(settings: &Settings) -> Result<Option<Url>, OtlpError> {
    let text = match (&settings.traces_endpoint, &settings.endpoint) {
        (Some(whole), _) => whole.clone(),
        (None, Some(base)) => format!("{}/v1/traces", base.trim_end_matches('/')),
        (None, None) => return Ok(None),
    };
    let url: Url = text.parse().map_err(|_| OtlpError::Endpoint)?;
    let known = matches!(url.scheme(), "http" | "https");
    if known { Ok(Some(url)) } else { Err(OtlpError::Endpoint) }
}

fn client(settings: &Settings) -> Result<Client, OtlpError> {
    // Another part of the process may have installed one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = Client::builder()
        .user_agent(concat!("hoist/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers(settings.headers.as_deref().unwrap_or_default())?)
        .redirect(reqwest::redirect::Policy::none())
        .http1_only()
        .timeout(TIMEOUT);
    builder.build().map_err(|error| OtlpError::Client(error.without_url().to_string()))
}

fn headers(text: &str) -> Result<HeaderMap, OtlpError> {
    let mut headers = HeaderMap::new();
    let parts = text.split(',').enumerate().filter(|(_, part)| !part.trim().is_empty());
    for (number, part) in parts {
        let wrong = || OtlpError::Header(number + 1);
        let (name, value) = part.split_once('=').ok_or_else(wrong)?;
        let name: HeaderName = name.trim().parse().map_err(|_| wrong())?;
        let mut value = HeaderValue::from_bytes(&decoded(value.trim())).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(headers)
}

/// Without the percent-encoding that the specification (W3C Baggage) asks for.
fn decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| byte == b'%').and_then(|two| hex::decode(two).ok());
        rest = if hex.is_some() { &after[2..] } else { after };
        out.push(hex.map_or(byte, |one| one[0]));
    }
    out
}

struct Sender {
    url: Url,
    client: Client,
    service: String,
}

impl Sender {
    async fn run(self, mut messages: mpsc::Receiver<Message>) {
        while let Some(message) = messages.recv().await {
            match message {
                Message::Pull(report) => self.export(&report).await,
                // Whoever asked may have stopped waiting.
                Message::Flush(done) => drop(done.send(())),
            }
        }
    }

    async fn export(&self, report: &PullReport) {
        let Some(body) = spans::request(report, &self.service, &spans::fresh_trace(report)) else {
            return;
        };
        let body = body.to_string();
        let mut pauses = PAUSES.iter();
        loop {
            let request = self.client.post(self.url.clone()).body(body.clone());
            let problem = match request.send().await {
                Ok(answer) if answer.status().is_success() => return,
                Ok(answer) => (is_transient(answer.status()), answer.status().to_string()),
                Err(error) => (true, error.without_url().to_string()),
            };
            match (problem, pauses.next()) {
                ((true, _), Some(&pause)) => tokio::time::sleep(pause).await,
                ((_, problem), _) => {
                    tracing::warn!(pull = report.id, problem, "a trace could not be sent");
                    return;
                }
            }
        }
    }
}

/// What the specification says is to be tried again.
fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_where() {
        let url = |endpoint: Option<&str>, traces: Option<&str>| {
            let settings = Settings {
                endpoint: endpoint.map(str::to_owned),
                traces_endpoint: traces.map(str::to_owned),
                ..Settings::default()
            };
            address(&settings).map(|url| url.map(String::from))
        };
        assert_eq!(url(None, None).unwrap(), None);
        let base = "http://c:4318/v1/traces".to_owned();
        assert_eq!(url(Some("http://c:4318"), None).unwrap(), Some(base.clone()));
        assert_eq!(url(Some("http://c:4318/"), None).unwrap(), Some(base));
        let own = "https://x/mine".to_owned();
        assert_eq!(url(Some("http://c"), Some("https://x/mine")).unwrap(), Some(own));
        assert!(url(Some("c:4318"), None).is_err());
    }

    #[test]
    fn headers_are_decoded_and_not_shown() {
        let headers = headers("api-key=s%20ecret, x = 1,").unwrap();
        assert_eq!(headers["api-key"], "s ecret");
        assert!(!format!("{headers:?}").contains("ecret"));
        assert_eq!(headers["x"], "1");
        assert!(matches!(super::headers("a=1,nothing"), Err(OtlpError::Header(2))));
        let settings = Settings { headers: Some("k=ecret".to_owned()), ..Settings::default() };
        assert!(!format!("{settings:?}").contains("ecret"));
    }
}
