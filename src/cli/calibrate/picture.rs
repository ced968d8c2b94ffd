//! How fast each layer came, over time: a line of blocks in a terminal, a curve in a picture.
//!
//! All layers of all pulls have one scale of speed, and all pulls one of time, so that heights and lengths
//! compare.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::calibrate::experiment::{BUCKET_SECONDS, ServedPull};
use crate::cli::chart::svg::escaped;
use crate::cli::chart::{mark, seconds};
use crate::cli::table::{bytes, rate};

/// What is drawn.
pub(super) struct Picture {
    pub(super) title: String,
    panels: Vec<Panel>,
}

/// One pull.
struct Panel {
    name: String,
    seconds: f64,
    rows: Vec<Row>,
    /// When it had ended, as it said.
    ended: Option<f64>,
}

/// One layer.
struct Row {
    label: String,
    told: String,
    /// Bytes in each bucket since the pull began.
    buckets: Vec<u64>,
}

impl Picture {
    /// The pulls that fetched something.
    pub(super) fn of(title: String, pulls: &[ServedPull]) -> Self {
        let panels = pulls.iter().filter(|pull| !pull.transfers.is_empty()).map(panel).collect();
        Self { title, panels }
    }

    fn longest(&self) -> f64 {
        self.panels.iter().map(|panel| panel.seconds).fold(BUCKET_SECONDS, f64::max)
    }

    /// The most bytes of a bucket of one layer; at least 1.
    fn fastest(&self) -> u64 {
        let rows = self.panels.iter().flat_map(|panel| &panel.rows);
        rows.flat_map(|row| &row.buckets).copied().max().unwrap_or(1).max(1)
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "moments of hours")]
fn panel(pull: &ServedPull) -> Panel {
    let begin = (pull.begin / BUCKET_SECONDS) as usize;
    let mut by_layer = BTreeMap::new();
    for transfer in &pull.transfers {
        let (buckets, span, sent) = by_layer
            .entry(transfer.digest)
            .or_insert_with(|| (Vec::new(), (f64::INFINITY, 0.0_f64), 0));
        let first = transfer.first.saturating_sub(begin);
        let length = first + transfer.buckets.len();
        if buckets.len() < length {
            buckets.resize(length, 0_u64);
        }
        for (index, count) in transfer.buckets.iter().enumerate() {
            buckets[first + index] += count;
        }
        *span = (span.0.min(transfer.begin), span.1.max(transfer.end));
        *sent += transfer.sent;
    }
    let mut last = pull.ended.unwrap_or(0.0);
    let mut rows = Vec::new();
    for (index, layer) in pull.layers.iter().enumerate() {
        let Some((buckets, span, sent)) = by_layer.get(&layer.digest) else { continue };
        last = last.max(span.1);
        let (from, to) = (span.0 - pull.begin, span.1 - pull.begin);
        let speed = rate(*sent, to - from);
        let (number, size) = (index + 1, bytes(layer.size));
        rows.push(Row {
            label: format!("{number:>2}  {size:>8}  {speed:>11}"),
            told: format!(
                "layer {number}, {size}: from {} to {}, {speed}",
                seconds(from),
                seconds(to)
            ),
            buckets: buckets.clone(),
        });
    }
    let (name, ended) = (pull.name.clone(), pull.ended.map(|ended| ended - pull.begin));
    Panel { name, seconds: last - pull.begin, rows, ended }
}

fn headline(panel: &Panel) -> String {
    let end =
        panel.ended.map_or_else(String::new, |ended| format!(", ended after {}", seconds(ended)));
    let last = panel.rows.iter().map(|row| row.buckets.len()).max().unwrap_or(0);
    #[allow(clippy::cast_precision_loss, reason = "buckets of hours")]
    let fetched = last as f64 * BUCKET_SECONDS;
    format!("{}: fetched in {}{end}", panel.name, seconds(fetched))
}

/// From nothing to the fastest.
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const PLAIN: [char; 9] = [' ', '.', ':', '-', '=', '+', '*', '#', '@'];

/// Columns of a label, with what stands before and behind it.
const LABEL_COLUMNS: usize = 29;

