//! Credentials: where they come from, and in which order they are tried.
//!
//! Several sources may have some for a host: what the kubelet passed ([`Keychain`]), a docker
//! `config.json`, mounted secrets of Kubernetes, AWS for its own registries. Having some says
//! nothing: a token lies there long expired, a secret is for another team's repository. So the first
//! that *works* wins. A [`Walk`] hands out one [`Candidate`] after the other, asking a source only
//! when all before it were refused, and notes what became of each; `auth` tries them and remembers
//! which one was taken. Every source is read anew for each walk, so that whoever renews a file need
//! not tell the daemon.

mod docker;
mod ecr;
mod keychain;
mod kubernetes;

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::{RegistryError, Settings};

pub use keychain::Keychain;

/// What a host is convinced with.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    /// A user's name and password.
    Password(String, String),
    /// A refresh token, for the token service alone.
    IdentityToken(String),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password(user, _) => write!(f, "Password({user:?}, ...)"),
            Self::IdentityToken(_) => f.write_str("IdentityToken(...)"),
        }
    }
}

/// What credentials are for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// The host that is asked, with its port where the address has one.
    pub(super) host: &'a str,
    /// The registry of the image references, where the host only stands for it.
    pub(super) stands_for: Option<&'a str>,
    /// The repository.
    pub(super) repository: &'a str,
}

/// The registry that image references name, for a host that serves it: Docker Hub has several.
pub fn registry_of(host: &str) -> &str {
    match host {
        "registry-1.docker.io" | "index.docker.io" => "docker.io",
        other => other,
    }
}

/// User and password, as `auth` of docker's `config.json` packs them: `USER:PASSWORD` in base64.
/// `None` where it is neither.
pub fn unpacked(auth: &str) -> Option<(String, String)> {
    let plain = String::from_utf8(BASE64_STANDARD.decode(auth).ok()?).ok()?;
    let (user, password) = plain.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// A kind of source, in the order of trying: what was handed over for this very image goes first,
/// what the operator wrote down comes next, and what has to be asked for over the network last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Keychain,
    Docker,
    Kubernetes,
    Ecr,
}

const ORDER: [Source; 4] = [Source::Keychain, Source::Docker, Source::Kubernetes, Source::Ecr];

/// Where a credential is from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Origin {
    source: Source,
    /// For people. No secret.
    name: String,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// A credential that may work.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) origin: Origin,
    pub(super) credential: Credential,
    /// When it stops being one.
    pub(super) expires: Option<Instant>,
    /// Whether its source has had it for a while, and can make a new one.
    pub(super) cached: bool,
}

/// What became of a candidate, or of a source that gave none.
#[derive(Clone, Debug)]
pub(super) struct Tried {
    /// Whose it was.
    pub(super) origin: String,
    /// What was answered.
    pub(super) answer: String,
}

/// Where credentials come from.
#[derive(Debug)]
pub(super) struct Credentials {
    keychain: Keychain,
    docker: Option<docker::DockerConfig>,
    kubernetes: kubernetes::Secrets,
    ecr: Option<ecr::Ecr>,
    /// What docker's source had for a host when it was asked only who has some: for the walk that
    /// comes next. A helper may ask a person, or a cloud, and is not run twice for one look.
    noted: Mutex<HashMap<String, Found>>,
}

/// What a source has for a place, or its name and why it fails.
type Found = Result<Vec<Candidate>, (String, String)>;

