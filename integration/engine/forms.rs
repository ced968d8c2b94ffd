//! Layers in the forms that tools give them: windows of every size, members and frames.

use std::io::Write as _;

use super::*;

/// An archive of `bytes` of text, or a little more.
fn text(bytes: usize) -> Vec<u8> {
    let text = (0_u32..).map(|i| format!("{i} {:x}, ", i.wrapping_mul(0x9E37_79B9)));
    let text: String = text.take(bytes / 10).collect();
    tar(&[("text", text.as_bytes())])
}

fn windowed(log: u32, archive: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(log).unwrap();
    encoder.write_all(archive).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_window_is_paid_for_or_refused() {
    let server = FaultyRegistry::start().await;
    let archive = text(1 << 20);
    // Two ordinary layers beside it: the one with the large window waits for them, not they for it.
    let layers = [
        Layer::large("zstd", "one", 1 << 20),
        Layer::made("zstd", &archive, windowed(25, &archive)),
        Layer::large("gzip", "two", 1 << 20),
    ];
    push(&server, "tag", &layers);
    let image = format!("{}/some/image:tag", server.host);
    let engine = Engine::with(96 << 20, 1 << 30);
    let pulling = engine.puller.start(&image, None).unwrap();
    let trees = pulling.trees().await.unwrap();
    assert_eq!(trees.len(), 3);
    drop((pulling, trees));
    eventually("the budget is free", || engine.budget.in_use() == 0).await;

    // Half of this budget is less than the window: containerd may try.
    let engine = Engine::with(48 << 20, 1 << 30);
    let pulling = engine.puller.start(&image, None).unwrap();
    let error = pulling.trees().await.unwrap_err();
    assert!(!error.is_integrity(), "{error}");
    assert!(error.to_string().contains("a window of 33554432 bytes"), "{error}");
    assert!(error.to_string().contains("limits.memory_budget"), "{error}");
    drop(pulling);
    eventually("the budget is free", || engine.budget.in_use() == 0).await;
}

/// What `command` makes of `archive`.
fn piped(command: &[&str], archive: &[u8]) -> Vec<u8> {
    let mut child = std::process::Command::new(command[0])
        .args(&command[1..])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}, from integration/testbed/install: {error}"));
    let mut input = child.stdin.take().unwrap();
    let archive = archive.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&archive));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{command:?}");
    output.stdout
}

/// Each tool's layer comes whole; those that can be cut are decoded by helpers too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_of_real_tools_come_whole() {
    let archive = text(12 << 20);
    let cases: [(&str, bool, &[&str]); 6] = [
        ("zstd", false, &["zstd", "-q", "-c"]),
        ("zstd", true, &["pzstd", "-q", "-1", "-p", "2", "-c"]),
        ("gzip", true, &["bgzip", "-c"]),
        ("gzip", false, &["pigz", "-c"]),
        ("gzip", false, &["pigz", "-i", "-c"]),
        ("gzip", false, &["gzip", "-c"]),
    ];
    let server = FaultyRegistry::start().await;
    let mut layers: Vec<_> = cases
        .map(|(form, cut, tool)| {
            (format!("{tool:?}"), cut, Layer::made(form, &archive, piped(tool, &archive)))
        })
        .into();
    // cat one.gz two.gz …, as eStargz has a member for each file of an archive.
    let members = archive.chunks(300_000).flat_map(|part| piped(&["gzip", "-c"], part)).collect();
    layers.push(("gzip members".to_owned(), true, Layer::made("gzip", &archive, members)));
    for (name, cut, layer) in layers {
        // A pull each, so that no helper is left of another.
        let engine = Engine::new();
        push(&server, "tag", &[layer]);
        let pulling =
            engine.puller.start(&format!("{}/some/image:tag", server.host), None).unwrap();
        let trees = pulling.trees().await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(engine.pool.threads() > 0, cut, "{name}");
        drop((pulling, trees));
        eventually("the budget is free", || engine.budget.in_use() == 0).await;
    }
}
