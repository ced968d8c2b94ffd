//! A pull as a real `hoistd` shows it afterwards: on its page, in its files, to `hoist`.

use super::daemon::{Daemon, blocking};
use super::faulty_registry::FaultyRegistry;
use super::images::{Layer, noise, push, stall_in_layers};

/// The drawing in a page, read as the XML that it has to be.
fn drawing(page: &str) -> String {
    let begin = page.find("<svg xmlns=").expect("the page has a waterfall");
    let svg = &page[begin..page.rfind("</svg>").unwrap() + "</svg>".len()];
    let document = roxmltree::Document::parse(svg).unwrap_or_else(|e| panic!("{e}:\n{svg}"));
    assert_eq!(document.root_element().attribute("role"), Some("img"));
    svg.to_owned()
}

/// Nothing is loaded from anywhere else, and the browser is told to refuse it.
fn stays_here(answer: &str) {
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(head.contains("x-content-type-options: nosniff"), "{head}");
    let page = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!page.contains("://") && !page.contains("src=\"//"), "{page}");
    assert!(!page.contains("<style") && !page.contains(" style=") && !page.contains(" onclick"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_is_on_its_page_and_outlives_the_daemon() {
    let server = FaultyRegistry::start().await;
    let layers = [
        Layer::of("gzip", "one", noise("one", 200_000)),
        Layer::of("zstd", "two", noise("two", 3 << 20)),
    ];
    let image = push(&server, "v1", &layers);
    let name = image.clone();
    let mut daemon = blocking(move || {
        let daemon = Daemon::start("", &serde_json::json!({}));
        daemon.told(&["pull", "--snapshots", "--quiet", &name]);
        daemon
    })
    .await;
    blocking(move || {
        let digest = hoist::image::Sha256::of(&layers[1].blob).hex();
        for life in ["the first life", "after a crash"] {
            let (status, list) = daemon.get("/");
            assert_eq!(status, 200, "{life}: {list}");
            let list_text = list.replace("<wbr>", "");
            assert!(
                list_text.contains(&image) && list.contains("href=\"/pulls/1\""),
                "{life}: {list}"
            );
            stays_here(&list);
            let (status, page) = daemon.get("/pulls/1");
            assert_eq!(status, 200, "{life}: {page}");
            stays_here(&page);
            let svg = drawing(&page);
            assert!(svg.contains(&digest) && svg.contains("class=\"net\""), "{life}: {svg}");
            for word in [&image, "Bottleneck: ", "What would help:", "decompress"] {
                assert!(page.contains(word), "{life}: {word} is not in {page}");
            }
            let record: hoist::timeline::PullReport =
                serde_json::from_str(&daemon.body("/pulls/1.json")).unwrap();
            assert_eq!(record.layers.len(), 2);
            let samples = |report: &hoist::timeline::PullReport| {
                report.layers[1].phase(hoist::timeline::Phase::Download).unwrap().samples.clone()
            };
            let sampled: u64 = samples(&record).unwrap().bytes.iter().sum();
            assert_eq!(sampled, layers[1].blob.len() as u64, "{life}");
            let listed: Vec<hoist::timeline::PullReport> =
                serde_json::from_str(&daemon.body("/pulls.json?limit=5")).unwrap();
            assert_eq!((listed.len(), samples(&listed[0])), (1, None), "{life}");
            let trace: serde_json::Value =
                serde_json::from_str(&daemon.body("/pulls/1.trace.json")).unwrap();
            assert!(trace["traceEvents"].as_array().unwrap().len() > 10, "{life}");
            assert!(daemon.body("/hoist.css").contains(".waterfall"));
            assert_eq!(daemon.get("/pulls/2").0, 404);
            by_command_line(&daemon, &image);
            daemon.crash_and_restart();
        }
    })
    .await;
}

fn by_command_line(daemon: &Daemon, image: &str) {
    let drawn = daemon.told(&["pulls", "show", "1"]);
    for word in [image, "◆", "█", "Bottleneck: ", "What would help:"] {
        assert!(drawn.contains(word), "{word} is not in {drawn}");
    }
    assert!(!drawn.contains('\x1b'), "no colours where there is no terminal");
    let json: hoist::timeline::PullReport =
        serde_json::from_str(&daemon.told(&["pulls", "show", "1", "--json"])).unwrap();
    assert_eq!(json.image, image);
    assert!(daemon.told(&["pulls", "1"]).contains("Bottleneck: "));
    assert!(daemon.told(&["pulls"]).contains(image));
    daemon.told(&["pulls", "show", "1", "--svg", "a.svg", "--trace", "a.json"]);
    let svg = std::fs::read_to_string(daemon.home.path().join("a.svg")).unwrap();
    roxmltree::Document::parse(&svg).unwrap();
    let trace = std::fs::read_to_string(daemon.home.path().join("a.json")).unwrap();
    assert!(trace.contains("traceEvents"));
    watched(daemon, image);
    let unknown = daemon.hoist(&["pulls", "show", "7"]);
    assert_eq!(unknown.status.code(), Some(3));
}

/// `hoist pulls --watch` says each change once, and Ctrl-C is its proper end.
fn watched(daemon: &Daemon, image: &str) {
    let mut watch = daemon.command(&["pulls", "--watch"]);
    let mut watch = watch.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut out = std::io::BufReader::new(watch.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert!(line.starts_with(image) && line.contains("pull 1  done after"), "{line}");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(watch.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGINT).unwrap();
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

/// While it runs: the list shows how far it is, and its own page is live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_under_way_is_shown() {
    let server = FaultyRegistry::start().await;
    let image = push(&server, "v1", &[Layer::of("zstd", "one", noise("one", 1 << 20))]);
    stall_in_layers(&server);
    blocking(move || {
        let daemon = Daemon::start("", &serde_json::json!({}));
        let mut pull = daemon.command(&["pull", "--snapshots", "--quiet", &image]).spawn().unwrap();
        let began = std::time::Instant::now();
        while !daemon.body("/").contains("0 of 1 layers, 5") {
            assert!(began.elapsed().as_secs() < 60, "{}", daemon.body("/"));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(daemon.body("/").contains("<progress"));
        let page = daemon.body("/pulls/1");
        assert!(page.contains("data-live=\"1\"") && page.contains("Bottleneck so far"), "{page}");
        drawing(&page);
        assert!(daemon.told(&["pulls", "show", "1"]).contains("running"));
        pull.kill().unwrap();
        pull.wait().unwrap();
        let cancelled = || daemon.body("/").contains(">cancelled<");
        while !cancelled() {
            assert!(began.elapsed().as_secs() < 60, "{}", daemon.body("/"));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    })
    .await;
}
