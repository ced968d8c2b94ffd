//! Parts that helpers make, each held against what zlib-rs makes of the whole.

use std::io::Write as _;

use flate2::write::DeflateEncoder;
use proptest::prelude::*;

use super::inflater::Inflater;
use super::markers::{Failure, WINDOW};
use super::search::{self, Start};
use super::*;
use crate::budget::Budget;
use crate::compression::pool::{Tools, Work as _};
use crate::compression::tests::deflate::content;
use crate::compression::tests::text;
use crate::sys::inflate::{Inflate, crc32};

/// A deflate stream; it is flushed after each so many bytes.
fn deflate(data: &[u8], level: u32, flush: usize) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), flate2::Compression::new(level));
    for part in data.chunks(flush.max(1)) {
        encoder.write_all(part).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

/// Where a block that seems to begin at `start` has its content, if a block begins there: the serial
/// decoder says.
fn truth(stream: &[u8], start: Start) -> Option<usize> {
    let (mut inflate, mut out, mut at) = (Inflate::new(), vec![0; 100_000], 0);
    let mut rest = &stream[..start.byte()];
    loop {
        let step = inflate.inflate(rest, &mut out).unwrap();
        (rest, at) = (&rest[step.taken..], at + step.written);
        if step.taken == 0 && step.written == 0 {
            break;
        }
    }
    let (unused, header) = inflate.boundary()?;
    start.is_at(start.byte() * 8 - unused as usize, header).then_some(at)
}

/// The parts between blocks that do begin where they seem to, `size` bytes apart: how many there are.
/// Each has to come out as `whole` has it.
fn check(stream: &[u8], whole: &[u8], size: usize, inflater: &mut Inflater) -> usize {
    let mut memory = Memory::new(Pool::new(2, Budget::new(1 << 30), 256 << 20));
    memory.ask(256 << 20);
    assert_eq!(memory.granted(), 256 << 20);
    let parts: Vec<&[u8]> = stream.chunks(size).collect();
    let mut checked = 0;
    for (number, pair) in parts.windows(2).enumerate() {
        let (Some(start), Some(stop)) = (search::first(pair[0]), search::first(pair[1])) else {
            continue;
        };
        let base = number * size;
        let begins = truth(stream, start.behind(base));
        let ends = truth(stream, stop.behind(base + size));
        let promise = memory.lender().promise(64 << 20).unwrap();
        let result = inflater.run(pair[0], pair[1], (start, stop), promise);
        let (Some(begins), Some(ends)) = (begins, ends) else {
            assert!(begins.is_none() || result.is_err(), "it has ended where no block begins");
            continue;
        };
        if begins < WINDOW {
            continue;
        }
        let inflated = result.unwrap_or_else(|failure| panic!("{failure:?} at {base}"));
        assert_eq!(inflated.count, ends - begins);
        let placed = inflated.place(&known(whole, begins));
        // By the stream's own thread and by a helper in turn.
        let by_helper = checked % 2 == 1;
        let made = if by_helper { Made::Resolved(placed.resolve()) } else { Made::Placed(placed) };
        check_made(made, whole, begins..ends);
        checked += 1;
    }
    checked
}

/// The window before `at`.
fn known(whole: &[u8], at: usize) -> Known {
    Known::last(Bytes::copy_from_slice(&whole[..at])).expect("there are 32 KiB before")
}

/// That a part has these bytes of the whole, the CRC with them, and the window behind them.
fn check_made(mut made: Made, whole: &[u8], range: std::ops::Range<usize>) {
    assert!(made.behind().bytes()[..] == whole[range.end - WINDOW..range.end], "{range:?}: window");
    let (mut bytes, mut crc) = (Vec::new(), crc32(0, &whole[..range.start]));
    while let Some(piece) = made.next(&mut crc) {
        bytes.extend_from_slice(&piece);
    }
    assert!(bytes == whole[range.clone()], "{range:?}: bytes");
    assert_eq!(crc, crc32(0, &whole[..range.end]), "{range:?}: checksum");
}

/// What does not compress: stored blocks.
fn noise(len: usize) -> Vec<u8> {
    let mut x = 1_u64;
    let mut byte = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    };
    (0..len).map(|_| byte()).collect()
}

#[test]
fn parts_come_out_as_the_whole_has_them() {
    let mut inflater = Inflater::new();
    let words = text(400_000);
    // What is far behind is copied over and over: markers never end.
    let again = text(9_000).repeat(40);
    let noise = noise(500_000);
    let mixed = [&noise[..200_000], &words[..300_000], &noise[..200_000]].concat();
    for (data, level, flush, size) in [
        (&words, 6, usize::MAX, 40_000),
        (&words, 3, usize::MAX, 40_000),
        (&words, 9, 100_000, 40_000),
        (&words[..60_000].to_vec(), 6, 40, 10_000),
        (&again, 6, 10_000, 2_000),
        (&noise, 6, usize::MAX, 140_000),
        (&mixed, 6, usize::MAX, 150_000),
        (&words, 0, usize::MAX, 140_000),
    ] {
        let stream = deflate(data, level, flush);
        let checked = check(&stream, data, size, &mut inflater);
        let parts = stream.len() / size;
        assert!(
            checked > 0 && checked * 2 >= parts.saturating_sub(4),
            "{checked} of {parts}, {size} each"
        );
    }
}

