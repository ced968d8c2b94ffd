//! How far a pull is, for a person who waits: bars on a terminal, a line now and then elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::table::{bytes, short};
use crate::image::BlobDigest;
use crate::timeline::{LayerReport, LayerState, Phase, PullReport};

/// How often bars are drawn anew.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows reports as they come.
pub(super) enum Progress {
    Quiet,
    Lines { last: Instant },
    Bars { all: MultiProgress, bars: HashMap<BlobDigest, ProgressBar> },
}

impl Progress {
    /// What fits standard error.
    pub(super) fn new(quiet: bool) -> Self {
        if quiet {
            Self::Quiet
        } else if std::io::stderr().is_terminal() {
            Self::Bars { all: MultiProgress::new(), bars: HashMap::new() }
        } else {
            Self::Lines { last: Instant::now() }
        }
    }

    /// Shows `report`.
    pub(super) fn show(&mut self, report: &PullReport) {
        match self {
            Self::Quiet => {}
            Self::Lines { last } => {
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    line(report);
                }
            }
            Self::Bars { all, bars } => {
                for layer in &report.layers {
                    let bar = bars.entry(layer.digest).or_insert_with(|| all.add(new_bar(layer)));
                    draw(bar, layer);
                }
            }
        }
    }

    /// Takes bars off the terminal.
    pub(super) fn end(&mut self) {
        if let Self::Bars { all, bars } = self {
            // A bar that is done would be drawn once more when it goes.
            bars.drain().for_each(|(_, bar)| bar.finish_and_clear());
            // A terminal that is gone needs no clearing.
            let _ = all.clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

fn line(report: &PullReport) {
    let done =
        report.layers.iter().filter(|l| matches!(l.state, LayerState::Done | LayerState::Shared));
    let text = format!(
        "{}: {} of {} layers, {} of {} fetched, {} unpacked, {:.0} s\n",
        report.image,
        done.count(),
        report.layers.len(),
        bytes(report.bytes(Phase::Download)),
        bytes(report.size()),
        bytes(report.bytes(Phase::Decompress)),
        report.seconds,
    );
    super::aside(&text);
}

fn new_bar(layer: &LayerReport) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{prefix} {bar:30} {decimal_bytes:>11} / {decimal_total_bytes:11} {msg}",
    );
    let bar = ProgressBar::new(layer.size).with_prefix(short(&layer.digest));
    bar.set_style(style.expect("the template is a constant"));
    bar
}

fn draw(bar: &ProgressBar, layer: &LayerReport) {
    bar.set_position(layer.bytes(Phase::Download).min(layer.size));
    match &layer.state {
        LayerState::Waiting => bar.set_message(message(layer, "waiting")),
        LayerState::Running if layer.bytes(Phase::Download) < layer.size => {
            bar.set_message(message(layer, "fetching and unpacking"));
        }
        LayerState::Running => bar.set_message(message(layer, "unpacking")),
        LayerState::Done => finish(bar, layer, "done"),
        LayerState::Shared => finish(bar, layer, "there already"),
        LayerState::Failed(_) => bar.abandon_with_message(message(layer, "failed")),
        LayerState::Cancelled => bar.abandon_with_message(message(layer, "cancelled")),
    }
}

/// Spans that say nothing about a rate: one read would be all that it is made of.
const RATE_SECONDS_LEAST: f64 = 0.05;

/// The rate at which the layer came until now, and what is done with it. The bar's own rate is made
/// of what it was told between two drawings, which was a terabyte a second at first.
fn message(layer: &LayerReport, phase: &str) -> String {
    let download = layer.phases.iter().find(|report| report.phase == Phase::Download);
    let rate = download.filter(|report| report.span() >= RATE_SECONDS_LEAST).map(|report| {
        let each_second = report.bytes as f64 / report.span();
        format!("{}/s", bytes(each_second as u64))
    });
    format!("{:>13}  {phase}", rate.unwrap_or_default())
}

fn finish(bar: &ProgressBar, layer: &LayerReport, phase: &str) {
    if !bar.is_finished() {
        bar.set_position(layer.size);
        bar.finish_with_message(message(layer, phase));
    }
}
