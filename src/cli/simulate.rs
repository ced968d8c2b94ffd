//! `hoist simulate`: how a pull would go, before anybody pulls.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use super::args::{ImageArgs, models};
use super::chart::{self, Chart, Row};
use super::error::CliError;
use super::table::{bytes, seconds, table, text};
use super::{print, print_json};
use crate::config::{Config, Environment};
use crate::model::{Load, Model, Prediction, Profile, Rates, simulate};
use crate::pull::{self, Start};
use crate::registry::Registry;
use crate::units::{Rate, Seconds, Size};

/// As [`EXIT_CODES`], with what people want first.
const SIMULATE_HELP: &str = "\
Examples:
  One image as it is, pulled in three ways, on a link of 600 MB/s with 80 MB/s a connection:
    hoist simulate registry.example/app:v1 --download 600MB/s --per-connection 80MB/s
  What another cut of the same bytes would bring under stock containerd:
    hoist simulate --layer-sizes 490.9MB,736.4MB,1472.7MB --model containerd --model hoist
  A picture of it, and a page:
    hoist simulate --layer-sizes 2.7GB --svg pull.svg --html pull.html
  With the files and the unpacked bytes of each layer, which no manifest tells:
    hoist analyze registry.example/app:v1 --json >app.json && hoist simulate --analysis app.json

docs/model.md tells the formulas, and what they leave out.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, 4 not authorised, \
5 network or registry not reachable, 130 interrupted.";

/// Predict how a pull would go, layer by layer, under several pullers
///
/// Sizes come from a registry's manifest or by hand; rates from flags or a profile. The chart shows for
/// each layer when it waits, is downloaded and is extracted.
#[derive(Debug, clap::Args)]
#[command(after_help = SIMULATE_HELP, group = clap::ArgGroup::new("of").required(true))]
pub(super) struct Simulate {
    /// The image, with its registry; its manifest gives the layers' sizes
    #[arg(group = "of")]
    image: Option<String>,
    /// Compressed sizes of the layers in the order of the stack, as 490MB,736MB,1.4GiB
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',', group = "of")]
    layer_sizes: Vec<Size>,
    /// What hoist analyze --json wrote of an image: sizes, archives and entries of each layer
    #[arg(long, value_name = "FILE", group = "of")]
    analysis: Option<PathBuf>,
    /// Who pulls; may be given several times [default: containerd, containerd-parallel and hoist]
    #[arg(long, value_name = "MODEL", value_delimiter = ',', value_parser = models())]
    model: Vec<Model>,
    /// Rates: a file (TOML or JSON), or "even", "two-cores-gzip" or "two-cores-zstd"; flags come before it
    #[arg(long, value_name = "FILE|NAME")]
    profile: Option<String>,
    /// The link, all connections together [default: 225MB/s]
    #[arg(long, value_name = "RATE")]
    download: Option<Rate>,
    /// What one connection gets at most
    #[arg(long, value_name = "RATE")]
    per_connection: Option<Rate>,
    /// Connections of a puller that fetches ranges [default: 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    connections: Option<u32>,
    /// Layers that containerd downloads at once [default: 3; containerd-parallel 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    downloads: Option<u32>,
    /// Compressed bytes that the extraction of one layer takes in [default: 225MB/s]
    #[arg(long, value_name = "RATE")]
    extract: Option<Rate>,
    /// Cores [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    cores: Option<u32>,
    /// What the disk takes; unlimited unless given
    #[arg(long, value_name = "RATE")]
    disk: Option<Rate>,
    /// Before the first byte, as 200ms
    #[arg(long, value_name = "TIME")]
    latency: Option<Seconds>,
    /// What a file costs beside its bytes, as 35us
    #[arg(long, value_name = "TIME")]
    per_file: Option<Seconds>,
    /// Uncompressed bytes for a compressed one; counts with --disk and profiles that have "unpack"
    #[arg(long, value_name = "R", default_value_t = 2.5, value_parser = expansion)]
    expansion: f64,
    /// Files of the image, spread over its layers by their sizes; counts with --per-file
    #[arg(long, value_name = "N", default_value_t = 0)]
    files: u64,
    #[command(flatten)]
    wanted: ImageArgs,
    /// Write the chart as a page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the chart as a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// JSON instead of the chart
    #[arg(long)]
    json: bool,
}

/// A factor that a compression can have.
fn expansion(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| (0.1..=1000.0).contains(value));
    value.ok_or_else(|| format!("{text:?} is not a number from 0.1 to 1000, as 2.5"))
}

/// What is pulled: layers, and what to call it.
struct Subject {
    title: String,
    layers: Vec<Load>,
}

