//! The HTTP door: metrics, health, and the pages.
//!
//! | path | what |
//! |---|---|
//! | `/metrics` | Prometheus' text format |
//! | `/healthz`, `/readyz` | 200 or 503 |
//! | `/`, `/pulls/ID` | pages for a browser |
//! | `/pulls.json?limit=N` | running pulls and the last N ended ones, without samples |
//! | `/pulls/ID.json`, `/pulls/ID.trace.json` | one pull, whole; for Perfetto |

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, State as Extract};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::application::State;
use super::error::DaemonError;
use super::page;
use crate::metrics::Metrics;
use crate::timeline::{PullReport, svg, trace};

/// Ended pulls on the page, and in `/pulls.json` unless it is asked for another number.
const LISTED: usize = 100;

/// What a browser may do with any answer: nothing but the pages' own script and style, from here.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Serves until the doors close.
pub(super) async fn serve(state: Arc<State>, listener: TcpListener) -> Result<(), DaemonError> {
    let closing = state.closing.clone();
    let router = Router::new()
        .route("/", get(pulls))
        .route("/pulls.json", get(pulls_json))
        .route("/pulls/{name}", get(pull))
        .route("/hoist.css", get(style))
        .route("/hoist.js", get(|| async { typed("text/javascript", page::SCRIPT.to_owned()) }))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .layer(axum::middleware::map_response(guarded))
        .with_state(state);
    axum::serve(listener, router)
        .with_graceful_shutdown(closing.cancelled_owned())
        .await
        .map_err(|error| DaemonError::Served { door: "HTTP", reason: error.to_string() })
}

async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // A page is of this moment, and a style of this version.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn typed(kind: &'static str, body: String) -> Response {
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}

fn json(value: &impl serde::Serialize) -> Response {
    let text = serde_json::to_string(value).expect("reports have string keys only");
    typed("application/json", text)
}

async fn style() -> Response {
    typed("text/css", format!("{}{}", page::STYLE, svg::STYLE))
}

async fn pulls(Extract(state): Extract<Arc<State>>) -> Response {
    off_the_loop(move || Html(page::pulls(&state.engine.history.list(LISTED)))).await
}

#[derive(serde::Deserialize)]
struct Limit {
    limit: Option<usize>,
}

async fn pulls_json(
    Extract(state): Extract<Arc<State>>,
    Query(Limit { limit }): Query<Limit>,
) -> Response {
    off_the_loop(move || json(&state.engine.history.list(limit.unwrap_or(LISTED)))).await
}

/// What is asked for of one pull.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Page,
    Json,
    Trace,
}

fn named(name: &str) -> Option<(u64, Form)> {
    let (id, form) = match name.split_once('.') {
        None => (name, Form::Page),
        Some((id, "json")) => (id, Form::Json),
        Some((id, "trace.json")) => (id, Form::Trace),
        Some(_) => return None,
    };
    Some((id.parse().ok()?, form))
}

async fn pull(Extract(state): Extract<Arc<State>>, Path(name): Path<String>) -> Response {
    off_the_loop(move || {
        let found = named(&name).and_then(|(id, form)| Some((state.engine.history.get(id)?, form)));
        match found {
            Some((report, form)) => formed(&report, form),
            None => (StatusCode::NOT_FOUND, Html(page::unknown())).into_response(),
        }
    })
    .await
}

fn formed(report: &PullReport, form: Form) -> Response {
    match form {
        Form::Page => Html(page::pull(report)).into_response(),
        Form::Json => json(report),
        Form::Trace => {
            let name = format!("attachment; filename=\"pull-{}.trace.json\"", report.id);
            ([(header::CONTENT_DISPOSITION, name)], json(&trace::events(report))).into_response()
        }
    }
}

/// Reads records and draws on a thread for blocking work: the event loop serves containerd too.
async fn off_the_loop<T: IntoResponse + Send + 'static>(
    make: impl FnOnce() -> T + Send + 'static,
) -> Response {
    match tokio::task::spawn_blocking(make).await {
        Ok(made) => made.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Asks the store for its figures off the event loop; says so if it does not answer.
async fn refresh(state: &Arc<State>) -> Result<(), String> {
    let shared = Arc::clone(state);
    let refreshed = tokio::task::spawn_blocking(move || shared.engine.refresh()).await;
    match refreshed {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

async fn metrics(Extract(state): Extract<Arc<State>>) -> Response {
    if let Err(error) = refresh(&state).await {
        // What is counted is shown all the same; the gauges are those of the last scrape.
        tracing::warn!(error, "the store's metrics could not be read");
    }
    typed(Metrics::CONTENT_TYPE, state.engine.metrics.text())
}

/// Alive: the event loop turns and the store answers.
async fn healthz(Extract(state): Extract<Arc<State>>) -> Response {
    match refresh(&state).await {
        Ok(()) => "ok\n".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

/// Ready: alive, and not about to end.
async fn readyz(Extract(state): Extract<Arc<State>>) -> Response {
    if state.draining.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    healthz(Extract(state)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_number_and_a_form() {
        assert_eq!(named("17"), Some((17, Form::Page)));
        assert_eq!(named("17.json"), Some((17, Form::Json)));
        assert_eq!(named("17.trace.json"), Some((17, Form::Trace)));
        for wrong in ["", "x", "17.svg", "17.", "-1", "99999999999999999999"] {
            assert_eq!(named(wrong), None, "{wrong}");
        }
    }
}
