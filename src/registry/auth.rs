//! Answers to the challenges of registries.
//!
//! A registry that wants to know who asks answers 401 and says how it wants to be convinced:
//! `Basic`, or `Bearer` with the address of a token service. Credentials may come from several
//! sources; they are tried one after the other until one is taken, and the one that was is kept for
//! each host and repository until it expires, and tried first at the host's other repositories.
//!
//! ```text
//! 401 ──▶ first candidate ──refused──▶ next ──refused──▶ … ──none left──▶ error: who was tried, what each was told
//!               │                      │
//!               ╰──────taken──────▶ proved ──refused later: it has expired──▶ the same source anew, then the others
//! ```
//!
//! However many requests are refused at the same time, what they need is made once: they wait at
//! the entry's lock, and whoever comes second finds a newer generation than the one that was refused. Where all
//! were refused, those that began before share the error, and those that come later try again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::{HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, StatusCode, Url};
use serde::Deserialize;

use super::clients::{Clients, is_loopback};
use super::credentials::{Candidate, Credential, Credentials, Origin, Place, Tried, Walk};
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

    /// What must not be told of it, in each form that it is sent in.
    pub(super) fn secrets(&self) -> Vec<String> {
        match self {
            Self::Basic(user, password) => {
                vec![BASE64_STANDARD.encode(format!("{user}:{password}")), password.clone()]
            }
            Self::Bearer(token) => vec![token.clone()],
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

/// How often one request may be refused and still try on: more than there are sources, their
/// renewals included.
const REFUSALS_MOST: u32 = 16;

#[derive(Default)]
struct Entry {
    generation: u64,
    challenge: Option<Challenge>,
    authorization: Option<Authorization>,
    expires: Option<Instant>,
    /// What the authorization was made of; `None`: of nothing.
    candidate: Option<Candidate>,
    /// Whether a request came through with it.
    proved: bool,
    walk: Option<Walk>,
    /// Whether the walk's end was reached, and a token asked for without credentials.
    bare: bool,
    spent: Option<Spent>,
}

/// All that there was did not do.
struct Spent {
    at: Instant,
    status: StatusCode,
    tried: Vec<Tried>,
}

/// One request on its way, which may be refused several times.
#[derive(Debug)]
pub(super) struct Visit {
    begun: Instant,
    generation: u64,
    refusals: u32,
}

impl Visit {
    pub(super) fn begin() -> Self {
        Self { begun: Instant::now(), generation: 0, refusals: 0 }
    }
}

type Key = (String, String);

/// For whom and for what an authorization is.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    /// The host's address and wishes.
    pub(super) host: &'a HostConfig,
    /// The host's name and port, as errors and credentials have it.
    pub(super) name: &'a str,
    /// The registry of the image references, where the host only stands for it.
    pub(super) stands_for: Option<&'a str>,
    /// The repository.
    pub(super) repository: &'a str,
    /// What is asked for, in words.
    pub(super) what: &'a str,
}

impl<'a> Scope<'a> {
    fn place(&self) -> Place<'a> {
        Place { host: self.name, stands_for: self.stands_for, repository: self.repository }
    }
}

/// Whoever answers challenges.
pub(super) struct Authorizer {
    credentials: Credentials,
    timeout: Duration,
    metrics: RequestMetrics,
    entries: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<Entry>>>>,
    /// What was taken last, by host.
    taken: Mutex<HashMap<String, Origin>>,
}

impl Authorizer {
    /// An authorizer; `timeout` bounds each request to a token service.
    pub(super) fn new(
        credentials: Credentials,
        timeout: Duration,
        metrics: RequestMetrics,
    ) -> Self {
        Self { credentials, timeout, metrics, entries: Mutex::default(), taken: Mutex::default() }
    }

    /// The sources that have credentials for `scope`, in the order of trying, and what those say that
    /// fail. No secret.
    pub(super) async fn sources(&self, scope: Scope<'_>) -> Vec<String> {
        self.credentials.sources(scope.place()).await
    }

    fn entry(&self, scope: Scope<'_>) -> Arc<tokio::sync::Mutex<Entry>> {
        let key = (scope.host.base.to_string(), scope.repository.to_owned());
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(entries.entry(key).or_default())
    }

