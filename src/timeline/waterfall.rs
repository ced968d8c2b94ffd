//! A pull as a waterfall, for a terminal: a line for each layer, on one scale of time, and below
//! each layer on the critical path a line for each of its phases.
//!
//! ```text
//!                           0 s        2.0 s       4.0 s       6.0 s
//!   manifest                ━━                                           0.4 s
//!   1f4be2…       12.0 MB   ··░░██████                                   2.0 s
//! ◆ 88e2f1…        1.4 GB     ░███████████████████████▓▓▓▓▓▓▓▓▓▓▓        6.1 s
//!     download                ━━━━━━━━━━━━━━━━━━━━━━━━            busy 3.0 s
//! ```

use std::fmt::Write as _;

use super::figures::{bytes, counted, seconds, short};
use super::path::{self, Segment, Step};
use super::{LayerReport, LayerState, Phase, PullReport, PullState};

/// How it is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    /// Columns of the terminal; at least 60 are used.
    pub width: usize,
    /// Whether colours may be used (ECMA-48 SGR).
    pub colour: bool,
}

/// Columns before the bars: mark, layer, size.
const LABEL_COLUMNS: usize = 26;

/// Columns behind the bars: how long it took.
const TIME_COLUMNS: usize = 14;

/// What a cell of a layer's line shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cell {
    Nothing,
    Wait,
    Request,
    Fetch,
    Unpack,
    Commit,
    Other,
}

impl Cell {
    fn glyph(self) -> char {
        match self {
            Self::Nothing => ' ',
            Self::Wait => '·',
            Self::Request => '░',
            Self::Fetch => '█',
            Self::Unpack => '▓',
            Self::Commit => '▒',
            Self::Other => '━',
        }
    }

    /// The parameter of SGR.
    fn colour(self) -> &'static str {
        match self {
            Self::Nothing => "0",
            Self::Wait | Self::Other => "2",
            Self::Request => "36",
            Self::Fetch => "34",
            Self::Unpack => "32",
            Self::Commit => "35",
        }
    }
}

/// The waterfall, with what it was and what would help.
pub fn text(report: &PullReport, style: Style) -> String {
    let canvas = Canvas::new(report, style);
    let path = path::critical(report);
    let mut out = canvas.prose(&printable(&report.image), &printable(&headline(report)));
    out.push('\n');
    // Nothing to draw: it failed at the manifest.
    if report.layers.is_empty() && report.resolve_seconds.is_none() {
        return out.trim_end().to_owned() + "\n" + &sentences(report, &canvas);
    }
    canvas.scale(&mut out);
    if let Some(resolved) = report.resolve_seconds {
        canvas.line(
            &mut out,
            on_path(&path, Step::Resolve),
            "manifest",
            "",
            &[(Cell::Other, 0.0, resolved)],
            &seconds(resolved),
        );
    }
    for (index, layer) in report.layers.iter().enumerate() {
        let critical = path::has_layer(&path, index);
        canvas.layer(&mut out, layer, critical);
        if critical {
            canvas.phases(&mut out, layer);
        }
    }
    if let Some(last) = path.iter().find(|segment| segment.step == Step::Containerd) {
        canvas.line(
            &mut out,
            true,
            "containerd",
            "",
            &[(Cell::Wait, last.begin, last.end)],
            &seconds(last.seconds()),
        );
    }
    out.push('\n');
    out.push_str(&flowing(&LEGEND, "   ", canvas.width).replace('◆', canvas.mark()));
    out.push_str(&sentences(report, &canvas));
    out
}

const LEGEND: [&str; 6] =
    ["◆ critical path", "· waits", "░ request", "█ fetches and unpacks", "▓ unpacks", "▒ commits"];

/// Parts in lines of so many columns: a terminal would break them anywhere.
fn flowing(parts: &[&str], gap: &str, width: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for part in parts {
        let length = part.chars().count();
        if column > 0 && column + gap.len() + length > width {
            out.push('\n');
            column = 0;
        } else if column > 0 {
            out.push_str(gap);
            column += gap.len();
        }
        out.push_str(part);
        column += length;
    }
    out + "\n"
}

/// State, time and size of a pull in a few words.
pub fn headline(report: &PullReport) -> String {
    let reason = match &report.state {
        PullState::Failed(reason) | PullState::FellBack(reason) => format!(": {reason}"),
        _ => String::new(),
    };
    format!(
        "  pull {}  {} after {}, {} in {}{reason}",
        report.id,
        report.state.as_str(),
        seconds(report.seconds),
        bytes(report.size()),
        counted(report.layers.len(), "layer"),
    )
}

