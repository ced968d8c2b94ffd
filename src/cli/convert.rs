//! `hoist convert SOURCE DESTINATION` and `hoist diff A B`.

mod args;

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::args::{Compress, ContainerdArgs, RegistryArgs};
use super::error::CliError;
use super::progress::TICK;
use super::simulate;
use super::table::{bytes, counted, seconds, short, table, text};
use super::{print, print_json};
use crate::archive::LayerPath;
use crate::config::{Config, Environment};
use crate::containerd::Address;
use crate::convert::{
    self, Codec, ConvertError, Converted, Dedupe, Options, Outcome, Phase, Place, Planned,
    Progress, Puller, Reach, Wish,
};
use crate::fetch::Fetcher;
use crate::image::Compression;
use crate::registry::Registry;
use args::Links;
pub(super) use args::{Convert, Diff};

/// How long a conversion that was interrupted may take to remove what it made. It looks after every
/// piece of work, which is a few megabytes.
const LET_GO: Duration = Duration::from_secs(10);

/// Differences that are shown.
const SHOWN_MOST: usize = 1000;

/// Converts, and says what came of it.
pub(super) async fn convert(
    args: &Convert,
    config: Config,
    environment: &Environment,
) -> Result<(), CliError> {
    let source: Place = args.source.parse()?;
    let destination: Place = args.destination.parse()?;
    let options = options(args, environment)?;
    let reach = reach(config, &args.registries, &args.containerd, environment)?;
    let began = Instant::now();
    let quiet = args.quiet || args.json;
    let outcome = watched(quiet, move |progress| {
        convert::convert(&source, &destination, &options, &reach, progress)
    })
    .await?;
    if args.json {
        print_json(&json(&outcome))
    } else {
        print(&shown(args, &outcome, began.elapsed().as_secs_f64()))
    }
}

/// An image of usual size, in compressed bytes, for the choice of a level.
const USUAL_BYTES: f64 = 1e9;

fn options(args: &Convert, environment: &Environment) -> Result<Options, CliError> {
    let profile = args.profile.as_deref().map(simulate::named_or_read).transpose()?;
    let puller = Puller { model: args.target, profile };
    let layers = match (args.layers, args.layer_sizes.as_slice(), args.max_layer_size) {
        _ if args.keep_layers => Wish::Keep,
        (Some(count), ..) => Wish::Equal(count),
        (None, [], Some(most)) => Wish::Most(most),
        (None, [], None) => Wish::Best,
        (None, sizes, _) => Wish::Sizes(sizes.to_vec()),
    };
    let (compression, levels, range) = match args.compression {
        Compress::Zstd => (Compression::Zstd, 1..=22, "1 to 22"),
        Compress::Gzip => (Compression::Gzip, 1..=9, "1 to 9"),
        Compress::None => (Compression::None, 0..=0, ""),
    };
    let level = args.level.unwrap_or_else(|| puller.level(compression, USUAL_BYTES));
    if let (Compress::None, Some(level)) = (args.compression, args.level) {
        return Err(CliError::LevelOfNothing(level));
    }
    if !levels.contains(&level) {
        return Err(CliError::Level { level, format: compression.as_str(), range });
    }
    let order = args.order.as_ref().map_or(Ok(Vec::new()), |file| {
        std::fs::read(file).map_err(|source| CliError::Order { file: file.clone(), source })
    })?;
    let lines = order.split(|&b| b == b'\n').filter(|line| !line.is_empty());
    let scratch = args.scratch.clone().or_else(|| environment.temporary_dir.clone());
    Ok(Options {
        layers,
        puller,
        base: args.keep_base.as_deref().map(str::parse).transpose()?,
        codec: Codec { compression, level },
        dedupe: match args.dedupe {
            Links::Strict => Dedupe::Strict,
            Links::Content => Dedupe::Content,
            Links::Off => Dedupe::Off,
        },
        order: lines.map(LayerPath::clean).collect(),
        verify: !args.no_verify,
        platform: args.platform.as_deref().map(str::parse).transpose()?,
        threads: args.threads.map_or(environment.cores, usize::from),
        scratch: scratch.unwrap_or_else(|| "/var/tmp".into()),
    })
}

