//! How many instructions the works of a layer take that are our own, counted by valgrind's callgrind and held against a
//! bound each: seconds say nothing on a machine that others use, a count is the same on every run.
//!
//! The works are small, fixed and done in memory: reading tar entries, finding where zstd and gzip streams can be cut,
//! and the way of a layer's bytes from the decoder through the parser. The build is the tests' own, in which `hoist` is
//! not optimised: the counts are no measure of speed, but a copy, an allocation or a pass too many shows in them.
//!
//! What differs between processors is left out of the count: C code and the crates that ask the processor what it can do.
//! What they are called for stays, and so do the C library's copies and allocations, which `GLIBC_TUNABLES` makes the
//! same everywhere. To see where a count comes from, run with `HOIST_COUNTS_KEPT=DIR` and `callgrind_annotate DIR/WORK`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "the counts, for who runs it with --nocapture")]

#[path = "harness/skipped.rs"]
mod skipped;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use hoist::archive::{Event, Parser};
use hoist::compression::{self, Decoded, Resources, decoder};
use hoist::image::Compression;
use skipped::skipped;

/// What a count may be above its bound's origin, in per cent: what another patch level of the compiler changes.
const LEEWAY_PERCENT: u64 = 3;

/// Tells this program, run again by callgrind, which work to do.
const WORK: &str = "HOIST_COUNTED_WORK";

/// Bytes between two stages of a pull.
const PIECE_BYTES: usize = 512 << 10;

/// A work's name, how it is prepared, and its instructions.
type Listed = (&'static str, fn() -> Work, [u64; 2]);

/// Instructions of each work when its bounds were set: of Rust, and of the C library, which are copies and allocations.
/// Who makes a work cheaper lowers its numbers with it.
const WORKS: [Listed; 4] = [
    ("tar", tar_entries, [136_319_000, 10_946_000]),
    ("zstd-frames", zstd_frames, [3_859_000, 466_000]),
    ("gzip-members", gzip_members, [1_616_000, 1_211_000]),
    ("layer", layer, [13_669_000, 3_732_000]),
];

/// The C library chooses its copies by what the processor has; without all this it is the same everywhere.
const PLAIN_COPIES: &str = "glibc.cpu.hwcaps=-AVX_Fast_Unaligned_Load,-AVX512VL,-AVX512F,-AVX2,-AVX,-ERMS,-FSRM,-RTM,\
    -SSSE3,-SSE4_1,-SSE4_2";

/// Whose instructions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Rust,
    C,
}

/// Instructions by function.
type Counts = BTreeMap<(Kind, String), u64>;

/// Something prepared, to be done once, that says how much it found.
struct Work {
    run: Box<dyn FnOnce() -> usize>,
    finds: usize,
}

/// Its name is what callgrind counts in: with what is called from here, and nothing else.
#[inline(never)]
fn counted_work(run: Box<dyn FnOnce() -> usize>) -> usize {
    black_box(run())
}

/// Each work does what it says; and where callgrind runs this program, it finds the work here.
#[test]
fn every_work_finds_what_is_there() {
    let wanted = std::env::var(WORK).ok();
    for (name, prepare, _) in WORKS {
        if wanted.as_deref().is_none_or(|wanted| wanted == name) {
            let work = prepare();
            assert_eq!(counted_work(work.run), work.finds, "{name}");
        }
    }
}

