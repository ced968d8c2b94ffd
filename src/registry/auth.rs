//! Answers to the challenges of registries.
//!
//! A registry that wants to know who asks answers 401 and says how it wants to be convinced:
//! `Basic`, or `Bearer` with the address of a token service. What convinced it is kept for each
//! host and repository until it expires; then, and after a refusal, it is made anew, once however
//! many requests are refused at the same time: they wait at the entry's lock, and whoever comes
//! second finds a newer generation than the one that was refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, StatusCode, Url};
use serde::Deserialize;

use super::clients::{Clients, is_loopback};
use super::credentials::{Credential, Credentials};
use super::endpoint::authority;
use super::hosts::HostConfig;
use super::{RegistryError, retry};
use crate::metrics::RequestMetrics;

/// How long a token lives whose service does not say (distribution's token specification).
const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(60);

/// How much earlier than it expires a token is renewed, at most: the clock of a slow request.
const TOKEN_MARGIN_MOST: Duration = Duration::from_secs(10);

/// The largest answer that a token service may give.
const TOKEN_BYTES_MOST: usize = 1 << 20;

/// What a request is authorized with.
#[derive(Clone)]
pub(super) enum Authorization {
    Basic(String, String),
    Bearer(String),
}

impl Authorization {
    pub(super) fn apply(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Basic(user, password) => request.basic_auth(user, Some(password)),
            Self::Bearer(token) => request.bearer_auth(token),
        }
    }
}

