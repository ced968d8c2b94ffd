//! The pages in a real browser: headless Chromium, driven over its DevTools protocol on two pipes.
//!
//! With HOIST_SCREENSHOTS=DIR each page that is looked at is left there as a picture, for people.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::daemon::{Daemon, blocking};
use super::faulty_registry::FaultyRegistry;
use super::harness::{loudly, must, prepare, skipped};
use super::images::{Layer, noise, push, stall_in_layers};

/// A browser with one page.
struct Browser {
    child: Child,
    to: File,
    from: BufReader<File>,
    session: Option<String>,
    number: u64,
    /// Events that came while an answer was waited for.
    events: Vec<Value>,
    _home: tempfile::TempDir,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Browser {
    /// `None`, said loudly, where there is no Chromium.
    fn open(test: &str) -> Option<Self> {
        if prepare("browser").is_none() {
            skipped(test, "no Chromium could be had (see above)");
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        let (to, from) = (home.path().join("to"), home.path().join("from"));
        must(Command::new("mkfifo").args([&to, &from]));
        // --no-sandbox: Chromium has none for root. It is shown our own pages and nothing else.
        let script = "exec setpriv --pdeathsig KILL -- chromium --headless --no-sandbox --disable-gpu --disable-quic \
                      --no-first-run --disable-background-networking --disable-component-update --disable-sync \
                      --remote-debugging-pipe --user-data-dir=\"$1/profile\" 3<\"$1/to\" 4>\"$1/from\"";
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(home.path()).stdin(Stdio::null());
        let log = File::create(home.path().join("log")).unwrap();
        let child = shell.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        // In the order in which the shell opens them: each waits for its other end.
        let to = File::options().write(true).open(to).unwrap();
        let from = BufReader::new(File::open(from).unwrap());
        let mut browser =
            Self { child, to, from, session: None, number: 0, events: Vec::new(), _home: home };
        let page = browser.ask("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": page["targetId"], "flatten": true });
        let session = browser.ask("Target.attachToTarget", attach);
        browser.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Network", "Runtime", "Log"] {
            browser.ask(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// The next message, whatever it is.
    fn hear(&mut self) -> Value {
        let mut message = Vec::new();
        self.from.read_until(0, &mut message).unwrap();
        assert_eq!(message.pop(), Some(0), "Chromium has ended");
        serde_json::from_slice(&message).unwrap()
    }

    /// A command, and its result.
    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let heard = self.hear();
            if heard["id"] == self.number {
                assert!(heard["error"].is_null(), "{method}: {heard}");
                return heard["result"].clone();
            }
            self.events.push(heard);
        }
    }

    /// What a script in the page gives.
    fn run(&mut self, script: &str) -> Value {
        let params = json!({ "expression": script, "returnByValue": true, "awaitPromise": true });
        let answer = self.ask("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{script}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Loads a page, as wide as that and in this colour scheme.
    fn look(&mut self, url: &str, width: u32, scheme: &str) {
        let metrics =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.ask("Emulation.setDeviceMetricsOverride", metrics);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.ask("Emulation.setEmulatedMedia", json!({ "features": features }));
        self.events.clear();
        self.ask("Page.navigate", json!({ "url": url }));
        self.wait_for_load();
    }

    /// Waits until a page has loaded, of which the events are there since it was asked for.
    fn wait_for_load(&mut self) {
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let heard = self.hear();
            self.events.push(heard);
        }
    }

    /// Waits until a script in the page gives `true`; `told` says what is wrong where it does not.
    fn until(&mut self, script: &str, told: impl Fn() -> String) {
        let began = std::time::Instant::now();
        while self.run(script) != true {
            assert!(began.elapsed().as_secs() < 60, "{script}: {}", told());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    fn press(&mut self, key: &str, code: u32, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let key = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            self.ask("Input.dispatchKeyEvent", key);
        }
    }

    /// Everything that was asked for since the page was loaded, and whatever the browser complained of.
    fn asked_and_complaints(&self) -> (Vec<String>, Vec<&Value>) {
        let named = |name: &'static str| self.events.iter().filter(move |e| e["method"] == name);
        let asked = named("Network.requestWillBeSent")
            .map(|event| event["params"]["request"]["url"].as_str().unwrap().to_owned());
        let complaints = named("Log.entryAdded").chain(named("Runtime.exceptionThrown"));
        (asked.collect(), complaints.collect())
    }

    /// Leaves a picture of the whole page, where one is wanted.
    fn picture(&mut self, name: &str) {
        let Some(directory) = std::env::var_os("HOIST_SCREENSHOTS") else { return };
        let height = self.run("Math.min(document.documentElement.scrollHeight, 1500)");
        let width = self.run("innerWidth");
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
        let params = json!({ "clip": clip, "captureBeyondViewport": true });
        let shot = self.ask("Page.captureScreenshot", params);
        let path = std::path::Path::new(&directory).join(format!("{name}.png"));
        let picture = BASE64_STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        std::fs::write(path, picture).unwrap();
    }
}

/// What each page has to be, however it is looked at; gives the colour of the paper.
fn is_well(browser: &mut Browser, origin: &str) -> String {
    let (asked, complaints) = browser.asked_and_complaints();
    assert!(complaints.is_empty(), "{complaints:?}");
    let own = |url: &String| url.starts_with(origin) || url.starts_with("data:");
    assert!(asked.iter().all(own), "nothing comes from elsewhere: {asked:?}");
    for file in ["/hoist.css", "/hoist.js"] {
        assert!(asked.contains(&format!("{origin}{file}")), "{asked:?}");
    }
    let overflow = browser.run("document.documentElement.scrollWidth - innerWidth");
    assert!(overflow.as_i64().unwrap() <= 0, "it is {overflow} pixels wider than its window");
    // The contrast of text and paper, by the formula of WCAG 2.
    let contrast = browser.run(
        "(() => { const light = colour => { const [r, g, b] = colour.match(/\\d+/g).map(v => { v /= 255; \
         return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; }; \
         const paper = light(getComputedStyle(document.body).backgroundColor); \
         return Math.min(...[...document.querySelectorAll('body, a, .dim, .done, .failed, th, dt, figcaption')].map(e => { \
         const ink = light(getComputedStyle(e).color); \
         return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); })); })()",
    );
    assert!(contrast.as_f64().unwrap() >= 4.5, "a contrast of {contrast}");
    let paper = browser.run("getComputedStyle(document.body).backgroundColor");
    paper.as_str().unwrap().to_owned()
}

/// What has the keyboard.
fn focused(browser: &mut Browser) -> String {
    let text = browser.run("document.activeElement.textContent.trim().slice(0, 60)");
    text.as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_of_200_layers_in_a_browser() {
    const LAYERS: usize = 200;
    let server = FaultyRegistry::start().await;
    let layers: Vec<_> = (0..LAYERS)
        .map(|i| {
            let name = format!("file{i}");
            Layer::of(["gzip", "zstd"][i % 2], &name, noise(&name, 1000 + 977 * (i % 7)))
        })
        .collect();
    let image = push(&server, "v1", &layers);
    blocking(move || {
        let Some(mut browser) = Browser::open("a_pull_of_200_layers_in_a_browser") else { return };
        let daemon = Daemon::start("", &json!({}));
        daemon.told(&["pull", "--snapshots", "--quiet", &image]);
        let origin = format!("http://{}", daemon.address);
        let mut papers = std::collections::BTreeSet::new();
        for (width, scheme) in [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")] {
            browser.look(&format!("{origin}/pulls/1"), width, scheme);
            papers.insert(is_well(&mut browser, &origin));
            let rows = "document.querySelectorAll('[aria-labelledby=layers] tbody tr').length";
            assert_eq!(browser.run(rows), LAYERS);
            let drawn = browser.run(
                "(() => { const box = document.querySelector('figure > svg.waterfall, figure svg[role=img]')\
                 .getBoundingClientRect(); return [box.width, box.height]; })()",
            );
            assert!(drawn[0].as_f64().unwrap() > 300.0 && drawn[1].as_f64().unwrap() > 1000.0);
            let took = browser.run("performance.getEntriesByType('navigation')[0].loadEventEnd");
            let painted = browser.run(
                "new Promise(done => new PerformanceObserver(list => done(list.getEntries().at(-1).startTime))\
                 .observe({ type: 'paint', buffered: true }))",
            );
            loudly(&format!("{LAYERS} layers, {width} pixels, {scheme}: loaded after {took} ms, painted after {painted} ms"));
            browser.picture(&format!("pull-{width}-{scheme}"));
            browser.look(&format!("{origin}/"), width, scheme);
            papers.insert(is_well(&mut browser, &origin));
            browser.picture(&format!("pulls-{width}-{scheme}"));
        }
        assert_eq!(papers.len(), 2, "light and dark: {papers:?}");
        by_keyboard(&mut browser, &image);
    })
    .await;
}

/// From the list to a pull and back, without a mouse.
fn by_keyboard(browser: &mut Browser, image: &str) {
    let tab = |browser: &mut Browser| {
        browser.press("Tab", 9, "");
        let visible = "(() => { const e = document.activeElement, box = e.getBoundingClientRect(); \
                       return box.right > 0 && box.bottom > 0 && getComputedStyle(e).outlineStyle !== 'none'; })()";
        assert_eq!(browser.run(visible), true, "what has the keyboard is seen");
        focused(browser)
    };
    assert_eq!(tab(browser), "Skip to the content");
    browser.press("Enter", 13, "\r");
    assert_eq!(browser.run("document.activeElement.id"), "main");
    assert_eq!(tab(browser), *image, "the first pull comes next");
    browser.events.clear();
    browser.press("Enter", 13, "\r");
    browser.wait_for_load();
    assert_eq!(browser.run("location.pathname"), "/pulls/1");
    for expected in ["Skip to the content", "Pulls", "Metrics", "JSON", "Trace events"] {
        assert_eq!(tab(browser), expected);
    }
}

/// The page changes with the pull, and is not loaded again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_lives_in_a_browser() {
    let server = FaultyRegistry::start().await;
    let image = push(&server, "v1", &[Layer::of("zstd", "one", noise("one", 1 << 20))]);
    stall_in_layers(&server);
    blocking(move || {
        let Some(mut browser) = Browser::open("a_page_lives_in_a_browser") else { return };
        let daemon = Daemon::start("", &json!({}));
        let origin = format!("http://{}", daemon.address);
        browser.look(&format!("{origin}/"), 1280, "light");
        browser.run("window.stays = 'the same document'");
        let mut pull = daemon.command(&["pull", "--snapshots", "--quiet", &image]).spawn().unwrap();
        let page = || daemon.body("/");
        browser.until("document.querySelector('progress')?.value > 400000", page);
        pull.kill().unwrap();
        pull.wait().unwrap();
        browser.until("document.querySelector('tbody .dim')?.textContent === 'cancelled'", page);
        browser.until("document.querySelector('progress') === null", page);
        assert_eq!(browser.run("window.stays"), "the same document");
        drop(daemon);
        let gone = "document.getElementById('gone').hidden === false";
        browser.until(gone, || "the page does not say that hoistd has gone".to_owned());
    })
    .await;
}
