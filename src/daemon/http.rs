//! The HTTP door: `/metrics`, `/healthz`, `/readyz`, and a page of the last pulls at `/`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State as Extract;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use super::application::State;
use super::error::DaemonError;
use super::page;
use crate::metrics::Metrics;

/// Serves until the doors close.
pub(super) async fn serve(state: Arc<State>, listener: TcpListener) -> Result<(), DaemonError> {
    let closing = state.closing.clone();
    let router = Router::new()
        .route("/", get(pulls))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(state);
    axum::serve(listener, router)
        .with_graceful_shutdown(closing.cancelled_owned())
        .await
        .map_err(|error| DaemonError::Served { door: "HTTP", reason: error.to_string() })
}

async fn pulls(Extract(state): Extract<Arc<State>>) -> Html<String> {
    Html(page::pulls(&state.engine.history.list(usize::MAX)))
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
    ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], state.engine.metrics.text()).into_response()
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
