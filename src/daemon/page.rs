//! The pages for a browser: the pulls at `/`, and one pull at `/pulls/ID`.
//!
//! Whole pages are drawn here, from the same records as `hoist pulls`. The one script asks for the
//! same page again and takes its live part, so that a page is complete without it. Everything from
//! outside (names, errors, hosts) is escaped, and the policy in `http` lets a browser load nothing
//! but the two files beside this one.

mod pull;

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use crate::sys::clock::rfc3339;
use crate::timeline::figures::{bytes, rate, seconds};
use crate::timeline::svg::escaped;
use crate::timeline::{LayerState, Phase, PullReport, PullState};

pub(super) use pull::pull;

/// The pages' style, without that of the waterfall.
pub(super) const STYLE: &str = include_str!("page/hoist.css");

/// The pages' script.
pub(super) const SCRIPT: &str = include_str!("page/hoist.js");

/// How often the live part is asked for, in seconds: while something happens, and while not.
const BUSY_SECONDS: u32 = 1;
const IDLE_SECONDS: u32 = 5;

/// Characters of a reason in the list: two lines of it, or six of a telephone's.
const REASON_CHARS: usize = 160;

/// A whole page; `live` says how often its main part changes.
fn page(title: &str, main: &str, live: Option<u32>) -> String {
    let live = live.map_or(String::new(), |every| format!(" data-live=\"{every}\""));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{title} · hoistd</title>\
         <link rel=\"icon\" href=\"data:,\"><link rel=\"stylesheet\" href=\"/hoist.css\">\
         <script src=\"/hoist.js\" defer></script></head>\n<body>\
         <a class=\"skip\" href=\"#main\">Skip to the content</a>\
         <header><p>hoistd <span>{version}</span></p><nav aria-label=\"Pages\"><a href=\"/\">Pulls</a>\
         <a href=\"/metrics\">Metrics</a></nav></header>\
         <p id=\"gone\" role=\"status\" hidden>hoistd does not answer; this is what it said last.</p>\n\
         <main id=\"main\" tabindex=\"-1\"{live}>{main}</main></body></html>\n",
        title = escaped(title),
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// The page of these pulls, running ones first.
pub(super) fn pulls(reports: &[PullReport]) -> String {
    let (running, ended): (Vec<_>, Vec<_>) =
        reports.iter().partition(|report| report.state == PullState::Running);
    let mut main = String::from("<h1>Pulls</h1><section aria-labelledby=\"running\">");
    main.push_str("<h2 id=\"running\">Under way</h2>");
    if running.is_empty() {
        main.push_str("<p class=\"dim\">None.</p>");
    } else {
        main.push_str("<ul class=\"running\">");
        running.iter().for_each(|report| under_way(&mut main, report));
        main.push_str("</ul>");
    }
    main.push_str("</section><section aria-labelledby=\"ended\"><h2 id=\"ended\">Last pulls</h2>");
    if ended.is_empty() {
        main.push_str("<p class=\"dim\">No pull has ended yet.</p>");
    } else {
        main.push_str(
            "<div class=\"wide\"><table><thead><tr><th scope=\"col\">Image</th><th scope=\"col\">Result</th>\
             <th scope=\"col\">Bottleneck</th><th scope=\"col\" class=\"n\">Time</th>\
             <th scope=\"col\" class=\"n more\">Layers</th><th scope=\"col\" class=\"n more\">Size</th>\
             <th scope=\"col\" class=\"n more\">Rate</th><th scope=\"col\" class=\"more\">Began</th></tr></thead><tbody>",
        );
        ended.iter().for_each(|report| row(&mut main, report));
        main.push_str("</tbody></table></div>");
    }
    main.push_str("</section>");
    page("Pulls", &main, Some(if running.is_empty() { IDLE_SECONDS } else { BUSY_SECONDS }))
}

/// The page for a pull that is not known.
pub(super) fn unknown() -> String {
    let main = "<h1>No such pull</h1><p>hoistd keeps the last ones only. <a href=\"/\">All that it \
                knows</a></p>";
    page("No such pull", main, None)
}

fn under_way(main: &mut String, report: &PullReport) {
    let there = |state: &LayerState| matches!(state, LayerState::Done | LayerState::Shared);
    let done = report.layers.iter().filter(|layer| there(&layer.state)).count();
    let got = report.bytes(Phase::Download);
    let missing: u64 =
        report.layers.iter().filter(|l| l.state != LayerState::Shared).map(|l| l.size).sum();
    let _ = write!(
        main,
        "<li><a href=\"/pulls/{id}\">{image}</a><progress max=\"{max}\" value=\"{got}\" aria-label=\"fetched\"></progress>\
         {done} of {layers} layers, {got_text} of {missing_text} fetched at {rate}, {unpacked} unpacked, {time}</li>",
        id = report.id,
        image = breakable(&report.image),
        max = missing.max(1),
        layers = report.layers.len(),
        got_text = bytes(got),
        missing_text = bytes(missing),
        rate = rate(got, report.seconds),
        unpacked = bytes(report.bytes(Phase::Decompress)),
        time = seconds(report.seconds),
    );
}

fn row(main: &mut String, report: &PullReport) {
    let bottleneck =
        report.judgement.as_ref().map_or("-", |judgement| judgement.bottleneck.words());
    let _ = write!(
        main,
        "<tr><td class=\"image\"><a href=\"/pulls/{}\">{}</a>{}</td><td>{}</td><td class=\"words\">{bottleneck}</td>\
         <td class=\"n\">{}</td><td class=\"n more\">{}</td><td class=\"n more\">{}</td>\
         <td class=\"n more\">{}</td><td class=\"more\">{}</td></tr>",
        report.id,
        breakable(&report.image),
        why(report),
        state(&report.state),
        seconds(report.seconds),
        report.layers.len(),
        bytes(report.size()),
        rate(report.bytes(Phase::Download), report.seconds),
        began(report),
    );
}

/// An image's name, which a narrow page may break after a slash or before a tag rather than within a word.
fn breakable(image: &str) -> String {
    escaped(image).replace('/', "/<wbr>").replace(':', "<wbr>:")
}

/// The word for a state, in its colour.
fn state(state: &PullState) -> String {
    let class = match state {
        PullState::Done => "done",
        PullState::Failed(_) | PullState::FellBack(_) => "failed",
        PullState::Running | PullState::Cancelled => "dim",
    };
    format!("<span class=\"{class}\">{}</span>", state.as_str())
}

/// The begin of the reason why a pull did not end well, which its own page has whole. It stands below the image's name.
fn why(report: &PullReport) -> String {
    let (PullState::Failed(reason) | PullState::FellBack(reason)) = &report.state else {
        return String::new();
    };
    let named = reason.strip_prefix(&report.image).and_then(|rest| rest.strip_prefix(": "));
    let reason = named.unwrap_or(reason);
    let mut begin: String = reason.chars().take(REASON_CHARS).collect();
    if begin.len() < reason.len() {
        begin.push('…');
    }
    format!("<span class=\"why dim\">{}</span>", escaped(&begin))
}

/// When it began: 24 Nov 2026 14:03:05 GMT.
fn began(report: &PullReport) -> String {
    let since = Duration::try_from_secs_f64(report.began_unix_seconds).unwrap_or_default();
    let at = UNIX_EPOCH.checked_add(since.min(Duration::from_secs(253_402_300_799)));
    let text = at.map(httpdate::fmt_http_date).unwrap_or_default();
    let shown = text.split_once(", ").map_or("", |(_, rest)| rest);
    format!("<time datetime=\"{}\">{shown}</time>", at.map(rfc3339).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timeline::History;

    /// A history with a running, a failed and a done pull, whose names are an attack.
    fn history() -> History {
        let history = History::new(9);
        for (tag, end) in [
            ("one", Some(PullState::Done)),
            (
                "two",
                Some(PullState::Failed(
                    "host/<script>alert(two)</script>: <b>a & \"b\"</b>".to_owned(),
                )),
            ),
            ("three", None),
        ] {
            let pull = history.begin(&format!("host/<script>alert({tag})</script>"));
            if let Some(end) = end {
                pull.ended(end);
                history.close(&pull);
            }
        }
        history
    }

    #[test]
    fn what_comes_from_outside_is_escaped() {
        let history = history();
        let mut pages = vec![pulls(&history.list(9))];
        pages.extend((1..=3).map(|id| pull(&history.get(id).unwrap())));
        for html in pages {
            assert!(html.contains("host/<wbr>&lt;script&gt;"), "{html}");
            assert_eq!(html.matches("<script").count(), 1, "the page's own only: {html}");
            assert!(!html.contains("<b>") && !html.contains(" style="), "{html}");
            for (at, _) in html.match_indices("://") {
                assert!(
                    html[..at].ends_with("xmlns=\"http"),
                    "an address: {}",
                    &html[at - 20..at + 20]
                );
            }
        }
        let list = pulls(&history.list(9));
        assert!(list.contains("<span class=\"why dim\">&lt;b&gt;a &amp; "), "{list}");
        let failed = pull(&history.get(2).unwrap());
        assert!(failed.contains("ended before it came to a layer") && !failed.contains("<svg"));
        assert!(failed.contains("&lt;b&gt;a &amp; &quot;b&quot;&lt;/b&gt;"), "{failed}");
    }

    #[test]
    fn only_what_changes_is_live() {
        let history = history();
        assert!(pulls(&history.list(9)).contains("data-live=\"1\""));
        assert!(
            pulls(&[]).contains("data-live=\"5\"") && pulls(&[]).contains("No pull has ended yet")
        );
        assert!(pull(&history.get(3).unwrap()).contains("data-live=\"1\""));
        assert!(!pull(&history.get(1).unwrap()).contains("data-live"));
    }

    #[test]
    fn a_date_is_one_whatever_the_clock_says() {
        let mut report = history().get(1).unwrap();
        report.began_unix_seconds = 1_790_000_000.0;
        let expected = "<time datetime=\"2026-09-21T14:13:20Z\">21 Sep 2026 14:13:20 GMT</time>";
        assert_eq!(began(&report), expected);
        for odd in [-1.0, f64::NAN, 1e300] {
            report.began_unix_seconds = odd;
            began(&report);
        }
    }
}
