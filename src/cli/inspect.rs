//! `hoist inspect IMAGE`: what a registry says of an image.

use clap::Args;

use super::args::{EXIT_CODES, ImageArgs};
use super::error::CliError;
use super::table::{bytes, table, text};
use super::{print, print_json};
use crate::config::Config;
use crate::image::{ImagePlan, LayerKind, Platform};
use crate::pull::{self, Start};
use crate::registry::Registry;

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Inspect {
    /// The image, with its registry: registry.example/repository:tag or …@sha256:…
    image: String,
    #[command(flatten)]
    wanted: ImageArgs,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Shows manifest, platform and layers.
pub(super) async fn inspect(args: &Inspect, mut config: Config) -> Result<(), CliError> {
    args.wanted.registries.apply(&mut config);
    let platform = args.wanted.platform()?;
    let registry = Registry::new(config.registry_settings())?;
    let reference = pull::parse_reference(&args.image)?;
    let start = Start::named(args.wanted.platform.is_some());
    let plan = pull::resolve(&registry, &reference, &start, &platform).await?.plan;
    if args.json {
        print_json(&json(args, &platform, &plan))
    } else {
        print(&shown(args, &platform, &plan))
    }
}

fn shown(args: &Inspect, platform: &Platform, plan: &ImagePlan) -> String {
    let mut table = table(&["layer", "compression", "media type", "size"], 3);
    for layer in &plan.layers {
        let compression = match layer.kind() {
            LayerKind::Tar(compression) => compression.as_str(),
            LayerKind::Foreign => "foreign (left to containerd)",
            LayerKind::Unknown => "unknown (left to containerd)",
        };
        table.add_row([
            &layer.blob.to_string(),
            compression,
            &layer.media_type,
            &bytes(layer.size),
        ]);
    }
    let size = bytes(plan.layers.iter().map(|layer| layer.size).sum());
    let count = plan.layers.len();
    format!(
        "image     {}\nmanifest  {}\nplatform  {platform}\nlayers    {count}, {size} compressed\n\n{}",
        args.image,
        plan.manifest,
        text(&table)
    )
}

fn json(args: &Inspect, platform: &Platform, plan: &ImagePlan) -> serde_json::Value {
    let layers = plan.layers.iter().map(|layer| {
        serde_json::json!({
            "digest": layer.blob,
            "diff_id": layer.diff_id,
            "chain_id": layer.chain_id,
            "media_type": layer.media_type,
            "size": layer.size,
        })
    });
    serde_json::json!({
        "image": args.image,
        "manifest": plan.manifest,
        "platform": platform.to_string(),
        "layers": layers.collect::<Vec<_>>(),
    })
}
