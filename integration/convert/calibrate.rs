//! Profiles: measured on this host, derived from hoistd's records, and seen by serving.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::harness::containerd::eventually;
use crate::harness::link::Link;
use crate::harness::{Generation, House, free_port, must};
use crate::hoist;

/// What is measured is a profile that the other commands take, and nothing of it stays on the disk.
#[test]
fn a_calibrated_profile_is_taken_by_the_others() {
    let Some(house) = House::open("a_calibrated_profile_is_taken_by_the_others") else { return };
    let (image, disk) = (house.registry.image("python:gzip"), house.scratch.path().join("disk"));
    std::fs::create_dir(&disk).unwrap();
    let profile = house.scratch.path().join("profile.toml").display().to_string();
    let directory = disk.display().to_string();
    must(&mut hoist(
        &house,
        &["calibrate", "--image", &image, "--dir", &directory, "-o", &profile],
    ));
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 0);
    let rates = read(Path::new(&profile)).rates;
    assert!(rates.extract.0 > 1e5 && rates.download.0 > 1e5 && rates.per_file.0 > 0.0, "{rates:?}");
    let told = must(&mut hoist(&house, &["simulate", &image, "--profile", &profile, "--json"]));
    assert!(told.contains("calibrated with"), "{told}");
    let analyze = ["analyze", &image, "--profile", &profile, "--target", "fargate", "--quiet"];
    let page = house.scratch.path().join("page.html").display().to_string();
    let told = must(hoist(&house, &analyze).args(["--html", &page]));
    for word in ["hoist convert", "--target fargate", "Largest directories", "/usr"] {
        assert!(told.contains(word), "{word} in {told}");
    }
    assert!(std::fs::read_to_string(&page).unwrap().contains("<code>hoist convert"));
}