/// The way to registries and to containerd.
pub(super) fn reach(
    mut config: Config,
    registries: &RegistryArgs,
    containerd: &ContainerdArgs,
    environment: &Environment,
) -> Result<Reach, CliError> {
    registries.apply(&mut config);
    let registry = Registry::new(config.registry_settings())?;
    let fetcher = Fetcher::new(registry.clone(), config.budget(), config.fetch_limits());
    fetcher.restrain(&config.restraints());
    let usual = Address::default();
    let socket = containerd.containerd_address.clone();
    let namespace = containerd.containerd_namespace.clone();
    let containerd = Address {
        socket: socket.or_else(|| environment.containerd_address.clone()).unwrap_or(usual.socket),
        namespace: namespace
            .or_else(|| environment.containerd_namespace.clone())
            .unwrap_or(usual.namespace),
    };
    Ok(Reach { registry, fetcher, runtime: tokio::runtime::Handle::current(), containerd })
}

/// A conversion on another thread. Dropping it asks for the end and waits for it, so that what was
/// made is removed before the process ends.
struct Running {
    progress: Arc<Progress>,
    ended: mpsc::Receiver<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.progress.cancel();
        // Nothing is ever sent: the other end is dropped when the work has ended.
        let _ = self.ended.recv_timeout(LET_GO);
    }
}

/// Does `work` beside a bar that shows its progress.
pub(super) async fn watched<T: Send + 'static>(
    quiet: bool,
    work: impl FnOnce(&Arc<Progress>) -> Result<T, ConvertError> + Send + 'static,
) -> Result<T, ConvertError> {
    let progress = Arc::new(Progress::default());
    let (alive, ended) = mpsc::channel::<()>();
    let shared = Arc::clone(&progress);
    let working = tokio::task::spawn_blocking(move || {
        let result = work(&shared);
        drop(alive);
        result
    });
    let running = Running { progress, ended };
    let bar = (!quiet && std::io::stderr().is_terminal()).then(bar);
    let mut working = std::pin::pin!(working);
    let mut tick = tokio::time::interval(TICK);
    let result = loop {
        tokio::select! {
            ended = &mut working => break ended.expect("a conversion does not panic"),
            _ = tick.tick() => {
                tell(quiet, bar.as_ref(), &running.progress);
                if let Some(bar) = &bar {
                    draw(bar, &running.progress);
                }
            }
        }
    };
    tell(quiet, bar.as_ref(), &running.progress);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    result
}

/// Says what was planned since it was looked last, above the bar.
fn tell(quiet: bool, bar: Option<&ProgressBar>, progress: &Progress) {
    for plan in progress.take_plans().into_iter().filter(|_| !quiet) {
        let text = planned(&plan);
        match bar {
            Some(bar) => bar.suspend(|| super::aside(&text)),
            None => super::aside(&text),
        }
    }
}

fn planned(plan: &Planned) -> String {
    let sizes: Vec<String> = plan.layers.iter().map(|&layer| bytes(layer)).collect();
    format!(
        "planned for {}: {} of about {}; a pull should take about {}, of the source {}\n",
        plan.after.model,
        counted(sizes.len(), "layer"),
        sizes.join(", "),
        seconds(plan.after.seconds),
        seconds(plan.before.seconds),
    )
}

fn bar() -> ProgressBar {
    // The units of the plan and of the summary.
    let style = "{prefix:10} {bar:30} {decimal_bytes:>11} / {decimal_total_bytes:11} {msg:>13}";
    let style = ProgressStyle::with_template(style);
    ProgressBar::new(0).with_style(style.expect("the template is a constant"))
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    let (phase, done, total) = progress.now();
    let word = match phase {
        Phase::Resolve => "resolving",
        Phase::Read => "reading",
        Phase::Write => "writing",
        Phase::Verify => "verifying",
        Phase::Publish => "publishing",
    };
    if bar.prefix() != word {
        bar.reset();
        bar.set_prefix(word);
    }
    // Since the phase began: the bar's own rate sinks to nothing where bytes come in gulps.
    let rate = done as f64 / bar.elapsed().as_secs_f64().max(TICK.as_secs_f64());
    bar.set_message(format!("{}/s", bytes(rate as u64)));
    bar.set_length(total);
    bar.set_position(done.min(total));
}

