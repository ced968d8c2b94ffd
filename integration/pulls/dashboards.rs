//! The rules and the dashboard of `config/`, against a real Prometheus that scrapes a real `hoistd` after real pulls.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hoist::image::Sha256;

use super::daemon::{Daemon as Hoist, blocking, configure};
use super::faulty_registry::{FaultyRegistry, Reply};
use super::harness::containerd::eventually;
use super::harness::process::Daemon;
use super::harness::{Generation, Hoistd, House, free_port, must, prepare, skipped};
use super::images::{Layer, noise, push, stall_in_layers};
use super::snapshotter;

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

    fn ask(&self, path: &str) -> Result<serde_json::Value, String> {
        let body = get(self.address, path).unwrap();
        let answer: serde_json::Value =
            serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(body) }
    }

    /// What an expression gives now, or why it cannot be asked.
    fn query(&self, expression: &str) -> Result<Vec<Sample>, String> {
        let answer = self.ask(&format!("/api/v1/query?query={}", encoded(expression)))?;
        let samples = answer["result"].as_array().ok_or("no vector")?;
        Ok(samples.iter().map(Sample::of).collect())
    }

    /// Waits until an expression gives something that is a number, with these labels.
    fn eventually(&self, expression: &str, labels: &[&str]) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let samples = self.query(expression)?;
            let has = |sample: &Sample, label: &&str| sample.labels[*label].is_string();
            if samples.iter().any(|s| s.value != "NaN" && labels.iter().all(|l| has(s, l))) {
                return Ok(());
            }
            if began.elapsed() > Duration::from_secs(45) {
                return Err(format!("{expression} has no value with {labels:?} but {samples:?}"));
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

/// One series' value.
#[derive(Debug)]
struct Sample {
    labels: serde_json::Value,
    value: String,
}

impl Sample {
    fn of(sample: &serde_json::Value) -> Self {
        let value = sample["value"][1].as_str().unwrap().to_owned();
        Self { labels: sample["metric"].clone(), value }
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn dashboard() -> serde_json::Value {
    let text = std::fs::read_to_string(config("grafana/hoist.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A query of a panel.
struct Target {
    title: String,
    expression: String,
    /// The labels that the legend shows.
    labels: Vec<String>,
}

/// The queries of all panels, with the dashboard's variables filled in.
fn targets(dashboard: &serde_json::Value) -> Vec<Target> {
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
            // A zero where there is nothing hides that there is nothing.
            let filled = filled.trim_end_matches(" or vector(0)").to_owned();
            let legend = target["legendFormat"].as_str().unwrap();
            assert!(!legend.is_empty() && legend != "__auto", "{title} has a line without a name");
            let labels = legend.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap());
            let labels = labels.map(|label| label.trim().to_owned()).collect();
            found.push(Target { title: title.to_owned(), expression: filled, labels });
        }
    }
    found
}

/// The expressions of a file of rules, each of which is on the line after `expr: >-`.
fn expressions(file: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(config(file)).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let names = lines.windows(3).filter(|three| three[1] == "expr: >-");
    let found: Vec<_> = names.map(|three| (three[0].to_owned(), three[2].to_owned())).collect();
    assert_eq!(found.len(), text.matches("expr:").count(), "{file} has one of another form");
    found
}

/// An alert's expression that says no with a zero, where it itself says it with nothing.
fn with_its_value(expression: &str) -> String {
    [" > ", " < ", " == "].into_iter().fold(expression.to_owned(), |text, comparison| {
        text.replace(comparison, &format!("{comparison}bool "))
    })
}

/// Grafana's own schema, as there is no Grafana to try it in.
#[test]
fn the_dashboard_is_one_by_grafanas_schema() {
    let test = "the_dashboard_is_one_by_grafanas_schema";
    let Some(bed) = prepare("grafana") else {
        return skipped(test, "the schema could not be had (see above)");
    };
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let check = |file: &Path| {
        let mut check = Command::new(checkout.join("integration/grafana-schema"));
        let output = check.arg(bed.join("grafana/sdk")).arg(file).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error, "");
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let ours = config("grafana/hoist.json");
    assert_eq!(check(&ours), (true, String::new()));
    // That it finds what is wrong.
    let text = std::fs::read_to_string(&ours).unwrap();
    let home = tempfile::tempdir().unwrap();
    let copy = home.path().join("copy.json");
    for (good, wrong, said) in [
        ("\"expr\"", "\"expression\"", "knows no such key"),
        ("\"w\": 8", "\"w\": \"8\"", "is not of the type"),
        ("\"mode\": \"multi\"", "\"mode\": \"all\"", "is not of the type"),
        ("\"timeseries\"", "\"timeline\"", "no panels of the type"),
    ] {
        assert!(text.contains(good), "{good}");
        std::fs::write(&copy, text.replace(good, wrong)).unwrap();
        let (well, told) = check(&copy);
        assert!(!well && told.contains(said), "{wrong}: {told}");
    }
    // What the schema leaves to strings: the variables that are used are there.
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    for part in text.split("${").skip(1) {
        let name = part.split('}').next().unwrap();
        assert!(variables.iter().any(|variable| variable["name"] == name), "no variable {name}");
    }
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

/// Pulls of which some retry and some fail, so that there is something to see of that too. Those that succeed are of one
/// repository, and a scrape is between them: how long its pulls take is a number then.
async fn misfortunes(hoistd: &Hoistd, prometheus: &Prometheus) {
    let server = FaultyRegistry::start().await;
    let layer = |name: &str| Layer::of("zstd", name, noise(name, 200_000));
    let names = ["whole", "broken", "lost", "forged"];
    let images = names.map(|name| push(&server, name, &[layer(name)]));
    let [_, broken, lost, forged] = names.map(|name| Sha256::of(&layer(name).blob).hex());
    let first = std::sync::atomic::AtomicBool::new(true);
    server.script(move |request, reply| {
        let breaks = request.path.ends_with(&broken)
            && first.swap(false, std::sync::atomic::Ordering::SeqCst);
        if request.path.ends_with(&lost) {
            return Reply::new(404, "");
        }
        let mut reply = Reply { reset_after: breaks.then_some(1000), ..reply };
        if request.path.ends_with(&forged) {
            reply.body[100] ^= 1;
        }
        reply
    });
    let config = hoistd.config();
    let hoist = move |arguments: &[&str]| {
        let mut hoist = Command::new(env!("CARGO_BIN_EXE_hoist"));
        hoist.arg("--config").arg(&config).args(arguments);
        hoist.output().unwrap()
    };
    let [lost, forged] = tokio::task::block_in_place(|| {
        let succeeds = images.each_ref().map(|image| {
            let succeeds = hoist(&["pull", "--snapshots", "--quiet", image]).status.success();
            prometheus.eventually("hoist_pulls_total{result=\"done\"} >= 3", &[]).unwrap();
            succeeds
        });
        assert_eq!(succeeds, [true, true, false, false]);
        let listed = hoist(&["pulls", "--json"]).stdout;
        let pulls: Vec<serde_json::Value> = serde_json::from_slice(&listed).unwrap();
        let of = |image: &String| pulls.iter().find(|pull| pull["image"] == image.as_str());
        [&images[2], &images[3]].map(|image| snapshotter::labels(of(image).unwrap()))
    });
    // As containerd asks, with labels and without: it is left to fetch what is not there, and not what is false.
    let unlabelled = lost[..1].to_vec();
    for labels in [lost, unlabelled] {
        snapshotter::prepare(&hoistd.socket(), labels).await.unwrap();
    }
    snapshotter::prepare(&hoistd.socket(), forged).await.unwrap_err();
}

/// promtool's opinion of names, help texts and units.
fn linted(programs: &Path, scrape: &str) {
    let mut metrics = Command::new(programs.join("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    metrics.stdin.take().unwrap().write_all(scrape.as_bytes()).unwrap();
    let linted = metrics.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&linted.stderr).into_owned();
    assert!(linted.status.success(), "promtool complains of /metrics:\n{complaints}");
}

#[test]
fn every_panel_and_rule_has_a_value_after_real_pulls() {
    let test = "every_panel_and_rule_has_a_value_after_real_pulls";
    let Some(programs) = programs(test) else { return };
    let Some(house) = House::open(test) else { return };
    let mut hoistd = house.hoistd("");
    hoistd.set_image_label("repository");
    let Some(containerd) = house.containerd(Generation::Two, &hoistd, test) else { return };
    let home = house.scratch.path().join("p");
    let prometheus = Prometheus::start(&programs, &home, hoistd.address());
    // A counter that begins with the first pull rises with the second.
    containerd.pull(&house.registry.image("python:gzip"));
    prometheus.eventually("hoist_pulls_total{result=\"done\"} >= 1", &[]).unwrap();
    containerd.pull(&house.registry.image("tree:zstd"));
    prometheus.eventually("hoist_pulls_total{result=\"done\"} >= 2", &[]).unwrap();
    containerd.run("hoist", &house.registry.image("tree:zstd"), "x", &["true"]);
    // hoistd serves one containerd, and what follows asks in its place.
    drop(containerd);
    tokio::runtime::Runtime::new().unwrap().block_on(misfortunes(&hoistd, &prometheus));
    let scrape = get(hoistd.address(), "/metrics").unwrap();
    linted(&programs, &scrape);

    let mut wrong = Vec::new();
    let mut check = |name: &str, asked: Result<(), String>| {
        if let Err(error) = asked {
            wrong.push(format!("{name}: {error}"));
        }
    };
    for (record, expression) in expressions("prometheus/hoist-recording.yml") {
        check(&record, prometheus.eventually(&expression, &[]));
        // The rule itself, as Prometheus evaluates it.
        let name = record.strip_prefix("- record: ").unwrap();
        check(&record, prometheus.eventually(name, &["job", "instance"]));
    }
    for (alert, expression) in expressions("prometheus/hoist-alerts.yml") {
        check(&alert, prometheus.query(&expression).map(drop));
        check(&alert, prometheus.eventually(&with_its_value(&expression), &["job", "instance"]));
    }
    let dashboard = dashboard();
    for target in targets(&dashboard) {
        let labels: Vec<&str> = target.labels.iter().map(String::as_str).collect();
        check(&target.title, prometheus.eventually(&target.expression, &labels));
    }
    // What went wrong is seen, each in its panel.
    for seen in [
        "hoist:pull_seconds:p50_1h{image=~\".*/some/image\"} > 0",
        "hoist:pull_seconds:p99_1h{image=~\".*/some/image\"} > 0",
        "increase(hoist_registry_retries_total{cause=\"broken\"}[5m]) > 0",
        "increase(hoist_errors_total{kind=\"fetch\"}[5m]) > 0",
        "increase(hoist_fallbacks_total{reason=\"unlabelled\"}[5m]) > 0",
    ] {
        check(seen, prometheus.eventually(seen, &[]));
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            check(variable["name"].as_str().unwrap(), values(&prometheus, variable, &hoistd));
        }
    }
    assert!(wrong.is_empty(), "{}\n{scrape}", wrong.join("\n"));
}

/// Whether a variable `label_values(METRIC, LABEL)` has the daemon among its values.
fn values(
    prometheus: &Prometheus,
    variable: &serde_json::Value,
    hoistd: &Hoistd,
) -> Result<(), String> {
    let query = variable["query"]["query"].as_str().unwrap();
    let (metric, label) = query
        .strip_prefix("label_values(")
        .and_then(|rest| rest.strip_suffix(')')?.split_once(", "))
        .ok_or_else(|| format!("{query} is of another form"))?;
    let path = format!("/api/v1/label/{label}/values?match[]={}", encoded(metric));
    let found = prometheus.ask(&path)?;
    let expected = hoistd.address().to_string();
    let there = found.as_array().is_some_and(|all| all.iter().any(|one| *one == *expected));
    if there { Ok(()) } else { Err(format!("{expected} is not among {found}")) }
}

/// A rate sees a pull only where a scrape saw none before it, and a host pulls most images once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_shown_before_its_first_pull_has_ended() {
    let server = FaultyRegistry::start().await;
    let image = push(&server, "v1", &[Layer::of("zstd", "one", noise("one", 1 << 20))]);
    stall_in_layers(&server);
    let repository = image.strip_suffix(":v1").unwrap();
    let line = format!("hoist_pull_seconds_count{{image=\"{repository}\",result=\"done\"}} 0\n");
    blocking(move || {
        let none = serde_json::json!({});
        let mut daemon = Hoist::start_where("", &none, Vec::new(), |home| {
            configure(home, "[metrics]", "[metrics]\nimage_label = \"repository\"");
        });
        let mut pull = daemon.command(&["pull", "--snapshots", "--quiet", &image]).spawn().unwrap();
        let shown = || daemon.body("/metrics").contains(&line);
        eventually("the image is shown", shown, || daemon.log());
        pull.kill().unwrap();
        pull.wait().unwrap();
        let record = daemon.home.path().join("root/pulls/1.json");
        eventually("its record is written", || record.exists(), || daemon.log());
        daemon.crash_and_restart();
        assert!(daemon.body("/metrics").contains(&line), "forgotten with the restart");
    })
    .await;
}
