//! The page of one pull: what it was, where the time went, the waterfall, the figures.

use std::fmt::Write as _;

use super::{BUSY_SECONDS, began, breakable, page, state};
use crate::timeline::figures::{bytes, rate, seconds, short};
use crate::timeline::svg::{self, escaped};
use crate::timeline::{LayerReport, LayerState, Phase, PullReport, PullState};

/// The page.
pub(in super::super) fn pull(report: &PullReport) -> String {
    let mut main = format!("<h1>{}</h1>", breakable(&report.image));
    facts(&mut main, report);
    verdict(&mut main, report);
    // It ended at the manifest: there is nothing to draw and no figure to show.
    if report.layers.is_empty() && report.state != PullState::Running {
        main.push_str("<p class=\"dim\">It ended before it came to a layer.</p>");
        return page(&format!("Pull {}", report.id), &main, None);
    }
    main.push_str("<section aria-labelledby=\"waterfall\"><h2 id=\"waterfall\">Waterfall</h2><figure><figcaption>");
    for (class, what) in [
        ("wait", "waits"),
        ("net", "fetches"),
        ("dec", "decompresses"),
        ("wri", "writes"),
        ("com", "commits"),
    ] {
        let _ = write!(
            main,
            "<span><svg class=\"waterfall\" aria-hidden=\"true\"><rect class=\"{class}\" width=\"100%\" height=\"100%\"/></svg>{what}</span>"
        );
    }
    main.push_str("<span>◆ critical path: what the end waited for</span></figcaption>");
    main.push_str(&svg::inline(report));
    main.push_str("</figure></section>");
    phases(&mut main, report);
    layers(&mut main, report);
    let live = (report.state == PullState::Running).then_some(BUSY_SECONDS);
    page(&format!("Pull {}", report.id), &main, live)
}

fn facts(main: &mut String, report: &PullReport) {
    let manifest = report.manifest.map_or("-".to_owned(), |digest| digest.to_string());
    let retries: u64 = report.layers.iter().map(|layer| layer.retries).sum();
    main.push_str("<dl>");
    for (name, value) in [
        ("Result", state(&report.state)),
        ("Time", seconds(report.seconds)),
        ("Layers", report.layers.len().to_string()),
        ("Compressed", bytes(report.size())),
        ("Unpacked", bytes(report.bytes(Phase::Decompress))),
        ("Rate", rate(report.bytes(Phase::Download), report.seconds)),
        ("Retries", retries.to_string()),
        ("Began", began(report)),
    ] {
        let _ = write!(main, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    let _ =
        write!(main, "<div class=\"all\"><dt>Manifest</dt><dd><code>{manifest}</code></dd></div>");
    if let PullState::Failed(reason) | PullState::FellBack(reason) = &report.state {
        let _ =
            write!(main, "<div class=\"all\"><dt>Reason</dt><dd>{}</dd></div>", escaped(reason));
    }
    let id = report.id;
    let _ = write!(
        main,
        "</dl><p><a href=\"/pulls/{id}.json\">JSON</a> · <a href=\"/pulls/{id}.trace.json\">Trace events</a> \
         <span class=\"dim\">(for Perfetto)</span></p>"
    );
}

fn verdict(main: &mut String, report: &PullReport) {
    let Some(judgement) = &report.judgement else { return };
    let _ = write!(
        main,
        "<section aria-label=\"Where the time went\" class=\"verdict\"><p><strong>Bottleneck{}: {};</strong> {}.</p>\
         <p><strong>What would help:</strong> {}.</p></section>",
        if report.state == PullState::Running { " so far" } else { "" },
        judgement.bottleneck.words(),
        escaped(&judgement.evidence),
        escaped(&judgement.advice),
    );
}

fn phases(main: &mut String, report: &PullReport) {
    main.push_str(
        "<section aria-labelledby=\"phases\"><h2 id=\"phases\">Phases</h2>\
         <p class=\"dim\">Over all layers. Busy seconds of threads or connections at once add up.</p>\
         <div class=\"wide\"><table><thead><tr><th scope=\"col\">Phase</th><th scope=\"col\" class=\"n\">Busy</th>\
         <th scope=\"col\" class=\"n more\">From</th><th scope=\"col\" class=\"n\">To</th><th scope=\"col\" class=\"n\">Bytes</th>\
         <th scope=\"col\" class=\"n more\">Rate while busy</th></tr></thead><tbody>",
    );
    for phase in Phase::ALL {
        let of = || report.layers.iter().filter_map(|layer| layer.phase(phase));
        let Some(from) = of().map(|p| p.begin_seconds).reduce(f64::min) else { continue };
        let to = of().map(|p| p.end_seconds).fold(0.0, f64::max);
        let (busy, amount) = (report.busy_seconds(phase), report.bytes(phase));
        let _ = write!(
            main,
            "<tr><th scope=\"row\">{}</th><td class=\"n\">{}</td><td class=\"n more\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td class=\"n more\">{}</td></tr>",
            phase.as_str().replace('_', " "),
            seconds(busy),
            seconds(from),
            seconds(to),
            if amount > 0 { bytes(amount) } else { "-".to_owned() },
            rate(amount, busy),
        );
    }
    main.push_str("</tbody></table></div></section>");
}

fn layers(main: &mut String, report: &PullReport) {
    main.push_str(
        "<section aria-labelledby=\"layers\"><h2 id=\"layers\">Layers</h2><div class=\"wide\"><table><thead><tr>\
         <th scope=\"col\">Layer</th><th scope=\"col\">State</th><th scope=\"col\" class=\"n\">Size</th>\
         <th scope=\"col\" class=\"n\">Time</th><th scope=\"col\" class=\"n more\">Entries</th>\
         <th scope=\"col\" class=\"n more\">Retries</th><th scope=\"col\" class=\"more\">Media type</th>\
         <th scope=\"col\" class=\"more\">Host</th></tr></thead><tbody>",
    );
    report.layers.iter().for_each(|one| layer(main, one));
    main.push_str("</tbody></table></div></section>");
}

fn layer(main: &mut String, layer: &LayerReport) {
    let (class, reason) = match &layer.state {
        LayerState::Failed(reason) => ("failed", format!(": {}", escaped(reason))),
        LayerState::Done | LayerState::Shared => ("done", String::new()),
        _ => ("dim", String::new()),
    };
    let took = layer.work().map_or("-".to_owned(), |(from, to)| seconds(to - from));
    // The part that all media types of layers share is left out.
    let kind = layer.media_type.rsplit('.').next().unwrap_or_default();
    let _ = write!(
        main,
        "<tr><th scope=\"row\"><code title=\"{}\">{}</code></th><td class=\"reason\"><span class=\"{class}\">{}</span>{reason}</td>\
         <td class=\"n\">{}</td><td class=\"n\">{took}</td><td class=\"n more\">{}</td><td class=\"n more\">{}</td>\
         <td class=\"more\">{}</td><td class=\"more\">{}</td></tr>",
        layer.digest,
        short(&layer.digest),
        layer.state.as_str(),
        bytes(layer.size),
        layer.entries,
        layer.retries,
        escaped(kind),
        escaped(layer.host.as_deref().unwrap_or("-")),
    );
}