fn shown(args: &Convert, outcome: &Outcome, took: f64) -> String {
    let mut out = String::new();
    for image in &outcome.images {
        let after: u64 = image.layers.iter().map(|layer| layer.size).sum();
        let platform = image.platform.as_ref().map(|p| format!(" for {p}")).unwrap_or_default();
        out += &format!(
            "{}{platform}: {} entries, {} of {} before, {} of {} now\n  {} hidden by later layers dropped, {} made hard links\n\n",
            args.source,
            image.entries,
            counted(image.source_layers, "layer"),
            bytes(image.source_bytes),
            image.layers.len(),
            bytes(after),
            bytes(image.hidden_bytes),
            bytes(image.deduplicated_bytes),
        );
        let mut table = table(&["layer", "planned", "size", "archive"], 1);
        for (layer, planned) in image.layers.iter().zip(&image.planned) {
            table.add_row([
                short(&layer.digest),
                bytes(*planned),
                bytes(layer.size),
                bytes(layer.archive_bytes),
            ]);
        }
        out += &(text(&table) + "\n");
        out += &format!(
            "a pull by {} is expected to take {}, of the source {}\n\n",
            image.after.model,
            seconds(image.after.seconds),
            seconds(image.before.seconds),
        );
    }
    let proof =
        if args.no_verify { "not compared with the source" } else { "the file system is the same" };
    out + &format!("{} {} in {}, {proof}\n", args.destination, outcome.digest, seconds(took))
}

fn json(outcome: &Outcome) -> serde_json::Value {
    let image = |image: &Converted| {
        let layers = image.layers.iter().zip(&image.planned).map(|(layer, planned)| {
            serde_json::json!({
                "digest": layer.digest,
                "size": layer.size,
                "diff_id": layer.diff_id,
                "archive_bytes": layer.archive_bytes,
                "planned_bytes": planned,
                "kept": layer.kept,
                "entries": layer.entries,
            })
        });
        serde_json::json!({
            "platform": image.platform.as_ref().map(ToString::to_string),
            "manifest": image.manifest,
            "layers": layers.collect::<Vec<_>>(),
            "source_layers": image.source_layers,
            "source_bytes": image.source_bytes,
            "entries": image.entries,
            "hidden_bytes": image.hidden_bytes,
            "deduplicated_bytes": image.deduplicated_bytes,
            "model": image.after.model,
            "predicted_seconds": image.after.seconds,
            "predicted_seconds_source": image.before.seconds,
        })
    };
    let images: Vec<_> = outcome.images.iter().map(image).collect();
    serde_json::json!({ "digest": outcome.digest, "images": images })
}

/// Compares two images; different ones are told as an error, for the exit code.
pub(super) async fn diff(
    args: &Diff,
    config: Config,
    environment: &Environment,
) -> Result<(), CliError> {
    let place = |name: &str| name.parse::<Place>().map_err(CliError::Diff);
    let (first, second) = (place(&args.first)?, place(&args.second)?);
    let platform = args.wanted.platform()?;
    let reach = reach(config, &args.wanted.registries, &args.containerd, environment)?;
    let cores = environment.cores;
    let compared = watched(args.quiet, move |progress| {
        convert::diff([&first, &second], &platform, cores, &reach, progress)
    });
    let differences = compared.await.map_err(CliError::Diff)?;
    let lines = differences.iter().take(SHOWN_MOST).map(|d| format!("{d}\n"));
    print(&lines.collect::<String>())?;
    if differences.is_empty() { Ok(()) } else { Err(CliError::Different(differences.len())) }
}
