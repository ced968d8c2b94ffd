use std::collections::BTreeSet;

use super::*;

/// A scrape with every family present: a vector without values shows nothing.
fn full() -> Metrics {
    let metrics = Metrics::new(ImageLabel::None);
    metrics.pulls.ended("done", "host/image:tag", 3.0, Some(0.1));
    metrics.pulls.fell_back("unauthorised");
    metrics.layers.ended("done", 7, 1);
    metrics.layers.phase("write", 2.0, 3.0, 4096);
    metrics.snapshots.answered("prepare", "ok", 0.002);
    metrics.store.budget(100, 10);
    metrics.store.snapshots("active", 1);
    metrics.store.trees(2, 300);
    metrics
}

#[test]
fn the_documentation_lists_what_a_scrape_shows() {
    let scraped: BTreeSet<String> = full()
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, kind)| format!("{name} {kind}"))
        .filter(|line| line.starts_with("hoist_"))
        .collect();
    let documented: BTreeSet<String> = include_str!("../../docs/metrics.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `hoist_"))
        .map(|line| {
            let mut cells = line.split('|').map(str::trim);
            let name = cells.next().expect("a row has a name").trim_end_matches('`');
            format!("hoist_{name} {}", cells.next().expect("a row has a kind"))
        })
        .collect();
    assert_eq!(scraped, documented);
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
        r#"hoist_phase_bytes_total{phase="write"} 4096"#,
        "hoist_fetch_retries_total 1",
        "hoist_memory_budget_in_use_bytes 10",
        r#"hoist_snapshots{kind="active"} 1"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\nnot in\n{text}");
    }
    assert!(text.contains("process_resident_memory_bytes"));
}
