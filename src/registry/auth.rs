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

mod challenge;
mod token;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, StatusCode};

use super::RegistryError;
use super::clients::Clients;
use super::credentials::{Candidate, Credential, Credentials, Origin, Tried, Walk};
use super::scope::Scope;
use crate::metrics::RequestMetrics;
use challenge::{Challenge, parse_challenges};
use token::{Question, Refusal, TokenServices};

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

/// Whoever answers challenges.
pub(super) struct Authorizer {
    credentials: Credentials,
    tokens: TokenServices,
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
        let tokens = TokenServices::new(timeout, metrics);
        Self { credentials, tokens, entries: Mutex::default(), taken: Mutex::default() }
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
            return self.overtaken(scope, visit, status, entry.spent.as_ref());
        }
        if status == StatusCode::UNAUTHORIZED {
            let challenge = parse_challenges(headers);
            entry.challenge = Some(challenge.ok_or_else(|| unanswerable(scope, status))?);
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

    /// Answers a refusal of what another request has replaced meanwhile: with the new one, or where
    /// that came to nothing, with the same error.
    fn overtaken(
        &self,
        scope: Scope<'_>,
        visit: &Visit,
        status: StatusCode,
        spent: Option<&Spent>,
    ) -> Result<(), RegistryError> {
        match spent {
            Some(spent) if visit.begun < spent.at => {
                Err(self.unauthorized(scope, spent.status, &spent.tried))
            }
            _ if visit.refusals < REFUSALS_MOST => Ok(()),
            _ => Err(self.unauthorized(scope, status, &[])),
        }
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
                let (service, wanted) = (service.clone(), wanted.clone());
                let question = Question { realm, service, wanted, credential };
                let asked = Instant::now();
                Ok(self.tokens.ask(clients, scope, question).await?.map(|token| {
                    let usable = asked + token.usable();
                    let expires = expires.flatten().map_or(usable, |expires| usable.min(expires));
                    (Authorization::Bearer(token.text), Some(expires))
                }))
            }
        }
    }
}

/// The error of a challenge of a kind that hoist does not know.
fn unanswerable(scope: Scope<'_>, status: StatusCode) -> RegistryError {
    RegistryError::Unauthorized {
        host: scope.name.to_owned(),
        what: scope.what.to_owned(),
        status: status.as_u16(),
        way_out: "it offers neither Basic nor Bearer, which are what hoist can answer".to_owned(),
    }
}