/// Lines of blocks for a terminal of `width` columns; ASCII only where it is `plain`.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "columns of a terminal"
)]
pub(super) fn text(picture: &Picture, width: usize, plain: bool) -> String {
    let columns = width.saturating_sub(LABEL_COLUMNS).clamp(20, 120);
    let blocks = if plain { PLAIN } else { BLOCKS };
    let per_column = (picture.longest() / BUCKET_SECONDS / columns as f64).max(1e-9);
    let fastest = picture.fastest() as f64;
    let speed = rate(picture.fastest(), BUCKET_SECONDS);
    let mut out = format!("{}\nfull height: {speed} of one layer\n", picture.title);
    for panel in &picture.panels {
        let _ = writeln!(out, "\n{}", headline(panel));
        for row in &panel.rows {
            let line: String = (0..columns)
                .map(|column| {
                    let from = (column as f64 * per_column) as usize;
                    let until = (((column + 1) as f64 * per_column) as usize).max(from + 1);
                    let part = row.buckets.get(from..until.min(row.buckets.len())).unwrap_or(&[]);
                    let mean = part.iter().sum::<u64>() as f64 / (until - from) as f64;
                    let height = (mean / fastest * 8.0).ceil() as usize;
                    blocks[height.min(8)]
                })
                .collect();
            let _ = writeln!(out, "{}", format!("  {}  {line}", row.label).trim_end());
        }
    }
    let end = seconds(picture.longest());
    let gap = columns.saturating_sub(end.chars().count() + 1);
    let _ = writeln!(out, "{:LABEL_COLUMNS$}0{:gap$}{end}", "", "");
    out
}

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
const LABEL: f64 = 210.0;
const ROW: f64 = 44.0;
const HEAD: f64 = 76.0;
const PANEL_HEAD: f64 = 34.0;
const AXIS: f64 = 40.0;
/// Marks of the axis.
const TICKS: u32 = 5;

const STYLE: &str = "\
.hoist{--bg:#ffffff;--ink:#1b1f24;--dim:#59636e;--line:#d1d9e0;--down:#9ec5f4;--edge:#2f5f9e;--end:#7a3e9d}\
@media (prefers-color-scheme:dark){.hoist{--bg:#0d1117;--ink:#e6edf3;--dim:#9198a1;--line:#3d444d;--down:#2f5f9e;--edge:#9ec5f4;--end:#cfa3ea}}\
.hoist .bg{fill:var(--bg)}\
.hoist text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;font-size:13px;fill:var(--ink);font-variant-numeric:tabular-nums}\
.hoist .title{font-size:18px;font-weight:600}.hoist .name{font-size:15px;font-weight:600}.hoist .dim{fill:var(--dim)}\
.hoist .mid{text-anchor:middle}.hoist .stop{text-anchor:end}\
.hoist .grid{stroke:var(--line);stroke-width:1}.hoist .end{stroke:var(--end);stroke-width:2;stroke-dasharray:4 3}\
.hoist .speed{fill:var(--down);stroke:var(--edge);stroke-width:1}";

/// One file, light and dark, with titles for who does not see it.
#[allow(clippy::cast_precision_loss, reason = "rows and buckets of a picture")]
pub(super) fn svg(picture: &Picture) -> String {
    let heights = picture.panels.iter().map(|panel| PANEL_HEAD + panel.rows.len() as f64 * ROW);
    let bottom = HEAD + heights.sum::<f64>();
    let (height, longest) = (bottom + AXIS, picture.longest());
    let x = |at: f64| MARGIN + LABEL + at / longest * (WIDTH - 2.0 * MARGIN - LABEL);
    let speed = rate(picture.fastest(), BUCKET_SECONDS);
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"hoist\" \
         viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-labelledby=\"hoist-title\">\n\
         <title id=\"hoist-title\">{0}</title>\n<style>{STYLE}</style>\n<rect class=\"bg\" width=\"100%\" height=\"100%\"/>\n\
         <text x=\"{MARGIN}\" y=\"34\" class=\"title\">{0}</text>\n\
         <text x=\"{MARGIN}\" y=\"56\" class=\"dim\">Speed of each layer over time; full height is {speed}</text>\n",
        escaped(&picture.title),
    );
    for tick in 0..=TICKS {
        let at = longest * f64::from(tick) / f64::from(TICKS);
        let (left, text) = (x(at), mark((at * 100.0).round() / 100.0));
        let class = if tick == TICKS { "dim stop" } else { "dim mid" };
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{left:.1}\" x2=\"{left:.1}\" y1=\"{HEAD}\" y2=\"{bottom:.1}\"/>\n\
             <text x=\"{left:.1}\" y=\"{:.1}\" class=\"{class}\">{text} s</text>",
            bottom + 20.0
        );
    }
    let mut top = HEAD;
    for panel in &picture.panels {
        let _ = writeln!(
            out,
            "<text x=\"{MARGIN}\" y=\"{:.1}\" class=\"name\">{}</text>",
            top + 21.0,
            escaped(&headline(panel))
        );
        top += PANEL_HEAD;
        for row in &panel.rows {
            curve(&mut out, row, top, picture.fastest() as f64, x);
            top += ROW;
        }
        if let Some(ended) = panel.ended {
            let (left, from) = (x(ended), top - panel.rows.len() as f64 * ROW);
            let _ = writeln!(
                out,
                "<line class=\"end\" x1=\"{left:.1}\" x2=\"{left:.1}\" y1=\"{from:.1}\" y2=\"{top:.1}\"><title>ended</title></line>"
            );
        }
    }
    out + "</svg>\n"
}

