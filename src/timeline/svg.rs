//! A pull as a waterfall, as SVG: for the page and for a file.
//!
//! Positions along time are percentages and everything else is in pixels, so that one drawing fits a
//! wide window and a narrow one and its text stays as large as it is. It has no script, no link and
//! no style of its own elements, only classes: the page's Content-Security-Policy allows no more.
//!
//! A layer is a line of text above three lanes: the network, decompression, writing. A lane's pale
//! bar reaches from the phase's begin to its end; the dark shape in it is bytes over time.

use std::fmt::Write as _;

use super::figures::{bytes, rate, seconds, short};
use super::path::{self, Step};
use super::waterfall::{headline, seconds_short, ticks};
use super::{LayerReport, LayerState, Phase, PhaseReport, PullReport, Samples};

/// What the classes look like, in the light and in the dark.
pub const STYLE: &str = "\
.waterfall{--paper:#fff;--ink:#1c2024;--dim:#5c6670;--grid:#d8dde3;--net:#2f6fd0;--dec:#c2660a;--wri:#23824a;--com:#8a4bb8;--crit:#c8102e;\
font:12px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;display:block}\
.waterfall text{fill:var(--ink);stroke:var(--paper);stroke-width:3px;paint-order:stroke}.waterfall .dim{fill:var(--dim)}.waterfall .grid{stroke:var(--grid);stroke-width:1}\
.waterfall .wait{fill:var(--dim);fill-opacity:.35}.waterfall .span{fill-opacity:.25}.waterfall .net{fill:var(--net)}\
.waterfall .dec{fill:var(--dec)}.waterfall .wri{fill:var(--wri)}.waterfall .com{fill:var(--com)}.waterfall .crit{fill:var(--crit)}\
@media(prefers-color-scheme:dark){.waterfall{--paper:#14171a;--ink:#e6e9ec;--dim:#9aa5b1;--grid:#343b43;--net:#6ea8ff;--dec:#f0a04b;\
--wri:#5fcf8c;--com:#c79bf0;--crit:#ff6b7f}}";

/// Where the first layer is, below the scale.
const TOP: usize = 26;
/// One layer.
const ROW: usize = 48;
/// From a layer's top to its first lane.
const LANES: usize = 18;
/// From a lane to the next.
const LANE: usize = 8;
/// The bar of a lane.
const BAR: usize = 7;
/// Layers that have nothing to show but their line.
const FLAT_ROW: usize = 24;

/// The waterfall as part of an HTML page, which has [`STYLE`].
pub fn inline(report: &PullReport) -> String {
    drawing(report, "")
}

/// The waterfall as a file of its own.
pub fn document(report: &PullReport) -> String {
    let style = format!(
        "<style>{STYLE}.paper{{fill:#fff}}@media(prefers-color-scheme:dark){{.paper{{fill:#14171a}}}}</style>\
         <rect class=\"paper\" width=\"100%\" height=\"100%\"/>"
    );
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n", drawing(report, &style))
}

/// A text as the content of an element or the value of an attribute; characters that XML cannot
/// hold are replaced.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' => out.push(c),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn drawing(report: &PullReport, head: &str) -> String {
    let path = path::critical(report);
    let scale = Scale(report.seconds.max(1e-6));
    let mut rows = String::new();
    let mut y = TOP;
    for segment in path.iter().filter(|segment| segment.step == Step::Resolve) {
        let _ = write!(
            rows,
            "<g><title>manifest and configuration: {}</title>",
            seconds(segment.seconds())
        );
        label(&mut rows, y, "manifest", &seconds(segment.seconds()), true);
        bar(&mut rows, "net", scale, y + LANES, 4, (segment.begin, segment.end));
        rows.push_str("</g>");
        y += FLAT_ROW + 4;
    }
    for (index, layer) in report.layers.iter().enumerate() {
        y += row(&mut rows, layer, path::has_layer(&path, index), scale, y);
    }
    for segment in path.iter().filter(|segment| segment.step == Step::Containerd) {
        let _ = write!(
            rows,
            "<g><title>until containerd had asked for all layers: {}</title>",
            seconds(segment.seconds())
        );
        label(&mut rows, y, "containerd", &seconds(segment.seconds()), true);
        bar(&mut rows, "wait", scale, y + LANES, 4, (segment.begin, segment.end));
        rows.push_str("</g>");
        y += FLAT_ROW + 4;
    }
    let height = y + 6;
    let title = escaped(&format!("{} {}", report.image, headline(report)));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"waterfall\" role=\"img\" width=\"100%\" height=\"{height}\">\
         <title>{title}</title>{head}{}{rows}</svg>",
        grid(scale, height)
    )
}

