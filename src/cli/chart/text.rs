//! The chart in a terminal.

use std::fmt::Write as _;

use super::{Activity, Chart, Panel, Row, mark, seconds};

/// How it may look.
pub(in crate::cli) struct Style {
    /// Columns.
    pub(in crate::cli) width: usize,
    /// Colours beside the shapes, never instead of them.
    pub(in crate::cli) colour: bool,
    /// ASCII only.
    pub(in crate::cli) plain: bool,
}

/// Below this many columns a bar says nothing.
const LEAST_BAR: usize = 20;

/// Bars longer than this are harder to compare with their labels, not easier.
const MOST_BAR: usize = 120;

/// What stands right of a bar: "  1234.5 s".
const TIME_COLUMNS: usize = 10;

impl Activity {
    fn glyph(self, plain: bool) -> char {
        match (self, plain) {
            (Self::Waiting, false) => '·',
            (Self::Downloading, false) => '░',
            (Self::Both, false) => '▓',
            (Self::Extracting, false) => '█',
            (Self::Waiting, true) => '.',
            (Self::Downloading, true) => '-',
            (Self::Both, true) => '=',
            (Self::Extracting, true) => '#',
        }
    }

    /// SGR parameters: colours that every palette has, readable on light and dark.
    fn colour(self) -> &'static str {
        match self {
            Self::Waiting => "90",
            Self::Downloading => "34",
            Self::Both => "36",
            Self::Extracting => "35",
        }
    }
}

impl Style {
    fn painted(&self, activity: Activity, count: usize) -> String {
        let bar: String = std::iter::repeat_n(activity.glyph(self.plain), count).collect();
        if self.colour && count > 0 {
            format!("\x1b[{}m{bar}\x1b[0m", activity.colour())
        } else {
            bar
        }
    }

    fn strong(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Title, rates, legend, and for each model its layers over one axis of time.
pub(in crate::cli) fn drawing(chart: &Chart, style: &Style) -> String {
    let rows = chart.panels.iter().flat_map(|panel| &panel.rows);
    let label = rows.map(|row| label(row).chars().count()).max().unwrap_or(0) + 2;
    let bar = style.width.saturating_sub(label + TIME_COLUMNS + 1).clamp(LEAST_BAR, MOST_BAR);
    let mut out = format!("{}\n", style.strong(&chart.title));
    let separator = if style.plain { ", " } else { " · " };
    for line in wrapped(&chart.assumed, separator, style.width) {
        out += &(line + "\n");
    }
    out += &format!("\n{}\n", legend(chart, style));
    let scale = Scale { longest: chart.longest(), bar };
    for panel in &chart.panels {
        out += &format!("\n{}\n", head(panel, style));
        for row in &panel.rows {
            let end = row.spans.last().map_or(0.0, |span| span.end);
            let (bars, used) = bars(row, &scale, style);
            let empty = " ".repeat(bar - used);
            let label = format!("{:label$}", self::label(row));
            let _ = writeln!(out, "{label}{bars}{empty}{:>TIME_COLUMNS$}", seconds(end));
        }
    }
    out + &axis(chart, &scale, label, style)
}

struct Scale {
    longest: f64,
    bar: usize,
}

impl Scale {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "columns of a terminal"
    )]
    fn column(&self, seconds: f64) -> usize {
        ((seconds / self.longest * self.bar as f64).round() as usize).min(self.bar)
    }
}

fn label(row: &Row) -> String {
    format!("  {:>2}  {:>8}", row.number, row.size)
}

fn head(panel: &Panel, style: &Style) -> String {
    let name = style.strong(&format!("{}  {}", panel.name, seconds(panel.seconds)));
    // The description repeats the name's first word less often than it helps; it goes where it fits.
    let used = panel.name.chars().count() + seconds(panel.seconds).chars().count() + 2;
    let about = format!("  {}", panel.about);
    if used + about.chars().count() <= style.width { name + &about } else { name }
}

