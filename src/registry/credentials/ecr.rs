//! Registries of AWS: a password from ECR's own API, with whatever makes this host somebody to AWS.
//!
//! The SDK finds that out: environment, profiles, web identity (IRSA), the credentials of an ECS
//! task or of a Pod Identity, and the instance's role by IMDSv2. It is asked when a host is a
//! registry of AWS by its name (`host`), never else; so a host outside of AWS does not notice.
//!
//! A password is good for twelve hours. It is kept, for each account and region, until shortly
//! before its end, or until a registry refuses it; whoever needs one while it is asked for waits for
//! that one question. What failed is not asked again for a minute: where there is no instance
//! metadata, finding that out takes seconds.

mod host;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ecr::primitives::DateTime;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Builder, Connector};
use futures_util::FutureExt as _;

use super::super::error::with_sources;
use super::{Credential, unpacked};
use host::EcrHost;

/// How much earlier than its end a password is renewed: longer than a pull of some size takes to
/// ask for its last blob.
const MARGIN: Duration = Duration::from_secs(15 * 60);

/// How long a failure is believed.
const FAILED_FRESH: Duration = Duration::from_secs(60);

/// How long the whole of it may take, the SDK's retries included.
const PATIENCE: Duration = Duration::from_secs(20);

/// The public gallery's API is in one region.
const PUBLIC_REGION: &str = "us-east-1";

/// How much of an error is told.
const PROBLEM_CHARS_MOST: usize = 400;

/// A password of ECR's.
#[derive(Clone, Debug)]
pub(super) struct Password {
    /// For whom it is, in words.
    pub(super) name: String,
    pub(super) credential: Credential,
    pub(super) expires: Instant,
    /// Whether it was known before it was asked for.
    pub(super) cached: bool,
}

#[derive(Default)]
enum Slot {
    #[default]
    Empty,
    Known {
        credential: Credential,
        expires: Instant,
    },
    Failed {
        at: Instant,
        problem: String,
    },
}

/// Passwords by registry.
pub(super) struct Ecr {
    ca_files: Vec<PathBuf>,
    slots: Mutex<HashMap<EcrHost, Arc<tokio::sync::Mutex<Slot>>>>,
}

impl std::fmt::Debug for Ecr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ecr").finish_non_exhaustive()
    }
}

impl Ecr {
    /// `ca_files` are trusted besides the system's certificates.
    pub(super) fn new(ca_files: Vec<PathBuf>) -> Self {
        Self { ca_files, slots: Mutex::default() }
    }

    /// Whether `host` is a registry of AWS, and which, in words.
    pub(super) fn serves(host: &str) -> Option<String> {
        EcrHost::parse(host).map(|host| host.to_string())
    }

