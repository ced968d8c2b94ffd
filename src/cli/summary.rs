//! Where the time of a pull went.

use super::table::{bytes, rate, seconds, short, table, text};
use crate::timeline::waterfall::printable;
use crate::timeline::{Phase, PullReport, PullState};

/// A line for each pull.
pub(super) fn list(pulls: &[PullReport]) -> String {
    let header = ["id", "image", "state", "bottleneck", "layers", "size", "time", "rate"];
    let mut table = table(&header, 4);
    for pull in pulls {
        table.add_row([
            pull.id.to_string(),
            printable(&pull.image),
            pull.state.as_str().to_owned(),
            bottleneck(pull).to_owned(),
            pull.layers.len().to_string(),
            bytes(pull.size()),
            seconds(pull.seconds),
            rate(pull.bytes(Phase::Download), pull.seconds),
        ]);
    }
    text(&table)
}

fn bottleneck(pull: &PullReport) -> &'static str {
    pull.judgement.as_ref().map_or("-", |judgement| judgement.bottleneck.words())
}

/// A pull with all of its layers and phases.
pub(super) fn whole(pull: &PullReport) -> String {
    let mut out = format!(
        "{}: {} in {}, {} compressed, {} unpacked{}\n",
        printable(&pull.image),
        pull.state.as_str(),
        seconds(pull.seconds),
        bytes(pull.size()),
        bytes(pull.bytes(Phase::Decompress)),
        pull.resolve_seconds
            .map_or(String::new(), |s| format!(" (manifest and configuration: {})", seconds(s))),
    );
    if let PullState::Failed(reason) | PullState::FellBack(reason) = &pull.state {
        out += &format!("  {}\n", printable(reason));
    }
    // A pull that failed at the manifest has none.
    if !pull.layers.is_empty() {
        out += &format!("\n{}\n{}", layers(pull), phases(pull));
    }
    if let Some(judgement) = &pull.judgement {
        let bottleneck = judgement.bottleneck.words();
        out += &format!(
            "\nBottleneck: {bottleneck}; {}.\nWhat would help: {}.\n",
            printable(&judgement.evidence),
            judgement.advice
        );
    }
    out
}

/// For each layer: when each phase ended, in seconds since the pull began.
fn layers(pull: &PullReport) -> String {
    let header = ["layer", "state", "size", "entries", "begins", "ends", "fetched at", "retries"];
    let mut table = table(&header, 2);
    for layer in &pull.layers {
        let ends = layer.phases.iter().map(|p| p.end_seconds);
        table.add_row([
            short(&layer.digest),
            layer.state.as_str().to_owned(),
            bytes(layer.size),
            layer.entries.to_string(),
            layer.asked_from().map_or("-".to_owned(), seconds),
            ends.reduce(f64::max).map_or("-".to_owned(), seconds),
            layer.downloading().map_or("-".to_owned(), |s| rate(layer.bytes(Phase::Download), s)),
            layer.retries.to_string(),
        ]);
    }
    text(&table)
}

/// For each phase, over all layers: busy time and bytes. What is busy for about as long as the pull
/// took, times the threads or connections at it, is where the time went.
fn phases(pull: &PullReport) -> String {
    let mut table = table(&["phase", "busy", "from", "to", "bytes", "rate while busy"], 1);
    for phase in Phase::ALL {
        let reports: Vec<_> = pull.layers.iter().filter_map(|layer| layer.phase(phase)).collect();
        if reports.is_empty() {
            continue;
        }
        let busy = pull.busy_seconds(phase);
        let from = reports.iter().map(|p| p.begin_seconds).fold(f64::INFINITY, f64::min);
        let to = reports.iter().map(|p| p.end_seconds).fold(0.0, f64::max);
        let amount = pull.bytes(phase);
        table.add_row([
            phase.as_str().replace('_', " "),
            seconds(busy),
            seconds(from),
            seconds(to),
            if amount > 0 { bytes(amount) } else { "-".to_owned() },
            rate(amount, busy),
        ]);
    }
    text(&table)
}
