//! HTTP clients: one a kind of connection, built when it is first needed.
//!
//! Loopback hosts are never reached through a proxy. Plain HTTP loads no certificates, so that a
//! machine without any can still use it. TLS trusts the system's roots and the configured ones.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Client, Url, redirect};

use super::hosts::HostConfig;
use super::{RegistryError, tls};

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Kind {
    tls: bool,
    loopback: bool,
    ca: Vec<PathBuf>,
    client: Vec<(PathBuf, Option<PathBuf>)>,
    skip_verify: bool,
    connect_timeout: Option<Duration>,
}

/// The clients in use.
#[derive(Debug)]
pub(super) struct Clients {
    ca: Vec<PathBuf>,
    connect_timeout: Duration,
    built: Mutex<HashMap<Kind, Client>>,
}

/// Whether `url` is this machine itself.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Clients {
    /// Clients that trust the certificates in the files `ca` too.
    pub(super) fn new(ca: Vec<PathBuf>, connect_timeout: Duration) -> Self {
        // Another part of the process may have installed one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { ca, connect_timeout, built: Mutex::default() }
    }

    /// The client for `url` by the wishes of `host`, or without any.
    ///
    /// # Errors
    /// Where a file with certificates or a key cannot be used.
    pub(super) fn client(
        &self,
        url: &Url,
        host: Option<&HostConfig>,
    ) -> Result<Client, RegistryError> {
        let mut kind = Kind {
            tls: url.scheme() == "https",
            loopback: is_loopback(url),
            connect_timeout: host.and_then(|host| host.dial_timeout),
            ..Kind::default()
        };
        if let Some(host) = host.filter(|_| kind.tls) {
            kind.ca.clone_from(&host.ca);
            kind.client.clone_from(&host.client);
            kind.skip_verify = host.skip_verify;
        }
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = built.get(&kind) {
            return Ok(client.clone());
        }
        let client = self.build(&kind)?;
        built.insert(kind, client.clone());
        Ok(client)
    }

    /// Forgets all clients, and closes with them the connections that nobody uses. Each of those has a buffer that has grown with
    /// what came through it, of up to half a megabyte.
    pub(super) fn forget(&self) {
        self.built.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn build(&self, kind: &Kind) -> Result<Client, RegistryError> {
        let mut builder = Client::builder()
            .user_agent(concat!("hoist/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .referer(false)
            .http1_only()
            .retry(reqwest::retry::never())
            .connect_timeout(kind.connect_timeout.unwrap_or(self.connect_timeout));
        if kind.loopback {
            builder = builder.no_proxy();
        }
        if kind.tls {
            let mut roots = Vec::new();
            for file in self.ca.iter().chain(&kind.ca) {
                roots.extend(tls::certificates(file)?);
            }
            let tls = tls::configure(roots, kind.skip_verify, &kind.client)?;
            builder = builder.tls_backend_preconfigured(tls);
        } else {
            builder = builder.tls_certs_only([]);
        }
        builder.build().map_err(|error| {
            let problem = std::error::Error::source(&error)
                .map_or_else(|| error.to_string(), ToString::to_string);
            RegistryError::Client { problem }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_machine_alone() {
        let loopback = |url: &str| is_loopback(&url.parse().unwrap());
        for url in ["http://localhost:1/", "http://127.8.9.1/", "http://[::1]:5000/v2"] {
            assert!(loopback(url), "{url}");
        }
        for url in ["http://localhost.example/", "http://10.0.0.1/", "http://127.0.0.1.example/"] {
            assert!(!loopback(url), "{url}");
        }
    }
}
