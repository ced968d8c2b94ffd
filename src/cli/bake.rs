//! `hoist bake`: images that are part of a machine image.

mod daemon;
mod record;
mod verify;

use std::path::{Path, PathBuf};

use clap::Args;

use super::error::CliError;
use super::prefetch::{self, Into, Whose, pins, tell_or_keep};
use super::remote::{Client, connect, told};
use super::table::bytes;
use super::{print, print_json, summary};
use crate::config::{Config, Environment};
use crate::control::InfoRequest;
use daemon::OwnDaemon;

/// Bring images into a machine image (an AMI), and check at boot that they are whole
///
/// Prefetches the images, pins them, and notes what every file of every pinned image is in
/// ROOT/baked/ (/var/lib/hoist/baked), which stays with the machine image. Where no hoistd runs, one is
/// started for the duration; containerd has to run. With --verify, what is there is compared with what was
/// noted: without --full no file is read, only looked at.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Bake {
    /// The images, with their registries; without any, what is pinned already is noted anew
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    into: Into,
    /// Check that everything baked is there and intact
    #[arg(long, conflicts_with_all = ["images", "platform"])]
    verify: bool,
    /// Read every file and compare its content too
    #[arg(long, requires = "verify")]
    full: bool,
    /// Mend what is wrong: put images into containerd again from what is kept here, pull damaged ones anew
    #[arg(long, requires = "verify")]
    repair: bool,
    /// The platform to choose, as linux/arm64; the host's unless given
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// No progress, only the summary
    #[arg(long, short)]
    quiet: bool,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

const HELP: &str = "Exit codes: 0 done, or all is as it was baked (or is again, with --repair), 1 failed, or something is not, \
                    2 wrong usage or configuration, 3 not found, or nothing is baked here, 4 not authorised, 5 network, registry, \
                    containerd or hoistd not reachable, 130 interrupted.";

/// `hoist bake`.
pub(super) async fn bake(
    args: &Bake,
    config: Option<&Path>,
    socket: Option<PathBuf>,
    environment: &Environment,
) -> Result<(), CliError> {
    let socket = match socket {
        Some(socket) => socket,
        None => Config::load(config, environment).map_err(CliError::Config)?.control_socket,
    };
    if args.verify {
        return verify::verify(args, connect(&socket).await?).await;
    }
    let (client, own) = match connect(&socket).await {
        Ok(client) => (client, None),
        Err(CliError::NoDaemon { .. }) => {
            let own = OwnDaemon::start(config, &socket).await?;
            (connect(&socket).await?, Some(own))
        }
        Err(error) => return Err(error),
    };
    let baked = pull_and_note(args, client, environment).await;
    if let Some(own) = own {
        own.end().await?;
    }
    baked
}

async fn pull_and_note(
    args: &Bake,
    mut client: Client,
    environment: &Environment,
) -> Result<(), CliError> {
    let whose = Whose::of(&args.into, environment);
    let mut failed = None;
    for image in &args.images {
        let request = whose.request(image, args.platform.as_deref(), None);
        match prefetch::pull(&mut client, request, args.quiet || args.json).await {
            Ok(report) if !args.json && !args.quiet => print(&summary::whole(&report))?,
            Ok(_) => {}
            Err(error) => failed = Some(tell_or_keep(failed, error)),
        }
    }
    // What failed is missing in the machine image: then nothing is noted, so that nobody takes it for whole.
    if let Some(error) = failed {
        return Err(error);
    }
    let root = root(&mut client).await?;
    let pins = pins(&mut client).await?;
    let noting = tokio::task::spawn_blocking(move || record::write(&root, &pins));
    let baked = noting.await.expect("noting does not panic")?;
    if args.json {
        return print_json(&baked);
    }
    let layers = baked.layers().count();
    let amount = bytes(baked.layers().map(|layer| layer.bytes).sum());
    print(&format!("baked: {} images, {layers} layers, {amount}\n", baked.images.len()))
}

async fn root(client: &mut Client) -> Result<PathBuf, CliError> {
    let info = client.info(InfoRequest {}).await.map_err(|status| told(&status))?;
    Ok(info.into_inner().root.into())
}
