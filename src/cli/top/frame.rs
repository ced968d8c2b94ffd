//! One picture: text out of what hoistd told.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Instant;

use crate::control::InfoResponse;
use crate::timeline::figures::{bytes, counted, entries, rate, seconds, short};
use crate::timeline::waterfall::printable;
use crate::timeline::{LayerReport, LayerState, Phase, PullReport, PullState};

/// Columns of a bar.
const BAR: usize = 20;

/// Layers of a pull that are shown however low the terminal is.
const LAYERS_LEAST: usize = 3;

/// What a line of a pull under way has beside the image's name: number and rates.
const RUNNING_COLUMNS: usize = 37;

/// What a line of an ended pull has beside the image's name and its bottleneck: number, state, time, size.
const ENDED_COLUMNS: usize = 39;

/// A name is not cut to less.
const NAME_LEAST: usize = 20;

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
    /// As text, for a terminal of so many columns and lines (what does not fit is cut by whoever shows it).
    pub(super) fn text(&self, (width, height): (usize, usize)) -> String {
        let mut out = String::new();
        self.head(&mut out);
        let (running, ended): (Vec<_>, Vec<_>) =
            self.pulls.iter().partition(|pull| pull.state == PullState::Running);
        let _ = writeln!(out, "\nPULLS UNDER WAY  {}", running.len());
        // A pull has two lines of its own, and its layers share what the others leave.
        let left = height.saturating_sub(out.lines().count() + 2 * running.len() + 1);
        let layers = (left / running.len().max(1)).max(LAYERS_LEAST);
        let columns = name_columns(&running, width, RUNNING_COLUMNS);
        for pull in &running {
            self.pull(&mut out, pull, columns, layers);
        }
        let left = height.saturating_sub(out.lines().count() + 3);
        if !ended.is_empty() && left > 0 {
            out.push_str("\nENDED\n");
            let shown = &ended[..ended.len().min(left)];
            let held_up = shown.iter().map(|pull| held_up(pull).len()).max().unwrap_or_default();
            let columns = name_columns(shown, width, ENDED_COLUMNS + held_up);
            shown.iter().for_each(|pull| line_of_ended(&mut out, pull, columns));
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
            "network {} {} of {} connections",
            bar(info.connections_in_use.into(), info.connections.into()),
            info.connections_in_use,
            info.connections,
        );
        let _ = writeln!(
            out,
            "layers  {} in work, {} waiting; {} received, {} written",
            info.layers_running,
            info.layers_waiting,
            self.speed(sum.0),
            self.speed(sum.1)
        );
    }

    /// A rate since the picture before, which the first one does not have.
    fn speed(&self, amount: u64) -> String {
        match amount {
            0 if self.seconds > 0.0 => "0 B/s".to_owned(),
            _ => rate(amount, self.seconds),
        }
    }

    /// A line with its name and rates, one with how far it is, and one for each of so many layers.
    fn pull(&self, out: &mut String, pull: &PullReport, columns: usize, layers: usize) {
        let came = pull.bytes(Phase::Download).min(pull.size());
        let (received, written) = self.since.get(&pull.id).copied().unwrap_or_default();
        let held_up = held_up(pull);
        let _ = writeln!(
            out,
            "{:>4}  {:<columns$}  {:>10} in  {:>10} out",
            pull.id,
            within(&printable(&pull.image), columns),
            self.speed(received),
            self.speed(written),
        );
        let line = format!(
            "      {:<12}  {}  {:>9} of {:>9}  {held_up}",
            seconds(pull.seconds),
            bar(came, pull.size()),
            bytes(came),
            bytes(pull.size()),
        );
        let _ = writeln!(out, "{}", line.trim_end());
        let of = |state| pull.layers.iter().filter(move |layer| layer.state == state);
        let open: Vec<_> = of(LayerState::Running).chain(of(LayerState::Waiting)).collect();
        // The last line says how many there are beside those.
        let shown = if open.len() > layers { layers.saturating_sub(1) } else { open.len() };
        open[..shown].iter().for_each(|layer| line_of_layer(out, layer));
        if open.len() > shown {
            let more = counted(open.len() - shown, "more layer");
            let waiting = open[shown..].iter().filter(|l| l.state == LayerState::Waiting).count();
            let _ = writeln!(out, "      and {more}, {waiting} of them waiting");
        }
    }
}

fn line_of_layer(out: &mut String, layer: &LayerReport) {
    let came = layer.bytes(Phase::Download).min(layer.size);
    // One that has entries is running.
    let made = match layer.entries {
        0 => layer.state.as_str().to_owned(),
        some => entries(some),
    };
    let _ = writeln!(
        out,
        "      {}  {}  {:>9} of {:>9}  {made}",
        short(&layer.digest),
        bar(came, layer.size),
        bytes(came),
        bytes(layer.size),
    );
}

/// The bottleneck of a pull, as far as it is known.
fn held_up(pull: &PullReport) -> &'static str {
    pull.judgement.as_ref().map_or("", |judgement| judgement.bottleneck.words())
}

