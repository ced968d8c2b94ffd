//! The page of the last pulls: one HTML document without scripts, for a look from a browser or
//! with curl. It holds nothing that `hoist pulls --json` does not.

use std::fmt::Write as _;

use super::observe;
use crate::timeline::{Phase, PullReport, PullState};

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<title>hoistd</title><style>body{font:14px system-ui,sans-serif;margin:2em}table{border-collapse:\
collapse}th,td{padding:.3em .8em;text-align:right;border-bottom:1px solid #8884}th:nth-child(-n+3),\
td:nth-child(-n+3){text-align:left}</style></head><body>";

/// The page for these pulls.
pub(super) fn pulls(reports: &[PullReport]) -> String {
    let mut html = format!("{HEAD}<h1>hoistd {}</h1>", env!("CARGO_PKG_VERSION"));
    if reports.is_empty() {
        html.push_str("<p>No pulls since the start.</p>");
    } else {
        html.push_str("<table><tr><th>id</th><th>image</th><th>state</th><th>layers</th>");
        html.push_str("<th>MB</th><th>s</th>");
        for phase in Phase::ALL {
            let _ = write!(html, "<th>{}</th>", phase.as_str().replace('_', " "));
        }
        html.push_str("</tr>");
        for report in reports {
            row(&mut html, report);
        }
        html.push_str("</table><p>The columns from wait on are busy seconds: threads or ");
        html.push_str("connections at once add up.</p>");
    }
    html.push_str("<p><a href=\"/metrics\">metrics</a></p></body></html>\n");
    html
}

#[allow(clippy::cast_precision_loss, reason = "one decimal is shown")]
fn row(html: &mut String, report: &PullReport) {
    let reason = match &report.state {
        PullState::FellBack(reason) | PullState::Failed(reason) => format!(": {reason}"),
        _ => String::new(),
    };
    let _ = write!(
        html,
        "<tr><td>{}</td><td>{}</td><td>{}{}</td><td>{}</td><td>{:.1}</td><td>{:.2}</td>",
        report.id,
        escaped(&report.image),
        observe::result(&report.state),
        escaped(&reason),
        report.layers.len(),
        report.size() as f64 / 1e6,
        report.seconds,
    );
    for phase in Phase::ALL {
        let _ = write!(html, "<td>{:.2}</td>", report.busy_seconds(phase));
    }
    html.push_str("</tr>");
}

/// Image references and error texts come from outside.
fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::History;

    #[test]
    fn what_comes_from_outside_is_escaped() {
        let history = History::new(1);
        let pull = history.open("host/<script>alert(1)</script>");
        pull.ended(PullState::Failed("a & b".to_owned()));
        history.close(&pull);
        let html = pulls(&history.list(9));
        assert!(html.contains("host/&lt;script&gt;"), "{html}");
        assert!(html.contains("failed: a &amp; b"), "{html}");
        assert!(!html.contains("<script>"), "{html}");
    }
}
