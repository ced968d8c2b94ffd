//! Tokens, and the services that give them out (distribution's token specification; OAuth 2 for
//! refresh tokens).

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{RequestBuilder, StatusCode, Url};
use serde::Deserialize;

use crate::metrics::RequestMetrics;
use crate::registry::RegistryError;
use crate::registry::clients::{Clients, is_loopback};
use crate::registry::credentials::Credential;
use crate::registry::endpoint::authority;
use crate::registry::error::told;
use crate::registry::retry::parse_retry_after;
use crate::registry::scope::Scope;

/// How long a token lives whose service does not say (distribution's token specification).
const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(60);

/// How much earlier than it expires a token is renewed, at most: the clock of a slow request.
const TOKEN_MARGIN_MOST: Duration = Duration::from_secs(10);

/// The largest answer that a token service may give.
const TOKEN_BYTES_MOST: usize = 1 << 20;

/// The services that give out tokens.
pub(super) struct TokenServices {
    timeout: Duration,
    metrics: RequestMetrics,
}

impl TokenServices {
    /// `timeout` bounds each request.
    pub(super) fn new(timeout: Duration, metrics: RequestMetrics) -> Self {
        Self { timeout, metrics }
    }

    /// Asks for a token; a refusal is an answer, too.
    ///
    /// # Errors
    /// [`RegistryError::Token`] where the service fails or is none that a secret is sent to;
    /// [`RegistryError`] of a client that cannot be made.
    pub(super) async fn ask(
        &self,
        clients: &Clients,
        scope: Scope<'_>,
        question: Question<'_>,
    ) -> Result<Result<Token, Refusal>, RegistryError> {
        let failed = |Failure { problem, transient, retry_after }| RegistryError::Token {
            host: scope.name.to_owned(),
            realm: question.realm.to_owned(),
            what: scope.what.to_owned(),
            problem,
            transient,
            retry_after,
        };
        let url = question.address(scope).map_err(failed)?;
        let host = authority(&url);
        let request = question.request(clients, scope, url)?;
        let answer = self.exchange(request, &host).await.map_err(failed)?;
        answer.token(&host, question.is_refresh()).map_err(failed)
    }

    async fn exchange(&self, request: RequestBuilder, host: &str) -> Result<Answer, Failure> {
        let exchange = async {
            let response = request.send().await?;
            let (status, headers) = (response.status(), response.headers().clone());
            Ok::<_, reqwest::Error>(Answer { status, headers, body: response.bytes().await? })
        };
        let asked = Instant::now();
        let answer = tokio::time::timeout(self.timeout, exchange).await;
        let code = match &answer {
            Ok(Ok(answer)) => answer.status.as_str().to_owned(),
            Ok(Err(_)) => "error".to_owned(),
            Err(_) => "timeout".to_owned(),
        };
        self.metrics.answered(host, &code, asked.elapsed().as_secs_f64());
        match answer {
            Ok(answer) => answer.map_err(|error| {
                let (problem, transient) = told(&error);
                Failure { problem, transient, retry_after: None }
            }),
            Err(_) => Err(Failure { transient: true, ..Failure::of("no answer in time") }),
        }
    }
}

/// Why there is neither a token nor a refusal.
struct Failure {
    problem: String,
    /// Whether another try may help.
    transient: bool,
    /// How long the service asked to be left alone.
    retry_after: Option<Duration>,
}

impl Failure {
    /// One that another try does not help.
    fn of(problem: &str) -> Self {
        Self { problem: problem.to_owned(), transient: false, retry_after: None }
    }
}

/// What a service said.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// The token that `host` gave, where a refresh token may have been spent on it.
    fn token(&self, host: &str, is_refresh: bool) -> Result<Result<Token, Refusal>, Failure> {
        let status = self.status;
        // A refresh token that is no longer good is an invalid grant to OAuth 2: a 400.
        let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        if refused || (status == StatusCode::BAD_REQUEST && is_refresh) {
            let answer = format!("{host}, which gives out tokens, answered {}", status.as_u16());
            return Ok(Err(Refusal { answer, by: Some(status) }));
        }
        if !status.is_success() {
            let after = self.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let retry_after = after.and_then(|v| parse_retry_after(v, SystemTime::now()));
            let transient = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            let problem = format!("status {}", status.as_u16());
            return Err(Failure { problem, transient, retry_after });
        }
        if self.body.len() > TOKEN_BYTES_MOST {
            return Err(Failure::of("its answer is too large"));
        }
        let token = Token::parse(&self.body);
        token.map(Ok).ok_or_else(|| Failure::of("there is no token in its answer"))
    }
}