    /// What is known to convince the host, renewed if it has expired.
    ///
    /// # Errors
    /// Where the renewal fails.
    pub(super) async fn current(
        &self,
        clients: &Clients,
        scope: Scope<'_>,
        visit: &mut Visit,
    ) -> Result<Option<Authorization>, RegistryError> {
        let entry = self.entry(scope);
        let mut entry = entry.lock().await;
        if entry.expires.is_some_and(|expires| expires <= Instant::now()) {
            self.start_walk(scope, &mut entry);
            self.advance(clients, scope, &mut entry, StatusCode::UNAUTHORIZED).await?;
        }
        visit.generation = entry.generation;
        Ok(entry.authorization.clone())
    }

    /// Notes that the host let the request in.
    pub(super) fn accepted(&self, scope: Scope<'_>, visit: &Visit) {
        let entry = self.entry(scope);
        // Whoever holds it makes a new authorization; the old one's praise is not missed.
        let Ok(mut entry) = entry.try_lock() else { return };
        if entry.generation != visit.generation || entry.proved {
            return;
        }
        entry.proved = true;
        entry.walk = None;
        if let Some(Candidate { origin, .. }) = &entry.candidate {
            tracing::debug!(host = scope.name, repository = scope.repository, %origin, "taken");
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken.insert(scope.name.to_owned(), origin.clone());
        }
    }

