//! What a pull needs of registries: `hosts.toml`, credentials, an answer.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Check;
use crate::cli::error::AN_IMAGE;
use crate::config::Config;
use crate::image::Platform;
use crate::pull::{self, PullError, Start};
use crate::registry::Registry;

/// How long a registry may take, retries included.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn checks(checks: &mut Vec<Check>, config: &Config, image: Option<&str>) {
    let registry = match Registry::new(config.registry_settings()) {
        Ok(registry) => registry,
        Err(error) => {
            checks.push(Check::wrong(
                "registries",
                error.to_string(),
                "registry.ca_files in hoist.toml",
            ));
            return;
        }
    };
    hosts(checks, config, &registry);
    checks.push(credentials(config));
    if let Some(image) = image {
        checks.extend(sources(&registry, image).await);
        checks.push(answer(&registry, image).await);
    }
}

/// Every `hosts.toml` that is there.
fn hosts(checks: &mut Vec<Check>, config: &Config, registry: &Registry) {
    const NAME: &str = "hosts.toml";
    let entries = config.registry.hosts_dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok());
    let names: BTreeSet<String> = entries
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("hosts.toml").exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let before = checks.len();
    let mut good = Vec::new();
    for name in &names {
        // A port may be written as `_5000_`; `_default` stands for all the others.
        let host = match name.as_str() {
            "_default" => "default.invalid".to_owned(),
            name => name
                .strip_suffix('_')
                .and_then(|n| n.rsplit_once('_'))
                .map_or_else(|| name.to_owned(), |(host, port)| format!("{host}:{port}")),
        };
        match registry.hosts(&host) {
            Ok(hosts) => good.push(format!("{name}: {}", hosts.join(", "))),
            Err(error) => checks.push(Check::wrong(NAME, error.to_string(), "put this line right")),
        }
    }
    if checks.len() == before {
        let found = if good.is_empty() {
            "none: registries are asked themselves".to_owned()
        } else {
            good.join("; ")
        };
        checks.push(Check::ok(NAME, found));
    }
}

/// The sources beside docker's configuration.
fn others(config: &Config) -> String {
    let mut told = String::new();
    for dir in &config.registry.kubernetes_secrets {
        told += &format!("; pull secrets in {}", dir.display());
    }
    if config.registry.ecr {
        told += "; AWS for its own registries";
    }
    if let Some(socket) = &config.cri.socket {
        told += &format!("; what the kubelet passes through {}", socket.display());
    }
    told
}

fn credentials(config: &Config) -> Check {
    const NAME: &str = "credentials";
    let path = &config.registry.docker_config;
    let shown = path.display();
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Check::ok(NAME, format!("there is no {shown}{}", others(config)));
        }
        Err(error) => {
            return Check::wrong(
                NAME,
                format!("{shown}: {error}"),
                "registry.docker_config in hoist.toml",
            );
        }
    };
    // Its content is secret: where it is wrong is told, and nothing of it.
    match serde_json::from_slice::<serde_json::Value>(&text) {
        Ok(value) => {
            let keys = |name: &str| value[name].as_object().map_or(0, serde_json::Map::len);
            let all = value["credsStore"]
                .as_str()
                .map_or(String::new(), |s| format!(", all else by docker-credential-{s}"));
            let found = format!(
                "{shown}: {} registries, {} helpers{all}{}",
                keys("auths"),
                keys("credHelpers"),
                others(config)
            );
            Check::ok(NAME, found)
        }
        Err(error) => Check::wrong(
            NAME,
            format!("{shown} is not JSON: line {}, column {}", error.line(), error.column()),
            "docker login writes it anew",
        ),
    }
}

/// Who has credentials for an image.
async fn sources(registry: &Registry, image: &str) -> Option<Check> {
    // That it is no reference, or its hosts.toml wrong, is told by the other checks.
    let reference = pull::parse_reference(image).ok()?;
    let found = tokio::time::timeout(PATIENCE, registry.credentials(&reference)).await;
    let told: Vec<String> = found
        .ok()?
        .ok()?
        .into_iter()
        .map(|(host, sources)| match sources.is_empty() {
            true => format!("{host}: no credentials"),
            false => format!("{host}: {}", sources.join(", then ")),
        })
        .collect();
    Some(Check::ok("credentials for it", told.join("; ")))
}

async fn answer(registry: &Registry, image: &str) -> Check {
    const NAME: &str = "registry";
    let asked = async {
        let reference = pull::parse_reference(image)?;
        pull::resolve(registry, &reference, &Start::Reference, &Platform::host()).await
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(pull::Resolved { plan, .. })) => {
            let left = plan.layers.iter().filter(|layer| layer.compression().is_none()).count();
            let found = format!("{image}: {} layers", plan.layers.len());
            if left == 0 {
                Check::ok(NAME, found)
            } else {
                let fix =
                    "hoist inspect shows their media types; containerd pulls these layers itself";
                Check::warning(NAME, format!("{found}, {left} of which hoist does not unpack"), fix)
            }
        }
        Ok(Err(error)) => {
            let fix = match &error {
                PullError::Reference { .. } => AN_IMAGE,
                _ => {
                    "docker login, registry.docker_config, hosts.toml or the network, by what it says"
                }
            };
            Check::wrong(NAME, error.to_string(), fix)
        }
        Err(_) => Check::wrong(
            NAME,
            format!("{image}: no answer in a minute"),
            "the network, or hosts.toml",
        ),
    }
}