#[allow(clippy::cast_precision_loss, reason = "buckets of a picture")]
fn curve(out: &mut String, row: &Row, top: f64, fastest: f64, x: impl Fn(f64) -> f64) {
    let base = top + ROW - 8.0;
    let point = |index: usize, bytes: u64| {
        let height = bytes as f64 / fastest * (ROW - 12.0);
        let (left, right) = (index as f64 * BUCKET_SECONDS, (index + 1) as f64 * BUCKET_SECONDS);
        format!("L{:.1} {y:.1}L{:.1} {y:.1}", x(left), x(right), y = base - height)
    };
    let from = row.buckets.iter().position(|&bytes| bytes > 0).unwrap_or(0);
    let part = row.buckets.iter().enumerate().skip(from);
    let points: String = part.map(|(index, &bytes)| point(index, bytes)).collect();
    let (begin, end) =
        (x(from as f64 * BUCKET_SECONDS), x(row.buckets.len() as f64 * BUCKET_SECONDS));
    let _ = writeln!(
        out,
        "<g><title>{}</title><text x=\"{MARGIN}\" y=\"{:.1}\" xml:space=\"preserve\">{}</text>\
         <path class=\"speed\" d=\"M{begin:.1} {base:.1}{points}L{end:.1} {base:.1}Z\"/></g>",
        escaped(&row.told),
        base - 4.0,
        escaped(&row.label),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::experiment::{ServedLayer, Transfer};
    use crate::image::{BlobDigest, Sha256};

    fn picture() -> Picture {
        let digest = BlobDigest(Sha256::of(b"layer"));
        let transfer = |begin: f64, first, buckets: Vec<u64>| Transfer {
            digest,
            begin,
            end: begin + 0.2,
            sent: buckets.iter().sum(),
            first,
            buckets,
        };
        let pull = ServedPull {
            name: "<app>:v1".to_owned(),
            peer: "host".to_owned(),
            layers: vec![ServedLayer { digest, size: 1000 }],
            begin: 1.0,
            // Two parts of one layer at once.
            transfers: vec![
                transfer(1.0, 20, vec![100, 200, 200]),
                transfer(1.1, 22, vec![200, 0, 400]),
            ],
            ended: Some(2.0),
        };
        Picture::of("an <experiment>".to_owned(), &[pull])
    }

    #[test]
    fn heights_are_speeds_and_parts_of_a_layer_add_up() {
        let picture = picture();
        assert_eq!(picture.panels[0].rows[0].buckets, [100, 200, 400, 0, 400]);
        assert_eq!(picture.fastest(), 400);
        // One column is one bucket: 20 of them in a second.
        let drawn = text(&picture, 49, true);
        let row = drawn.lines().find(|line| line.contains("1.0 kB")).unwrap();
        assert!(row.ends_with(":=@ @"), "{drawn}");
        assert!(drawn.contains("ended after 1.0 s") && drawn.is_ascii(), "{drawn}");
        assert!(drawn.contains("8.0 kB/s"), "{drawn}");
    }

    #[test]
    fn the_picture_is_well_formed_and_told_in_words() {
        let svg = svg(&picture());
        roxmltree::Document::parse(&svg).unwrap();
        assert!(svg.contains("&lt;app&gt;:v1") && !svg.contains("NaN") && !svg.contains("inf"));
        assert!(svg.contains("layer 1, 1.0 kB: from 0.000 s to 0.3 s"), "{svg}");
        assert_eq!(svg.matches("class=\"speed\"").count(), 1);
        assert_eq!(svg.matches("class=\"end\"").count(), 1);
    }
}
