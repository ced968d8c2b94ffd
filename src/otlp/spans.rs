//! A pull's report as an `ExportTraceServiceRequest` in JSON: pure.
//!
//! ```text
//! pull IMAGE                 its parent is the span of containerd's request, where there was one
//! ├─ resolve
//! ├─ layer SHORT
//! │  ├─ download
//! │  ├─ decompress
//! │  ╰─ …
//! ╰─ layer SHORT
//! ```

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use serde_json::{Value, json};

use crate::image::Sha256;
use crate::timeline::figures::short;
use crate::timeline::{LayerReport, LayerState, PullReport, PullState};

/// A span of somebody else that a pull is part of (W3C Trace Context, `traceparent`, version 00).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parent {
    trace: String,
    span: String,
    /// Whether the trace is recorded at all.
    pub sampled: bool,
}

impl Parent {
    /// Reads a `traceparent`; `None` where it is not well formed.
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.trim().split('-');
        let (version, trace, span, flags) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let hex = |field: &str, digits: usize| {
            let known = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
            field.len() == digits && field.chars().all(known)
        };
        let set = |field: &str| field.chars().any(|c| c != '0');
        // A later version may put fields behind these, version 00 has none.
        let version_known =
            hex(version, 2) && version != "ff" && (version != "00" || fields.next().is_none());
        let right = version_known && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
        if !right || !set(trace) || !set(span) {
            return None;
        }
        let flags = u8::from_str_radix(flags, 16).ok()?;
        Some(Self { trace: trace.to_owned(), span: span.to_owned(), sampled: flags & 1 == 1 })
    }
}

/// A number for a trace of its own: 32 hexadecimal digits.
pub(super) fn fresh_trace(report: &PullReport) -> String {
    // Each RandomState hashes with its own keys: random enough not to meet another trace.
    let random = RandomState::new().build_hasher().finish();
    let text = format!("{random} {} {} {}", report.id, report.began_unix_seconds, report.image);
    Sha256::of(text.as_bytes()).hex()[..32].to_owned()
}

/// The request for one pull; `None` where the caller's trace is not recorded. `fresh` is the trace's
/// number where the caller has none.
pub fn request(report: &PullReport, service: &str, fresh: &str) -> Option<Value> {
    let parent = report.trace_parent.as_deref().and_then(Parent::parse);
    if parent.as_ref().is_some_and(|parent| !parent.sampled) {
        return None;
    }
    let trace = parent.as_ref().map_or(fresh, |parent| &parent.trace);
    let tracer = Tracer { report, trace };
    let mut spans = Vec::new();
    let pull = tracer.pull(&mut spans, parent.as_ref().map(|parent| parent.span.as_str()));
    if let Some(seconds) = report.resolve_seconds {
        tracer.span(&mut spans, "resolve", &pull, (0.0, seconds), Value::Array(Vec::new()));
    }
    for layer in &report.layers {
        tracer.layer(&mut spans, &pull, layer);
    }
    let resource = [
        attribute("service.name", service),
        attribute("service.version", env!("CARGO_PKG_VERSION")),
    ];
    Some(json!({ "resourceSpans": [{
        "resource": { "attributes": resource },
        "scopeSpans": [{
            "scope": { "name": "hoist", "version": env!("CARGO_PKG_VERSION") },
            "spans": spans,
        }],
    }] }))
}

struct Tracer<'a> {
    report: &'a PullReport,
    trace: &'a str,
}

impl Tracer<'_> {
    /// A span's number: the same for the same place in the same pull of the same trace.
    fn id(&self, number: usize) -> String {
        let text = format!("{} {} {number}", self.trace, self.report.id);
        Sha256::of(text.as_bytes()).hex()[..16].to_owned()
    }

    /// Nanoseconds since 1970, as a string: they are more than a JSON number holds.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the clock of a machine since 1970"
    )]
    fn at(&self, seconds: f64) -> String {
        let nanos = (self.report.began_unix_seconds + seconds.max(0.0)) * 1e9;
        (nanos as u64).to_string()
    }

    fn span(
        &self,
        spans: &mut Vec<Value>,
        name: &str,
        parent: &str,
        (from, to): (f64, f64),
        attributes: Value,
    ) -> String {
        let id = self.id(spans.len());
        spans.push(json!({
            "traceId": self.trace, "spanId": id, "parentSpanId": parent, "name": name, "kind": 1,
            "startTimeUnixNano": self.at(from), "endTimeUnixNano": self.at(to.max(from)),
            "attributes": attributes, "status": {},
        }));
        id
    }

    fn pull(&self, spans: &mut Vec<Value>, parent: Option<&str>) -> String {
        let report = self.report;
        let mut attributes = vec![
            attribute("hoist.image", &report.image),
            attribute("hoist.state", report.state.as_str()),
            number("hoist.pull", report.id),
            number("hoist.compressed_bytes", report.size()),
        ];
        attributes.extend(report.manifest.map(|m| attribute("hoist.manifest", &m.to_string())));
        if let Some(judgement) = &report.judgement {
            attributes.push(attribute("hoist.bottleneck", judgement.bottleneck.as_str()));
            attributes.push(attribute("hoist.evidence", &judgement.evidence));
        }
        let whole = (0.0, report.seconds);
        let id = self.span(spans, "pull", parent.unwrap_or_default(), whole, attributes.into());
        if let PullState::Failed(reason) = &report.state {
            failed(spans, reason);
        }
        id
    }

    fn layer(&self, spans: &mut Vec<Value>, pull: &str, layer: &LayerReport) {
        let begin = layer.phases.iter().map(|p| p.begin_seconds).reduce(f64::min);
        let end = layer.phases.iter().map(|p| p.end_seconds).reduce(f64::max);
        let mut attributes = vec![
            attribute("hoist.layer", &layer.digest.to_string()),
            attribute("hoist.media_type", &layer.media_type),
            attribute("hoist.state", layer.state.as_str()),
            number("hoist.compressed_bytes", layer.size),
            number("hoist.entries", layer.entries),
            number("hoist.retries", layer.retries),
        ];
        attributes.extend(layer.host.as_deref().map(|host| attribute("server.address", host)));
        // A layer that was there already is a moment.
        let span = (begin.unwrap_or(0.0), end.unwrap_or(0.0));
        let name = format!("layer {}", short(&layer.digest));
        let id = self.span(spans, &name, pull, span, attributes.into());
        if let LayerState::Failed(reason) = &layer.state {
            failed(spans, reason);
        }
        for phase in &layer.phases {
            let attributes = vec![
                number("hoist.bytes", phase.bytes),
                json!({ "key": "hoist.busy_seconds", "value": { "doubleValue": phase.busy_seconds } }),
            ];
            let span = (phase.begin_seconds, phase.end_seconds);
            self.span(spans, phase.phase.as_str(), &id, span, attributes.into());
        }
    }
}