/// The bar of a layer and its columns. What a layer ends with is seen, however short it is.
fn bars(row: &Row, scale: &Scale, style: &Style) -> (String, usize) {
    let mut columns: Vec<(Activity, usize)> = row
        .spans
        .iter()
        .map(|span| (span.activity, scale.column(span.end) - scale.column(span.begin)))
        .collect();
    if let [others @ .., (_, last @ 0)] = columns.as_mut_slice() {
        let before: usize = others.iter().map(|(_, columns)| *columns).sum();
        *last = 1;
        if before == scale.bar
            && let Some((_, longest)) = others.iter_mut().max_by_key(|(_, columns)| *columns)
        {
            *longest -= 1;
        }
    }
    let used = columns.iter().map(|(_, columns)| *columns).sum();
    (columns.into_iter().map(|(activity, count)| style.painted(activity, count)).collect(), used)
}

fn legend(chart: &Chart, style: &Style) -> String {
    let shown = Activity::ALL.into_iter().filter(|activity| chart.shows(*activity));
    let entries = shown.map(|a| format!("{} {}", style.painted(a, 2), a.word()));
    entries.collect::<Vec<_>>().join("   ")
}

/// Marks under the bars, where their numbers do not touch.
fn axis(chart: &Chart, scale: &Scale, label: usize, style: &Style) -> String {
    let mut line: Vec<char> = vec![if style.plain { '-' } else { '─' }; scale.bar + 1];
    let mut numbers = String::new();
    let ticks = chart.ticks(scale.bar / 10);
    for (index, tick) in ticks.iter().enumerate() {
        let column = scale.column(*tick);
        line[column] = if style.plain { '+' } else { '┴' };
        let unit = if index + 1 == ticks.len() { " s" } else { "" };
        let text = mark(*tick) + unit;
        let gap = column.saturating_sub(numbers.chars().count());
        let _ = write!(numbers, "{}{text}", " ".repeat(gap));
    }
    let line: String = line.into_iter().collect();
    format!("{:label$}{line}\n{:label$}{numbers}\n", "", "")
}

/// Breaks between the rates, never inside one.
fn wrapped(text: &str, separator: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in text.split(" · ") {
        let length = separator.chars().count() + part.chars().count();
        match lines.last_mut() {
            Some(line) if line.chars().count() + length <= width => {
                line.push_str(separator);
                line.push_str(part);
            }
            _ => lines.push(part.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::tests::chart;
    use super::*;

    #[test]
    fn lengths_are_times() {
        let drawn = drawing(&chart(), &Style { width: 80, colour: false, plain: true });
        let count = |line: &str, c| line.chars().filter(|x| *x == c).count();
        let lines: Vec<_> = drawn.lines().filter(|line| line.contains("900.0 MB")).collect();
        assert_eq!(lines.len(), 6, "{drawn}");
        let (waits, loads) = (count(lines[2], '.') - 2, count(lines[2], '-'));
        // The label "900.0 MB" and the time "16.0 s" bring a dot each.
        assert!(
            waits.abs_diff(2 * loads) <= 1 && loads.abs_diff(count(lines[2], '#')) <= 1,
            "{drawn}"
        );
        assert!(count(lines[3], '=') > 2 * loads, "{drawn}");
        assert!(drawn.is_ascii() && drawn.lines().all(|line| line.len() <= 80), "{drawn}");
    }

    #[test]
    fn a_narrow_terminal_keeps_bars_and_colours_change_no_column() {
        let wide = |colour| drawing(&chart(), &Style { width: 140, colour, plain: false });
        assert!(wide(false).lines().all(|line| line.chars().count() <= 140));
        let mut bare = String::new();
        let mut coloured = wide(true);
        assert!(coloured.contains("\x1b["));
        while let Some(at) = coloured.find("\x1b[") {
            bare += &coloured[..at];
            let end = coloured[at..].find('m').unwrap();
            coloured = coloured[at + end + 1..].to_owned();
        }
        assert_eq!(bare + &coloured, wide(false));
        let narrow = drawing(&chart(), &Style { width: 10, colour: false, plain: true });
        assert!(narrow.contains("####"));
    }

    #[test]
    fn a_layer_of_some_bytes_is_seen() {
        let mut chart = chart();
        for row in &mut chart.panels[0].rows {
            row.spans.pop();
            let begin = row.spans.last().map_or(0.0, |span| span.end);
            let activity = Activity::Extracting;
            row.spans.push(super::super::Span { activity, begin, end: begin + 1e-6 });
        }
        let drawn = drawing(&chart, &Style { width: 80, colour: false, plain: true });
        let marks = drawn.lines().filter(|line| line.contains("900.0 MB") && line.contains('#'));
        assert_eq!(marks.count(), 3, "{drawn}");
    }
}