    /// Answers a 401 or 403, with its `headers`, so that the request can be made again.
    ///
    /// # Errors
    /// Where there is nothing left to answer with, or the token service fails.
    pub(super) async fn refused(
        &self,
        clients: &Clients,
        scope: Scope<'_>,
        visit: &mut Visit,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<(), RegistryError> {
        visit.refusals += 1;
        let entry = self.entry(scope);
        let mut entry = entry.lock().await;
        if entry.generation != visit.generation {
            return match &entry.spent {
                Some(spent) if visit.begun < spent.at => {
                    Err(self.unauthorized(scope, spent.status, &spent.tried))
                }
                _ if visit.refusals < REFUSALS_MOST => Ok(()),
                _ => Err(self.unauthorized(scope, status, &[])),
            };
        }
        let challenge = parse_challenges(headers);
        if status == StatusCode::UNAUTHORIZED {
            let Some(challenge) = challenge else {
                return Err(RegistryError::Unauthorized {
                    host: scope.name.to_owned(),
                    what: scope.what.to_owned(),
                    status: status.as_u16(),
                    way_out: "it offers neither Basic nor Bearer, which are what hoist can answer"
                        .to_owned(),
                });
            };
            entry.challenge = Some(challenge);
        } else if entry.authorization.is_none() {
            return Err(self.unauthorized(scope, status, &[]));
        }
        let answer = format!("the registry answered {}", status.as_u16());
        if visit.refusals >= REFUSALS_MOST {
            let tried = entry.walk.as_ref().map_or(&[][..], Walk::tried);
            return Err(self.unauthorized(scope, status, tried));
        }
        if status == StatusCode::FORBIDDEN && entry.proved {
            // Mostly a token that has expired: without it a challenge comes, for this very request.
            entry.authorization = None;
            entry.expires = None;
            entry.generation += 1;
            return Ok(());
        }
        if let Some(candidate) = &entry.candidate {
            self.credentials.refused(scope.place(), candidate).await;
        }
        let Entry { walk, candidate, .. } = &mut *entry;
        match (walk, candidate) {
            (Some(walk), Some(candidate)) => walk.refused(candidate, answer),
            (Some(walk), None) => walk.refused_bare(answer),
            (None, _) => self.start_walk(scope, &mut entry),
        }
        self.advance(clients, scope, &mut entry, status).await
    }

    fn unauthorized(&self, scope: Scope<'_>, status: StatusCode, tried: &[Tried]) -> RegistryError {
        RegistryError::Unauthorized {
            host: scope.name.to_owned(),
            what: scope.what.to_owned(),
            status: status.as_u16(),
            way_out: self.credentials.way_out(scope.name, tried),
        }
    }

    /// Begins with what was taken the last time: here, or elsewhere at the same host.
    fn start_walk(&self, scope: Scope<'_>, entry: &mut Entry) {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let before = entry.candidate.as_ref().map(|candidate| candidate.origin.clone());
        let remembered = before.or_else(|| taken.get(scope.name).cloned());
        entry.walk = Some(Walk::new(remembered));
        entry.bare = false;
    }

    /// Makes an authorization of the walk's next candidate. `status` is that of the last refusal.
    async fn advance(
        &self,
        clients: &Clients,
        scope: Scope<'_>,
        entry: &mut Entry,
        mut status: StatusCode,
    ) -> Result<(), RegistryError> {
        entry.generation += 1;
        (entry.authorization, entry.expires, entry.proved) = (None, None, false);
        // Whatever ends this, an error too, ends the walk; only success takes it up again.
        let mut walk = entry.walk.take().unwrap_or_else(|| Walk::new(None));
        let challenge = entry.challenge.clone().unwrap_or(Challenge::Basic);
        while !entry.bare {
            let candidate = walk.next(&self.credentials, scope.place()).await;
            entry.candidate.clone_from(&candidate);
            entry.bare = candidate.is_none();
            match self.authorize(clients, scope, &challenge, candidate.clone()).await? {
                Ok((authorization, expires)) => {
                    entry.authorization = Some(authorization);
                    entry.expires = expires;
                    entry.walk = Some(walk);
                    return Ok(());
                }
                Err(Refusal { answer, by }) => {
                    match &candidate {
                        Some(candidate) => {
                            self.credentials.refused(scope.place(), candidate).await;
                            walk.refused(candidate, answer);
                        }
                        // To be told that a password is wanted does not help.
                        None if challenge == Challenge::Basic => {}
                        None => walk.refused_bare(answer),
                    }
                    status = by.unwrap_or(status);
                }
            }
        }
        let tried = walk.tried().to_vec();
        let error = self.unauthorized(scope, status, &tried);
        entry.candidate = None;
        entry.spent = Some(Spent { at: Instant::now(), status, tried });
        Err(error)
    }

    /// What a candidate, or nobody's word, is worth under a challenge.
    async fn authorize(
        &self,
        clients: &Clients,
        scope: Scope<'_>,
        challenge: &Challenge,
        candidate: Option<Candidate>,
    ) -> Result<Result<(Authorization, Option<Instant>), Refusal>, RegistryError> {
        match challenge {
            Challenge::Basic => Ok(match candidate {
                Some(Candidate {
                    credential: Credential::Password(user, password),
                    expires,
                    ..
                }) => Ok((Authorization::Basic(user, password), expires)),
                Some(_) => {
                    Err(Refusal::because("it is a token, and the registry wants a password"))
                }
                None => Err(Refusal::because("the registry wants a password")),
            }),
            Challenge::Bearer { realm, service, scope: wanted } => {
                let (credential, expires) = candidate.map(|c| (c.credential, c.expires)).unzip();
                let question = TokenQuestion {
                    realm,
                    service: service.clone(),
                    wanted: wanted.clone(),
                    credential,
                };
                let asked = Instant::now();
                Ok(self.ask(clients, scope, question).await?.map(|token| {
                    let usable = asked + token.usable();
                    let expires = expires.flatten().map_or(usable, |expires| usable.min(expires));
                    (Authorization::Bearer(token.text), Some(expires))
                }))
            }
        }
    }

    async fn ask(
        &self,
        clients: &Clients,
        scope: Scope<'_>,
        question: TokenQuestion<'_>,
    ) -> Result<Result<Token, Refusal>, RegistryError> {
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
        let spent_token = matches!(question.credential, Some(Credential::IdentityToken(_)));
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
        // A refresh token that is no longer good is an invalid grant to OAuth 2: a 400.
        let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        if refused || (status == StatusCode::BAD_REQUEST && spent_token) {
            let answer = format!("{host}, which gives out tokens, answered {}", status.as_u16());
            return Ok(Err(Refusal { answer, by: Some(status) }));
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
        Token::parse(&body).map(Ok).ok_or_else(|| refuse("there is no token in its answer"))
    }
}

/// Why a candidate is passed over.
struct Refusal {
    answer: String,
    /// The status with which a token service refused it.
    by: Option<StatusCode>,
}

impl Refusal {
    fn because(answer: &str) -> Self {
        Self { answer: answer.to_owned(), by: None }
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