/// Says of the last span that it failed (status code 2).
fn failed(spans: &mut [Value], reason: &str) {
    if let Some(span) = spans.last_mut() {
        span["status"] = json!({ "code": 2, "message": reason });
    }
}

fn attribute(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

/// Integers are strings in the protocol's JSON.
fn number(key: &str, value: u64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn report(parent: Option<&str>) -> PullReport {
        let digest = format!("sha256:{}", "a".repeat(64));
        serde_json::from_value(json!({
            "id": 1, "image": "host/image:tag", "manifest": null, "began_unix_seconds": 100.0,
            "seconds": 2.5, "resolve_seconds": 0.25, "trace_parent": parent,
            "state": {"is": "failed", "reason": "why"},
            "layers": [{"digest": digest, "diff_id": digest, "media_type": "m", "size": 10,
                 "state": {"is": "done"}, "host": "h", "retries": 2, "entries": 3,
                 "phases": [{"phase": "write", "begin_seconds": 1.0, "end_seconds": 1.5,
                             "busy_seconds": 0.75, "bytes": 100}]}],
        }))
        .unwrap()
    }

    #[test]
    fn a_traceparent_is_checked() {
        let parent = Parent::parse(CALLER).unwrap();
        assert_eq!(parent.trace, "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(parent.sampled && !Parent::parse(&CALLER.replace("-01", "-00")).unwrap().sampled);
        assert!(Parent::parse(&format!("{}-x", CALLER.replacen("00", "01", 1))).is_some());
        let zero = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let upper = CALLER.to_uppercase();
        for wrong in ["", "00", &zero, &upper, &format!("{CALLER}-x"), &CALLER[..50], "ff-1-1-1"] {
            assert_eq!(Parent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn spans_hang_together() {
        let fresh = "1".repeat(32);
        let made = request(&report(Some(CALLER)), "hoistd", &fresh).unwrap();
        let spans = made["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
        let of = |name: &str| spans.iter().find(|span| span["name"] == name).unwrap();
        let (pull, layer, write) = (of("pull"), of("layer aaaaaaaaaaaa"), of("write"));
        assert_eq!(pull["parentSpanId"], "00f067aa0ba902b7");
        assert_eq!(layer["parentSpanId"], pull["spanId"]);
        assert_eq!(of("resolve")["parentSpanId"], pull["spanId"]);
        assert_eq!(write["parentSpanId"], layer["spanId"]);
        assert_eq!(pull["status"], json!({ "code": 2, "message": "why" }));
        assert_eq!(write["startTimeUnixNano"], "101000000000");
        assert_eq!(write["endTimeUnixNano"], "101500000000");
        let ids: std::collections::HashSet<_> =
            spans.iter().map(|span| span["spanId"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), spans.len());
        for span in spans {
            assert_eq!(span["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
        }
    }

    #[test]
    fn without_a_caller_there_is_a_trace_of_its_own() {
        let fresh = fresh_trace(&report(None));
        assert_eq!(fresh.len(), 32);
        assert_ne!(fresh, fresh_trace(&report(None)));
        let made = request(&report(Some("nonsense")), "hoistd", &fresh).unwrap();
        let pull = &made["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!((&pull["traceId"], &pull["parentSpanId"]), (&json!(fresh), &json!("")));
        let unsampled = CALLER.replace("-01", "-00");
        assert_eq!(request(&report(Some(&unsampled)), "hoistd", &fresh), None);
    }
}
