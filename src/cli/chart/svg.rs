//! The chart as a picture: one file, light and dark, with titles for who does not see it.
//!
//! Waiting is an outline, downloading a flat colour, extracting a hatched one, and both at once a
//! lined one: shapes differ, not only colours. Long stretches say in words what they are.

use std::fmt::Write as _;

use super::{Activity, Chart, Panel, Row, mark, seconds};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
/// Left of the bars: "12  1234.5 MB".
const LABEL: f64 = 128.0;
/// Right of the bars: the time.
const TIME: f64 = 72.0;
const ROW: f64 = 26.0;
const BAR: f64 = 18.0;
const PANEL_HEAD: f64 = 34.0;
const PANEL_GAP: f64 = 14.0;
const HEAD: f64 = 104.0;
const AXIS: f64 = 44.0;
/// What a letter of a bar's words takes, generously.
const LETTER: f64 = 6.6;

/// The colours are apart in lightness too, so that a print in grey keeps them apart.
const STYLE: &str = "\
.hoist{--bg:#ffffff;--ink:#1b1f24;--dim:#59636e;--line:#d1d9e0;--down:#9ec5f4;--both:#3d8f86;--extract:#7a3e9d;--on-down:#0b2545;--on-dark:#ffffff}\
@media (prefers-color-scheme:dark){.hoist{--bg:#0d1117;--ink:#e6edf3;--dim:#9198a1;--line:#3d444d;--down:#2f5f9e;--both:#5fc4b8;--extract:#cfa3ea;--on-down:#ffffff;--on-dark:#0d1117}}\
.hoist .bg{fill:var(--bg)}\
.hoist text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;font-size:13px;fill:var(--ink)}\
.hoist .num{font-variant-numeric:tabular-nums}.hoist .end{text-anchor:end}.hoist .mid{text-anchor:middle}\
.hoist .title{font-size:18px;font-weight:600}.hoist .name{font-size:15px;font-weight:600}.hoist .dim{fill:var(--dim)}\
.hoist .grid{stroke:var(--line);stroke-width:1}\
.hoist .waiting{fill:none;stroke:var(--dim);stroke-width:1;stroke-dasharray:2 3}\
.hoist .downloading{fill:var(--down)}.hoist .both{fill:var(--both)}.hoist .extracting{fill:var(--extract)}\
.hoist .hatch{stroke:var(--bg);stroke-width:1.2;opacity:.45}\
.hoist .in{font-size:11.5px}.hoist .in.downloading{fill:var(--on-down)}.hoist .in.both,.hoist .in.extracting{fill:var(--on-dark)}\
.hoist .in.waiting{fill:var(--dim);stroke:none}";

/// A file of its own.
pub(in crate::cli) fn picture(chart: &Chart) -> String {
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}", element(chart))
}

/// The `svg` element, for a page around it.
pub(in crate::cli) fn element(chart: &Chart) -> String {
    let heights = chart.panels.iter().map(height);
    let bottom = HEAD + heights.sum::<f64>();
    let all = bottom + AXIS;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"hoist\" viewBox=\"0 0 {WIDTH} {all}\" \
         width=\"{WIDTH}\" height=\"{all}\" role=\"img\" aria-labelledby=\"hoist-title hoist-desc\">\n\
         <title id=\"hoist-title\">{}</title>\n<desc id=\"hoist-desc\">{}</desc>\n<style>{STYLE}</style>\n\
         <defs><pattern id=\"hoist-hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" \
         patternTransform=\"rotate(45)\"><line class=\"hatch\" x1=\"0\" y1=\"0\" x2=\"0\" y2=\"6\"/></pattern>\
         <pattern id=\"hoist-lines\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\">\
         <line class=\"hatch\" x1=\"0\" y1=\"1\" x2=\"6\" y2=\"1\"/></pattern></defs>\n\
         <rect class=\"bg\" width=\"100%\" height=\"100%\"/>\n",
        escaped(&format!("Predicted pull of {}", chart.title)),
        escaped(&described(chart)),
    );
    words(&mut out, MARGIN, 34.0, "title", &chart.title);
    assumed(&mut out, &chart.assumed);
    legend(&mut out, chart);
    axis(&mut out, chart, bottom);
    let mut top = HEAD;
    for panel in &chart.panels {
        panel_(&mut out, panel, chart.longest(), top);
        top += height(panel);
    }
    out + "</svg>\n"
}

#[allow(clippy::cast_precision_loss, reason = "layers are few")]
fn height(panel: &Panel) -> f64 {
    PANEL_HEAD + panel.rows.len() as f64 * ROW + PANEL_GAP
}

/// The whole chart in words.
fn described(chart: &Chart) -> String {
    let panels = chart.panels.iter().map(|panel| {
        let rows: Vec<_> = panel.rows.iter().map(Row::told).collect();
        format!("{}: {}. {}.", panel.name, seconds(panel.seconds), rows.join("; "))
    });
    format!("{}. {}", chart.assumed.replace(" · ", ", "), panels.collect::<Vec<_>>().join(" "))
}

fn words(out: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let _ =
        writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{}</text>", escaped(text));
}

/// The rates, cut where they would leave the picture; the description has them whole.
fn assumed(out: &mut String, text: &str) {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "letters of a line")]
    let fit = ((WIDTH - 2.0 * MARGIN) / LETTER) as usize;
    let cut = if text.chars().count() > fit {
        text.chars().take(fit - 1).collect::<String>() + "…"
    } else {
        text.to_owned()
    };
    words(out, MARGIN, 56.0, "dim", &cut);
}

