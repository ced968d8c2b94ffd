use std::collections::BTreeSet;

use super::*;

/// A scrape with every family present: a vector without values shows nothing.
fn full() -> Metrics {
    let metrics = Metrics::new(ImageLabel::None);
    metrics.pulls.ended("done", "host/image:tag", 3.0);
    metrics.pulls.phase("resolve", PhaseSeconds { wall: 0.1, busy: 0.1 });
    metrics.pulls.rate(1e6);
    metrics.pulls.held_up("network", 2.0);
    metrics.pulls.failed("registry");
    metrics.pulls.fallbacks().count("unauthorised");
    metrics.layers.ended("done", 7);
    metrics.layers.shared(9);
    metrics.layers.kept("written");
    metrics.layers.phase("write", PhaseSeconds { wall: 2.0, busy: 3.0 });
    metrics.layers.bytes("disk", 4096);
    metrics.layers.now(1, 2);
    let (limit, registry) = ("disk", String::new());
    let rate = RateNow { limit, registry, bytes_per_second: 7, waited_seconds: 0.5 };
    metrics.rates.now(vec![rate]);
    metrics.requests.answered("registry", "206", 0.01);
    metrics.requests.received("registry").inc_by(7);
    metrics.requests.authorized(0.1);
    metrics.requests.retried("status_429");
    metrics.metadata.took("read", 0.001);
    metrics.snapshots.answered("prepare", "ok", 0.002);
    metrics.store.budget(100, 10);
    metrics.store.snapshots("active", 1);
    metrics.store.trees(2, 300, 100);
    metrics.store.connections(8, 1);
    metrics.store.disk(1000, 10);
    metrics.store.min_free(50);
    metrics
}

/// `name kind labels` for each family of a scrape.
fn families(text: &str) -> BTreeSet<String> {
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    kinds
        .filter(|(name, _)| name.starts_with("hoist_"))
        .map(|(name, kind)| {
            let suffix = if kind == "histogram" { "_sum" } else { "" };
            let named = format!("{name}{suffix}");
            let sample = text.lines().find_map(|line| line.strip_prefix(&named));
            let sample = sample.expect("each family has a sample");
            let labels = sample.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            let mut labels: Vec<_> = labels
                .map_or("", |(labels, _)| labels)
                .split(',')
                .filter_map(|label| label.split_once('=').map(|(name, _)| name))
                .collect();
            labels.sort_unstable();
            format!("{name} {kind} {}", labels.join(" "))
        })
        .collect()
}

#[test]
fn the_documentation_lists_what_a_scrape_shows() {
    let documented: BTreeSet<String> = include_str!("../../docs/metrics.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `hoist_"))
        .map(|line| {
            let mut cells = line.split('|').map(str::trim);
            let name = cells.next().expect("a row has a name").trim_end_matches('`');
            let kind = cells.next().expect("a row has a kind");
            let labels = cells.next().expect("a row has labels").split(", ");
            let mut labels: Vec<_> = labels.filter(|label| !label.is_empty()).collect();
            labels.sort_unstable();
            format!("hoist_{name} {kind} {}", labels.join(" "))
        })
        .collect();
    assert_eq!(families(&full().text()), documented);
}

#[test]
fn the_operating_guide_has_a_word_on_each() {
    let guide = include_str!("../../docs/operating.md");
    let rows: String = guide.lines().filter(|line| line.starts_with("| `")).collect();
    let text = full().text();
    let mut names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    assert!(names.clone().any(|name| name == "process_threads"), "{text}");
    let missing = names.find(|name| !rows.contains(&format!("`{name}`")));
    assert_eq!(missing, None, "docs/operating.md does not say what to do about it");
}

/// A rate sees a first event only where there was a zero before.
#[test]
fn what_is_known_is_zero_from_the_start() {
    let metrics = Metrics::new(ImageLabel::None);
    let known = Known {
        phases: &["write"],
        bottlenecks: &["disk"],
        kinds: &["fetch"],
        causes: &["broken"],
    };
    metrics.known(&known);
    let text = metrics.text();
    for line in [
        r#"hoist_layer_phase_seconds_count{phase="write"} 0"#,
        r#"hoist_pull_phase_busy_seconds_count{phase="resolve"} 0"#,
        r#"hoist_pull_bottlenecks_total{bottleneck="disk"} 0"#,
        r#"hoist_errors_total{kind="fetch"} 0"#,
        r#"hoist_fallbacks_total{reason="fetch"} 0"#,
        r#"hoist_fallbacks_total{reason="unlabelled"} 0"#,
        r#"hoist_registry_retries_total{cause="broken"} 0"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
    }
}

#[test]
fn figures_arrive_and_buckets_reach_ten_minutes() {
    let text = full().text();
    for line in [
        r#"hoist_pulls_total{result="done"} 1"#,
        r#"hoist_pulls_total{result="failed"} 0"#,
        r#"hoist_fallbacks_total{reason="unauthorised"} 1"#,
        r#"hoist_layer_phase_busy_seconds_sum{phase="write"} 3"#,
        r#"hoist_layer_phase_seconds_bucket{phase="write",le="600"} 1"#,
        r#"hoist_bytes_total{kind="disk"} 4096"#,
        r#"hoist_registry_requests_total{code="206",host="registry"} 1"#,
        r#"hoist_registry_retries_total{cause="status_429"} 1"#,
        "hoist_memory_budget_in_use_bytes 10",
        r#"hoist_snapshots{kind="active"} 1"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
    }
    assert!(text.contains("process_resident_memory_bytes"));
}
