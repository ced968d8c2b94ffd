//! Whatever is decoded on a guess comes out as the serial decoder has it. `PROPTEST_CASES=100000`
//! makes a soak of it.

use proptest::prelude::*;

use super::super::cut::Sizes;
use super::ahead::{cases, source};
use super::deflate::{content, damage, damaged, member};
use super::*;
use crate::budget::Budget;

const LENT_BYTES: u64 = 64 << 20;

/// With parts so small that a stream of some KiB has many.
fn pool_of(threads: usize, budget: &Budget, part: usize) -> Pool {
    let sizes = Sizes { part, ..Sizes::DEFAULT };
    Pool::with(threads, budget.clone(), LENT_BYTES, Duration::from_millis(20), sizes)
}

fn pool(threads: usize, part: usize) -> Pool {
    pool_of(threads, &Budget::new(256 << 20), part)
}

fn guessing(pool: &Pool) -> Resources {
    Resources { pool: Some(pool.clone()), speculation: Speculation::On, ..Resources::serial() }
}

/// All bytes, and how many of them helpers have made.
fn guess(
    pool: &Pool,
    stream: &[u8],
    piece: usize,
    room: usize,
) -> Result<(Vec<u8>, usize), CompressionError> {
    let input = source(stream, &[piece], false);
    read_all(decoder(Compression::Gzip, input, guessing(pool)).unwrap(), room)
}

/// Data of some hundreds of KiB, so that members have many blocks and windows.
fn large() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(content(), 1..6), 1..12_usize)
        .prop_map(|(parts, times)| parts.concat().repeat(times))
}

/// What an error says but for where it is: pieces are not cut alike.
fn said(error: &CompressionError) -> String {
    match error {
        CompressionError::Corrupt { what, .. } => format!("corrupt: {what}"),
        other => other.to_string(),
    }
}

