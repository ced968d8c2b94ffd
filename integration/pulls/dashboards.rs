//! The rules and the dashboard of `config/`, against a real Prometheus that scrapes a real `hoistd` after real pulls.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::harness::process::Daemon;
use super::harness::{Generation, House, free_port, must, prepare, skipped};

fn config(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file)
}

/// The directory of Prometheus' programs; `None`, said loudly, where they cannot be had.
fn programs(test: &str) -> Option<PathBuf> {
    let Some(bed) = prepare("prometheus") else {
        skipped(test, "no Prometheus could be had (see above)");
        return None;
    };
    Some(bed.join("prometheus/bin"))
}

/// The body of an answer to a GET.
fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

/// A Prometheus with our rules that scrapes one hoistd every second.
struct Prometheus {
    _daemon: Daemon,
    address: SocketAddr,
}

impl Prometheus {
    fn start(programs: &Path, home: &Path, target: SocketAddr) -> Self {
        std::fs::create_dir_all(home).unwrap();
        for file in ["hoist-recording.yml", "hoist-alerts.yml"] {
            let rules = std::fs::read_to_string(config("prometheus").join(file)).unwrap();
            let rules = rules.replace("interval: 30s", "interval: 1s");
            std::fs::write(home.join(file), rules).unwrap();
        }
        // Our own example, faster, and with the rules where they are.
        let text = std::fs::read_to_string(config("prometheus/scrape.yml")).unwrap();
        let text = text
            .replace("/etc/prometheus/rules", &home.display().to_string())
            .replace("127.0.0.1:9469", &target.to_string())
            .replace("scrape_interval: 15s", "scrape_interval: 1s");
        std::fs::write(home.join("prometheus.yml"), text).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new(programs.join("prometheus"));
        command.arg(format!("--config.file={}", home.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", home.join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        let mut daemon = Daemon::start("prometheus", &command, &home.join("log"));
        daemon.wait_for(|| get(address, "/-/ready").is_some_and(|body| body.contains("Ready")));
        Self { _daemon: daemon, address }
    }

    /// What an expression gives now: its samples' values, or why it cannot be asked.
    fn query(&self, expression: &str) -> Result<Vec<String>, String> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let body = get(self.address, &format!("/api/v1/query?query={encoded}")).unwrap();
        let answer: serde_json::Value =
            serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        let Some(samples) = answer["data"]["result"].as_array() else { return Err(body) };
        Ok(samples.iter().map(|sample| sample["value"][1].as_str().unwrap().to_owned()).collect())
    }

    /// Waits until an expression gives something that is a number.
    fn eventually(&self, expression: &str) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let values = self.query(expression)?;
            if values.iter().any(|value| value != "NaN") {
                return Ok(());
            }
            if began.elapsed() > Duration::from_secs(45) {
                return Err(format!("no value but {values:?}"));
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

/// The expressions of all panels, with the dashboard's variables filled in.
fn panels() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(config("grafana/hoist.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut found = Vec::new();
    let mut ids = std::collections::HashSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title} has another one's id");
        if panel["type"] == "row" {
            continue;
        }
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let filled = expression.replace("$instance", ".*").replace("$__rate_interval", "5m");
            assert!(!filled.contains('$'), "{title}: {filled}");
            found.push((title.to_owned(), filled));
        }
    }
    found
}

/// The expressions of a file of rules, each of which is on the line after `expr: >-`.
fn expressions(file: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(config(file)).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let names = lines.windows(3).filter(|three| three[1] == "expr: >-");
    names.map(|three| (three[0].to_owned(), three[2].to_owned())).collect()
}

#[test]
fn rules_are_right_and_alerts_fire() {
    let Some(programs) = programs("rules_are_right_and_alerts_fire") else { return };
    let directory = config("prometheus");
    let mut promtool = Command::new(programs.join("promtool"));
    promtool.current_dir(&directory);
    must(promtool.args(["check", "rules", "hoist-recording.yml", "hoist-alerts.yml"]));
    let mut promtool = Command::new(programs.join("promtool"));
    must(promtool.current_dir(&directory).args(["test", "rules", "hoist-tests.yml"]));
    let tests = std::fs::read_to_string(directory.join("hoist-tests.yml")).unwrap();
    let guide = include_str!("../../docs/operating.md");
    for (name, _) in expressions("prometheus/hoist-alerts.yml") {
        let name = name.strip_prefix("- alert: ").unwrap();
        assert!(tests.contains(&format!("alertname: {name}\n")), "{name} is not tested");
        assert!(guide.contains(name), "docs/operating.md does not say what to do about {name}");
    }
    // The link of each alert leads to a heading.
    let anchors: Vec<String> = guide
        .lines()
        .filter_map(|line| line.strip_prefix("### ").or(line.strip_prefix("## ")))
        .map(|title| title.to_lowercase().replace(' ', "-"))
        .collect();
    let alerts = std::fs::read_to_string(directory.join("hoist-alerts.yml")).unwrap();
    for link in alerts.lines().filter_map(|line| line.split_once("docs/operating.md#")) {
        let anchor = link.1.trim_end_matches('"');
        assert!(anchors.iter().any(|known| known == anchor), "{anchor} is none of {anchors:?}");
    }
}

#[test]
fn every_panel_and_rule_has_a_value_after_real_pulls() {
    let test = "every_panel_and_rule_has_a_value_after_real_pulls";
    let Some(programs) = programs(test) else { return };
    let Some(house) = House::open(test) else { return };
    let hoistd = house.hoistd("");
    let Some(containerd) = house.containerd(Generation::Two, &hoistd, test) else { return };
    let home = house.scratch.path().join("p");
    let prometheus = Prometheus::start(&programs, &home, hoistd.address());
    // A counter that begins with the first pull rises with the second.
    containerd.pull(&house.registry.image("python:gzip"));
    prometheus.eventually("hoist_pulls_total{result=\"done\"} >= 1").unwrap();
    containerd.pull(&house.registry.image("tree:zstd"));
    prometheus.eventually("hoist_pulls_total{result=\"done\"} >= 2").unwrap();
    containerd.run("hoist", &house.registry.image("tree:zstd"), "x", &["true"]);

    let mut metrics = Command::new(programs.join("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let scrape = get(hoistd.address(), "/metrics").unwrap();
    metrics.stdin.take().unwrap().write_all(scrape.as_bytes()).unwrap();
    let linted = metrics.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&linted.stderr).into_owned();
    assert!(linted.status.success(), "promtool complains of /metrics:\n{complaints}");

    let mut wrong = Vec::new();
    let mut check = |name: &str, asked: Result<(), String>| {
        if let Err(error) = asked {
            wrong.push(format!("{name}: {error}"));
        }
    };
    for (record, expression) in expressions("prometheus/hoist-recording.yml") {
        check(&record, prometheus.eventually(&expression));
        // The rule itself, as Prometheus evaluates it.
        check(&record, prometheus.eventually(record.strip_prefix("- record: ").unwrap()));
    }
    for (alert, expression) in expressions("prometheus/hoist-alerts.yml") {
        check(&alert, prometheus.query(&expression).map(drop));
    }
    for (title, expression) in panels() {
        check(&title, prometheus.eventually(&expression));
    }
    assert!(wrong.is_empty(), "{}\n{scrape}", wrong.join("\n"));
}