#[test]
fn instructions_stay_within_their_bounds() {
    if let Err(error) = Command::new("valgrind").arg("--version").output() {
        return skipped(
            "instructions_stay_within_their_bounds",
            &format!("valgrind does not run: {error}"),
        );
    }
    let counted = std::thread::scope(|scope| {
        let count = |(name, _, origin)| scope.spawn(move || (name, count(name), origin));
        let threads: Vec<_> = WORKS.into_iter().map(count).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let mut broken = Vec::new();
    for (name, counts, origins) in counted {
        for (kind, origin) in [Kind::Rust, Kind::C].into_iter().zip(origins) {
            let mut of_kind: Vec<_> = counts.iter().filter(|((k, _), _)| *k == kind).collect();
            let count: u64 = of_kind.iter().map(|(_, count)| **count).sum();
            let change = (count as f64 / origin as f64 - 1.0) * 100.0;
            let told =
                format!("{name}, {kind:?}: {count} instructions, {change:+.1} % of {origin}");
            println!("{told}");
            if count > origin + origin * LEEWAY_PERCENT / 100 {
                of_kind.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
                let most = of_kind.iter().take(12);
                let most = most.map(|((_, name), count)| format!("\n    {count:>10}  {name}"));
                broken.push(format!("{told}; most in{}", most.collect::<String>()));
            }
        }
    }
    assert!(broken.is_empty(), "more than {LEEWAY_PERCENT} % above:\n{}", broken.join("\n"));
}

/// Runs this program under callgrind for one work; the functions that count, with their instructions.
fn count(work: &str) -> Counts {
    let scratch = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("HOIST_COUNTS_KEPT");
    let out = kept.as_ref().map_or(scratch.path(), Path::new).join(work);
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*counted_work*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "every_work_finds_what_is_there"])
        .env(WORK, work)
        .env("GLIBC_TUNABLES", PLAIN_COPIES)
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&ran.stderr).into_owned() + &String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{work} under valgrind: {said}");
    let counts = read_counts(&std::fs::read_to_string(out).unwrap());
    assert!(!counts.is_empty(), "callgrind has counted nothing for {work}: {said}");
    counts
}

/// Whose a function is, if its instructions are the same on every processor.
fn kind(function: &str, object: &str) -> Option<Kind> {
    // These choose their code by the processor.
    const BY_PROCESSOR: [&str; 4] = ["memchr::", "zlib_rs::", "sha2::", "std_detect::"];
    if object.contains("/libc.so") {
        return Some(Kind::C);
    }
    // C has no paths in its names.
    let rust = function.contains("::") && !BY_PROCESSOR.iter().any(|room| function.contains(room));
    rust.then_some(Kind::Rust)
}

/// Reads callgrind's profile: instructions of each function itself, those it calls not included.
///
/// ```text
/// ob=(1) /usr/lib/libc.so.6        a name, with a number that stands for it later
/// fn=(7) hoist::archive::parser    whose lines follow:
/// 18 4                             line, instructions
/// cfn=(9) core::str                what it calls: the next two lines are
/// calls=3 12                       how often, and
/// 18 300                           what that took in all, which is not its own
/// ```
fn read_counts(profile: &str) -> Counts {
    let mut names: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    let (mut object, mut function) = ("", "");
    let (mut counted, mut called) = (Counts::new(), false);
    for line in profile.lines() {
        if let Some((key, value)) = line.split_once('=') {
            called |= key == "calls";
            let kind = match key {
                "ob" | "cob" => "object",
                "fn" | "cfn" => "function",
                _ => continue,
            };
            let (number, name) = value.split_once(' ').unwrap_or((value, ""));
            if !name.is_empty() {
                names.insert((kind, number), name);
            }
            let name = names[&(kind, number)];
            match key {
                "ob" => object = name,
                "fn" => function = name,
                _ => {}
            }
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let own: u64 = line.split(' ').nth(1).unwrap().parse().unwrap();
            if std::mem::take(&mut called) {
                continue;
            }
            if let Some(kind) = kind(function, object) {
                *counted.entry((kind, function.to_owned())).or_default() += own;
            }
        }
    }
    counted
}

