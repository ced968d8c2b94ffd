//! Layers that are not what the image promises, and registries that do not serve them.

use hoist::image::DiffId;
use hoist::pull::trees::TreeStore as _;

use super::faulty_registry::Request;
use super::layers::TAR;
use super::*;

/// What goes wrong, and what the error has to name.
struct Fault {
    name: &'static str,
    layer: Layer,
    script: fn(&Request, Reply) -> Reply,
    integrity: bool,
    says: Vec<String>,
}

fn faults() -> Vec<Fault> {
    let archive = tar(&[("a", b"content of a"), ("b", &[7; 100_000])]);
    let proper: fn(&Request, Reply) -> Reply = |_, reply| reply;
    let good = || Layer::new("gzip", &archive);
    let digest = |layer: &Layer| Sha256::of(&layer.blob).to_string();
    let mut faults = Vec::new();
    let mut add = |name, layer: Layer, script, integrity, says: Vec<String>| {
        faults.push(Fault { name, layer, script, integrity, says });
    };
    let flip: fn(&Request, Reply) -> Reply = |request, mut reply| {
        if request.is_blob() && reply.body.len() > 120 {
            *reply.body.last_mut().unwrap() ^= 1;
        }
        reply
    };
    let plain = Layer::new("none", &archive);
    let mut flipped = plain.blob.clone();
    *flipped.last_mut().unwrap() ^= 1;
    add("another byte, plain", plain.clone(), flip, true, vec![digest(&plain)]);
    add("another byte, gzip", good(), flip, true, vec![digest(&good())]);
    let wrong = Layer { diff_id: DiffId(Sha256::of(b"another archive")), ..good() };
    let says = vec![Sha256::of(&archive).to_string(), wrong.diff_id.to_string(), digest(&wrong)];
    add("another DiffID", wrong, proper, true, says);
    for form in ["gzip", "zstd"] {
        let garbage =
            Layer { blob: b"this was never compressed".repeat(9), ..Layer::new(form, &archive) };
        add("garbage", garbage.clone(), proper, true, vec![digest(&garbage), form.to_owned()]);
        let mut cut = Layer::new(form, &archive);
        cut.blob.truncate(cut.blob.len() - 9);
        add("cut off before it was pushed", cut.clone(), proper, true, vec![digest(&cut)]);
    }
    let short = Layer { size: Some(good().blob.len() as u64 + 1), ..good() };
    let says =
        vec![digest(&short), good().blob.len().to_string(), (good().blob.len() + 1).to_string()];
    add("shorter than the descriptor says", short, proper, true, says);
    let long = Layer { size: Some(good().blob.len() as u64 - 1), ..good() };
    let says = vec![digest(&long), (good().blob.len() - 1).to_string()];
    add("longer than the descriptor says", long, proper, true, says);
    let bomb = Layer::new("gzip", &tar(&[("zeros", &vec![0; 8 << 20])]));
    add("a bomb", bomb.clone(), proper, true, vec![digest(&bomb), (4 << 20).to_string()]);
    let odd = Layer { media_type: format!("{TAR}+lz4"), ..good() };
    add(
        "a media type of tomorrow",
        odd.clone(),
        proper,
        false,
        vec![digest(&odd), "tar+lz4".to_owned()],
    );
    let gone: fn(&Request, Reply) -> Reply = |request, reply| {
        if request.is_blob() && reply.body.len() > 120 { Reply::new(404, "") } else { reply }
    };
    add("not there", good(), gone, false, vec![digest(&good())]);
    let down: fn(&Request, Reply) -> Reply = |request, reply| {
        if request.is_blob() && reply.body.len() > 120 { Reply::new(503, "") } else { reply }
    };
    add(
        "down for longer than the retries",
        good(),
        down,
        false,
        vec![digest(&good()), "503".to_owned()],
    );
    faults
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_told_and_leaves_nothing() {
    for fault in faults() {
        let name = fault.name;
        let server = FaultyRegistry::start().await;
        let plan = push(&server, "tag", std::slice::from_ref(&fault.layer));
        server.script(fault.script);
        let engine = Engine::with(64 << 20, 4 << 20);
        let error = match engine.claim(&server, &plan, 0, &[]).await {
            Err(error) => error,
            Ok(tree) => panic!("{name}: a tree at {}", tree.tree.path.display()),
        };
        let text = error.to_string();
        assert_eq!(error.is_integrity(), fault.integrity, "{name}: {text}");
        for word in fault.says {
            assert!(text.contains(&word), "{name}: {word} is not in {text:?}");
        }
        engine.is_clean(0).await;
        assert!(engine.store.find(plan.layers[0].diff_id).unwrap().is_empty(), "{name}");
    }
}