fn same_as_serial(pool: &Pool, stream: &[u8], piece: usize, room: usize) {
    let serial = decode(Compression::Gzip, stream, piece, room);
    let guessed = guess(pool, stream, piece, room);
    match (serial, guessed) {
        (Ok(serial), Ok((guessed, _))) => assert!(serial == guessed),
        (Err(serial), Err(guessed)) => assert_eq!(said(&serial), said(&guessed)),
        (serial, guessed) => panic!("{:?}, {:?}", serial.err(), guessed.err()),
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn any_members_in_any_pieces(
        members in prop::collection::vec((large(), 0..10u32, 0..16u8), 1..4),
        sizes in prop::collection::vec(1_usize..60_000, 1..4),
        room in 1_usize..200_000,
        part in prop_oneof![200_usize..5_000, 5_000_usize..60_000],
        threads in 2..5_usize,
        halting: bool,
    ) {
        let stream: Vec<u8> =
            members.iter().flat_map(|(data, level, fields)| member(data, *level, *fields)).collect();
        let whole: Vec<u8> = members.into_iter().flat_map(|(data, ..)| data).collect();
        let pool = pool(threads, part);
        let input = source(&stream, &sizes, halting);
        let decoder = decoder(Compression::Gzip, input, guessing(&pool)).unwrap();
        let (bytes, _) = read_all(decoder, room).unwrap();
        prop_assert!(bytes == whole);
    }

    #[test]
    fn any_damage_is_as_the_serial_decoder_has_it(
        (data, level, fields) in (large(), 0..10u32, 0..16u8),
        damage in damage(),
        part in 200_usize..20_000,
        piece in 1..50_000_usize,
        room in 1..100_000_usize,
    ) {
        let stream = damaged(member(&data, level, fields), damage);
        same_as_serial(&pool(3, part), &stream, piece, room);
    }
}

/// Decodes it until helpers have made something of it, which a busy machine may not let them at once.
fn guessed(pool: &Pool, stream: &[u8], whole: &[u8]) -> usize {
    for _ in 0..200 {
        let (bytes, guessed) = guess(pool, stream, 100_000, 50_000).unwrap();
        assert!(bytes == whole);
        if guessed > 0 {
            return guessed;
        }
    }
    0
}

#[test]
fn helpers_make_parts_of_a_member() {
    for (whole, flushes) in [(text(3_000_000), 0), (sample(2_000_000), 8), (text(2_000_000), 8)] {
        let stream = member(&whole, 6, flushes);
        for threads in [2, 4] {
            assert!(guessed(&pool(threads, 64 << 10), &stream, &whole) > 0);
        }
    }
}

#[test]
fn blocks_inside_of_stored_blocks_are_none() {
    let inner = member(&text(400_000), 6, 0);
    let archive = [&inner[..], b"between", &inner].concat().repeat(3);
    let stream = member(&archive, 0, 0);
    for part in [5_000, 30_000, 100_000] {
        let (bytes, _) = guess(&pool(3, part), &stream, 10_000, 50_000).unwrap();
        assert!(bytes == archive);
    }
}

#[test]
fn a_flipped_bit_is_found_by_the_checksum_of_the_whole() {
    let whole = text(1_500_000);
    let stream = member(&whole, 6, 0);
    let pool = pool(4, 32 << 10);
    for (from_end, what) in
        [(6, "corrupt: incorrect data check"), (2, "corrupt: incorrect length check")]
    {
        let mut stream = stream.clone();
        let at = stream.len() - from_end;
        stream[at] ^= 1;
        for _ in 0..5 {
            let error = guess(&pool, &stream, 100_000, 50_000).unwrap_err();
            assert_eq!(said(&error), what);
        }
    }
}

#[test]
fn what_is_held_is_bounded_and_returns() {
    let whole = text(6_000_000);
    let stream = member(&whole, 6, 0);
    let budget = Budget::new(256 << 20);
    let pool = pool_of(4, &budget, 64 << 10);
    let input = source(&stream, &[100_000], false);
    let mut decoder = decoder(Compression::Gzip, input, guessing(&pool)).unwrap();
    let (mut kept, mut all, mut out) = (Vec::new(), 0, vec![0; 100_000]);
    loop {
        match decoder.read(&mut out).unwrap() {
            Decoded::Filled(count) => all += count,
            Decoded::Piece(bytes) => {
                all += bytes.len();
                // Pieces that nobody drops are memory that does not come back.
                kept.push(bytes);
            }
            Decoded::End => break,
        }
        assert!(budget.in_use() <= LENT_BYTES);
    }
    assert_eq!(all, whole.len());
    drop((decoder, kept));
    let from = std::time::Instant::now();
    while (budget.in_use(), pool.lent().in_use()) != (0, 0) {
        assert!(from.elapsed() < Duration::from_secs(20), "memory is left");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_stream_without_memory_is_decoded_serially() {
    let whole = text(1_000_000);
    let budget = Budget::new(256 << 20);
    let _taken = budget.try_reserve(256 << 20).unwrap();
    let pool = pool_of(3, &budget, 16 << 10);
    let (bytes, guessed) = guess(&pool, &member(&whole, 6, 0), 100_000, 50_000).unwrap();
    assert!(bytes == whole);
    assert_eq!(guessed, 0);
}

#[test]
fn a_broken_source_is_told_after_what_had_arrived() {
    let whole = text(1_000_000);
    let stream = member(&whole, 6, 0);
    let source = breaking(source(&stream[..stream.len() / 2], &[30_000], false));
    let decoder = decoder(Compression::Gzip, source, guessing(&pool(3, 20_000))).unwrap();
    let all = before_it_breaks(decoder, 100_000);
    assert!(all > whole.len() / 3, "{all}");
}

#[test]
fn it_is_chosen_for_large_streams_on_idle_threads() {
    let whole = text(2_000_000);
    let stream = member(&whole, 6, 0);
    let decode = |pool: &Pool, compressed_bytes, speculation, times| {
        for _ in 0..times {
            let resources = Resources { speculation, compressed_bytes, ..guessing(pool) };
            let input = source(&stream, &[100_000], false);
            let decoder = decoder(Compression::Gzip, input, resources).unwrap();
            let (bytes, guessed) = read_all(decoder, 50_000).unwrap();
            assert!(bytes == whole);
            if guessed > 0 {
                return true;
            }
        }
        false
    };
    let (four, three) = (pool(4, 64 << 10), pool(3, 64 << 10));
    let large = 64 << 20;
    // Helpers may not come at once; who is not asked never does.
    assert!(decode(&four, large, Speculation::Auto, 200));
    assert!(!decode(&four, large, Speculation::Off, 3));
    assert!(!decode(&four, 2_000_000, Speculation::Auto, 3), "it is small");
    assert!(!decode(&three, large, Speculation::Auto, 3), "there are not enough threads");
    let _other = four.enter();
    assert!(!decode(&four, large, Speculation::Auto, 3), "another stream needs one of them");
}