fn read(profile: &Path) -> hoist::model::Profile {
    let text = std::fs::read_to_string(profile).unwrap();
    hoist::model::Profile::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A daemon that has not pulled says so; one that has tells its rates.
#[test]
fn recorded_pulls_make_a_profile() {
    let name = "recorded_pulls_make_a_profile";
    let Some(house) = House::open(name) else { return };
    let hoistd = house.hoistd("");
    let Some(containerd) = house.containerd(Generation::Two, &hoistd, name) else { return };
    let socket = hoistd.home().join("control.sock").display().to_string();
    let profile = house.scratch.path().join("profile.toml");
    let output = profile.display().to_string();
    let asked = ["calibrate", "--from-daemon", "--control-socket", &socket, "-o", &output];
    let none = hoist(&house, &asked).output().unwrap();
    let text = String::from_utf8_lossy(&none.stderr);
    assert_eq!(none.status.code(), Some(3), "{text}");
    assert!(text.contains("0 pulls") && text.contains("hoist pull --snapshots"), "{text}");
    let image = house.registry.image("python:gzip");
    containerd.pull(&image);
    let ask = || {
        let told = hoist(&house, &asked).output().unwrap();
        (told.status.success(), String::from_utf8_lossy(&told.stderr).into_owned())
    };
    // The record is closed a moment after the last snapshot.
    eventually("the pull is recorded", || ask().0, || hoistd.log());
    let (_, text) = ask();
    assert!(text.contains("gzip layers of 1 pulls"), "{text}");
    let rates = read(&profile).rates;
    assert!(rates.extract.0 > 1e5 && rates.download.0 > 1e5, "{rates:?}");
    let core = rates.per_core.expect("the stages of a pull are known");
    assert!(core.0 > 1e5 && core.0 <= rates.extract.0, "{rates:?}");
    assert!(rates.connections > 1 && rates.piece.0 > 0.0, "{rates:?}");
    must(&mut hoist(&house, &["simulate", &image, "--profile", &output]));
}

/// Bytes a second of the link, and of each connection: two connections do not fill it, three do.
const LINK: u32 = 30_000_000;
const CONNECTION: u32 = 12_500_000;

/// A figure that was shaped may be missed by this part: the kernel's buckets and ours are coarse, and the machine is
/// shared.
const MISSED_MOST: f64 = 0.25;

/// A hoist that serves, ended by its id where a test fails.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        // It has ended by itself where all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Stock containerd pulls variants of an image over a link whose figures are known, and they are found again.
#[test]
fn a_link_of_known_figures_is_found_again() {
    let name = "a_link_of_known_figures_is_found_again";
    let Some(house) = House::open(name) else { return };
    let Some(link) = Link::shaped(name, LINK) else { return };
    let hoistd = house.hoistd("");
    let Some(containerd) = house.containerd_behind(&link, &hoistd, name) else { return };
    let home = house.scratch.path();
    let source = house.registry.image("tree:gzip");
    let layout = |tag: &str| format!("oci:{}:{tag}", home.join("app").display());
    for layers in ["5", "1"] {
        let options = ["--layers", layers, "--dedupe", "off", "--no-verify", "--quiet"];
        let destination = layout(layers);
        must(&mut hoist(&house, &[&["convert", &source, &destination], &options[..]].concat()));
    }
    let address = format!("127.0.0.1:{}", free_port());
    let (profile, picture) = (home.join("profile.toml"), home.join("pulls.svg"));
    let mut serve = hoist(&house, &["calibrate", "--serve", &address, &layout("5"), &layout("1")]);
    serve.args(["--pulls", "2", "-o"]).arg(&profile).arg("--svg").arg(&picture);
    let log = home.join("serve.log");
    let serve = serve.stdin(Stdio::null()).stderr(std::fs::File::create(&log).unwrap()).spawn();
    let mut serve = Serving(serve.unwrap());
    let patience = Instant::now();
    while TcpStream::connect(&address).is_err() {
        let told = std::fs::read_to_string(&log).unwrap();
        assert!(patience.elapsed() < Duration::from_secs(60), "it does not serve: {told}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let behind = link.lead_to(&address, CONNECTION);
    let hosts = house.registry.hosts().join(&behind);
    std::fs::create_dir_all(&hosts).unwrap();
    std::fs::write(
        hosts.join("hosts.toml"),
        format!("server = \"http://{behind}\"\n[host.\"http://{behind}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"),
    )
    .unwrap();
    for tag in ["5", "1"] {
        containerd.pull_reference(&format!("{behind}/app:{tag}"));
        ended(&address, &format!("app:{tag}"));
    }
    let status = serve.0.wait().unwrap();
    let told = std::fs::read_to_string(&log).unwrap();
    assert!(status.success(), "{told}");
    let rates = read(&profile).rates;
    let near = |found: f64, known: u32| (found / f64::from(known) - 1.0).abs() < MISSED_MOST;
    assert!(near(rates.download.0, LINK), "{rates:?}\n{told}");
    let each = rates.per_connection.unwrap_or_else(|| panic!("{rates:?}\n{told}"));
    assert!(near(each.0, CONNECTION), "{rates:?}\n{told}");
    // containerd's own number.
    assert_eq!(rates.downloads, Some(3), "{told}");
    assert!(told.contains("one layer after the other") && told.contains("from 2 pulls"), "{told}");
    assert!(rates.extract.0 > 1e5, "{rates:?}");
    let drawn = std::fs::read_to_string(&picture).unwrap();
    roxmltree::Document::parse(&drawn).unwrap();
    assert_eq!(drawn.matches("class=\"speed\"").count(), 6, "{drawn}");
    let path = profile.display().to_string();
    let simulated =
        must(&mut hoist(&house, &["simulate", "--layer-sizes", "50MB", "--profile", &path]));
    assert!(simulated.contains("containerd"), "{simulated}");
}

/// Says that a pull has ended.
fn ended(address: &str, name: &str) {
    let mut socket = TcpStream::connect(address).unwrap();
    write!(socket, "GET /ended/{name} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("noted\n"), "{answer}");
}