/// Predicts, draws and writes. The configuration is read only if a registry is asked.
pub(super) async fn run(
    args: &Simulate,
    config: impl FnOnce() -> Result<Config, CliError>,
    environment: &Environment,
) -> Result<(), CliError> {
    let profile = profile(args)?;
    let subject = match (&args.analysis, &args.image) {
        (Some(file), _) => analysed(file)?,
        (None, Some(image)) => subject(args, &image_sizes(args, image, config()?).await?),
        (None, None) => {
            subject(args, &args.layer_sizes.iter().map(|size| size.0).collect::<Vec<_>>())
        }
    };
    let mut models = args.model.clone();
    if models.is_empty() {
        models = vec![Model::Containerd, Model::ContainerdParallel, Model::Hoist];
    }
    let mut seen = Vec::new();
    models.retain(|model| {
        !seen.contains(model) && {
            seen.push(*model);
            true
        }
    });
    let told: Vec<(Rates, Prediction)> = models
        .into_iter()
        .map(|model| {
            let rates = profile.rates_for(model);
            let told = simulate(&subject.layers, &rates, model);
            (rates, told)
        })
        .collect();
    if args.json {
        print_json(&json(&subject, &profile, &told))?;
    }
    let chart = drawn(&subject, &profile, &told);
    write(args.svg.as_deref(), || chart::svg::picture(&chart))?;
    write(args.html.as_deref(), || chart::html::page(&chart))?;
    if args.json { Ok(()) } else { print(&shown(&chart, environment)) }
}

fn write(to: Option<&Path>, content: impl FnOnce() -> String) -> Result<(), CliError> {
    let Some(path) = to else { return Ok(()) };
    std::fs::write(path, content())
        .map_err(|source| CliError::Write { path: path.to_owned(), source })
}

/// The profile that was asked for, with what the flags say instead.
fn profile(args: &Simulate) -> Result<Profile, CliError> {
    let mut profile = match &args.profile {
        None => Profile::named("even").expect("it is one of the names"),
        Some(name) => named_or_read(name)?,
    };
    let rates = &mut profile.rates;
    rates.download = args.download.unwrap_or(rates.download);
    rates.per_connection = args.per_connection.or(rates.per_connection);
    rates.connections = args.connections.unwrap_or(rates.connections);
    rates.downloads = args.downloads.or(rates.downloads);
    rates.cores = args.cores.unwrap_or(rates.cores);
    rates.disk = args.disk.or(rates.disk);
    if let Some(latency) = args.latency {
        rates.latency = latency;
        profile.models.values_mut().for_each(|m| m.latency = None);
    }
    if let Some(extract) = args.extract {
        // A rate by hand holds for every model, and says all there is to say of the chain.
        (rates.extract, rates.per_core) = (extract, None);
        (rates.unpack, rates.unpack_per_core) = (None, None);
        for other in profile.models.values_mut() {
            (other.extract, other.per_core) = (None, None);
            (other.unpack, other.unpack_per_core) = (None, None);
        }
    }
    if let Some(file) = args.per_file {
        profile.rates.per_file = file;
        profile.models.values_mut().for_each(|m| m.per_file = None);
    }
    Ok(profile)
}

/// The profile of this name, or in this file.
pub(super) fn named_or_read(name: &str) -> Result<Profile, CliError> {
    Profile::named(name).map_or_else(|| read(Path::new(name)), Ok)
}

fn read(path: &Path) -> Result<Profile, CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| CliError::ReadProfile { path: path.to_owned(), source })?;
    Profile::parse(&text).map_err(|source| CliError::Profile { path: path.to_owned(), source })
}

/// The sizes in the image's manifest.
#[allow(clippy::cast_precision_loss, reason = "sizes of layers are below 2^53")]
async fn image_sizes(
    args: &Simulate,
    image: &str,
    mut config: Config,
) -> Result<Vec<f64>, CliError> {
    args.wanted.registries.apply(&mut config);
    let platform = args.wanted.platform()?;
    let registry = Registry::new(config.registry_settings())?;
    let reference = pull::parse_reference(image)?;
    let start = Start::named(args.wanted.platform.is_some());
    let plan = pull::resolve(&registry, &reference, &start, &platform).await?.plan;
    Ok(plan.layers.iter().map(|layer| layer.size as f64).collect())
}

/// The layers of an analysis, each with its own files and its own expansion.
fn analysed(file: &Path) -> Result<Subject, CliError> {
    #[derive(serde::Deserialize)]
    struct Layer {
        size: f64,
        archive_bytes: f64,
        entries: f64,
    }
    #[derive(serde::Deserialize)]
    struct Analysed {
        image: String,
        layers: Vec<Layer>,
    }
    let path = || file.to_owned();
    let text = std::fs::read_to_string(file)
        .map_err(|source| CliError::ReadAnalysis { path: path(), source })?;
    let found: Analysed = serde_json::from_str(&text)
        .map_err(|source| CliError::Analysis { path: path(), source })?;
    let layers = found.layers.iter().map(|layer| Load {
        bytes: layer.size,
        unpacked: layer.archive_bytes,
        files: layer.entries,
        extract: None,
    });
    Ok(Subject { layers: layers.collect(), title: found.image })
}