/// Seconds to percents.
#[derive(Clone, Copy)]
struct Scale(f64);

impl Scale {
    fn percent(self, at: f64) -> f64 {
        at / self.0 * 100.0
    }
}

fn grid(scale: Scale, height: usize) -> String {
    let mut out = String::from("<g>");
    for tick in ticks(scale.0, 5.0) {
        let x = scale.percent(tick);
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{x:.3}%\" x2=\"{x:.3}%\" y1=\"18\" y2=\"{height}\"/>"
        );
        // A label that would not fit at the right edge, on a telephone too, is left out; its line says enough.
        if x < 88.0 {
            let _ = write!(
                out,
                "<text class=\"dim\" x=\"{x:.3}%\" y=\"12\">{}</text>",
                seconds_short(tick)
            );
        }
    }
    out + "</g>"
}

fn label(out: &mut String, y: usize, text: &str, took: &str, critical: bool) {
    let base = y + 12;
    if critical {
        let _ = write!(out, "<text class=\"crit\" x=\"0\" y=\"{base}\">◆</text>");
    }
    let _ = write!(
        out,
        "<text x=\"16\" y=\"{base}\">{}</text><text class=\"dim\" x=\"100%\" y=\"{base}\" text-anchor=\"end\">{}</text>",
        escaped(text),
        escaped(took)
    );
}

/// A layer's line and lanes; how high they are.
fn row(out: &mut String, layer: &LayerReport, critical: bool, scale: Scale, y: usize) -> usize {
    let _ = write!(out, "<g><title>{}</title>", escaped(&tooltip(layer, critical)));
    let kind = layer.media_type.rsplit(['+', '.']).next().unwrap_or_default();
    let text = format!("{}  {}  {kind}", short(&layer.digest), bytes(layer.size));
    let took = match (&layer.state, layer.work()) {
        (LayerState::Done | LayerState::Running, Some((from, to))) => seconds(to - from),
        (state, _) => state.as_str().to_owned(),
    };
    label(out, y, &text, &took, critical);
    let lanes = y + LANES;
    if let Some(wait) = layer.phase(Phase::Wait) {
        bar(out, "wait", scale, lanes + LANE, 3, (wait.begin_seconds, wait.end_seconds));
    }
    if let (Some(asked), Some(download)) = (layer.asked_from(), layer.phase(Phase::Download)) {
        bar(out, "net", scale, lanes + 2, 3, (asked, download.begin_seconds));
    }
    for (lane, (class, phase)) in
        [("net", Phase::Download), ("dec", Phase::Decompress), ("wri", Phase::Write)]
            .iter()
            .enumerate()
    {
        if let Some(phase) = layer.phase(*phase) {
            filled(out, class, phase, scale, lanes + lane * LANE);
        }
    }
    if let Some(commit) = layer.phase(Phase::Commit) {
        bar(out, "com", scale, lanes + 2 * LANE, BAR, (commit.begin_seconds, commit.end_seconds));
    }
    out.push_str("</g>");
    if layer.phases.is_empty() { FLAT_ROW } else { ROW }
}

fn bar(
    out: &mut String,
    class: &str,
    scale: Scale,
    y: usize,
    height: usize,
    (from, to): (f64, f64),
) {
    // A third of a percent is seen.
    let width = scale.percent(to - from).max(if to > from { 0.3 } else { 0.0 });
    if width > 0.0 {
        let x = scale.percent(from).min(100.0 - width);
        let _ = write!(
            out,
            "<rect class=\"{class}\" x=\"{x:.3}%\" y=\"{y}\" width=\"{width:.3}%\" height=\"{height}\"/>"
        );
    }
}

