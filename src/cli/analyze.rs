//! `hoist analyze`: what is in an image, and what a pull of it would gain from what.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;

use super::args::{ContainerdArgs, EXIT_CODES, ImageArgs, models};
use super::chart::svg::escaped;
use super::convert::{reach, watched};
use super::error::CliError;
use super::table::{bytes, seconds, short, table, text};
use super::{print, print_json, simulate};
use crate::config::{Config, Environment};
use crate::convert::{self, Analysis, Place, Puller};
use crate::model::Model;

/// Say what is in an image, what of it is in vain, and what a pull would gain from which command
///
/// The image is read to its end. Bytes that later layers hide, equal files, and the largest directories
/// are named; a pull is predicted as it is and after each remedy (docs/model.md).
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Analyze {
    /// The image, named in any way that hoist convert can read
    image: String,
    /// Who pulls
    #[arg(long, value_name = "MODEL", default_value = "containerd", value_parser = models())]
    target: Model,
    /// The rates of its hosts: a file, or "even", "two-cores-gzip" or "two-cores-zstd"; two cores on a
    /// fast link unless given
    #[arg(long, value_name = "FILE|NAME")]
    profile: Option<String>,
    #[command(flatten)]
    wanted: ImageArgs,
    #[command(flatten)]
    containerd: ContainerdArgs,
    /// Write it as a page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// JSON instead of tables
    #[arg(long)]
    json: bool,
    /// No progress
    #[arg(long, short)]
    quiet: bool,
}

/// What both forms for people show: a title, a header, and rows. Cells from the second column on are
/// figures, but a command.
struct Section {
    title: String,
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// Reads the image and says what was found.
pub(super) async fn run(
    args: &Analyze,
    config: Config,
    environment: &Environment,
) -> Result<(), CliError> {
    let place: Place = args.image.parse()?;
    let profile = args.profile.as_deref().map(simulate::named_or_read).transpose()?;
    let puller = Puller { model: args.target, profile };
    let platform = args.wanted.platform()?;
    let reach = reach(config, &args.wanted.registries, &args.containerd, environment)?;
    let cores = environment.cores;
    let found = watched(args.quiet || args.json, move |progress| {
        convert::analyze(&place, &platform, &puller, cores, &reach, progress)
    })
    .await?;
    if let Some(path) = &args.html {
        std::fs::write(path, page(&found))
            .map_err(|source| CliError::Write { path: path.clone(), source })?;
    }
    if args.json { print_json(&found) } else { print(&shown(&found)) }
}

fn headline(found: &Analysis) -> String {
    let compressed: u64 = found.layers.iter().map(|layer| layer.size).sum();
    format!(
        "{}: {} entries, {} that a container sees, {} compressed; {} hidden by later layers, {} in equal files",
        found.image,
        found.entries,
        bytes(found.content_bytes),
        bytes(compressed),
        bytes(found.hidden_bytes),
        bytes(found.duplicate_bytes),
    )
}

fn sections(found: &Analysis) -> Vec<Section> {
    let layers = found.layers.iter().map(|layer| {
        vec![
            short(&layer.digest),
            layer.compression.to_owned(),
            bytes(layer.size),
            bytes(layer.archive_bytes),
            layer.entries.to_string(),
            bytes(layer.hidden_bytes),
        ]
    });
    let directories =
        found.directories.iter().map(|d| vec![d.path.clone(), bytes(d.bytes), d.files.to_string()]);
    let duplicates = found
        .duplicates
        .iter()
        .map(|d| vec![d.path.clone(), d.count.to_string(), bytes(d.saved_bytes)]);
    let now: u64 = found.layers.iter().map(|layer| layer.size).sum();
    let as_it_is = vec!["as it is".to_owned(), seconds(found.seconds), bytes(now), String::new()];
    let remedies = found.remedies.iter().map(|remedy| {
        vec![
            remedy.what.to_owned(),
            seconds(remedy.seconds),
            bytes(remedy.bytes),
            remedy.command.clone(),
        ]
    });
    let section = |title: &str, header: &[&'static str], rows: Vec<Vec<String>>| Section {
        title: title.to_owned(),
        header: header.to_vec(),
        rows,
    };
    let pull = format!("A pull by {}, predicted", found.model);
    let all = vec![
        section(
            "Layers",
            &["layer", "codec", "size", "archive", "entries", "hidden"],
            layers.collect(),
        ),
        section("Largest directories", &["directory", "bytes", "files"], directories.collect()),
        section("Equal files", &["one of them", "count", "in vain"], duplicates.collect()),
        section(
            &pull,
            &["what", "time", "bytes", "command"],
            std::iter::once(as_it_is).chain(remedies).collect(),
        ),
    ];
    all.into_iter().filter(|section| !section.rows.is_empty()).collect()
}

fn shown(found: &Analysis) -> String {
    let mut out = headline(found) + "\n";
    for section in sections(found) {
        let mut table = table(&section.header, section.header.len());
        for column in table.column_iter_mut().skip(1).take(section.header.len() - 2) {
            column.set_cell_alignment(comfy_table::CellAlignment::Right);
        }
        section.rows.into_iter().for_each(|row| {
            table.add_row(row);
        });
        let _ = write!(out, "\n{}\n{}", section.title, text(&table));
    }
    out
}

const STYLE: &str = "\
:root{color-scheme:light dark;--bg:#fff;--ink:#1b1f24;--line:#d1d9e0}\
@media (prefers-color-scheme:dark){:root{--bg:#0d1117;--ink:#e6edf3;--line:#3d444d}}\
body{margin:0 auto;padding:16px;max-width:1100px;background:var(--bg);color:var(--ink);\
font:14px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}\
table{border-collapse:collapse;margin:8px 0 20px}caption{text-align:left;font-weight:600;padding:4px 0}\
th,td{padding:3px 20px 3px 0;text-align:left;border-bottom:1px solid var(--line)}\
.num{text-align:right;font-variant-numeric:tabular-nums}";

/// A page that needs nothing else.
fn page(found: &Analysis) -> String {
    let title = escaped(&format!("Analysis of {}", found.image));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n<p>{}</p>\n",
        escaped(&headline(found))
    );
    for section in sections(found) {
        let _ = write!(out, "<table>\n<caption>{}</caption>\n<thead><tr>", escaped(&section.title));
        let is_figure = |at: usize| at > 0 && section.header[at] != "command";
        let class = |at: usize| if is_figure(at) { " class=\"num\"" } else { "" };
        for (at, name) in section.header.iter().enumerate() {
            let _ = write!(out, "<th scope=\"col\"{}>{}</th>", class(at), escaped(name));
        }
        out += "</tr></thead>\n<tbody>\n";
        for row in &section.rows {
            out += "<tr>";
            for (at, cell) in row.iter().enumerate() {
                let _ = match section.header[at] {
                    "command" if !cell.is_empty() => {
                        write!(out, "<td><code>{}</code></td>", escaped(cell))
                    }
                    _ => write!(out, "<td{}>{}</td>", class(at), escaped(cell)),
                };
            }
            out += "</tr>\n";
        }
        out += "</tbody>\n</table>\n";
    }
    out + "</main>\n</body>\n</html>\n"
}