fn x(at: f64, longest: f64) -> f64 {
    MARGIN + LABEL + at / longest * (WIDTH - 2.0 * MARGIN - LABEL - TIME)
}

fn legend(out: &mut String, chart: &Chart) {
    let mut left = MARGIN;
    for activity in Activity::ALL.into_iter().filter(|activity| chart.shows(*activity)) {
        bar(out, activity, left, 70.0, 28.0);
        words(out, left + 36.0, 84.0, "", activity.word());
        #[allow(clippy::cast_precision_loss, reason = "a few letters")]
        let length = activity.word().len() as f64;
        left += 36.0 + length * 7.4 + 20.0;
    }
}

impl Activity {
    fn class(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Downloading => "downloading",
            Self::Both => "both",
            Self::Extracting => "extracting",
        }
    }

    /// What fits into a bar.
    fn short(self) -> &'static str {
        match self {
            Self::Waiting => "wait",
            Self::Downloading => "download",
            Self::Both => "download + extract",
            Self::Extracting => "extract",
        }
    }
}

fn bar(out: &mut String, activity: Activity, left: f64, top: f64, width: f64) {
    let class = activity.class();
    // A dashed outline is drawn inside its stretch.
    let (inset, drawn) = if activity == Activity::Waiting { (0.5, BAR - 1.0) } else { (0.0, BAR) };
    let place = format!(
        "x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{drawn}\" rx=\"2\"",
        left + inset,
        top + inset,
        (width - 2.0 * inset).max(0.5)
    );
    let _ = write!(out, "<rect class=\"{class}\" {place}/>");
    let over = match activity {
        Activity::Extracting => Some("hatch"),
        Activity::Both => Some("lines"),
        Activity::Waiting | Activity::Downloading => None,
    };
    if let Some(pattern) = over {
        let _ = write!(out, "<rect fill=\"url(#hoist-{pattern})\" {place}/>");
    }
    out.push('\n');
}

fn axis(out: &mut String, chart: &Chart, bottom: f64) {
    let ticks = chart.ticks(12);
    for (index, tick) in ticks.iter().enumerate() {
        let at = x(*tick, chart.longest());
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\"/>",
            HEAD,
            bottom + 4.0
        );
        let unit = if index + 1 == ticks.len() { " s" } else { "" };
        words(out, at, bottom + 20.0, "num dim mid", &(mark(*tick) + unit));
    }
}

fn panel_(out: &mut String, panel: &Panel, longest: f64, top: f64) {
    let _ = writeln!(out, "<g><title>{}</title>", escaped(&panel.about));
    // The grid ends where words begin.
    let _ = writeln!(
        out,
        "<rect class=\"bg\" x=\"0\" y=\"{top:.1}\" width=\"{WIDTH}\" height=\"{:.1}\"/>",
        PANEL_HEAD - 4.0
    );
    let _ = writeln!(
        out,
        "<text x=\"{MARGIN}\" y=\"{:.1}\"><tspan class=\"name\">{}  {}</tspan><tspan class=\"dim\" dx=\"10\">{}</tspan></text>",
        top + 21.0,
        escaped(&panel.name),
        seconds(panel.seconds),
        escaped(&panel.about)
    );
    let mut y = top + PANEL_HEAD;
    for row in &panel.rows {
        self::row(out, row, longest, y);
        y += ROW;
    }
    out.push_str("</g>\n");
}

fn row(out: &mut String, row: &Row, longest: f64, top: f64) {
    let base = top + 13.5;
    let _ = writeln!(out, "<g><title>{}</title>", escaped(&row.told()));
    words(out, MARGIN + 22.0, base, "num dim end", &row.number.to_string());
    words(out, MARGIN + LABEL - 12.0, base, "num end", &row.size);
    for span in &row.spans {
        let (left, right) = (x(span.begin, longest), x(span.end, longest));
        bar(out, span.activity, left, top, right - left);
        let length = seconds(span.end - span.begin);
        let long = format!("{} {length}", span.activity.short());
        let fitting = [long, length].into_iter().find(|text| {
            #[allow(clippy::cast_precision_loss, reason = "a few letters")]
            let letters = text.chars().count() as f64;
            letters * LETTER + 8.0 <= right - left
        });
        if let Some(text) = fitting {
            let class = format!("in mid num {}", span.activity.class());
            words(out, f64::midpoint(left, right), base - 0.5, &class, &text);
        }
    }
    let end = row.spans.last().map_or(0.0, |span| span.end);
    words(out, x(end, longest) + 8.0, base, "num", &seconds(end));
    out.push_str("</g>\n");
}

/// Text between tags.
pub(in crate::cli) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::chart;
    use super::*;

    #[test]
    fn names_are_no_tags_and_everything_is_told_in_words() {
        let svg = picture(&chart());
        assert!(svg.contains("&lt;3&gt; &amp; layers") && !svg.contains("<3>"));
        assert!(
            svg.contains("layer 3, 900.0 MB: waiting 8.0 s, downloading 4.0 s, extracting 4.0 s")
        );
        assert!(svg.contains("download + extract 12.0 s"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn tags_are_closed_and_nothing_is_fetched() {
        let svg = picture(&chart());
        for tag in ["svg", "g", "text", "title", "desc", "style", "defs", "pattern"] {
            let opened =
                svg.matches(&format!("<{tag} ")).count() + svg.matches(&format!("<{tag}>")).count();
            assert_eq!(opened, svg.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        let addresses = svg.matches("http").count();
        assert_eq!(addresses, 1, "only the name space");
        assert!(!svg.contains("<script") && !svg.contains("@import"));
    }
}
