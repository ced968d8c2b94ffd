//! The hosts that stand for a registry, in the order in which they are tried.
//!
//! The order is that of `hosts.toml`; a host that failed several times in a row is put behind the
//! others for a while, so that a dead mirror costs one timeout and not one a request.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Url;

use super::clients::is_loopback;
use super::hosts::{self, HostConfig};
use super::scope::Scope;
use super::{RegistryError, Settings};

/// How long a failed host comes last.
const DOWN: Duration = Duration::from_secs(30);

/// Broken bodies in a row after which a host counts as failed.
const STRIKES: u32 = 3;

/// One host that can be asked for a registry's content.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) config: HostConfig,
    /// The host's name, with its port where the address has one.
    pub(super) name: String,
    /// The registry of the image references, where the host only stands for it.
    pub(super) stands_for: Option<String>,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    strikes: u32,
    down_until: Option<Instant>,
}

impl Endpoint {
    fn new(config: HostConfig, registry: &str) -> Self {
        let name = authority(&config.base);
        let itself =
            name == registry || (registry == "docker.io" && name == "registry-1.docker.io");
        let stands_for = (!itself).then(|| registry.to_owned());
        Self { config, name, stands_for, health: Mutex::default() }
    }

    /// A request to it, for whoever answers challenges.
    pub(super) fn scope<'a>(&'a self, repository: &'a str, what: &'a str) -> Scope<'a> {
        Scope {
            host: &self.config,
            name: &self.name,
            stands_for: self.stands_for.as_deref(),
            repository,
            what,
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that no connection or no answer came.
    pub(super) fn failed(&self) {
        self.health().down_until = Some(Instant::now() + DOWN);
    }

    /// Notes that a body broke off.
    pub(super) fn struck(&self) {
        let mut health = self.health();
        health.strikes += 1;
        if health.strikes >= STRIKES {
            *health = Health { strikes: 0, down_until: Some(Instant::now() + DOWN) };
        }
    }

    /// Notes that a body came whole.
    pub(super) fn served(&self) {
        *self.health() = Health::default();
    }

    pub(super) fn is_down(&self) -> bool {
        self.health().down_until.is_some_and(|until| until > Instant::now())
    }
}

/// Host and port of an address, the port only where it is not the scheme's own.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// An address without the user and the password that may stand in it.
pub(super) fn without_user(address: &str) -> String {
    let (scheme, rest) =
        address.split_once("://").map_or(("", address), |(scheme, rest)| (scheme, rest));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = rest[..end].rfind('@').map_or(rest, |at| &rest[at + 1..]);
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}

/// Healthy ones first, otherwise in their order.
pub(super) fn by_health(endpoints: &[Arc<Endpoint>]) -> Vec<Arc<Endpoint>> {
    let (down, up): (Vec<_>, Vec<_>) = endpoints.iter().cloned().partition(|e| e.is_down());
    up.into_iter().chain(down).collect()
}

/// The hosts for `registry` by the first `hosts.toml` that is found, or the registry itself.
///
/// # Errors
/// Where a `hosts.toml` cannot be read or has a mistake, or `registry` is no host.
pub(super) fn load(
    settings: &Settings,
    registry: &str,
) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
    let default = default_host(settings, registry)?;
    let mut configs = vec![default.clone()];
    let candidates = settings.hosts_dirs.iter().flat_map(|root| directories(root, registry));
    for dir in candidates {
        let file = dir.join("hosts.toml");
        let problem = |problem: String| RegistryError::Hosts { file: file.clone(), problem };
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                configs = hosts::parse(&text, &dir, default).map_err(problem)?;
                break;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(problem(error.to_string())),
        }
    }
    Ok(configs.into_iter().map(|config| Arc::new(Endpoint::new(config, registry))).collect())
}

/// Where containerd looks for a registry's directory: with `_port_`, as it is, then `_default`.
fn directories(root: &Path, registry: &str) -> Vec<PathBuf> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([registry.to_owned(), "_default".to_owned()]);
    names.into_iter().map(|name| root.join(name)).collect()
}

