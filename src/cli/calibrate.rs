//! `hoist calibrate`: the rates of this host and its link, for `--profile`.

use super::args::Calibrate;
use super::error::CliError;
use super::print;
use crate::calibrate::{Probe, calibrate};
use crate::config::{Config, Environment};
use crate::image::LayerKind;
use crate::pull::{self, Start};
use crate::registry::Registry;

/// Measures, and writes the profile.
pub(super) async fn run(
    args: &Calibrate,
    mut config: Config,
    environment: &Environment,
) -> Result<(), CliError> {
    args.wanted.registries.apply(&mut config);
    let platform = args.wanted.platform()?;
    let registry = Registry::new(config.registry_settings())?;
    let reference = pull::parse_reference(&args.image)?;
    let plan = pull::resolve(&registry, &reference, &Start::Reference, &platform).await?.plan;
    let tars = plan.layers.iter().filter_map(|layer| match layer.kind() {
        LayerKind::Tar(compression) => Some((layer, compression)),
        _ => None,
    });
    let (layer, compression) = tars.max_by_key(|(layer, _)| layer.size).ok_or(CliError::NoLayer)?;
    let probe = Probe {
        registry,
        budget: config.budget(),
        chunk_bytes: config.fetch_limits().chunk_bytes,
        runtime: tokio::runtime::Handle::current(),
        reference,
        blob: layer.blob,
        size: layer.size,
        compression,
        directory: args.dir.clone(),
        cores: u32::try_from(environment.cores).unwrap_or(1),
    };
    let name = format!("calibrated with {}", args.image);
    let measured = tokio::task::spawn_blocking(move || calibrate(&probe, &name)).await;
    let profile = measured.expect("a measurement does not panic")?;
    let text = toml::to_string(&profile).expect("a profile has string keys only");
    match &args.output {
        Some(path) => std::fs::write(path, text)
            .map_err(|source| CliError::Write { path: path.clone(), source }),
        None => print(&text),
    }
}
