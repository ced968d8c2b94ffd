//! Conversions against a simple model of the image specification's rules, with random layers.
//!
//! The model knows paths only: a layer is a list of operations, and the final file system is a map
//! from path to what is there. It shares nothing with `tree`.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::image::{Compression, Sha256};
use crate::layout::Layout;

mod bench;
mod stack;

use bench::{Bench, decompressed, publish, publish_as};
use stack::{Put, archive, linked_alike, model, without_numbers};

fn options(layers: Wish, compression: Compression, dedupe: Dedupe, threads: usize) -> Options {
    let codec = Codec { compression, level: default_level(compression) };
    let puller = Puller { model: crate::model::Model::Containerd, profile: None };
    Options {
        layers,
        puller,
        base: None,
        codec,
        dedupe,
        order: Vec::new(),
        verify: true,
        platform: None,
        threads,
        scratch: std::env::temp_dir(),
    }
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec("[a-c]", 1..4).prop_map(|parts| parts.join("/"))
}

fn put() -> impl Strategy<Value = Put> {
    prop_oneof![
        5 => (path(), 0..3_u8, 0..3000_usize, prop_oneof![Just(0o644), Just(0o4755)])
            .prop_map(|(path, byte, length, mode)| Put::File(path, byte, length / 1000 * 700, mode)),
        2 => (path(), prop_oneof![Just(0o755), Just(0o700)]).prop_map(|(p, mode)| Put::Directory(p, mode)),
        1 => (path(), path()).prop_map(|(path, target)| Put::Symlink(path, target)),
        3 => (path(), path()).prop_map(|(path, old)| Put::Link(path, old)),
        1 => path().prop_map(Put::Whiteout),
        1 => path().prop_map(Put::Opaque),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_stack_of_layers_stays_the_same_file_system(
        layers in proptest::collection::vec(proptest::collection::vec(put(), 0..12), 1..5),
        count in 1..4_usize,
        compression in prop_oneof![Just(Compression::Zstd), Just(Compression::Gzip), Just(Compression::None)],
        dedupe in prop_oneof![Just(Dedupe::Strict), Just(Dedupe::Content), Just(Dedupe::Off)],
    ) {
        let mut layers = layers;
        // Whiteouts of names below a symbolic link mean what the link leads to; not here.
        let expected = model(&mut layers);
        let links = layers.iter().flatten().any(|put| matches!(put, Put::Symlink(..)));
        let hides = layers.iter().flatten().any(|put| matches!(put, Put::Whiteout(_) | Put::Opaque(_)));
        prop_assume!(!(links && hides));
        let bench = Bench::new();
        publish(bench.home.path(), &layers);
        bench.convert("result", &options(Wish::Equal(count), compression, dedupe, 2)).unwrap();
        let found = bench.unpacked("result");
        prop_assert_eq!(without_numbers(&found), without_numbers(&expected));
        prop_assert!(linked_alike(&expected, &found, dedupe == Dedupe::Off));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// The base's layers stay byte for byte, and what is above them makes the same file system.
    #[test]
    fn any_stack_stays_the_same_above_a_base_that_is_kept(
        layers in proptest::collection::vec(proptest::collection::vec(put(), 0..12), 2..5),
        below in 1..4_usize,
        wish in prop_oneof![Just(Wish::Best), Just(Wish::Equal(2))],
        dedupe in prop_oneof![Just(Dedupe::Strict), Just(Dedupe::Off)],
    ) {
        let mut layers = layers;
        let expected = model(&mut layers);
        let links = layers.iter().flatten().any(|put| matches!(put, Put::Symlink(..)));
        let hides = layers.iter().flatten().any(|put| matches!(put, Put::Whiteout(_) | Put::Opaque(_)));
        prop_assume!(!(links && hides));
        let below = below.min(layers.len());
        let bench = Bench::new();
        publish_as("base", bench.home.path(), &layers[..below]);
        publish(bench.home.path(), &layers);
        let mut options = options(wish, Compression::Zstd, dedupe, 2);
        options.base = Some(bench.place("base"));
        bench.convert("result", &options).unwrap();
        let digests = |tag: &str| -> Vec<serde_json::Value> {
            bench.blobs(tag).into_iter().map(|(layer, _)| layer["digest"].clone()).collect()
        };
        prop_assert_eq!(&digests("result")[..below], &digests("base")[..]);
        let found = bench.applied("result");
        prop_assert_eq!(without_numbers(&found), without_numbers(&expected));
        prop_assert!(linked_alike(&expected, &found, dedupe == Dedupe::Off));
        let [_, config] = bench.documents("result");
        let history = config["history"].as_array().unwrap();
        let with_layer = history.iter().filter(|line| line["empty_layer"] != true).count();
        prop_assert_eq!(with_layer, config["rootfs"]["diff_ids"].as_array().unwrap().len());
    }

    /// The archives stay byte for byte, and with them the configuration.
    #[test]
    fn kept_layers_only_change_their_compression(
        layers in proptest::collection::vec(proptest::collection::vec(put(), 0..12), 1..5),
        compression in prop_oneof![Just(Compression::Zstd), Just(Compression::Gzip), Just(Compression::None)],
        threads in 1..5_usize,
    ) {
        let mut layers = layers;
        model(&mut layers);
        let bench = Bench::new();
        publish(bench.home.path(), &layers);
        bench.convert("result", &options(Wish::Keep, compression, Dedupe::Off, threads)).unwrap();
        prop_assert_eq!(bench.documents("result")[1].clone(), bench.documents("source")[1].clone());
        let raw = |tag: &str| -> Vec<Vec<u8>> {
            bench.blobs(tag).into_iter().map(|(layer, blob)| decompressed(&layer, blob)).collect()
        };
        prop_assert_eq!(raw("result"), raw("source"));
    }
}

/// What docs/format.md says, checked without the code that wrote it.
fn check_frames(bench: &Bench, tag: &str) -> usize {
    let mut frames = 0;
    for (layer, blob) in bench.blobs(tag) {
        let text = layer["annotations"]["dev.hoist.frames"].as_str().unwrap().to_owned();
        let reference: crate::compression::frame_table::FrameTableRef = text.parse().unwrap();
        let [offset, size] =
            [reference.offset, reference.size].map(|n| usize::try_from(n).unwrap());
        let bytes = &blob[offset..offset + size];
        let table = crate::compression::frame_table::FrameTable::parse(bytes, &reference).unwrap();
        let (mut at, mut raw) = (0, Vec::new());
        for entry in &table.entries {
            let frame = &blob[at..at + entry.compressed as usize];
            assert_eq!(Sha256::of(frame), entry.digest);
            let content = zstd::bulk::decompress(frame, entry.decompressed as usize).unwrap();
            assert_eq!(content.len(), entry.decompressed as usize);
            raw.extend(content);
            at += frame.len();
        }
        assert!(raw == zstd::decode_all(blob.as_slice()).unwrap(), "the frames are all there is");
        use crate::compression::seek_table::SeekTable;
        let length = SeekTable::length(blob.last_chunk().unwrap()).unwrap();
        let seek = &blob[blob.len() - usize::try_from(length).unwrap()..];
        let seek = SeekTable::parse(seek, blob.len() as u64).unwrap();
        assert_eq!(seek.entries().len(), table.entries.len() + 1);
        frames += table.entries.len();
    }
    frames
}

fn file(path: &str, byte: u8, length: usize) -> Put {
    Put::File(path.to_owned(), byte, length, 0o644)
}

#[test]
fn known_faults_of_other_tools_stay_out() {
    let bench = Bench::new();
    let mut layers = vec![
        vec![file("gone/child", 1, 10), file("opaque/lower", 1, 10), file("deep/a/b", 1, 10)],
        // The entry comes before the whiteout that does not mean it.
        vec![file("opaque/own", 2, 10), Put::Opaque("opaque".into()), Put::Whiteout("gone".into())],
        vec![file("gone/new", 3, 10), file("deep", 3, 10)],
    ];
    let expected = model(&mut layers);
    let names: Vec<_> = expected.keys().map(String::as_str).collect();
    assert_eq!(names, ["deep", "gone", "gone/new", "opaque", "opaque/own"]);
    publish(bench.home.path(), &layers);
    let outcome =
        bench.convert("r", &options(Wish::Equal(2), Compression::Zstd, Dedupe::Strict, 1)).unwrap();
    assert_eq!(without_numbers(&bench.unpacked("r")), without_numbers(&expected));
    assert_eq!(outcome.images[0].hidden_bytes, 30);
}

#[test]
fn equal_digests_with_any_number_of_threads_and_large_files_in_frames() {
    let bench = Bench::new();
    let large = 3 * usize::try_from(produce::FRAME_BYTES).unwrap() + 77;
    let mut layer: Vec<Put> =
        (0..300).map(|n| file(&format!("d{}/f{n}.txt", n % 7), n as u8, 40 * n)).collect();
    layer.push(file("large", 9, large));
    layer.push(file("copy-of-large", 9, large));
    let mut layers = vec![layer, vec![file("large2", 8, large)]];
    let expected = model(&mut layers);
    publish(bench.home.path(), &layers);
    for compression in [Compression::Zstd, Compression::Gzip, Compression::None] {
        let convert = |tag: &str, threads| {
            bench
                .convert(tag, &options(Wish::Equal(3), compression, Dedupe::Strict, threads))
                .unwrap()
        };
        let [one, four] = [convert("one", 1), convert("four", 4)];
        assert_eq!(one.digest, four.digest);
        if compression == Compression::Zstd {
            assert!(check_frames(&bench, "one") > 6);
        }
        let keep = |tag: &str, threads| {
            bench.convert(tag, &options(Wish::Keep, compression, Dedupe::Off, threads)).unwrap()
        };
        assert_eq!(keep("keep-one", 1).digest, keep("keep-four", 4).digest);
        if compression == Compression::Zstd {
            assert!(check_frames(&bench, "keep-one") > 6);
        }
        assert_eq!(one.images[0].deduplicated_bytes, large as u64);
        assert_eq!(without_numbers(&bench.unpacked("one")), without_numbers(&expected));
    }
}

/// The names in the archive of an image's only layer, directories left out, in their order.
fn order_of(bench: &Bench, tag: &str) -> Vec<String> {
    let (layer, blob) = bench.blobs(tag).pop().unwrap();
    let raw = decompressed(&layer, blob);
    let mut archive = tar::Archive::new(raw.as_slice());
    let name = |entry: tar::Entry<'_, _>| entry.path().unwrap().display().to_string();
    let names = archive.entries().unwrap().map(|entry| name(entry.unwrap()));
    names.filter(|name| !name.ends_with('/')).collect()
}

/// Two versions of a package, one inside of another package, as npm has them.
#[test]
fn files_that_are_likely_alike_lie_side_by_side() {
    let bench = Bench::new();
    let names = ["lib/a.js", "lib/b.js", "package.json", "test/a.js"];
    let version = |home: &str, byte| names.map(|name| file(&format!("{home}/p/{name}"), byte, 100));
    let layer = [version("m", 1), version("m/q/m", 2)].concat();
    publish(bench.home.path(), &[layer]);
    bench.convert("r", &options(Wish::Equal(1), Compression::Zstd, Dedupe::Off, 1)).unwrap();
    let expected = ["lib/a.js", "lib/b.js", "test/a.js", "package.json"];
    let both = expected.map(|name| [format!("m/p/{name}"), format!("m/q/m/p/{name}")]);
    assert_eq!(order_of(&bench, "r"), both.concat());
}

#[test]
fn a_plan_is_told_before_it_is_carried_out() {
    let bench = Bench::new();
    publish(bench.home.path(), &[vec![file("a", 1, 9000)], vec![file("b", 2, 9000)]]);
    let options = options(Wish::Equal(2), Compression::Zstd, Dedupe::Off, 1);
    let progress = Arc::new(Progress::default());
    let (source, result) = (bench.place("source"), bench.place("r"));
    let outcome = convert(&source, &result, &options, &bench.reach(), &progress).unwrap();
    let plans = progress.take_plans();
    let [plan] = &plans[..] else { panic!("one image has one plan") };
    assert_eq!(plan.layers, outcome.images[0].planned);
    assert_eq!(plan.before.seconds, outcome.images[0].before.seconds);
    assert!(plan.after.layers.len() == 2 && progress.take_plans().is_empty());
}

#[test]
fn what_an_image_says_of_itself_stays_and_agrees() {
    let bench = Bench::new();
    publish(bench.home.path(), &[vec![file("a", 1, 1)], vec![file("b", 1, 1)]]);
    let outcome =
        bench.convert("r", &options(Wish::Best, Compression::Zstd, Dedupe::Off, 1)).unwrap();
    let layout = Layout::open_directory(bench.home.path()).unwrap();
    let read = |digest| -> serde_json::Value {
        serde_json::from_slice(&layout.document(digest).unwrap()).unwrap()
    };
    let manifest = read(outcome.digest);
    let source = layout.resolve(Some("source")).unwrap().to_string();
    assert_eq!(manifest["annotations"]["dev.hoist.source.digest"], source);
    let config = read(manifest["config"]["digest"].as_str().unwrap().parse().unwrap());
    assert_eq!(config["config"]["Env"][0], "A=b");
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 1);
    let history = config["history"].as_array().unwrap();
    let with_layer = history.iter().filter(|line| line["empty_layer"] != true).count();
    assert_eq!((history.len(), with_layer), (3, 1));
}

#[test]
fn bad_input_leaves_the_destination_as_it_was() {
    let listing = |bench: &Bench| {
        let blobs = fs::read_dir(bench.home.path().join("blobs/sha256")).unwrap().count();
        let index = fs::read(bench.home.path().join("index.json")).unwrap();
        (blobs, index, fs::read_dir(bench.home.path()).unwrap().count())
    };
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil); 4] = [
        ("the size", |blob| fs::write(blob, &fs::read(blob).unwrap()[..40]).unwrap()),
        ("the size", |blob| fs::write(blob, [fs::read(blob).unwrap(), vec![0]].concat()).unwrap()),
        ("the digest", |blob| {
            let mut bytes = fs::read(blob).unwrap();
            // Inside the only file's name: an archive all the same.
            bytes[1] ^= 1;
            bytes[148..156].copy_from_slice(b"        ");
            let sum: u32 = bytes[..512].iter().map(|&b| u32::from(b)).sum();
            bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            fs::write(blob, bytes).unwrap();
        }),
        ("does not have", |blob| fs::remove_file(blob).unwrap()),
    ];
    for (word, spoil) in cases {
        let bench = Bench::new();
        publish(bench.home.path(), &[vec![], vec![file("name", 1, 2000)]]);
        let archive = archive(&[file("name", 1, 2000)]);
        let digest = Sha256::of(&archive).hex();
        spoil(&bench.home.path().join("blobs/sha256").join(digest));
        let before = listing(&bench);
        let options = options(Wish::Best, Compression::Zstd, Dedupe::Off, 2);
        let error = bench.convert("r", &options).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
        assert_eq!(listing(&bench), before, "{word}");
    }
}

