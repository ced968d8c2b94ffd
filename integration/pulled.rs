//! `hoist` and `hoistd` alone with a real registry and real images: what a pull takes, and what is told of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;

use hoist::image::Sha256;
use serde_json::Value;

use harness::process::status;
use harness::{Hoistd, House, must};

/// The least that `limits.memory_budget` may be.
const BUDGET: u64 = 96 << 20;

/// The most memory that the process `id` has had, in bytes.
fn most_memory(id: u32) -> u64 {
    status(&format!("/proc/{id}/status"), "VmHWM").unwrap() * 1024
}

/// `hoist` with the configuration of `hoistd`; what it printed, as JSON.
fn json(hoistd: &Hoistd, arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hoist"));
    command.arg("--config").arg(hoistd.config()).args(arguments).arg("--json");
    let told = must(command.env_remove("HOIST_CONFIG").env("TMPDIR", hoistd.home()));
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{arguments:?}: {error}:\n{told}"))
}

/// Bytes that went through a phase in all layers of a report.
fn bytes(report: &Value, phase: &str) -> u64 {
    let layers = report["layers"].as_array().unwrap().iter();
    let phases = layers.flat_map(|layer| layer["phases"].as_array().unwrap());
    phases
        .filter(|found| found["phase"] == phase)
        .map(|found| found["bytes"].as_u64().unwrap())
        .sum()
}

/// The budget is a promise about the whole process, with ten percent for what an allocator keeps. The release build keeps
/// it. A development build is another program with larger code, whose pages count while they are in use: what it has
/// before it pulls anything is allowed on top.
#[test]
fn a_pull_stays_within_the_memory_budget() {
    let Some(house) = House::open("a_pull_stays_within_the_memory_budget") else { return };
    for (form, backend) in [("gzip", "overlay"), ("none", "erofs")] {
        let home = house.scratch.path().join(form);
        let settings =
            format!("[limits]\nmemory_budget = \"96MiB\"\n[pull]\nbackend = \"{backend}\"");
        let hoistd = Hoistd::start(&home, &house.registry, &settings);
        let idle = most_memory(hoistd.id());
        let bound = BUDGET + BUDGET / 10 + idle;
        let image = house.registry.image(&format!("python:{form}"));
        let report = json(&hoistd, &["pull", "--snapshots", &image]);
        let (fetched, unpacked) = (bytes(&report, "download"), bytes(&report, "decompress"));
        assert!(unpacked > 3 * bound, "{form}: {unpacked} bytes are no proof for {bound}");
        let most = most_memory(hoistd.id());
        assert!(most > idle, "{form}: the pull was not measured");
        assert!(
            most <= bound,
            "{form}: {most} bytes resident, {idle} of them before the pull of {fetched} bytes, {unpacked} unpacked"
        );
    }
}

/// A document of the registry, not asked for through hoist.
fn document(address: &str, path: &str) -> Vec<u8> {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET /v2/{path} HTTP/1.0\r\nAccept: application/vnd.oci.image.manifest.v1+json\r\n\r\n"
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.lines().next().unwrap().contains("200"), "{path}: {head}");
    body.as_bytes().to_vec()
}

/// What the registry itself says of an image.
struct Known {
    image: String,
    manifest: String,
    /// Of each layer from the lowest up: digest, DiffID, ChainID, media type, size.
    layers: Vec<(String, String, String, String, u64)>,
}

impl Known {
    fn of(house: &House, name: &str, tag: &str) -> Self {
        let address = house.registry.address();
        let body = document(address, &format!("{name}/manifests/{tag}"));
        let manifest: Value = serde_json::from_slice(&body).unwrap();
        let config = manifest["config"]["digest"].as_str().unwrap();
        let config = document(address, &format!("{name}/blobs/{config}"));
        let config: Value = serde_json::from_slice(&config).unwrap();
        let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
        let mut chain = String::new();
        let layers = manifest["layers"].as_array().unwrap().iter().zip(diff_ids);
        let layers = layers.map(|(layer, diff_id)| {
            let word = |value: &Value| value.as_str().unwrap().to_owned();
            let diff_id = word(diff_id);
            // As the image specification has it: the ChainID of one layer is its DiffID.
            chain = match chain.as_str() {
                "" => diff_id.clone(),
                below => Sha256::of(format!("{below} {diff_id}").as_bytes()).to_string(),
            };
            let size = layer["size"].as_u64().unwrap();
            (word(&layer["digest"]), diff_id, chain.clone(), word(&layer["mediaType"]), size)
        });
        let layers = layers.collect();
        let manifest = Sha256::of(&body).to_string();
        Self { image: house.registry.image(&format!("{name}:{tag}")), manifest, layers }
    }

    /// Whether the layers of `told` are those of the image, as far as these keys go.
    fn agree(&self, what: &str, told: &Value, keys: &[&str]) {
        let told = told["layers"].as_array().unwrap_or_else(|| panic!("{what} has no layers"));
        assert_eq!(told.len(), self.layers.len(), "{what}");
        for (told, (digest, diff_id, chain_id, media_type, size)) in told.iter().zip(&self.layers) {
            for &key in keys {
                let known = match key {
                    "digest" => digest.as_str().into(),
                    "diff_id" => diff_id.as_str().into(),
                    "chain_id" => chain_id.as_str().into(),
                    "media_type" => media_type.as_str().into(),
                    _ => Value::from(*size),
                };
                assert_eq!(told[key], known, "{what}: {key} of {digest}");
            }
        }
    }