/// An archive as builders make them: files of up to `longest` bytes, directories, links, names too long for one header.
fn archive(entries: usize, longest: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let content = text(longest);
    for number in 0..entries {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_size(0);
        let dir = format!("usr/lib/python3/dist-packages/package_{:03}", number / 16);
        match number % 16 {
            0 => {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, format!("{dir}/"), std::io::empty()).unwrap();
            }
            1 => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, format!("{dir}/link"), "module_02.py").unwrap();
            }
            rest => {
                let content = &content[..longest * (number % 97 + 3) / 100];
                header.set_size(content.len() as u64);
                let long = if rest == 2 {
                    "a_directory_with_quite_a_long_name/".repeat(6)
                } else {
                    String::new()
                };
                let name = format!("{dir}/{long}module_{rest:02}.py");
                builder.append_data(&mut header, name, content).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

/// Bytes that compress about as source code does.
fn text(length: usize) -> Vec<u8> {
    let mut state = length as u64 + 1;
    let words =
        ["import ", "self.", "return ", "for ", "in ", "value", "(", "):\n    ", "name", "0x"];
    let mut made = Vec::with_capacity(length + 8);
    while made.len() < length {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        made.extend_from_slice(words[(state >> 33) as usize % words.len()].as_bytes());
    }
    made.truncate(length);
    made
}

/// The pieces of something in memory.
fn pieces(whole: Vec<u8>, size: usize) -> impl FnMut() -> std::io::Result<Option<Bytes>> {
    let mut rest = Bytes::from(whole);
    move || Ok((!rest.is_empty()).then(|| rest.split_to(size.min(rest.len()))))
}

/// Reads all entries and their data, and returns how many things came.
fn parse(source: impl FnMut() -> std::io::Result<Option<Bytes>>) -> (usize, usize) {
    let (mut parser, mut entries, mut bytes) = (Parser::new(source), 0, 0);
    while let Some(event) = parser.next().unwrap() {
        match event {
            Event::Entry(_) => entries += 1,
            Event::Data { bytes: piece, .. } => bytes += piece.len(),
        }
    }
    (entries, bytes)
}

fn tar_entries() -> Work {
    let source = pieces(archive(1600, 8 << 10), PIECE_BYTES);
    Work { run: Box::new(move || parse(source).0), finds: 1600 }
}

/// Finds the ends of frames, most of them small and some of several blocks.
fn zstd_frames() -> Work {
    let frame = |size| zstd::bulk::compress(&text(size), 3).unwrap();
    let (small, large) = (frame(20 << 10), frame(300 << 10));
    let stream = [small.repeat(9), large].concat().repeat(100);
    cut(Compression::Zstd, stream)
}

/// Finds where members begin and end, as in an eStargz layer.
fn gzip_members() -> Work {
    let member = |size| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&text(size)).unwrap();
        encoder.finish().unwrap()
    };
    let stream = [member(1000).repeat(6), member(30_000)].concat().repeat(200);
    cut(Compression::Gzip, stream)
}

fn cut(compression: Compression, stream: Vec<u8>) -> Work {
    let finds = stream.len();
    let run = move || {
        let segments = compression::segments(compression, &stream);
        assert!(segments.len() > 3, "{}", segments.len());
        segments.iter().map(|segment| segment.compressed).sum()
    };
    Work { run: Box::new(run), finds }
}

/// The way of a layer's bytes up to the writers: pieces from the network, decoded into buffers, read as an archive.
fn layer() -> Work {
    let blob = zstd::bulk::compress(&archive(160, 128 << 10), 1).unwrap();
    let input = Box::new(pieces(blob, 64 << 10));
    let mut decoder = decoder(Compression::Zstd, input, Resources::serial()).unwrap();
    let source = move || {
        let mut buffer = vec![0; PIECE_BYTES];
        Ok(match decoder.read(&mut buffer)? {
            Decoded::Filled(count) => Some(Bytes::from(buffer).slice(..count)),
            Decoded::Piece(piece) => Some(piece),
            Decoded::End => None,
        })
    };
    Work { run: Box::new(move || parse(source).0), finds: 160 }
}