/// How a registry wants to be convinced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Picks the best challenge out of the `WWW-Authenticate` fields: `Bearer` before `Basic`.
pub(super) fn parse_challenges(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        for challenge in http_auth::parse_challenges(text).unwrap_or_default() {
            let param = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = param("realm") {
                    let (service, scope) = (param("service"), param("scope"));
                    return Some(Challenge::Bearer { realm, service, scope });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

#[derive(Default)]
struct Entry {
    generation: u64,
    challenge: Option<Challenge>,
    authorization: Option<Authorization>,
    expires: Option<Instant>,
    had_credentials: bool,
}

type Key = (String, String);

/// For whom and for what an authorization is.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    /// The host's address and wishes.
    pub(super) host: &'a HostConfig,
    /// The host's name and port, as errors and credentials have it.
    pub(super) name: &'a str,
    /// The repository.
    pub(super) repository: &'a str,
    /// What is asked for, in words.
    pub(super) what: &'a str,
}

/// Whoever answers challenges.
pub(super) struct Authorizer {
    credentials: Credentials,
    timeout: Duration,
    metrics: RequestMetrics,
    entries: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<Entry>>>>,
}

impl Authorizer {
    /// An authorizer; `timeout` bounds each request to a token service.
    pub(super) fn new(
        credentials: Credentials,
        timeout: Duration,
        metrics: RequestMetrics,
    ) -> Self {
        Self { credentials, timeout, metrics, entries: Mutex::default() }
    }

    fn entry(&self, scope: Scope<'_>) -> Arc<tokio::sync::Mutex<Entry>> {
        let key = (scope.host.base.to_string(), scope.repository.to_owned());
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(entries.entry(key).or_default())
    }

    /// What is known to convince the host, renewed if it has expired, and its generation.
    ///
    /// # Errors
    /// Where the renewal fails.
    pub(super) async fn current(
        &self,
        clients: &Clients,
        scope: Scope<'_>,
    ) -> Result<(Option<Authorization>, u64), RegistryError> {
        let entry = self.entry(scope);
        let mut entry = entry.lock().await;
        if entry.expires.is_some_and(|expires| expires <= Instant::now()) {
            self.renew(clients, scope, &mut entry).await?;
        }
        Ok((entry.authorization.clone(), entry.generation))
    }

    /// Answers the challenge in the `headers` of a 401 for a request of generation `refused`.
    ///
    /// # Errors
    /// Where there is nothing to answer with, or the token service fails.
    pub(super) async fn answer(
        &self,
        clients: &Clients,
        scope: Scope<'_>,
        refused: u64,
        headers: &HeaderMap,
    ) -> Result<(), RegistryError> {
        let entry = self.entry(scope);
        let mut entry = entry.lock().await;
        if entry.generation != refused {
            return Ok(());
        }
        let Some(challenge) = parse_challenges(headers) else {
            return Err(RegistryError::Unauthorized {
                host: scope.name.to_owned(),
                what: scope.what.to_owned(),
                status: 401,
                way_out: "it offers neither Basic nor Bearer, which are what hoist can answer"
                    .to_owned(),
            });
        };
        entry.challenge = Some(challenge);
        self.renew(clients, scope, &mut entry).await
    }

    /// Forgets what was refused with a 403, so that the next request is challenged anew.
    pub(super) async fn forget(&self, scope: Scope<'_>, refused: u64) {
        let entry = self.entry(scope);
        let mut entry = entry.lock().await;
        if entry.generation == refused {
            *entry = Entry { generation: refused + 1, ..Entry::default() };
        }
    }

    /// The error for a request that stays refused.
    pub(super) async fn refusal(&self, scope: Scope<'_>, status: StatusCode) -> RegistryError {
        let had_some = self.entry(scope).lock().await.had_credentials;
        self.unauthorized(scope, status, had_some)
    }

    fn unauthorized(&self, scope: Scope<'_>, status: StatusCode, had_some: bool) -> RegistryError {
        RegistryError::Unauthorized {
            host: scope.name.to_owned(),
            what: scope.what.to_owned(),
            status: status.as_u16(),
            way_out: self.credentials.way_out(scope.name, had_some),
        }
    }

    async fn renew(
        &self,
        clients: &Clients,
        scope: Scope<'_>,
        entry: &mut Entry,
    ) -> Result<(), RegistryError> {
        let credential = self.credentials.find(scope.name).await?;
        entry.had_credentials = credential.is_some();
        entry.authorization = None;
        entry.expires = None;
        entry.generation += 1;
        match entry.challenge.clone() {
            None => {}
            Some(Challenge::Basic) => match credential {
                Some(Credential::Password(user, password)) => {
                    entry.authorization = Some(Authorization::Basic(user, password));
                }
                // A refresh token is of no use without a token service.
                _ => return Err(self.unauthorized(scope, StatusCode::UNAUTHORIZED, false)),
            },
            Some(Challenge::Bearer { realm, service, scope: wanted }) => {
                let question = TokenQuestion { realm: &realm, service, wanted, credential };
                let asked = Instant::now();
                let token = self.ask(clients, scope, question).await?;
                entry.expires = Some(asked + token.usable());
                entry.authorization = Some(Authorization::Bearer(token.text));
            }
        }
        Ok(())
    }

    async fn ask(
        &self,
        clients: &Clients,
        scope: Scope<'_>,
        question: TokenQuestion<'_>,
    ) -> Result<Token, RegistryError> {
        let failed = |problem: String, transient, retry_after| RegistryError::Token {
            host: scope.name.to_owned(),
            realm: question.realm.to_owned(),
            what: scope.what.to_owned(),
            problem,
            transient,
            retry_after,
        };
        let refuse = |problem: &str| failed(problem.to_owned(), false, None);
        let url: Url = question.realm.parse().map_err(|_| refuse("its address is none"))?;
        let may_be_open = scope.host.base.scheme() == "http" || is_loopback(&url);
        match url.scheme() {
            "https" => {}
            "http" if may_be_open => {}
            _ => return Err(refuse("it is not HTTPS, and credentials are not sent in the open")),
        }
        let had_some = question.credential.is_some();
        let request = question.request(clients, scope, url.clone())?;
        let exchange = async {
            let response = request.send().await?;
            let (status, headers) = (response.status(), response.headers().clone());
            Ok::<_, reqwest::Error>((status, headers, response.bytes().await?))
        };
        let (asked, host) = (Instant::now(), authority(&url));
        let answer = tokio::time::timeout(self.timeout, exchange).await;
        let code = match &answer {
            Ok(Ok((status, ..))) => status.as_str().to_owned(),
            Ok(Err(_)) => "error".to_owned(),
            Err(_) => "timeout".to_owned(),
        };
        self.metrics.answered(&host, &code, asked.elapsed().as_secs_f64());
        let (status, headers, body) = match answer {
            Err(_) => return Err(failed("no answer in time".to_owned(), true, None)),
            Ok(Err(error)) => {
                let (problem, transient) = super::error::told(&error);
                return Err(failed(problem, transient, None));
            }
            Ok(Ok(answer)) => answer,
        };
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(self.unauthorized(scope, status, had_some));
        }
        if !status.is_success() {
            let after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let after = after.and_then(|v| retry::parse_retry_after(v, SystemTime::now()));
            let transient = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
            return Err(failed(format!("status {}", status.as_u16()), transient, after));
        }
        if body.len() > TOKEN_BYTES_MOST {
            return Err(refuse("its answer is too large"));
        }
        Token::parse(&body).ok_or_else(|| refuse("there is no token in its answer"))
    }
}

struct TokenQuestion<'a> {
    realm: &'a str,
    service: Option<String>,
    wanted: Option<String>,
    credential: Option<Credential>,
}

impl TokenQuestion<'_> {
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

struct Token {
    text: String,
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
    fn usable(&self) -> Duration {
        self.life - (self.life / 10).min(TOKEN_MARGIN_MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(fields: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(WWW_AUTHENTICATE, field.parse().unwrap());
        }
        parse_challenges(&headers)
    }

    #[test]
    fn bearer_goes_before_basic() {
        let bearer = challenge(&[
            "Basic realm=\"x\"",
            "bearer realm=\"https://auth.example/t\", Service=\"r\",scope=\"repository:a/b:pull\"",
        ]);
        let expected = Challenge::Bearer {
            realm: "https://auth.example/t".to_owned(),
            service: Some("r".to_owned()),
            scope: Some("repository:a/b:pull".to_owned()),
        };
        assert_eq!(bearer, Some(expected));
        assert_eq!(challenge(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Negotiate realm=\"x\"", "Bearer scope=\"x\""]), None);
        assert_eq!(challenge(&[]), None);
    }

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
