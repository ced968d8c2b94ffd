//! One picture: text out of what hoistd told.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Instant;

use crate::control::InfoResponse;
use crate::timeline::figures::{bytes, rate, seconds, short};
use crate::timeline::waterfall::printable;
use crate::timeline::{LayerReport, LayerState, Phase, PullReport, PullState};

/// Columns of a bar.
const BAR: usize = 20;

/// What was counted at the picture before, so that rates can be told.
#[derive(Default)]
pub(super) struct Meter {
    at: Option<Instant>,
    counted: HashMap<u64, (u64, u64)>,
}

/// One moment.
pub(super) struct Frame {
    info: InfoResponse,
    pulls: Vec<PullReport>,
    /// Bytes received and written by pulls since the last picture, and how long that was.
    since: HashMap<u64, (u64, u64)>,
    seconds: f64,
}

impl Meter {
    /// The picture of now; rates are those since the last one.
    pub(super) fn frame(
        &mut self,
        info: InfoResponse,
        pulls: Vec<PullReport>,
        now: Instant,
    ) -> Frame {
        let seconds = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        let counted: HashMap<_, _> = pulls
            .iter()
            .map(|pull| (pull.id, (pull.bytes(Phase::Download), pull.bytes(Phase::Write))))
            .collect();
        let since = counted.iter().map(|(id, now)| {
            let before = self.counted.get(id).copied().unwrap_or(*now);
            (*id, (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1)))
        });
        let since = since.collect();
        self.at = Some(now);
        self.counted = counted;
        Frame { info, pulls, since, seconds }
    }
}

impl Frame {
    /// As text, of at most so many columns and lines (lines are cut by whoever shows them).
    pub(super) fn text(&self, (_, height): (usize, usize)) -> String {
        let mut out = String::new();
        self.head(&mut out);
        let (running, ended): (Vec<_>, Vec<_>) =
            self.pulls.iter().partition(|pull| pull.state == PullState::Running);
        let _ = writeln!(out, "\nPULLS UNDER WAY  {}", running.len());
        for pull in &running {
            self.pull(&mut out, pull);
        }
        let left = height.saturating_sub(out.lines().count() + 3);
        if !ended.is_empty() && left > 0 {
            out.push_str("\nENDED\n");
            ended.iter().take(left).for_each(|pull| line_of_ended(&mut out, pull));
        }
        out
    }

    fn head(&self, out: &mut String) {
        let info = &self.info;
        let sum = self.since.values().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let _ = writeln!(out, "hoistd {}  {}", info.version, printable(&info.root));
        let _ = writeln!(
            out,
            "memory  {} {} of {}",
            bar(info.memory_in_use_bytes, info.memory_budget_bytes),
            bytes(info.memory_in_use_bytes),
            bytes(info.memory_budget_bytes)
        );
        let used = info.disk_size_bytes.saturating_sub(info.disk_available_bytes);
        let _ = writeln!(
            out,
            "disk    {} {} free of {}; {} layers, {}",
            bar(used, info.disk_size_bytes),
            bytes(info.disk_available_bytes),
            bytes(info.disk_size_bytes),
            info.trees,
            bytes(info.tree_bytes)
        );
        let _ = writeln!(
            out,
            "network {} {} of {} connections; {} received, {} written",
            bar(info.connections_in_use.into(), info.connections.into()),
            info.connections_in_use,
            info.connections,
            rate(sum.0, self.seconds),
            rate(sum.1, self.seconds)
        );
        let _ = writeln!(
            out,
            "layers  {} in work, {} waiting",
            info.layers_running, info.layers_waiting
        );
    }

    fn pull(&self, out: &mut String, pull: &PullReport) {
        let came = pull.bytes(Phase::Download).min(pull.size());
        let (received, written) = self.since.get(&pull.id).copied().unwrap_or_default();
        let held_up = pull.judgement.as_ref().map_or("", |j| j.bottleneck.words());
        let _ = writeln!(
            out,
            "{:>4}  {}  {} {} of {}  {} in  {} out  {}  {held_up}",
            pull.id,
            printable(&pull.image),
            bar(came, pull.size()),
            bytes(came),
            bytes(pull.size()),
            rate(received, self.seconds),
            rate(written, self.seconds),
            seconds(pull.seconds),
        );
        let open =
            |layer: &&LayerReport| matches!(layer.state, LayerState::Running | LayerState::Waiting);
        for layer in pull.layers.iter().filter(open) {
            let came = layer.bytes(Phase::Download).min(layer.size);
            let _ = writeln!(
                out,
                "      {}  {} {} of {}  {}, {} files",
                short(&layer.digest),
                bar(came, layer.size),
                bytes(came),
                bytes(layer.size),
                layer.state.as_str(),
                layer.entries,
            );
        }
    }
}

fn line_of_ended(out: &mut String, pull: &PullReport) {
    let held_up = pull.judgement.as_ref().map_or("", |j| j.bottleneck.words());
    let _ = writeln!(
        out,
        "{:>4}  {}  {} after {}, {}  {held_up}",
        pull.id,
        printable(&pull.image),
        pull.state.as_str(),
        seconds(pull.seconds),
        bytes(pull.size()),
    );
}

/// A share as a bar.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of twenty columns"
)]
fn bar(part: u64, whole: u64) -> String {
    let share = if whole == 0 { 0.0 } else { (part as f64 / whole as f64).clamp(0.0, 1.0) };
    let full = (share * BAR as f64).round() as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(BAR - full))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::timeline::{History, LayerRecorder};

    #[test]
    fn rates_are_those_since_the_last_picture() {
        let history = History::new(3);
        let pull = history.begin("registry/\u{1b}[31mimage:tag");
        let layer = std::sync::Arc::new(LayerRecorder::detached());
        layer.state(LayerState::Running);
        pull.attach(std::sync::Arc::clone(&layer));
        let mut meter = Meter::default();
        let now = Instant::now();
        // A phase that has not begun is not reported.
        layer.spent(Phase::Download, now, now);
        layer.bytes(Phase::Download, 1_000_000);
        let first = meter.frame(InfoResponse::default(), history.list(3), now);
        assert!(!first.text((80, 24)).contains("MB/s"), "nothing to compare with");
        layer.bytes(Phase::Download, 3_000_000);
        let later = now + Duration::from_secs(2);
        let text = meter.frame(InfoResponse::default(), history.list(3), later).text((80, 24));
        assert!(text.contains("1.5 MB/s received"), "{text}");
        assert!(text.contains("PULLS UNDER WAY  1") && text.contains("running, 0 files"), "{text}");
        assert!(!text.contains('\u{1b}'), "a terminal must not obey a name");
    }

    #[test]
    fn a_bar_is_a_share() {
        assert_eq!(bar(1, 2).matches('█').count(), BAR / 2);
        assert_eq!(bar(9, 2).matches('░').count(), 0);
        assert_eq!(bar(0, 0).matches('█').count(), 0);
    }
}