/// A lane: the phase's span, and its bytes over time in it. Without samples all of it is dark.
fn filled(out: &mut String, class: &str, phase: &PhaseReport, scale: Scale, y: usize) {
    let span = (phase.begin_seconds, phase.end_seconds);
    match phase.samples.as_ref().filter(|samples| samples.bytes.len() > 1) {
        None => bar(out, class, scale, y, BAR, span),
        Some(samples) => {
            bar(out, &format!("{class} span"), scale, y, BAR, span);
            shape(out, class, samples, scale, y);
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a share of a lane's height")]
fn shape(out: &mut String, class: &str, samples: &Samples, scale: Scale, y: usize) {
    let most = samples.bytes.iter().copied().max().unwrap_or(0).max(1) as f64;
    let count = samples.bytes.len();
    let x = scale.percent(samples.begin_seconds);
    let width = scale.percent(samples.interval_seconds * count as f64);
    let mut path = String::from("M0 100");
    for (index, &bytes) in samples.bytes.iter().enumerate() {
        let _ = write!(path, "V{:.0}H{}", 100.0 - 100.0 * bytes as f64 / most, index + 1);
    }
    let _ = write!(
        out,
        "<svg x=\"{x:.3}%\" y=\"{y}\" width=\"{width:.3}%\" height=\"{BAR}\" viewBox=\"0 0 {count} 100\" \
         preserveAspectRatio=\"none\"><path class=\"{class}\" d=\"{path}V100Z\"/></svg>"
    );
}

/// What is shown when the pointer rests on a layer.
fn tooltip(layer: &LayerReport, critical: bool) -> String {
    let mut text = format!(
        "{}\n{}, {}, {}{}",
        layer.digest,
        layer.state.as_str(),
        bytes(layer.size),
        layer.host.as_deref().unwrap_or("no host"),
        if critical { ", on the critical path" } else { "" }
    );
    if let LayerState::Failed(reason) = &layer.state {
        let _ = write!(text, "\n{reason}");
    }
    for phase in &layer.phases {
        let _ = write!(
            text,
            "\n{}: {} to {}, busy {}",
            phase.phase.as_str().replace('_', " "),
            seconds(phase.begin_seconds),
            seconds(phase.end_seconds),
            seconds(phase.busy_seconds)
        );
        if phase.bytes > 0 {
            let _ = write!(text, ", {} at {}", bytes(phase.bytes), rate(phase.bytes, phase.span()));
        }
    }
    if layer.retries > 0 {
        let _ = write!(text, "\n{} retries", layer.retries);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::testing::example;
    use super::*;

    /// Reads XML by its grammar; the names of all elements.
    fn elements(xml: &str) -> Vec<String> {
        let document = roxmltree::Document::parse(xml).unwrap_or_else(|e| panic!("{e}:\n{xml}"));
        document
            .descendants()
            .filter(|n| n.is_element())
            .map(|n| n.tag_name().name().to_owned())
            .collect()
    }

    #[test]
    fn a_drawing_is_xml_and_loads_nothing() {
        let mut report = example();
        report.layers[1].state = LayerState::Failed("</svg><script>alert('x')\u{0}\"&".to_owned());
        for drawn in [inline(&report), document(&report)] {
            let elements = elements(&drawn);
            assert_eq!(elements[0], "svg");
            for element in &elements {
                let known = ["svg", "g", "rect", "line", "path", "text", "title", "style"];
                assert!(known.contains(&element.as_str()), "{element}");
            }
            let links = drawn.replace("http://www.w3.org/2000/svg", "");
            assert!(!links.contains("://") && !links.contains("href") && !links.contains("url("));
            assert!(drawn.contains("registry.example/&lt;app&gt;&amp;:1.2"));
        }
        assert!(!inline(&report).contains("style"), "the page's policy forbids it");
    }

    #[test]
    fn lanes_are_where_the_time_was() {
        let drawn = inline(&example());
        let document = roxmltree::Document::parse(&drawn).unwrap();
        let all = |class: &str| {
            document
                .descendants()
                .filter(|n| n.attribute("class") == Some(class))
                .collect::<Vec<_>>()
        };
        let percent = |n: &roxmltree::Node<'_, '_>, name: &str| {
            n.attribute(name).unwrap().trim_end_matches('%').parse::<f64>().unwrap()
        };
        let commit = &all("com")[0];
        assert!((percent(commit, "x") - 8.6 / 9.0 * 100.0).abs() < 0.01);
        assert!((percent(commit, "width") - 0.2 / 9.0 * 100.0).abs() < 0.01);
        // Four samples of 400, 100, 300, 200.
        let shape = document
            .descendants()
            .find(|n| n.has_tag_name("path") || n.tag_name().name() == "path");
        assert_eq!(shape.unwrap().attribute("d"), Some("M0 100V0H1V75H2V25H3V50H4V100Z"));
        // The manifest, the large layer and containerd.
        assert_eq!(all("crit").len(), 3);
        for rect in document.descendants().filter(|n| n.tag_name().name() == "rect") {
            let (x, width) = (percent(&rect, "x"), percent(&rect, "width"));
            assert!(x >= 0.0 && x + width <= 100.01, "{x} {width}");
        }
    }
}