    /// Whether a pull's report is of this image, done.
    fn is_pulled(&self, what: &str, report: &Value) {
        assert_eq!(report["image"], self.image.as_str(), "{what}");
        assert_eq!(report["manifest"], self.manifest.as_str(), "{what}");
        assert_eq!(report["state"]["is"], "done", "{what}");
        self.agree(what, report, &["digest", "diff_id", "media_type", "size"]);
        let size: u64 = self.layers.iter().map(|layer| layer.4).sum();
        assert_eq!(bytes(report, "download"), size, "{what}");
    }
}

/// Every command that prints a table, after real pulls.
#[test]
fn json_says_what_is_known_of_the_image() {
    let Some(house) = House::open("json_says_what_is_known_of_the_image") else { return };
    let hoistd = house.hoistd("");
    let known = Known::of(&house, "python", "zstd");
    let image = known.image.as_str();
    let told = json(&hoistd, &["inspect", image]);
    assert_eq!(
        (&told["image"], &told["manifest"], &told["platform"]),
        (&image.into(), &known.manifest.as_str().into(), &"linux/amd64".into())
    );
    known.agree("inspect", &told, &["digest", "diff_id", "chain_id", "media_type", "size"]);

    let to = hoistd.home().join("to");
    known.is_pulled("pull --to", &json(&hoistd, &["pull", image, "--to", &to.to_string_lossy()]));
    assert_eq!(json(&hoistd, &["ls"]), serde_json::json!([]));
    assert_eq!(json(&hoistd, &["pulls"]), serde_json::json!([]), "the daemon pulled nothing yet");
    known.is_pulled("pull --snapshots", &json(&hoistd, &["pull", image, "--snapshots"]));

    let pulls = json(&hoistd, &["pulls"]);
    assert_eq!(pulls.as_array().unwrap().len(), 1);
    known.is_pulled("pulls", &pulls[0]);
    let id = pulls[0]["id"].to_string();
    known.is_pulled("pulls ID", &json(&hoistd, &["pulls", &id]));
    known.is_pulled("pulls show", &json(&hoistd, &["pulls", "show", &id]));
    are_listed(&json(&hoistd, &["ls"]), &known);
    others_agree(&hoistd, &known, &to);
}

/// The layers that the daemon keeps, as `ls` has them.
fn are_listed(told: &Value, known: &Known) {
    let told = told.as_array().unwrap();
    let listed: BTreeSet<_> = told.iter().map(|tree| tree["diff_id"].as_str().unwrap()).collect();
    let expected: BTreeSet<_> = known.layers.iter().map(|layer| layer.1.as_str()).collect();
    assert_eq!(listed, expected);
    assert_eq!(told.len(), expected.len(), "each once");
    for tree in told {
        assert!(Path::new(tree["path"].as_str().unwrap()).is_dir(), "{tree}");
        assert!(
            tree["bytes"].as_u64().unwrap() > 0 && tree["inodes"].as_u64().unwrap() > 0,
            "{tree}"
        );
        assert_eq!(tree["snapshots"], 0, "{tree}");
    }
}

/// What reads an image without pulling it.
fn others_agree(hoistd: &Hoistd, known: &Known, root: &Path) {
    let image = known.image.as_str();
    let told = json(hoistd, &["simulate", image]);
    let sizes: Vec<_> =
        told["layers"].as_array().unwrap().iter().map(|l| l["bytes"].as_f64()).collect();
    let expected: Vec<_> = known.layers.iter().map(|layer| Some(layer.4 as f64)).collect();
    assert_eq!(sizes, expected);
    assert_eq!(told["predictions"].as_array().unwrap().len(), 3, "one for each puller");

    let told = json(hoistd, &["analyze", image, "--quiet"]);
    known.agree("analyze", &told, &["digest", "size"]);
    let usr = told["directories"].as_array().unwrap().iter().find(|d| d["path"] == "/usr").unwrap();
    // What `pull --to` made of the same image. Names of one file are one file on both sides.
    let files =
        must(Command::new("find").arg(root.join("usr")).args(["-type", "f", "-printf", "%i\n"]));
    let files: BTreeSet<&str> = files.lines().collect();
    assert_eq!(usr["files"].as_u64().unwrap(), files.len() as u64);

    let layout = format!("oci:{}", hoistd.home().join("layout").display());
    // A small one: what is converted is compressed anew, too.
    let small = image.replace("python:zstd", "debian:gzip");
    let told = json(hoistd, &["convert", &small, &layout, "--layers", "2", "--quiet"]);
    let made = json(hoistd, &["analyze", &layout, "--quiet"]);
    let of = |told: &Value, key: &str| -> Vec<Value> {
        told["layers"].as_array().unwrap().iter().map(|layer| layer[key].clone()).collect()
    };
    assert_eq!(of(&told["images"][0], "digest"), of(&made, "digest"));
    assert_eq!(of(&told["images"][0], "size"), of(&made, "size"));
    assert_eq!(of(&made, "size").len(), 2);
}
