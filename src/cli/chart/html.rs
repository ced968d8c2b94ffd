//! The chart as a page: the picture, and the same as a table.

use std::fmt::Write as _;

use super::svg::{element, escaped};
use super::{Chart, Panel, seconds};

const STYLE: &str = "\
:root{color-scheme:light dark;--bg:#fff;--ink:#1b1f24;--dim:#59636e;--line:#d1d9e0}\
@media (prefers-color-scheme:dark){:root{--bg:#0d1117;--ink:#e6edf3;--dim:#9198a1;--line:#3d444d}}\
body{margin:0 auto;padding:16px;max-width:960px;background:var(--bg);color:var(--ink);\
font:14px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}\
.chart{overflow-x:auto}.chart svg{display:block;max-width:100%;height:auto;min-width:640px}\
table{border-collapse:collapse;margin:8px 24px 16px}caption{text-align:left;font-weight:600;padding:4px 0}\
th,td{padding:3px 20px 3px 0;text-align:left;border-bottom:1px solid var(--line)}\
.num{text-align:right;font-variant-numeric:tabular-nums}p,details{margin:8px 24px;color:var(--dim)}\
summary{cursor:pointer}details table{margin-left:0;color:var(--ink)}";

/// A page that needs nothing else.
pub(in crate::cli) fn page(chart: &Chart) -> String {
    let title = escaped(&format!("Predicted pull: {}", chart.title));
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <div class=\"chart\" tabindex=\"0\" role=\"region\" aria-label=\"{title}\">\n{}</div>\n{}",
        element(chart),
        totals(chart)
    );
    out += "<details><summary>Every layer as a table</summary>\n";
    for panel in &chart.panels {
        out += &layers(panel);
    }
    let _ = write!(
        out,
        "</details>\n<p>{}. A forecast by <code>hoist simulate</code>.</p>\n</main>\n</body>\n</html>\n",
        escaped(&chart.assumed)
    );
    out
}

fn totals(chart: &Chart) -> String {
    let mut out = "<table>\n<caption>Totals</caption>\n<thead><tr><th scope=\"col\">Model</th>\
                   <th scope=\"col\" class=\"num\">Time</th><th scope=\"col\" class=\"num\">Of the first</th>\
                   <th scope=\"col\">What it is</th></tr></thead>\n<tbody>\n"
        .to_owned();
    let first = chart.panels.first().map_or(1.0, |panel| panel.seconds).max(f64::MIN_POSITIVE);
    for panel in &chart.panels {
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td class=\"num\">{}</td><td class=\"num\">{:.0} %</td><td>{}</td></tr>",
            escaped(&panel.name),
            seconds(panel.seconds),
            panel.seconds / first * 100.0,
            escaped(&panel.about)
        );
    }
    out + "</tbody>\n</table>\n"
}

fn layers(panel: &Panel) -> String {
    let mut out = format!(
        "<table>\n<caption>{}</caption>\n<thead><tr><th scope=\"col\">Layer</th>\
         <th scope=\"col\" class=\"num\">Size</th><th scope=\"col\">Its time</th></tr></thead>\n<tbody>\n",
        escaped(&panel.name)
    );
    for row in &panel.rows {
        let told = row.told();
        let times = told.split_once(": ").map_or("", |(_, times)| times);
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td class=\"num\">{}</td><td>{}</td></tr>",
            row.number,
            escaped(&row.size),
            escaped(times)
        );
    }
    out + "</tbody>\n</table>\n"
}

#[cfg(test)]
mod tests {
    use super::super::tests::chart;

    #[test]
    fn a_page_needs_nothing_else() {
        let page = super::page(&chart());
        assert!(!page.contains("<script") && !page.contains(" src=") && !page.contains("<link"));
        assert!(page.contains("<td class=\"num\">75 %</td>"), "{page}");
        assert!(page.contains("prefers-color-scheme:dark"));
        assert_eq!(page.matches("<tr>").count(), page.matches("</tr>").count());
    }
}
