//! One request of a push: authorized, answered in time, and refused in the registry's words.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, Response, StatusCode, Url};

use super::Push;
use crate::registry::auth::Visit;
use crate::registry::endpoint::authority;
use crate::registry::exchange::same_origin;
use crate::registry::scope::Scope;
use crate::registry::{RegistryError, exchange};

/// A link that takes fewer bytes a second than this counts as broken.
const RATE_LEAST: u64 = 128 << 10;

/// A request, to be asked again as it is where authorization is wanted.
pub(super) struct Asked<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) what: &'a str,
    pub(super) headers: Vec<(reqwest::header::HeaderName, String)>,
    pub(super) body: Option<Bytes>,
}

impl Push {
    pub(super) fn scope<'a>(&'a self, what: &'a str) -> Scope<'a> {
        self.endpoint.scope(self.reference.repository(), what)
    }

    pub(super) fn url(&self, path: &str) -> Result<Url, RegistryError> {
        exchange::address(&self.endpoint, self.reference.repository(), path)
    }

    /// Where an upload goes on.
    pub(super) fn location(
        &self,
        response: &Response,
        asked: &Url,
        what: &str,
    ) -> Result<Url, RegistryError> {
        exchange::location(&self.registry.shared, response, asked, what)
    }

    /// Asks, and answers the registry's challenge.
    pub(super) async fn ask(&self, asked: &Asked<'_>) -> Result<Response, RegistryError> {
        let shared = &self.registry.shared;
        let scope = self.scope(asked.what);
        let own = same_origin(&asked.url, &self.endpoint.config.base);
        let mut visit = Visit::begin();
        loop {
            let authorization =
                shared.authorizer.current(&shared.clients, scope, &mut visit).await?;
            let client = shared.clients.client(&asked.url, Some(&self.endpoint.config))?;
            let request = client.request(asked.method.clone(), asked.url.clone());
            let authorized = authorization.as_ref();
            let mut request = exchange::introduced(request, &asked.url, &self.endpoint, authorized);
            for (name, value) in &asked.headers {
                request = request.header(name, value);
            }
            let length = asked.body.as_ref().map_or(0, Bytes::len) as u64;
            if let Some(body) = &asked.body {
                request = request.body(body.clone());
            }
            let mut response = self.answer(request, &asked.url, asked.what, length).await?;
            exchange::note_secrets(&mut response, &self.endpoint, authorized);
            let status = response.status();
            let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            if !(refused && own) {
                shared.authorizer.accepted(scope, &visit);
                return Ok(response);
            }
            let headers = response.headers();
            shared.authorizer.refused(&shared.clients, scope, &mut visit, status, headers).await?;
        }
    }

    pub(super) async fn answer(
        &self,
        request: reqwest::RequestBuilder,
        url: &Url,
        what: &str,
        bytes: u64,
    ) -> Result<Response, RegistryError> {
        let settings = &self.registry.shared.settings;
        let after = settings.stall_timeout
            + settings.connect_timeout
            + Duration::from_secs(bytes / RATE_LEAST);
        let (host, what) = (authority(url), what.to_owned());
        match tokio::time::timeout(after, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => {
                Err(RegistryError::Send { host, what, source: source.without_url() })
            }
            Err(_) => Err(RegistryError::Stalled { host, what, after }),
        }
    }

    pub(super) async fn expect(
        &self,
        response: Response,
        good: &[StatusCode],
        what: &str,
    ) -> Result<Response, RegistryError> {
        if good.contains(&response.status()) {
            Ok(response)
        } else {
            Err(self.refusal(response, what).await)
        }
    }

    /// What the registry says, where it does not do what it was asked.
    pub(super) async fn refusal(&self, response: Response, what: &str) -> RegistryError {
        let own = same_origin(response.url(), &self.endpoint.config.base);
        exchange::refusal(response, self.endpoint.name.clone(), what.to_owned(), own).await
    }
}