fn line_of_ended(out: &mut String, pull: &PullReport, columns: usize) {
    let held_up = held_up(pull);
    let line = format!(
        "{:>4}  {:<columns$}  {:<9} {:>8}  {:>9}  {held_up}",
        pull.id,
        within(&printable(&pull.image), columns),
        pull.state.as_str(),
        seconds(pull.seconds),
        bytes(pull.size()),
    );
    let _ = writeln!(out, "{}", line.trim_end());
}

/// Columns for the names of these pulls, where each line has so many others.
fn name_columns(pulls: &[&PullReport], width: usize, others: usize) -> usize {
    let longest = pulls.iter().map(|pull| pull.image.chars().count()).max().unwrap_or_default();
    longest.min(width.saturating_sub(others).max(NAME_LEAST))
}

/// A name in so many columns: its end, which tells images of one registry apart, and what fits of its begin.
fn within(name: &str, columns: usize) -> String {
    let length = name.chars().count();
    if length <= columns {
        return name.to_owned();
    }
    let kept = columns.saturating_sub(1);
    let (begin, end) = (kept / 3, kept - kept / 3);
    let begin: String = name.chars().take(begin).collect();
    let end: String = name.chars().skip(length - end).collect();
    format!("{begin}…{end}")
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
        assert!(text.contains("PULLS UNDER WAY  1") && text.contains("  running\n"), "{text}");
        assert!(!text.contains('\u{1b}'), "a terminal must not obey a name");
    }

    #[test]
    fn all_figures_fit_on_a_terminal() {
        let history = History::new(3);
        let pull = history.begin("registry/image:tag");
        for entries in [0, 123_456] {
            let layer = std::sync::Arc::new(LayerRecorder::detached());
            let now = Instant::now();
            layer.state(LayerState::Running);
            layer.spent(Phase::Download, now, now);
            layer.entries(entries);
            pull.attach(layer);
        }
        let info = InfoResponse {
            memory_in_use_bytes: 123_400_000_000,
            memory_budget_bytes: 123_400_000_000,
            connections_in_use: 128,
            connections: 1000,
            layers_running: 128,
            layers_waiting: 1000,
            trees: 12_345,
            tree_bytes: 123_400_000_000,
            disk_size_bytes: 999_900_000_000,
            ..InfoResponse::default()
        };
        let (now, mut frame) = (Instant::now(), Meter::default());
        frame.frame(info.clone(), history.list(3), now);
        let mut frame = frame.frame(info, history.list(3), now + Duration::from_secs(1));
        frame.since = [(1, (999_900_000, 999_900_000))].into();
        let text = frame.text((80, 24));
        for words in ["999.9 MB/s received, 999.9 MB/s written", "  123456 entries", "  running"] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    /// A pull with so many layers at work, under a name of so many characters.
    fn large(layers: usize, name: usize) -> Frame {
        let history = History::new(3);
        let pull = history.begin(&"n".repeat(name));
        for index in 0..layers {
            let layer = std::sync::Arc::new(LayerRecorder::detached());
            layer.state(if index % 2 == 0 { LayerState::Running } else { LayerState::Waiting });
            pull.attach(layer);
        }
        let ended = history.begin(&format!("registry/{}:tag", "e".repeat(name)));
        ended.ended(PullState::FellBack("why".to_owned()));
        history.close(&ended);
        Meter::default().frame(InfoResponse::default(), history.list(3), Instant::now())
    }

    #[test]
    fn all_fits_on_a_terminal() {
        for (layers, name) in [(0, 5), (3, 40), (200, 300)] {
            let text = large(layers, name).text((80, 24));
            assert!(text.lines().count() <= 24, "{text}");
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
            assert!(text.contains("ENDED") == (layers < 200), "{text}");
        }
        let text = large(200, 300).text((80, 24));
        assert!(text.contains("more layers, ") && text.contains("of them waiting"), "{text}");
        // Two names of different lengths have what follows in the same columns.
        let bars =
            |text: &str| text.lines().filter_map(|line| line.chars().position(|c| c == '░')).max();
        assert_eq!(bars(&large(1, 5).text((200, 24))), bars(&large(1, 90).text((200, 24))));
        // Where there is no terminal nothing is cut.
        let text = large(200, 300).text((usize::MAX, usize::MAX));
        assert!(text.contains(&"n".repeat(300)) && !text.contains('…'), "{text}");
        assert_eq!(text.matches("  waiting\n").count(), 100);
    }

    #[test]
    fn a_name_keeps_its_end() {
        assert_eq!(within("registry/image:tag", 18), "registry/image:tag");
        assert_eq!(within("registry/image:tag", 10), "reg…ge:tag");
        assert_eq!(within("ab", 1), "…");
    }

    #[test]
    fn a_bar_is_a_share() {
        assert_eq!(bar(1, 2).matches('█').count(), BAR / 2);
        assert_eq!(bar(9, 2).matches('░').count(), 0);
        assert_eq!(bar(0, 0).matches('█').count(), 0);
    }
}
