//! What becomes of a pull's report when the pull has ended: figures in the metrics and one line in
//! the log.

use crate::metrics::{Metrics, PhaseSeconds};
use crate::timeline::{LayerReport, LayerState, Phase, PullReport, PullState};

/// The word for a pull's end in labels and in the log.
pub(super) fn result(state: &PullState) -> &'static str {
    match state {
        PullState::Running => "running",
        PullState::Done => "done",
        PullState::FellBack(_) => "fallback",
        PullState::Failed(_) => "failed",
        PullState::Cancelled => "cancelled",
    }
}

/// The word for a layer's end. In a pull that fell back, what hoist could not provide was left to
/// containerd.
fn layer_result(state: &LayerState, pull: &PullState) -> &'static str {
    match (state, pull) {
        (LayerState::Done, _) => "done",
        (LayerState::Shared, _) => "shared",
        (LayerState::Failed(_) | LayerState::Waiting, PullState::FellBack(_)) => "fallback",
        (LayerState::Failed(_), _) => "failed",
        (LayerState::Waiting | LayerState::Running | LayerState::Cancelled, _) => "cancelled",
    }
}

/// Takes an ended pull into the metrics.
pub(super) fn count(metrics: &Metrics, report: &PullReport) {
    let result = result(&report.state);
    metrics.pulls.ended(result, &report.image, report.seconds);
    pull_phases(metrics, report);
    if let Some(judgement) = &report.judgement {
        metrics.pulls.held_up(judgement.bottleneck.as_str(), judgement.seconds);
    }
    let done = |layer: &&LayerReport| layer.state == LayerState::Done;
    let compressed: u64 = report.layers.iter().filter(done).map(|layer| layer.size).sum();
    if report.state == PullState::Done && compressed > 0 {
        #[allow(clippy::cast_precision_loss, reason = "a rate")]
        metrics.pulls.rate(compressed as f64 / report.seconds.max(1e-6));
    }
    metrics.layers.bytes("network", report.bytes(Phase::Download));
    metrics.layers.bytes("compressed", compressed);
    metrics.layers.bytes("uncompressed", report.bytes(Phase::Decompress));
    metrics.layers.bytes("disk", report.bytes(Phase::Write));
    for layer in &report.layers {
        metrics.layers.ended(layer_result(&layer.state, &report.state), layer.entries);
        if layer.state == LayerState::Shared {
            metrics.layers.shared(layer.size);
        }
        for phase in &layer.phases {
            let seconds = PhaseSeconds { wall: phase.span(), busy: phase.busy_seconds };
            metrics.layers.phase(phase.phase.as_str(), seconds);
        }
    }
}

/// The phases of a whole pull: those of the manifest, and over all layers from a phase's first begin
/// to its last end.
fn pull_phases(metrics: &Metrics, report: &PullReport) {
    if let Some(seconds) = report.resolve_seconds {
        metrics.pulls.phase("resolve", PhaseSeconds { wall: seconds, busy: seconds });
    }
    for phase in Phase::ALL {
        let of = || report.layers.iter().filter_map(|layer| layer.phase(phase));
        let first = of().map(|p| p.begin_seconds).reduce(f64::min);
        let last = of().map(|p| p.end_seconds).reduce(f64::max);
        let mut wall = first.zip(last).map(|(first, last)| last - first);
        let mut busy = report.busy_seconds(phase);
        if let Some(seconds) = report.auth_seconds.filter(|_| phase == Phase::Auth) {
            wall = Some(wall.unwrap_or(0.0) + seconds);
            busy += seconds;
        }
        if let Some(wall) = wall {
            metrics.pulls.phase(phase.as_str(), PhaseSeconds { wall, busy });
        }
    }
}

/// Writes an ended pull to the log: the sums as fields of their own, so that a log store can be
/// asked for them, and the whole report as JSON.
pub(super) fn log(report: &PullReport) {
    let reason = match &report.state {
        PullState::FellBack(reason) | PullState::Failed(reason) => reason.as_str(),
        _ => "",
    };
    let json = serde_json::to_string(&report.clone().without_samples());
    let json = json.expect("reports have string keys only");
    let judgement = report.judgement.as_ref();
    tracing::info!(
        pull = report.id,
        image = report.image,
        result = result(&report.state),
        reason,
        seconds = report.seconds,
        bottleneck = judgement.map_or("", |judgement| judgement.bottleneck.as_str()),
        evidence = judgement.map_or("", |judgement| judgement.evidence.as_str()),
        layers = report.layers.len(),
        compressed_bytes = report.size(),
        unpacked_bytes = report.bytes(Phase::Decompress),
        wait_seconds = report.busy_seconds(Phase::Wait),
        connect_seconds = report.busy_seconds(Phase::Connect),
        first_byte_seconds = report.busy_seconds(Phase::FirstByte),
        download_seconds = report.busy_seconds(Phase::Download),
        decompress_seconds = report.busy_seconds(Phase::Decompress),
        hash_seconds = report.busy_seconds(Phase::Hash),
        write_seconds = report.busy_seconds(Phase::Write),
        commit_seconds = report.busy_seconds(Phase::Commit),
        report = json,
        "pull ended"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::ImageLabel;

    fn report() -> PullReport {
        let digest = format!("sha256:{}", "a".repeat(64));
        serde_json::from_value(serde_json::json!({
            "id": 1, "image": "host/image:tag", "manifest": null, "began_unix_seconds": 1.0,
            "seconds": 2.5, "resolve_seconds": 0.25, "state": {"is": "fell_back", "reason": "why"},
            "layers": [
                {"digest": digest, "diff_id": digest, "media_type": "m", "size": 10,
                 "state": {"is": "done"}, "host": null, "retries": 2, "entries": 3,
                 "phases": [{"phase": "write", "begin_seconds": 1.0, "end_seconds": 1.5,
                             "busy_seconds": 0.75, "bytes": 100}]},
                {"digest": digest, "diff_id": digest, "media_type": "m", "size": 10,
                 "state": {"is": "failed", "reason": "why"}, "host": null, "retries": 0,
                 "entries": 0, "phases": []}
            ]
        }))
        .unwrap()
    }

    #[test]
    fn a_report_becomes_figures() {
        let metrics = Metrics::new(ImageLabel::None);
        count(&metrics, &report());
        let text = metrics.text();
        for line in [
            r#"hoist_pulls_total{result="fallback"} 1"#,
            r#"hoist_pull_seconds_sum{image="",result="fallback"} 2.5"#,
            r#"hoist_layers_total{result="done"} 1"#,
            r#"hoist_layers_total{result="fallback"} 1"#,
            r#"hoist_layer_phase_seconds_sum{phase="write"} 0.5"#,
            r#"hoist_layer_phase_busy_seconds_sum{phase="write"} 0.75"#,
            r#"hoist_pull_phase_seconds_sum{phase="resolve"} 0.25"#,
            r#"hoist_pull_phase_busy_seconds_sum{phase="write"} 0.75"#,
            r#"hoist_bytes_total{kind="compressed"} 10"#,
            r#"hoist_bytes_total{kind="disk"} 100"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
        }
    }
}
