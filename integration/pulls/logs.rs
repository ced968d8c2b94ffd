//! The log of pulls: one line each, as text or as JSON, and further lines that say which pull and layer they are about.

use serde_json::Value;

use super::daemon::{Daemon, blocking};
use super::faulty_registry::{FaultyRegistry, Reply};
use super::images::{Layer, noise, push};

/// What a daemon logs of two pulls, one of them twice as its connection breaks; after "ready".
async fn log(log: &'static str) -> (String, [String; 2]) {
    let server = FaultyRegistry::start().await;
    let layer = |name: &str| Layer::of("zstd", name, noise(name, 200_000));
    let images = ["one", "two"].map(|name| push(&server, name, &[layer(name)]));
    let broken = hoist::image::Sha256::of(&layer("two").blob).hex();
    let first = std::sync::atomic::AtomicBool::new(true);
    server.script(move |request, reply| {
        let breaks = request.path.ends_with(&broken)
            && first.swap(false, std::sync::atomic::Ordering::SeqCst);
        Reply { reset_after: breaks.then_some(1000), ..reply }
    });
    let pulled = images.clone();
    let logged = blocking(move || {
        let daemon = Daemon::start(&format!("[log]\n{log}"), &serde_json::json!({}));
        for image in &pulled {
            daemon.told(&["pull", "--snapshots", "--quiet", image]);
        }
        let began = std::time::Instant::now();
        while daemon.log().matches("pull ended").count() < pulled.len() {
            assert!(began.elapsed().as_secs() < 60, "{}", daemon.log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        daemon.log()
    })
    .await;
    (logged, images)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_has_one_line_a_pull() {
    let (logged, images) = log("level = \"info\"").await;
    let (_, after) = logged.split_once(" ready\n").expect("it says when it is ready");
    let lines: Vec<&str> = after.lines().filter(|line| line.contains(" INFO ")).collect();
    assert_eq!(lines.len(), images.len(), "{after}");
    for (line, image) in lines.iter().zip(&images) {
        assert!(line.contains("pull ended") && line.contains(image.as_str()), "{line}");
        assert!(line.contains("result=\"done\"") && line.contains("bottleneck="), "{line}");
    }
    assert!(!logged.contains('\x1b'), "the journal has its own colours");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_has_one_object_a_line_with_pull_and_layer() {
    let (logged, images) = log("level = \"debug\"\nformat = \"json\"").await;
    let lines: Vec<Value> = logged
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let ended: Vec<&Value> = lines.iter().filter(|line| line["message"] == "pull ended").collect();
    assert_eq!(ended.len(), images.len(), "{logged}");
    for (line, image) in ended.iter().zip(&images) {
        assert_eq!(
            (&line["level"], &line["image"]),
            (&"INFO".into(), &Value::from(image.as_str()))
        );
        assert!(line["download_seconds"].is_f64() && line["seconds"].is_f64(), "{line}");
        let report: hoist::timeline::PullReport =
            serde_json::from_str(line["report"].as_str().unwrap()).unwrap();
        assert_eq!(report.image, *image);
    }
    // What is told of the broken body says of which pull and layer it was.
    let spans = |line: &Value, name: &str, key: &str| {
        let spans = line["spans"].as_array().cloned().unwrap_or_default();
        spans.into_iter().find(|span| span["name"] == name).map(|span| span[key].clone())
    };
    let of_layer = lines.iter().find(|line| line["message"] == "another try follows");
    let of_layer = of_layer.unwrap_or_else(|| panic!("no other try in {logged}"));
    assert_eq!(spans(of_layer, "pull", "id"), Some(2.into()), "{of_layer}");
    let blob = spans(of_layer, "layer", "blob").unwrap();
    assert!(blob.as_str().unwrap().starts_with("sha256:"), "{of_layer}");
}