#[test]
fn differences_are_found_and_told() {
    let bench = Bench::new();
    publish(
        bench.home.path(),
        &[vec![file("a", 1, 1), file("b", 1, 5), Put::Link("c".into(), "b".into())]],
    );
    bench.convert("other", &options(Wish::Equal(1), Compression::Zstd, Dedupe::Off, 1)).unwrap();
    publish(
        bench.home.path(),
        &[vec![file("a", 2, 1), file("c", 1, 5), file("b", 1, 5), file("d", 0, 0)]],
    );
    let (first, second) = (bench.place("other"), bench.place("source"));
    let progress = Arc::new(Progress::default());
    let platform: Platform = "linux/amd64".parse().unwrap();
    let diff = |a, b| diff([a, b], &platform, 2, &bench.reach(), &progress).unwrap();
    assert_eq!(diff(&first, &first), []);
    let found: Vec<_> = diff(&first, &second).iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("/a: content sha256:"), "{found:?}");
    assert!(found[1].starts_with("/c: it is one file in the first with /b"), "{found:?}");
    assert_eq!(found[2], "/d: only in the second");
}

#[test]
fn an_analysis_finds_what_is_in_vain() {
    let bench = Bench::new();
    publish(
        bench.home.path(),
        &[
            vec![file("usr/lib/a", 1, 1000), file("usr/b", 1, 1000), file("usr/gone", 2, 300)],
            vec![Put::Whiteout("usr/gone".into()), file("etc/c", 1, 1000), file("usr/d", 3, 50)],
        ],
    );
    let platform: Platform = "linux/amd64".parse().unwrap();
    let puller = Puller { model: crate::model::Model::Containerd, profile: None };
    let progress = Arc::new(Progress::default());
    let place = bench.place("source");
    let found = analyze(&place, &platform, &puller, 2, &bench.reach(), &progress).unwrap();
    assert_eq!((found.hidden_bytes, found.content_bytes, found.duplicate_bytes), (300, 3050, 1000));
    let hidden: Vec<_> = found.layers.iter().map(|layer| layer.hidden_bytes).collect();
    assert_eq!(hidden, [300, 0]);
    let first = &found.directories[0];
    assert_eq!((first.path.as_str(), first.bytes, first.files), ("/usr", 2050, 3));
    let equal = &found.duplicates[..];
    assert_eq!(equal.len(), 1, "what is below /etc stays apart: {equal:?}");
    assert_eq!((equal[0].count, equal[0].saved_bytes), (2, 1000));
    assert!(found.seconds > 0.0 && found.remedies.len() >= 3);
    assert!(found.remedies.windows(2).all(|two| two[0].seconds <= two[1].seconds));
    let convert = format!("hoist convert {place} DESTINATION --target containerd");
    assert!(found.remedies.iter().any(|remedy| remedy.command == convert));
}