fn sentences(report: &PullReport, canvas: &Canvas) -> String {
    report.judgement.as_ref().map_or(String::new(), |judgement| {
        let bottleneck = format!("Bottleneck: {};", judgement.bottleneck.words());
        let sentence = |text: &str| format!(" {}.", printable(text));
        "\n".to_owned()
            + &canvas.prose(&bottleneck, &sentence(&judgement.evidence))
            + &canvas.prose("What would help:", &sentence(&judgement.advice))
    })
}

fn on_path(path: &[Segment], step: Step) -> bool {
    path.iter().any(|segment| segment.step == step)
}

/// Names and errors come from outside; a terminal must not obey them.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

struct Canvas {
    colour: bool,
    width: usize,
    /// Columns of the bars.
    columns: usize,
    seconds: f64,
}

impl Canvas {
    fn new(report: &PullReport, style: Style) -> Self {
        let width = style.width.max(60);
        let columns = width - LABEL_COLUMNS - TIME_COLUMNS;
        Self { colour: style.colour, width, columns, seconds: report.seconds.max(1e-6) }
    }

    /// Lines of words, of which the first ones are bold.
    fn prose(&self, first: &str, rest: &str) -> String {
        let words = format!("{first}{rest}");
        let lines = flowing(&words.split(' ').collect::<Vec<_>>(), " ", self.width);
        lines.replacen(first, &self.bold(first), 1)
    }

    fn bold(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn mark(&self) -> &'static str {
        if self.colour { "\x1b[1;33m◆\x1b[0m" } else { "◆" }
    }

    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a column of a terminal"
    )]
    fn column(&self, at: f64) -> usize {
        ((at / self.seconds * self.columns as f64) as usize).min(self.columns)
    }

    #[allow(clippy::cast_precision_loss, reason = "a column of a terminal")]
    fn scale(&self, out: &mut String) {
        let mut line = " ".repeat(LABEL_COLUMNS);
        let mut used = 0;
        for tick in ticks(self.seconds, self.columns as f64 / 9.0) {
            let label = seconds_short(tick);
            let column = self.column(tick);
            if column + label.len() > self.columns {
                break;
            }
            let _ = write!(line, "{}{label}", " ".repeat(column - used));
            used = column + label.len();
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }

    fn layer(&self, out: &mut String, layer: &LayerReport, critical: bool) {
        let ends = |phase| layer.phase(phase).map(|p| (p.begin_seconds, p.end_seconds));
        let mut spans = Vec::new();
        if let Some((from, to)) = ends(Phase::Wait) {
            spans.push((Cell::Wait, from, to));
        }
        if let (Some(asked), Some((from, to))) = (layer.asked_from(), layer.work()) {
            let (fetch, fetched) = ends(Phase::Download).unwrap_or((to, to));
            let commit = ends(Phase::Commit).map_or(to, |(from, _)| from);
            spans.push((Cell::Request, asked, fetch));
            spans.push((Cell::Fetch, fetch, fetched));
            spans.push((Cell::Unpack, fetched.max(from), commit));
            spans.push((Cell::Commit, commit, to));
        }
        let took = match (&layer.state, layer.work()) {
            (LayerState::Shared, _) => "there already".to_owned(),
            (LayerState::Failed(_), _) => "failed".to_owned(),
            (LayerState::Cancelled, _) => "cancelled".to_owned(),
            (_, Some((from, to))) => seconds(to - from),
            (_, None) => "waits".to_owned(),
        };
        self.line(out, critical, &short(&layer.digest), &bytes(layer.size), &spans, &took);
        if let LayerState::Failed(reason) = &layer.state {
            let reason = format!("    {}", printable(reason));
            out.push_str(&self.prose("", &reason));
        }
    }

    fn phases(&self, out: &mut String, layer: &LayerReport) {
        for phase in layer.phases.iter().filter(|p| p.phase != Phase::Wait) {
            let name = format!("  {}", phase.phase.as_str().replace('_', " "));
            let span = [(Cell::Other, phase.begin_seconds, phase.end_seconds)];
            self.line(
                out,
                false,
                &name,
                "",
                &span,
                &format!("busy {}", seconds(phase.busy_seconds)),
            );
        }
    }

    fn line(
        &self,
        out: &mut String,
        critical: bool,
        label: &str,
        size: &str,
        spans: &[(Cell, f64, f64)],
        took: &str,
    ) {
        let mark = if critical { self.mark() } else { " " };
        let mut cells = vec![Cell::Nothing; self.columns];
        for &(cell, from, to) in spans.iter().filter(|(_, from, to)| to >= from) {
            let first = self.column(from).min(self.columns - 1);
            // What took time is seen, if only in one column.
            let end = self.column(to).max(if to > from { first + 1 } else { first });
            cells[first..end.min(self.columns)].fill(cell);
        }
        let _ = write!(out, "{mark} {label:<13}{size:>9}  ");
        for run in cells.chunk_by(|one, other| one == other) {
            let glyphs: String = run.iter().map(|cell| cell.glyph()).collect();
            if self.colour && run[0] != Cell::Nothing {
                let _ = write!(out, "\x1b[{}m{glyphs}\x1b[0m", run[0].colour());
            } else {
                out.push_str(&glyphs);
            }
        }
        let _ = writeln!(out, " {took:>13}");
    }
}