/// A manifest says nothing of files and of unpacked sizes: they are spread over the bytes.
#[allow(clippy::cast_precision_loss, reason = "figures of a forecast")]
fn subject(args: &Simulate, sizes: &[f64]) -> Subject {
    let total: f64 = sizes.iter().sum();
    let files = args.files as f64 / total.max(1.0);
    let layers = sizes.iter().map(|&size| Load {
        bytes: size,
        unpacked: size * args.expansion,
        files: size * files,
        extract: None,
    });
    let title = args.image.clone().unwrap_or_else(|| match sizes.len() {
        1 => "one layer".to_owned(),
        count => format!("{count} layers"),
    });
    Subject { title, layers: layers.collect() }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes are positive and below 2^53"
)]
fn size(bytes_: f64) -> String {
    bytes(bytes_ as u64)
}

/// What both pictures and the terminal show.
fn drawn(subject: &Subject, profile: &Profile, told: &[(Rates, Prediction)]) -> Chart {
    let total: f64 = subject.layers.iter().map(|layer| layer.bytes).sum();
    let panels = told.iter().map(|(_, told)| chart::Panel {
        name: told.model.to_string(),
        about: told.model.describe().to_owned(),
        seconds: told.seconds,
        rows: told
            .layers
            .iter()
            .zip(&subject.layers)
            .enumerate()
            .map(|(index, (times, load))| Row::new(index + 1, size(load.bytes), times))
            .collect(),
    });
    Chart {
        title: format!("{}, {} compressed", subject.title, size(total)),
        assumed: assumed(&profile.rates, profile),
        panels: panels.collect(),
    }
}

/// The rates in a line, as far as they have a say.
fn assumed(rates: &Rates, profile: &Profile) -> String {
    let mut parts = vec![format!("download {}", rates.download)];
    if let Some(each) = rates.per_connection {
        parts.push(format!("{each} per connection, up to {}", rates.connections));
    }
    parts.push(format!("extract {} a layer", rates.extract));
    if let Some(core) = rates.per_core {
        parts.push(format!("{core} a core"));
    }
    if let Some(unpack) = rates.unpack.or(rates.unpack_per_core) {
        parts.push(format!("unpack {unpack}"));
    }
    parts.push(format!("{} cores", rates.cores));
    if rates.per_file.0 > 0.0 {
        parts.push(format!("{} a file", rates.per_file));
    }
    if let Some(disk) = rates.disk {
        parts.push(format!("disk {disk}"));
    }
    if rates.latency.0 > 0.0 {
        parts.push(format!("{} before the first byte", rates.latency));
    }
    // Pullers that differ in the same way are named together.
    let mut said: Vec<(String, Vec<&str>)> = Vec::new();
    for (model, other) in &profile.models {
        let Some(extract) = other.extract else { continue };
        let unpack = other.unpack.map(|rate| format!(", unpack {rate}")).unwrap_or_default();
        let what = format!("extract {extract}{unpack}");
        match said.iter_mut().find(|(known, _)| *known == what) {
            Some((_, models)) => models.push(model.as_str()),
            None => said.push((what, vec![model.as_str()])),
        }
    }
    parts.extend(said.into_iter().map(|(what, models)| format!("{what} ({})", models.join(", "))));
    parts.join(" · ")
}

fn shown(chart: &Chart, environment: &Environment) -> String {
    let style = if std::io::stdout().is_terminal() {
        let width = terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0));
        chart::text::Style { width, colour: !environment.no_color, plain: false }
    } else {
        chart::text::Style { width: 80, colour: false, plain: true }
    };
    format!("{}\n{}", chart::text::drawing(chart, &style), totals(chart))
}

/// Totals side by side. The first model is what the others are compared with.
fn totals(chart: &Chart) -> String {
    let mut table = table(&["model", "time", "of the first"], 1);
    let first = chart.panels.first().map_or(0.0, |panel| panel.seconds);
    for panel in &chart.panels {
        let part = if first > 0.0 { panel.seconds / first } else { 1.0 };
        table.add_row([
            panel.name.clone(),
            seconds(panel.seconds),
            format!("{:.0} %", part * 100.0),
        ]);
    }
    text(&table)
}

fn json(subject: &Subject, profile: &Profile, told: &[(Rates, Prediction)]) -> serde_json::Value {
    let layers = subject.layers.iter().map(|layer| {
        serde_json::json!({ "bytes": layer.bytes, "unpacked_bytes": layer.unpacked, "files": layer.files })
    });
    let predictions = told.iter().map(|(rates, told)| {
        serde_json::json!({
            "model": told.model,
            "seconds": told.seconds,
            "rates": rates,
            "layers": told.layers,
        })
    });
    serde_json::json!({
        "subject": subject.title,
        "profile": profile.name,
        "layers": layers.collect::<Vec<_>>(),
        "predictions": predictions.collect::<Vec<_>>(),
    })
}