#[test]
fn helpers_resolve_what_is_placed_before_they_begin_anything_else() {
    const SIZE: usize = 40_000;
    let words = text(1_500_000);
    let stream = deflate(&words, 6, usize::MAX);
    let mut memory = Memory::new(Pool::new(2, Budget::new(1 << 30), 256 << 20));
    memory.ask(256 << 20);
    assert_eq!(memory.granted(), 256 << 20);
    let line = Line::new(memory.lender(), 1, None);
    for (number, bytes) in stream.chunks(SIZE).enumerate() {
        line.push(Part::new((number * SIZE) as u64, Bytes::copy_from_slice(bytes)));
    }
    let mut tools = Tools::default();
    let mut help = || Ticket::new(&line).run(&mut tools);
    // The front part and the one behind it are the stream's own; two helpers come.
    assert!(help() && help());
    for _ in 0..2 {
        assert!(line.pop().unwrap().claim());
    }
    let at =
        |part: &Part| truth(&stream, part.start().unwrap().behind(part.base as usize)).unwrap();
    let begins = at(&line.front().unwrap());
    let before = known(&words, begins);
    let (mut placed, mut behind) = (0, before.clone());
    line.place(&mut placed, &mut behind);
    assert_eq!(placed, 2, "both are told what comes before them");
    assert!(help(), "one of them is resolved");
    let first = line.pop().unwrap().take(&before).unwrap();
    assert!(matches!(first, Made::Resolved(_)));
    let middle = at(&line.front().unwrap());
    let second = line.pop().unwrap().take(first.behind()).unwrap();
    assert!(matches!(second, Made::Placed(_)), "nobody has come to resolve it");
    let ends = at(&line.front().unwrap());
    assert!(behind.bytes() == known(&words, ends).bytes());
    check_made(first, &words, begins..middle);
    check_made(second, &words, middle..ends);
}

#[test]
fn a_block_is_found_at_every_bit() {
    let words = text(2_500_000);
    let mut bits = std::collections::BTreeSet::new();
    let stream = deflate(&words, 6, usize::MAX);
    let mut at = 0;
    while let Some(start) = search::first(&stream[at..]) {
        if let Start::Dynamic(bit) = start {
            bits.insert(bit % 8);
        }
        assert!(truth(&stream, start.behind(at)).is_some(), "{start:?} at {at}");
        at += start.byte() + 1;
    }
    assert_eq!(bits.len(), 8);
}

#[test]
fn what_is_no_deflate_is_refused() {
    let words = text(300_000);
    let stream = deflate(&words, 6, usize::MAX);
    let (first, second) = stream.split_at(60_000);
    let (start, stop) = (search::first(first).unwrap(), search::first(second).unwrap());
    let mut memory = Memory::new(Pool::new(2, Budget::new(1 << 30), 256 << 20));
    memory.ask(256 << 20);
    memory.granted();
    let lender = memory.lender();
    let mut inflater = Inflater::new();
    let mut run = |first: &[u8], second: &[u8], stop, bytes| {
        inflater.run(first, second, (start, stop), lender.promise(bytes).unwrap()).err()
    };
    assert_eq!(run(first, second, stop, 64 << 20), None);
    assert_eq!(run(first, second, stop, 512 << 10), Some(Failure::TooMuch));
    let Start::Dynamic(bit) = stop else { panic!("level 6 makes dynamic blocks") };
    assert_eq!(run(first, second, Start::Dynamic(bit - 1), 64 << 20), Some(Failure::NotInStep));
    assert_eq!(run(first, second, Start::Dynamic(bit + 9), 64 << 20), Some(Failure::NotInStep));
    assert!(run(&first[..50_000], &first[..10_000], stop, 64 << 20).is_some());
    // The stream ends before.
    let behind = [second, &[0; 1000]].concat();
    let beyond = Start::Dynamic(second.len() * 8 + 64);
    assert_eq!(run(first, &behind, beyond, 64 << 20), Some(Failure::LastBlock));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parts_of_any_stream(
        data in prop::collection::vec(content(), 1..8),
        times in 1..5_usize,
        level in 0..10_u32,
        flush in prop_oneof![20..300_usize, 300..50_000_usize, Just(usize::MAX)],
        size in 300..30_000_usize,
    ) {
        let data = data.concat().repeat(times);
        check(&deflate(&data, level, flush), &data, size, &mut Inflater::new());
    }

    #[test]
    fn no_bytes_make_a_part_fail_otherwise(
        bytes in prop::collection::vec(any::<u8>(), 0..5_000),
        next in prop::collection::vec(any::<u8>(), 0..500),
        (start, stop) in (0..40_000_usize, 0..4_000_usize),
        stored: (bool, bool),
    ) {
        let place = |stored, bit: usize| if stored { Start::Stored(bit / 8) } else { Start::Dynamic(bit) };
        let start = place(stored.0, start.min(bytes.len() * 8));
        let stop = place(stored.1, stop.min(next.len() * 8));
        let mut memory = Memory::new(Pool::new(2, Budget::new(1 << 30), 64 << 20));
        memory.ask(64 << 20);
        memory.granted();
        let promise = memory.lender().promise(32 << 20).unwrap();
        let _ = search::first(&bytes);
        let _ = Inflater::new().run(&bytes, &next, (start, stop), promise);
    }
}
