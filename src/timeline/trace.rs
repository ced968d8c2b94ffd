//! A pull in the Trace Event format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.
//!
//! Each layer is a process of the trace and each phase a thread in it; the first process is the
//! critical path. Samples are counters. Source: "Trace Event Format", Google, JSON object format:
//! `X` is a complete event with `ts` and `dur` in microseconds, `M` names, `C` counts.

use serde_json::{Value, json};

use super::figures::{bytes, short};
use super::path::{self, Step};
use super::{LayerReport, PhaseReport, PullReport};

/// The process of the critical path; that of the lowest layer is the next.
const PATH_PROCESS: usize = 1;

/// The whole trace.
pub fn events(report: &PullReport) -> Value {
    let mut events = vec![name("process_name", PATH_PROCESS, 0, "critical path")];
    for segment in path::critical(report) {
        let what = match segment.step {
            Step::Resolve => "manifest".to_owned(),
            Step::Queue(index) => format!("queue: {}", short(&report.layers[index].digest)),
            Step::Layer(index) => short(&report.layers[index].digest),
            Step::Containerd => "containerd".to_owned(),
        };
        events.push(span(PATH_PROCESS, 0, &what, segment.begin, segment.end, &json!({})));
    }
    for (index, layer) in report.layers.iter().enumerate() {
        of_layer(&mut events, PATH_PROCESS + 1 + index, layer);
    }
    json!({
        "displayTimeUnit": "ms",
        "otherData": {
            "hoist_pull": report.id,
            "image": report.image,
            "began_unix_seconds": report.began_unix_seconds,
            "judgement": report.judgement,
        },
        "traceEvents": events,
    })
}

fn of_layer(events: &mut Vec<Value>, process: usize, layer: &LayerReport) {
    let called = format!("{} {}", short(&layer.digest), bytes(layer.size));
    events.push(name("process_name", process, 0, &called));
    events.push(json!({
        "ph": "M", "name": "process_sort_index", "pid": process, "args": { "sort_index": process },
    }));
    for phase in &layer.phases {
        let thread = phase.phase as usize;
        events.push(name("thread_name", process, thread, phase.phase.as_str()));
        let args = json!({
            "busy_seconds": phase.busy_seconds, "times": phase.times, "bytes": phase.bytes,
            "digest": layer.digest, "host": layer.host, "retries": layer.retries,
        });
        events.push(span(
            process,
            thread,
            phase.phase.as_str(),
            phase.begin_seconds,
            phase.end_seconds,
            &args,
        ));
        counts(events, process, phase);
    }
}

#[allow(clippy::cast_precision_loss, reason = "an index below a hundred")]
fn counts(events: &mut Vec<Value>, process: usize, phase: &PhaseReport) {
    let Some(samples) = &phase.samples else { return };
    let ends = std::iter::once(&0);
    for (index, &bytes) in samples.bytes.iter().chain(ends).enumerate() {
        let at = samples.begin_seconds + index as f64 * samples.interval_seconds;
        let rate = bytes as f64 / samples.interval_seconds;
        events.push(json!({
            "ph": "C", "name": format!("{} bytes per second", phase.phase.as_str()), "pid": process,
            "ts": micros(at.max(0.0)), "args": { "bytes_per_second": rate },
        }));
    }
}

fn name(kind: &str, process: usize, thread: usize, name: &str) -> Value {
    json!({ "ph": "M", "name": kind, "pid": process, "tid": thread, "args": { "name": name } })
}

fn span(process: usize, thread: usize, name: &str, begin: f64, end: f64, args: &Value) -> Value {
    json!({
        "ph": "X", "cat": "pull", "name": name, "pid": process, "tid": thread,
        "ts": micros(begin), "dur": micros(end) - micros(begin), "args": args,
    })
}

/// Whole microseconds: a format's reader should not have to round.
fn micros(seconds: f64) -> f64 {
    (seconds * 1e6).round()
}

#[cfg(test)]
mod tests {
    use super::super::testing::example;
    use super::*;

    #[test]
    fn every_event_has_what_its_kind_needs() {
        let trace = events(&example());
        let events = trace["traceEvents"].as_array().unwrap();
        let of = |kind: &str| events.iter().filter(|e| e["ph"] == kind).collect::<Vec<_>>();
        // 3 layers with 6 phases, one wait, one commit, and a path of 3 parts.
        assert_eq!(of("X").len(), 3 * 6 + 2 + 3);
        for event in of("X") {
            assert!(event["ts"].as_f64().unwrap() >= 0.0 && event["dur"].as_f64().unwrap() >= 0.0);
            assert!(event["pid"].is_u64() && event["tid"].is_u64() && event["name"].is_string());
        }
        assert_eq!(of("C").len(), 4 + 1, "the samples, and the end of the last");
        assert!(of("C")[0]["args"]["bytes_per_second"].as_f64().unwrap() > 0.0);
        let names: Vec<_> = of("M").iter().map(|e| e["args"]["name"].clone()).collect();
        assert!(names.contains(&json!("critical path")) && names.contains(&json!("decompress")));
    }
}
