//! `hoist pulls`: the last pulls as a list, one of them as tables, a picture or a file.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};

use super::args::EXIT_CODES;
use super::error::CliError;
use super::remote::{Client, connect, read, told};
use super::{print, print_json, summary};
use crate::control::{ListPullsRequest, ShowPullRequest};
use crate::timeline::waterfall::{self, Style};
use crate::timeline::{PullReport, svg, trace};

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
pub(super) struct Pulls {
    #[command(subcommand)]
    command: Option<PullsCommand>,
    /// Show one pull as tables of its layers and phases
    id: Option<u64>,
    /// At most this many ended pulls
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: u32,
    /// Show them anew every second, until Ctrl-C
    #[arg(long, conflicts_with_all = ["id", "json"])]
    pub(super) watch: bool,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum PullsCommand {
    Show(ShowPull),
}

/// Draw a pull as a waterfall and say what its bottleneck was
///
/// Layers and phases that the pull's end waited for are marked (the critical path). With NO_COLOR set,
/// or where standard output is no terminal, there are no colours.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
struct ShowPull {
    /// The pull's number, from hoist pulls
    id: u64,
    /// The whole record as JSON instead (docs/timeline.md)
    #[arg(long)]
    json: bool,
    /// Write it for Perfetto (ui.perfetto.dev) or chrome://tracing instead, in the Trace Event format
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    trace: Option<PathBuf>,
    /// Write the waterfall as a picture instead
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    svg: Option<PathBuf>,
}

/// How often the list is shown anew.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Columns where there is no terminal.
const COLUMNS: usize = 100;

/// `hoist pulls` and what stands behind it.
pub(super) async fn pulls(args: &Pulls, socket: &Path, no_color: bool) -> Result<(), CliError> {
    let mut client = connect(socket).await?;
    if let Some(PullsCommand::Show(args)) = &args.command {
        return show(args, &get(&mut client, args.id).await?, no_color);
    }
    if let Some(id) = args.id {
        let report = get(&mut client, id).await?;
        return if args.json { print_json(&report) } else { print(&summary::whole(&report)) };
    }
    if args.watch {
        return watch(&mut client, args.limit).await;
    }
    let reports = list(&mut client, args.limit).await?;
    if args.json { print_json(&reports) } else { print(&summary::list(&reports)) }
}

async fn get(client: &mut Client, id: u64) -> Result<PullReport, CliError> {
    match client.show_pull(ShowPullRequest { id }).await {
        Ok(answer) => read(&answer.into_inner().report_json),
        Err(status) if status.code() == tonic::Code::NotFound => Err(CliError::NoSuchPull(id)),
        Err(status) => Err(told(&status)),
    }
}

/// The last pulls; of those that have ended at most `limit`, 0 for all that are kept.
pub(super) async fn list(client: &mut Client, limit: u32) -> Result<Vec<PullReport>, CliError> {
    let answer = client.list_pulls(ListPullsRequest { limit }).await.map_err(|s| told(&s))?;
    answer.into_inner().reports_json.iter().map(|json| read(json)).collect()
}

/// `hoist pulls show`.
fn show(args: &ShowPull, report: &PullReport, no_color: bool) -> Result<(), CliError> {
    if args.json {
        return print_json(report);
    }
    if let Some(path) = &args.trace {
        write(path, &trace::events(report).to_string())?;
    }
    if let Some(path) = &args.svg {
        write(path, &svg::document(report))?;
    }
    if args.trace.is_some() || args.svg.is_some() {
        return Ok(());
    }
    let (width, _) = terminal();
    let colour = std::io::stdout().is_terminal() && !no_color;
    print(&waterfall::text(report, Style { width, colour }))
}

fn write(path: &Path, text: &str) -> Result<(), CliError> {
    std::fs::write(path, text).map_err(|source| CliError::Write { path: path.to_owned(), source })
}

/// Columns and lines of the terminal.
fn terminal() -> (usize, usize) {
    terminal_size::terminal_size().map_or((COLUMNS, usize::MAX), |(width, height)| {
        (usize::from(width.0), usize::from(height.0))
    })
}

/// Shows the list anew until it is interrupted: in place on a terminal, otherwise a line for each
/// pull that begins or ends.
async fn watch(client: &mut Client, limit: u32) -> Result<(), CliError> {
    let on_terminal = std::io::stdout().is_terminal();
    let mut shown = 0;
    let mut seen = HashMap::new();
    let mut ticks = tokio::time::interval(WATCH_INTERVAL);
    loop {
        ticks.tick().await;
        // A limit of 0 means all.
        let reports = list(client, limit.max(1)).await?;
        if on_terminal {
            let text = fitting(&summary::list(&reports), terminal());
            let up = if shown > 0 { format!("\x1b[{shown}A") } else { String::new() };
            shown = text.lines().count();
            print(&format!("{up}\x1b[J{text}"))?;
        } else {
            print(&changes(&mut seen, &reports))?;
        }
    }
}

/// What fits on the terminal: a line that wraps could not be taken back.
fn fitting(text: &str, (width, height): (usize, usize)) -> String {
    let lines = text.lines().take(height.saturating_sub(1));
    lines.map(|line| line.chars().take(width).collect::<String>() + "\n").collect()
}

/// A line for each pull whose state is another than before, oldest first.
fn changes(seen: &mut HashMap<u64, &'static str>, reports: &[PullReport]) -> String {
    let mut changed: Vec<&PullReport> = Vec::new();
    for report in reports.iter().rev() {
        if seen.insert(report.id, report.state.as_str()) != Some(report.state.as_str()) {
            changed.push(report);
        }
    }
    seen.retain(|id, _| reports.iter().any(|report| report.id == *id));
    changed
        .into_iter()
        .map(|report| {
            let line = format!("{}{}", report.image, waterfall::headline(report));
            waterfall::printable(&line) + "\n"
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::{History, PullState};

    #[test]
    fn a_watcher_hears_of_each_change_once() {
        let history = History::new(9);
        let (one, two) = (history.begin("one"), history.begin("two"));
        let mut seen = HashMap::new();
        let told = changes(&mut seen, &history.list(9));
        assert!(
            told.starts_with("one  pull 1  running") && told.contains("\ntwo  pull 2"),
            "{told}"
        );
        assert_eq!(changes(&mut seen, &history.list(9)), "");
        one.ended(PullState::Done);
        history.close(&one);
        let told = changes(&mut seen, &history.list(9));
        assert!(told.contains("one  pull 1  done") && !told.contains("two"), "{told}");
        drop(two);
    }

    #[test]
    fn what_does_not_fit_is_cut() {
        assert_eq!(fitting("abcdef\nab\nx\n", (3, 3)), "abc\nab\n");
    }
}