impl Credentials {
    /// Credentials from all sources that are configured.
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            keychain: settings.keychain.clone(),
            docker: settings.docker_config.clone().map(docker::DockerConfig::new),
            kubernetes: kubernetes::Secrets::new(settings.kubernetes_secrets.clone()),
            ecr: settings.ecr.then(|| ecr::Ecr::new(settings.ca_files.clone())),
            noted: Mutex::default(),
        }
    }

    /// What an operator has to do so that `host` gets credentials that work, where these were tried.
    pub(super) fn way_out(&self, host: &str, tried: &[Tried]) -> String {
        if tried.is_empty() {
            return match &self.docker {
                Some(docker) => format!(
                    "hoist has no credentials for {host}: put them into {}",
                    docker.file().display()
                ),
                None => format!(
                    "hoist has no credentials for {host}: name a docker config.json with some in hoist's configuration"
                ),
            };
        }
        let told = tried.iter().map(|one| format!("{}: {}", one.origin, one.answer));
        let told = told.collect::<Vec<_>>().join("; ");
        format!("none of the credentials for {host} does it. {told}")
    }

    fn noted(&self) -> MutexGuard<'_, HashMap<String, Found>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What one source has for a place, once more or as it was noted.
    async fn of(&self, source: Source, place: Place<'_>) -> Found {
        let noted = (source == Source::Docker).then(|| self.noted().remove(place.host)).flatten();
        match noted {
            Some(found) => found,
            None => self.ask(source, place).await,
        }
    }

    /// Asks one source what it has for a place.
    async fn ask(&self, source: Source, place: Place<'_>) -> Found {
        let from = |name: String, credential, expires| Candidate {
            origin: Origin { source, name },
            credential,
            expires,
            cached: false,
        };
        match source {
            Source::Keychain => Ok(self
                .keychain
                .find(place)
                .into_iter()
                .map(|(image, credential, expires)| {
                    from(format!("what the kubelet passed for {image}"), credential, Some(expires))
                })
                .collect()),
            Source::Docker => {
                let Some(docker) = &self.docker else { return Ok(Vec::new()) };
                let name = docker.file().display().to_string();
                match docker.find(place.host).await {
                    Ok(found) => {
                        Ok(found.map(|found| from(name, found, None)).into_iter().collect())
                    }
                    Err(error) => Err((name, error.to_string())),
                }
            }
            Source::Kubernetes => {
                let (secrets, host) = (self.kubernetes.clone(), place.host.to_owned());
                let repository = place.repository.to_owned();
                let asked = tokio::task::spawn_blocking(move || secrets.find(&host, &repository));
                let found = asked.await.expect("reading files does not panic");
                Ok(found
                    .into_iter()
                    .map(|(file, key, credential)| {
                        from(format!("{key:?} in {}", file.display()), credential, None)
                    })
                    .collect())
            }
            Source::Ecr => {
                let Some(ecr) = &self.ecr else { return Ok(Vec::new()) };
                let found = ecr.find(place.host).await;
                let found = found
                    .map_err(|error| (ecr::Ecr::serves(place.host).unwrap_or_default(), error))?;
                Ok(found
                    .map(|found| Candidate {
                        cached: found.cached,
                        ..from(found.name, found.credential, Some(found.expires))
                    })
                    .into_iter()
                    .collect())
            }
        }
    }

    /// The names of those sources that have something for a place, in the order of trying, and what
    /// those say that fail. No secret. The next walk does not run docker's helper again.
    pub(super) async fn sources(&self, place: Place<'_>) -> Vec<String> {
        let mut told = Vec::new();
        for source in ORDER {
            let found = self.ask(source, place).await;
            if source == Source::Docker {
                self.noted().insert(place.host.to_owned(), found.clone());
            }
            match found {
                Ok(found) => told.extend(found.into_iter().map(|one| one.origin.name)),
                Err((origin, error)) => told.push(format!("{origin} ({error})")),
            }
        }
        told
    }

    /// Has a candidate's source forget it, since it was refused.
    pub(super) async fn refused(&self, place: Place<'_>, candidate: &Candidate) {
        if let (Source::Ecr, Some(ecr)) = (candidate.origin.source, &self.ecr) {
            ecr.refused(place.host, &candidate.credential).await;
        }
    }
}

/// One way through the sources.
#[derive(Debug)]
pub(super) struct Walk {
    sources: VecDeque<Source>,
    remembered: Option<Origin>,
    found: VecDeque<Candidate>,
    tried: Vec<Tried>,
}

impl Walk {
    /// A way that begins where it ended well the last time. What was passed for this very image
    /// goes before that.
    pub(super) fn new(remembered: Option<Origin>) -> Self {
        let first = remembered.as_ref().map(|origin| origin.source);
        let mut sources = ORDER;
        sources.sort_by_key(|source| *source != Source::Keychain && Some(*source) != first);
        Self { sources: sources.into(), remembered, found: VecDeque::new(), tried: Vec::new() }
    }

    /// The next candidate; a source that fails is noted and passed over.
    pub(super) async fn next(
        &mut self,
        credentials: &Credentials,
        place: Place<'_>,
    ) -> Option<Candidate> {
        while self.found.is_empty() {
            let source = self.sources.pop_front()?;
            match credentials.of(source, place).await {
                Ok(mut found) => {
                    found.sort_by_key(|one| Some(&one.origin) != self.remembered.as_ref());
                    self.found = found.into();
                }
                Err((origin, error)) => {
                    tracing::warn!(host = place.host, error, "a source of credentials fails");
                    self.tried.push(Tried { origin, answer: error });
                }
            }
        }
        self.found.pop_front()
    }

    /// Notes that a candidate was refused. One that its source had cached gets a successor.
    pub(super) fn refused(&mut self, candidate: &Candidate, answer: String) {
        let Origin { source, name } = &candidate.origin;
        if candidate.cached {
            self.sources.push_front(*source);
        } else {
            self.tried.push(Tried { origin: name.clone(), answer });
        }
    }

    /// Notes that it does not go without credentials either, where some were tried.
    pub(super) fn refused_bare(&mut self, answer: String) {
        if !self.tried.is_empty() {
            self.tried.push(Tried { origin: "without credentials".to_owned(), answer });
        }
    }

    /// What was tried so far.
    pub(super) fn tried(&self) -> &[Tried] {
        &self.tried
    }
}

#[cfg(test)]
mod tests;