/// Times for a scale up to `end`, about `wanted` of them: 1, 2 or 5 times a power of ten, or of a
/// minute where they are longer.
pub fn ticks(end: f64, wanted: f64) -> Vec<f64> {
    const STEPS: [f64; 23] = [
        0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0,
        60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0,
    ];
    let least = end / wanted.max(1.0);
    let step = STEPS.into_iter().find(|&step| step >= least).unwrap_or(end.max(1.0));
    let mut ticks = Vec::new();
    let mut tick = 0.0;
    while tick <= end && ticks.len() < 100 {
        ticks.push(tick);
        tick += step;
    }
    ticks
}

/// A time on a scale: `0`, `0.2 s`, `30 s`, `2 min`.
pub fn seconds_short(at: f64) -> String {
    if at >= 120.0 && (at % 60.0).abs() < 1e-6 {
        return format!("{:.0} min", at / 60.0);
    }
    let digits = [1.0, 10.0, 100.0, 1000.0]
        .iter()
        .position(|scale| ((at * scale).round() - at * scale).abs() < 1e-6)
        .unwrap_or(3);
    format!("{at:.digits$} s")
}

#[cfg(test)]
mod tests {
    use super::super::testing::example;
    use super::*;

    #[test]
    fn a_picture_of_a_pull() {
        let drawn = text(&example(), Style { width: 90, colour: false });
        let expected = [
            "registry.example/<app>&:1.2  pull 17  done after 9.0 s, 1.7 GB in 4 layers",
            "",
            "                          0 s        2 s        4 s        6 s        8 s",
            "◆ manifest                ━                                                        0.300 s",
        ];
        assert_eq!(drawn.lines().take(4).collect::<Vec<_>>(), expected, "{drawn}");
        let marked: Vec<_> = drawn.lines().filter(|line| line.starts_with('◆')).collect();
        assert_eq!(marked.len(), 4, "manifest, the large layer, containerd, the legend:\n{drawn}");
        assert!(marked[1].contains("1.4 GB") && marked[1].trim_end().ends_with("8.5 s"), "{drawn}");
        for word in [
            "there already",
            "decompress",
            "busy 8.1 s",
            "Bottleneck: decompression;",
            "hoist convert",
        ] {
            assert!(drawn.contains(word), "{word} is not in\n{drawn}");
        }
        let waits = drawn.lines().find(|line| line.contains('·')).unwrap();
        assert!(waits.contains("··") && waits.contains('█'), "{drawn}");
        assert!(!drawn.contains('\x1b'));
    }

    #[test]
    fn every_line_fits() {
        let mut report = example();
        report.layers[3].state = LayerState::Failed("a reason ".repeat(40));
        report.state = PullState::Failed("a longer reason ".repeat(40));
        let words = |drawn: &str| drawn.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for width in [10, 60, 80, 100, 200] {
            let drawn = text(&report, Style { width, colour: false });
            for line in drawn.lines() {
                assert!(line.chars().count() <= width.max(60), "{width}: {line}");
            }
            let coloured = text(&report, Style { width, colour: true });
            let (bold, plain) =
                ("\x1b[1mBottleneck: decompression;\x1b[0m one", "decompression; one");
            assert!(coloured.contains(bold) && words(&drawn).join(" ").contains(plain), "{drawn}");
            assert!(coloured.contains("\x1b[1;33m◆\x1b[0m critical path"), "{coloured}");
        }
    }

    #[test]
    fn colours_and_nothing_that_a_terminal_obeys() {
        let mut report = example();
        report.image = "a\x1b]0;title\x07b".to_owned();
        report.state = PullState::Failed("line\nline".to_owned());
        let plain = text(&report, Style { width: 80, colour: false });
        assert!(!plain.contains('\x1b') && !plain.contains('\x07'), "{plain:?}");
        assert!(plain.contains("line\u{fffd}line"));
        assert!(text(&report, Style { width: 80, colour: true }).contains("\x1b[34m█"));
    }

    #[test]
    fn scales_are_round() {
        assert_eq!(ticks(9.0, 5.0), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(ticks(0.0, 5.0), [0.0]);
        let told: Vec<_> = [0.0, 0.2, 30.0, 180.0, 0.005].map(seconds_short).to_vec();
        assert_eq!(told, ["0 s", "0.2 s", "30 s", "3 min", "0.005 s"]);
    }
}