/// What is asked of a token service, and on whose word.
pub(super) struct Question<'a> {
    /// The service's address.
    pub(super) realm: &'a str,
    /// The registry, as the service knows it.
    pub(super) service: Option<String>,
    /// What the token is to allow; to pull from the repository unless the registry says.
    pub(super) wanted: Option<String>,
    pub(super) credential: Option<Credential>,
}

impl Question<'_> {
    /// The service's address, if a secret may be sent there.
    fn address(&self, scope: Scope<'_>) -> Result<Url, Failure> {
        let url: Url = self.realm.parse().map_err(|_| Failure::of("its address is none"))?;
        let may_be_open = scope.host.base.scheme() == "http" || is_loopback(&url);
        match url.scheme() {
            "https" => Ok(url),
            "http" if may_be_open => Ok(url),
            _ => Err(Failure::of("it is not HTTPS, and credentials are not sent in the open")),
        }
    }

    /// Whether a refresh token is spent on it.
    fn is_refresh(&self) -> bool {
        matches!(self.credential, Some(Credential::IdentityToken(_)))
    }

    /// A GET with Basic credentials or none; for a refresh token the POST of OAuth 2.
    fn request(
        &self,
        clients: &Clients,
        scope: Scope<'_>,
        mut url: Url,
    ) -> Result<RequestBuilder, RegistryError> {
        let client = clients.client(&url, Some(scope.host))?;
        let wanted =
            self.wanted.clone().unwrap_or_else(|| format!("repository:{}:pull", scope.repository));
        if let Some(Credential::IdentityToken(token)) = &self.credential {
            // The URL's own serializer writes forms, too.
            let mut form = url.clone();
            form.query_pairs_mut()
                .clear()
                .append_pair("grant_type", "refresh_token")
                .append_pair("refresh_token", token)
                .append_pair("service", self.service.as_deref().unwrap_or_default())
                .append_pair("scope", &wanted)
                .append_pair("client_id", "hoist");
            let body = form.query().unwrap_or_default().to_owned();
            let kind = "application/x-www-form-urlencoded";
            return Ok(client.post(url).header("content-type", kind).body(body));
        }
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &self.service {
                query.append_pair("service", service);
            }
            // A scope may name several, with spaces between; services want a field each.
            for one in wanted.split(' ') {
                query.append_pair("scope", one);
            }
        }
        let request = client.get(url);
        Ok(match &self.credential {
            Some(Credential::Password(user, password)) => request.basic_auth(user, Some(password)),
            _ => request,
        })
    }
}

/// Why a candidate is passed over.
pub(super) struct Refusal {
    /// What it was told.
    pub(super) answer: String,
    /// The status with which a token service refused it.
    pub(super) by: Option<StatusCode>,
}

impl Refusal {
    pub(super) fn because(answer: &str) -> Self {
        Self { answer: answer.to_owned(), by: None }
    }
}

/// What a service gave out.
pub(super) struct Token {
    pub(super) text: String,
    life: Duration,
}

impl Token {
    fn parse(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Raw {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<u64>,
        }
        let raw: Raw = serde_json::from_slice(json).ok()?;
        let filled = |text: &String| !text.is_empty();
        let text = raw.token.filter(filled).or(raw.access_token.filter(filled))?;
        // A year: enough for every service, and no overflow of the clock.
        let life = raw
            .expires_in
            .map_or(TOKEN_LIFE_DEFAULT, |s| Duration::from_secs(s.min(365 * 24 * 3600)));
        Some(Self { text, life })
    }

    /// How long it is used: a little shorter than it lives.
    pub(super) fn usable(&self) -> Duration {
        self.life - (self.life / 10).min(TOKEN_MARGIN_MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_two_names_and_a_life() {
        let token = Token::parse(br#"{"access_token":"a","expires_in":300}"#).unwrap();
        assert_eq!((token.text.as_str(), token.usable()), ("a", Duration::from_secs(290)));
        let token = Token::parse(br#"{"token":"t","access_token":"a"}"#).unwrap();
        assert_eq!((token.text.as_str(), token.usable()), ("t", Duration::from_secs(54)));
        assert!(Token::parse(br#"{"token":""}"#).is_none());
        assert!(Token::parse(br#"{"token":"t","expires_in":18446744073709551615}"#).is_some());
    }
}
