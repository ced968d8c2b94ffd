//! A layer of one gzip member, inflated by several threads on a guess.

use hoist::compression::Speculation;
use hoist::timeline::Phase;

use super::*;

/// Text that compresses to a third, of which no line comes twice.
fn text(bytes: usize) -> Vec<u8> {
    let mut x = 11_u32;
    let mut text = Vec::with_capacity(bytes + 16);
    while text.len() < bytes {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.extend_from_slice(format!("{:x} of {}\n", x >> 12, x % 7).as_bytes());
    }
    text
}

/// Pulls the image, and says what of the layer's files came and how many helpers there were.
async fn pulled(server: &FaultyRegistry, speculation: Speculation) -> (Vec<String>, usize) {
    let engine = Engine::guessing(speculation);
    let pulling = engine.puller.start(&format!("{}/some/image:tag", server.host), None).unwrap();
    let watched = engine.budget.clone();
    let watch = tokio::spawn(async move {
        loop {
            assert!(watched.in_use() <= watched.total());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let trees = pulling.trees().await.unwrap();
    watch.abort();
    assert!(!watch.await.is_err_and(|error| error.is_panic()), "more was held than there is");
    let helpers = engine.pool.threads();
    let report = pulling.recorder().report();
    assert_eq!(report.state, PullState::Done);
    assert_eq!(report.bytes(Phase::Download), report.size());
    engine.store.merge(&trees).unwrap();
    let to = engine.directory.path().join("to");
    let files = ["a", "b/first", "b/second"].iter().map(|name| read(&to.join(name))).collect();
    drop((pulling, trees));
    eventually("the budget is free", || engine.budget.in_use() == 0).await;
    (files, helpers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_member_comes_out_the_same_by_helpers_that_guess() {
    let server = FaultyRegistry::start().await;
    let text = text(24 << 20);
    let (a, first, second) =
        (&text[..5_000_000], &text[5_000_000..20_000_000], &text[20_000_000..]);
    let archive = tar(&[("a", a), ("b/", b""), ("b/first", first), ("b/second", second)]);
    push(&server, "tag", &[Layer::new("gzip", &archive)]);
    let (alone, helpers) = pulled(&server, Speculation::Off).await;
    assert_eq!(helpers, 0, "nobody helps with a single member");
    assert!(alone[0].as_bytes() == a && alone[1].as_bytes() == first);
    let (guessed, helpers) = pulled(&server, Speculation::On).await;
    assert!(helpers > 0, "nobody was asked to help");
    assert!(guessed == alone);
}

/// A layer that is damaged is refused with the words of the serial decoder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_told_as_ever() {
    let server = FaultyRegistry::start().await;
    let mut layer = Layer::new("gzip", &tar(&[("a", &text(12 << 20))]));
    let end = layer.blob.len();
    layer.blob[end - 6] ^= 1;
    push(&server, "tag", &[layer]);
    let mut told = Vec::new();
    for speculation in [Speculation::Off, Speculation::On] {
        let engine = Engine::guessing(speculation);
        let name = format!("{}/some/image:tag", server.host);
        let error = engine.puller.start(&name, None).unwrap().trees().await.unwrap_err();
        told.push(format!("{error:?}"));
        engine.is_clean(0).await;
    }
    assert!(told[0].contains("incorrect data check"), "{told:?}");
    assert_eq!(told[0], told[1]);
}