    fn slot(&self, host: &EcrHost) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(host.clone()).or_default())
    }

    /// The password for `host`, if that is a registry of AWS.
    ///
    /// # Errors
    /// In words, without secrets: no credentials on this host, or the API refuses.
    pub(super) async fn find(&self, host: &str) -> Result<Option<Password>, String> {
        let Some(host) = EcrHost::parse(host) else { return Ok(None) };
        let slot = self.slot(&host);
        let mut slot = slot.lock().await;
        let password = |credential: &Credential, expires: Instant, cached| Password {
            name: host.to_string(),
            credential: credential.clone(),
            expires,
            cached,
        };
        match &*slot {
            Slot::Known { credential, expires } if *expires > Instant::now() => {
                return Ok(Some(password(credential, *expires, true)));
            }
            Slot::Failed { at, problem } if at.elapsed() < FAILED_FRESH => {
                return Err(problem.clone());
            }
            _ => {}
        }
        // The SDK's futures are deep: in a box of their own they are nobody else's business.
        let asked = tokio::time::timeout(PATIENCE, self.ask(&host).boxed()).await;
        let late = || Err(format!("no answer in {} s", PATIENCE.as_secs()));
        match asked.unwrap_or_else(|_| late()) {
            Ok((credential, expires)) => {
                let found = password(&credential, expires, false);
                *slot = Slot::Known { credential, expires };
                Ok(Some(found))
            }
            Err(problem) => {
                *slot = Slot::Failed { at: Instant::now(), problem: problem.clone() };
                Err(problem)
            }
        }
    }

    /// Forgets a password that a registry refused, unless another one has been got since.
    pub(super) async fn refused(&self, host: &str, refused: &Credential) {
        let Some(host) = EcrHost::parse(host) else { return };
        let slot = self.slot(&host);
        let mut slot = slot.lock().await;
        if matches!(&*slot, Slot::Known { credential, .. } if credential == refused) {
            *slot = Slot::Empty;
        }
    }

    async fn ask(&self, host: &EcrHost) -> Result<(Credential, Instant), String> {
        let region = match host {
            EcrHost::Private { region, .. } => region.as_str(),
            EcrHost::Public => PUBLIC_REGION,
        };
        let sdk = self.sdk(region).await?;
        tracing::debug!(%host, "ECR is asked for a password");
        let (token, expires) = match host {
            EcrHost::Private { region, fips, dual_stack, .. } => {
                let config = aws_sdk_ecr::config::Builder::from(&sdk)
                    .region(Region::new(region.clone()))
                    .use_fips(*fips)
                    .use_dual_stack(*dual_stack)
                    .build();
                let client = aws_sdk_ecr::Client::from_conf(config);
                let answer = client.get_authorization_token().send().await;
                let answer = answer.map_err(|error| told(&error))?;
                let data = answer.authorization_data().first();
                data.map(|data| (data.authorization_token.clone(), data.expires_at)).unzip()
            }
            EcrHost::Public => {
                let config = aws_sdk_ecrpublic::config::Builder::from(&sdk)
                    .region(Region::from_static(PUBLIC_REGION))
                    .build();
                let client = aws_sdk_ecrpublic::Client::from_conf(config);
                let answer = client.get_authorization_token().send().await;
                let answer = answer.map_err(|error| told(&error))?;
                let data = answer.authorization_data();
                data.map(|data| (data.authorization_token.clone(), data.expires_at)).unzip()
            }
        };
        let credential = token.flatten().as_deref().and_then(parse);
        let credential =
            credential.ok_or_else(|| "there is no password in its answer".to_owned())?;
        Ok((credential, usable(expires.flatten())))
    }

    /// What the environment and the files of the SDK say; `region` is where AWS's own token service
    /// is asked if they say nothing of it.
    async fn sdk(&self, region: &str) -> Result<SdkConfig, String> {
        // Not the default chain: at its end it would ask the instance for its region.
        let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new())
            .or_else(Region::new(region.to_owned()));
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(5))
            .operation_attempt_timeout(Duration::from_secs(10))
            .build();
        let mut roots = TrustStore::default();
        for file in &self.ca_files {
            let pem = tokio::fs::read(file).await;
            roots = roots
                .with_pem_certificate(pem.map_err(|error| format!("{}: {error}", file.display()))?);
        }
        let tls = TlsContext::builder().with_trust_store(roots).build();
        let tls = tls.map_err(|error| error.to_string())?;
        // The process has one TLS library; hoist's requests to registries use the same.
        let http = Builder::new().build_with_connector_fn(move |settings, components| {
            let mut connector = Connector::builder().proxy_config(ProxyConfig::from_env());
            connector.set_connector_settings(settings.cloned());
            connector.set_sleep_impl(components.and_then(|parts| parts.sleep_impl()));
            let tls_provider = Provider::Rustls(CryptoMode::Ring);
            connector.tls_provider(tls_provider).tls_context(tls.clone()).build()
        });
        let loader = aws_config::defaults(BehaviorVersion::latest());
        Ok(loader.region(region).timeout_config(timeouts).http_client(http).load().await)
    }
}

/// `AWS:PASSWORD`, packed.
fn parse(token: &str) -> Option<Credential> {
    unpacked(token.trim()).map(|(user, password)| Credential::Password(user, password))
}

/// Until when a password is used that ends at `end`.
fn usable(end: Option<DateTime>) -> Instant {
    let end = end.and_then(|end| SystemTime::try_from(end).ok());
    let left = end.and_then(|end| end.duration_since(SystemTime::now()).ok()).unwrap_or_default();
    // A year: more than any, and no overflow of the clock.
    let left = left.min(Duration::from_secs(365 * 24 * 3600));
    Instant::now() + (left - MARGIN.min(left / 10))
}

/// An error of the SDK with its sources, without the requests and answers that its debug form has.
fn told(error: &dyn std::error::Error) -> String {
    let text = with_sources(error.to_string(), error);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(PROBLEM_CHARS_MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_used_until_shortly_before_its_end() {
        let ends_in = |seconds: u64| {
            let end = SystemTime::now() + Duration::from_secs(seconds);
            usable(Some(DateTime::from(end))).saturating_duration_since(Instant::now()).as_secs()
        };
        let about = |seconds: u64, expected: u64| {
            let found = ends_in(seconds);
            assert!(found.abs_diff(expected) <= 2, "{seconds}: {found}");
        };
        about(12 * 3600, 12 * 3600 - 900);
        about(100, 90);
        about(0, 0);
        assert!(usable(None) <= Instant::now(), "an end that is not told is no promise");
        assert!(
            parse("QVdTOnB3").is_some_and(|c| c == Credential::Password("AWS".into(), "pw".into()))
        );
        assert!(parse("rubbish!").is_none());
    }
}