/// The registry itself: plain HTTP on loopback, unless its port is that of HTTPS, and for the
/// hosts that are configured so; else HTTPS.
fn default_host(settings: &Settings, registry: &str) -> Result<HostConfig, RegistryError> {
    let name = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
    let url = |scheme: &str| {
        let parsed = Url::parse(&format!("{scheme}://{name}/v2"));
        parsed
            .ok()
            .filter(|url| !authority(url).is_empty() && url.username().is_empty())
            .ok_or_else(|| RegistryError::Reference {
                reference: registry.to_owned(),
                problem: "it is not the name of a registry's host".to_owned(),
            })
    };
    let https = url("https")?;
    let loopback = is_loopback(&https) && https.port().is_some();
    let plain = loopback || is_plain(settings, &https);
    Ok(HostConfig::plain(if plain { url("http")? } else { https }))
}

/// Whether plain HTTP is configured for the host of `url`, with its port or without.
pub(super) fn is_plain(settings: &Settings, url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let with_port = format!("{host}:{}", url.port_or_known_default().unwrap_or_default());
    settings.plain_http_hosts.iter().any(|plain| *plain == host || *plain == with_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(settings: &Settings, registry: &str) -> Vec<String> {
        let endpoints = load(settings, registry).unwrap();
        endpoints.iter().map(|e| e.config.base.to_string()).collect()
    }

    #[test]
    fn plain_http_is_for_loopback_and_for_those_configured() {
        let settings = Settings {
            plain_http_hosts: vec!["a.example".to_owned(), "b.example:5000".to_owned()],
            ..Settings::default()
        };
        for (registry, base) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("quay.example", "https://quay.example/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("localhost:443", "https://localhost/v2"),
            ("localhost", "https://localhost/v2"),
            ("a.example:80", "http://a.example/v2"),
            ("a.example:81", "http://a.example:81/v2"),
            ("b.example:5000", "http://b.example:5000/v2"),
            ("b.example", "https://b.example/v2"),
        ] {
            assert_eq!(bases(&settings, registry), [base]);
        }
        assert!(load(&settings, "no host/x y").is_err());
    }

    #[test]
    fn directories_are_searched_as_containerd_does() {
        let root = tempfile::tempdir().unwrap();
        let settings = Settings { hosts_dirs: vec![root.path().to_owned()], ..Settings::default() };
        let write = |dir: &str, text: &str| {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
            std::fs::write(root.path().join(dir).join("hosts.toml"), text).unwrap();
        };
        write("_default", "[host.\"https://default.example\"]");
        write("r.example:5000", "[host.\"https://colon.example\"]");
        assert_eq!(bases(&settings, "r.example:5000")[0], "https://colon.example/v2");
        write("r.example_5000_", "[host.\"https://under.example\"]");
        assert_eq!(bases(&settings, "r.example:5000")[0], "https://under.example/v2");
        let other = bases(&settings, "other.example");
        assert_eq!(other, ["https://default.example/v2", "https://other.example/v2"]);
        write("bad.example", "server = 1");
        let error = load(&settings, "bad.example").unwrap_err().to_string();
        assert!(error.contains("hosts.toml") && error.contains("server"), "{error}");
    }

    #[test]
    fn a_failed_host_comes_last() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("_default");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("hosts.toml"), "[host.\"https://m.example\"]").unwrap();
        let settings = Settings { hosts_dirs: vec![root.path().to_owned()], ..Settings::default() };
        let endpoints = load(&settings, "r.example").unwrap();
        let first = || by_health(&endpoints)[0].name.clone();
        (1..STRIKES).for_each(|_| endpoints[0].struck());
        assert_eq!(first(), "m.example");
        endpoints[0].struck();
        assert_eq!(first(), "r.example");
        endpoints[0].served();
        assert_eq!(first(), "m.example");
        endpoints[0].failed();
        assert_eq!(first(), "r.example");
    }
}
