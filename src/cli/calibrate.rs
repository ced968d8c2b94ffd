//! `hoist calibrate`: the rates of hosts and their links, for `--profile`.

mod daemon;
mod picture;
mod serve;

use std::path::{Path, PathBuf};

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::args::{Compress, ImageArgs};
use super::error::CliError;
use super::print;
use crate::calibrate::{Probe, calibrate};
use crate::config::{Backend, Config, Environment};
use crate::image::{LayerKind, Platform};
use crate::model::Profile;
use crate::pull::{self, Start};
use crate::registry::Registry;
use crate::sys::images::{file_systems_known, is_known};
use serve::Served;

/// As [`EXIT_CODES`](super::args::EXIT_CODES), with what people want first.
const CALIBRATE_HELP: &str = "\
Examples:
  This host, with an image of the registry that it pulls from:
    hoist calibrate --image registry.example/app:v1 -o profile.toml
  What the pulls of this host's hoistd have shown:
    hoist calibrate --from-daemon -o profile.toml
  Hosts where nothing can be installed, which pull three variants of one image from here:
    hoist calibrate --serve 0.0.0.0:5000 oci:app:one oci:app:three oci:app:five --svg pulls.svg -o profile.toml

docs/model.md tells how each figure is found.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, 4 not authorised, \
5 network or registry not reachable, 130 interrupted.";

/// Find the rates of hosts and links, and write a profile for convert, simulate and analyze
///
/// With --image, this host is measured: a part of the image's largest layer is fetched over one connection
/// and over many, decompressed and hashed; the disk gets a large file and many small ones, which go again.
/// How much slower containerd decompresses is not measured but taken from docs/model.md. It takes some
/// seconds. With --from-daemon, the pulls that a running hoistd has recorded say it. With --serve, hoist is
/// a registry and watches others pull.
#[derive(Debug, Args)]
#[command(after_help = CALIBRATE_HELP, group = clap::ArgGroup::new("way").required(true))]
pub(super) struct Calibrate {
    /// An image with a layer of at least 8 MiB, in the registry that will be pulled from
    #[arg(long, value_name = "IMAGE", group = "way")]
    image: Option<String>,
    /// The format of the layers that will be pulled, where it is not the image's: its bytes are compressed anew
    #[arg(long = "as", value_name = "FORMAT", requires = "image")]
    pulled: Option<Compress>,
    /// From the pulls that the hoistd which runs here has recorded
    #[arg(long, group = "way")]
    from_daemon: bool,
    #[command(flatten)]
    pub(super) served: Served,
    /// A directory on the disk that layers lie on; with --serve, where images of registries are copied to
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// Where the profile is written; standard output unless given
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    wanted: ImageArgs,
}

/// Finds the rates in the way that was chosen, and writes the profile. Where hoist serves, `stop` ends that
/// and not the command: what was seen is told.
pub(super) async fn run(
    args: &Calibrate,
    socket: impl FnOnce() -> Result<PathBuf, CliError>,
    config: impl FnOnce() -> Result<Config, CliError>,
    environment: &Environment,
    stop: CancellationToken,
) -> Result<(), CliError> {
    let platform = args.wanted.platform()?;
    let profile = if let Some(address) = args.served.serve {
        let scratch = args.dir.clone();
        let (registries, args) = (&args.wanted.registries, &args.served);
        let wanted = serve::Wanted { args, address, platform, registries, scratch };
        wanted.profile(config()?, stop).await?
    } else if let Some(image) = &args.image {
        measured(args, image, platform, config()?, environment).await?
    } else {
        daemon::profile(&socket()?).await?
    };
    written(&profile, args.output.as_deref())
}

fn written(profile: &Profile, output: Option<&Path>) -> Result<(), CliError> {
    let text = toml::to_string(profile).expect("a profile has string keys only");
    match output {
        Some(path) => std::fs::write(path, text)
            .map_err(|source| CliError::Write { path: path.to_owned(), source }),
        None => print(&text),
    }
}

/// Tells a person something that is not the result.
fn say(text: &str) {
    super::aside(&format!("{text}\n"));
}

/// Whether hoistd would make images here, as far as that can be told without mounting one.
fn kernel_has_images() -> bool {
    is_known(&file_systems_known(), "erofs")
}

/// This host, measured with the largest layer of an image.
async fn measured(
    args: &Calibrate,
    image: &str,
    platform: Platform,
    mut config: Config,
    environment: &Environment,
) -> Result<Profile, CliError> {
    args.wanted.registries.apply(&mut config);
    let registry = Registry::new(config.registry_settings())?;
    let reference = pull::parse_reference(image)?;
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
        pulled: args.pulled.map_or(compression, Compress::format),
        directory: args.dir.clone(),
        cores: u32::try_from(environment.cores).unwrap_or(1),
        images: config.pull.backend != Backend::Overlay && kernel_has_images(),
    };
    let name = format!("calibrated with {image}");
    let measured = tokio::task::spawn_blocking(move || calibrate(&probe, &name)).await;
    Ok(measured.expect("a measurement does not panic")?)
}
