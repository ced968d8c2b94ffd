//! Whatever is decoded ahead comes out as the serial decoder has it. `PROPTEST_CASES=100000` makes
//! a soak of it.

use proptest::prelude::*;

use super::super::cut::Sizes;
use super::*;
use crate::budget::Budget;

/// Small, so that streams of some KiB have many segments and some that are too large for one.
const SIZES: Sizes = Sizes {
    target_content: 8 << 10,
    target_compressed: 4 << 10,
    // A frame that does not say its size counts as 128 KiB at least.
    max_content: 200 << 10,
    max_compressed: 64 << 10,
    part: 8 << 10,
};

const LENT_BYTES: u64 = 8 << 20;
const IDLE: Duration = Duration::from_millis(20);

fn pool_of(budget: &Budget) -> Pool {
    Pool::with(3, budget.clone(), LENT_BYTES, IDLE, SIZES)
}

/// Whose helpers stay, however long the machine lets a test wait.
fn staying_pool() -> Pool {
    Pool::with(3, Budget::new(64 << 20), LENT_BYTES, Duration::from_secs(3600), SIZES)
}

fn pool() -> Pool {
    pool_of(&Budget::new(64 << 20))
}

fn with(pool: &Pool) -> Resources {
    Resources { pool: Some(pool.clone()), ..Resources::serial() }
}

/// Pieces of the given sizes, over and over; with `halting`, every other one is not there at once.
pub(super) struct Source {
    data: Bytes,
    sizes: Vec<usize>,
    turn: usize,
    halting: bool,
}

impl Pieces for Source {
    fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        self.turn += 1;
        let size = self.sizes[self.turn % self.sizes.len()].min(self.data.len());
        Ok((!self.data.is_empty()).then(|| self.data.split_to(size)))
    }

    fn ready_piece(&mut self) -> io::Result<Arrival> {
        if self.halting && self.turn.is_multiple_of(2) {
            self.turn += 1;
            return Ok(Arrival::Later);
        }
        Ok(self.next_piece()?.map_or(Arrival::End, Arrival::Piece))
    }
}

pub(super) fn source(data: &[u8], sizes: &[usize], halting: bool) -> Box<Source> {
    let data = Bytes::copy_from_slice(data);
    Box::new(Source { data, sizes: sizes.to_vec(), turn: 0, halting })
}

fn decode_ahead(
    pool: &Pool,
    compression: Compression,
    data: &[u8],
    piece: usize,
) -> Result<(Vec<u8>, usize), CompressionError> {
    read_all(decoder(compression, source(data, &[piece], false), with(pool)).unwrap(), 1000)
}

/// One member or frame: how many bytes, how compressible, how it was made.
#[derive(Clone, Debug)]
struct Unit {
    len: usize,
    seed: u8,
    level: i32,
    /// zstd: whether the header says the size, whether there is a checksum, a skippable frame.
    says: (bool, bool, bool),
}

fn units() -> impl Strategy<Value = Vec<Unit>> {
    // Many small ones, some around a segment's size, some too large for a segment.
    let len = prop_oneof![4 => 0_usize..3000, 2 => 3000_usize..20_000, 1 => 50_000_usize..300_000];
    let unit = (len, any::<u8>(), 1..8_i32, any::<(bool, bool, bool)>())
        .prop_map(|(len, seed, level, says)| Unit { len, seed, level, says });
    proptest::collection::vec(unit, 1..25)
}

impl Unit {
    fn content(&self) -> Vec<u8> {
        match self.seed % 3 {
            0 => vec![self.seed; self.len],
            1 => sample(self.len),
            // Nothing to compress: members of stored blocks.
            _ => (0..self.len as u64)
                .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29) >> 7) as u8)
                .collect(),
        }
    }

    fn gzip(&self) -> Vec<u8> {
        let level = flate2::Compression::new(self.level as u32);
        let mut encoder = flate2::GzBuilder::new()
            .filename(if self.says.0 { "name" } else { "" })
            .write(Vec::new(), level);
        encoder.write_all(&self.content()).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(&self) -> Vec<u8> {
        let (size, checksum, skippable) = self.says;
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), self.level).unwrap();
        encoder.include_checksum(checksum).unwrap();
        encoder.set_pledged_src_size(size.then_some(self.len as u64)).unwrap();
        encoder.write_all(&self.content()).unwrap();
        let mut frame = encoder.finish().unwrap();
        if skippable {
            frame.extend([0x53, 0x2A, 0x4D, 0x18, 5, 0, 0, 0, 1, 2, 3, 4, 5]);
        }
        frame
    }
}

pub(super) fn cases() -> ProptestConfig {
    let default = ProptestConfig::default();
    // What PROPTEST_CASES says goes first; 256 is what it says if it is not there.
    let cases = if default.cases == 256 { 40 } else { default.cases };
    ProptestConfig { cases, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn any_frames_in_any_pieces(
        units in units(),
        sizes in proptest::collection::vec(1_usize..40_000, 1..4),
        room in 1_usize..100_000,
        halting: bool,
    ) {
        let whole: Vec<u8> = units.iter().flat_map(Unit::content).collect();
        let pool = pool();
        for compression in [Compression::Gzip, Compression::Zstd] {
            let make = if compression == Compression::Gzip { Unit::gzip } else { Unit::zstd };
            let stream: Vec<u8> = units.iter().flat_map(make).collect();
            let input = source(&stream, &sizes, halting);
            let decoder = decoder(compression, input, with(&pool)).unwrap();
            let (bytes, _) = read_all(decoder, room).unwrap();
            prop_assert!(bytes == whole, "{compression:?}");
        }
        prop_assert_eq!(pool.lent().in_use(), 0);
    }

    #[test]
    fn any_damage_is_as_the_serial_decoder_has_it(
        units in units(),
        at: prop::sample::Index,
        bit in 0_u32..8,
        cut: Option<prop::sample::Index>,
    ) {
        let pool = pool();
        for compression in [Compression::Gzip, Compression::Zstd] {
            let make = if compression == Compression::Gzip { Unit::gzip } else { Unit::zstd };
            let mut stream: Vec<u8> = units.iter().flat_map(make).collect();
            let at = at.index(stream.len());
            stream[at] ^= 1_u8 << bit;
            stream.truncate(cut.map_or(stream.len(), |cut| cut.index(stream.len())));
            same_as_serial(&pool, compression, &stream, 5000);
        }
    }
}

fn same_as_serial(pool: &Pool, compression: Compression, stream: &[u8], piece: usize) {
    let serial = decode(compression, stream, piece, 1000);
    let ahead = decode_ahead(pool, compression, stream, piece);
    match (serial, ahead) {
        (Ok(serial), Ok((ahead, _))) => assert!(serial == ahead, "{compression:?}"),
        (Err(serial), Err(ahead)) => assert_eq!(
            std::mem::discriminant(&serial),
            std::mem::discriminant(&ahead),
            "{compression:?}: {serial}, {ahead}"
        ),
        (serial, ahead) => panic!("{compression:?}: {:?}, {:?}", serial.err(), ahead.err()),
    }
}

fn stream(compression: Compression, count: usize, len: usize) -> (Vec<u8>, Vec<u8>) {
    let content = sample(len);
    let unit = if compression == Compression::Gzip { gzip(&content) } else { frame(&content) };
    (unit.repeat(count), content.repeat(count))
}

/// A frame that says its size.
fn frame(content: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(content, 3).unwrap()
}

#[test]
fn most_of_a_cut_stream_is_decoded_ahead() {
    let pool = staying_pool();
    for compression in [Compression::Gzip, Compression::Zstd] {
        for (count, len) in [(200, 700), (40, 8 << 10), (20, 50_000)] {
            let (stream, whole) = stream(compression, count, len);
            let (bytes, ahead) = decode_ahead(&pool, compression, &stream, 10_000).unwrap();
            assert!(bytes == whole);
            assert_eq!(ahead, whole.len() - len, "{compression:?}: all but the first");
        }
    }
    assert!(pool.threads() > 0, "helpers have begun");
}

#[test]
fn one_frame_takes_nothing() {
    let budget = Budget::new(64 << 20);
    let pool = pool_of(&budget);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let (stream, whole) = stream(compression, 1, 200_000);
        let mut decoder = decoder(compression, pieces(&stream, 999), with(&pool)).unwrap();
        let mut out = vec![0; 300_000];
        assert_eq!(decoder.read(&mut out).unwrap(), Decoded::Filled(whole.len()));
        assert_eq!((budget.in_use(), pool.threads()), (0, 0));
        assert_eq!(decoder.read(&mut out).unwrap(), Decoded::End);
    }
}

#[test]
fn every_truncation_and_every_flip() {
    let pool = pool();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let (stream, _) = stream(compression, 8, 3000);
        // The stream is the same over and over: one period of it from where it is cut apart.
        let period = stream.len() / 8;
        for at in 3 * period..4 * period {
            same_as_serial(&pool, compression, &stream[..at], 512);
            let mut flipped = stream.clone();
            flipped[at] ^= 1 << (at % 8);
            same_as_serial(&pool, compression, &flipped, 4096);
        }
    }
}

#[test]
fn gzip_files_inside_a_member_are_no_members_of_it() {
    let inner = gzip(&sample(3000));
    // Stored as they are, end to end and with something between: every guess is wrong.
    let archive = [inner.repeat(6), b"between".to_vec(), inner.repeat(9)].concat();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(&archive).unwrap();
    let member = encoder.finish().unwrap();
    let stream = [gzip(b"first"), member.repeat(3)].concat();
    let (bytes, _) = decode_ahead(&pool(), Compression::Gzip, &stream, 3000).unwrap();
    assert!(bytes == [b"first".to_vec(), archive.repeat(3)].concat());
}

#[test]
fn what_says_the_wrong_size_is_an_error() {
    let pool = pool();
    let mut last = zstd::bulk::compress(&sample(20_000), 3).unwrap();
    assert!(matches!(frames::header(&last), frames::Header::Frame(f) if f.content == Some(20_000)));
    last[5] = last[5].wrapping_sub(200);
    let stream = [frame(&sample(900)).repeat(50), last].concat();
    same_as_serial(&pool, Compression::Zstd, &stream, 1000);
    let error = decode_ahead(&pool, Compression::Zstd, &stream, 1000).unwrap_err();
    assert!(error.is_bad_data(), "{error}");
}

/// Pieces that nobody drops are memory that does not come back: the stream goes on without.
#[test]
fn what_is_held_is_bounded_and_never_waited_for() {
    let budget = Budget::new(64 << 20);
    let pool = pool_of(&budget);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let (stream, whole) = stream(compression, 400, 50_000);
        let mut decoder = decoder(compression, pieces(&stream, 100_000), with(&pool)).unwrap();
        let (mut kept, mut kept_bytes, mut all, mut out) = (Vec::new(), 0, 0, vec![0; 100_000]);
        loop {
            match decoder.read(&mut out).unwrap() {
                Decoded::Filled(count) => all += count,
                Decoded::Piece(bytes) => {
                    all += bytes.len();
                    kept_bytes += bytes.len() as u64;
                    kept.push(bytes);
                }
                Decoded::End => break,
            }
            assert!(budget.in_use() <= LENT_BYTES && kept_bytes <= budget.in_use());
        }
        assert_eq!(all, whole.len());
        assert!(kept_bytes > 0 && kept_bytes < whole.len() as u64);
        // The bytes are paid for as long as somebody has them.
        drop(decoder);
        assert!(budget.in_use() >= kept_bytes);
        drop(kept);
        assert_eq!((budget.in_use(), pool.lent().in_use()), (0, 0));
    }
}

#[test]
fn a_stream_goes_on_serially_until_there_is_memory() {
    let budget = Budget::new(64 << 20);
    let pool = pool_of(&budget);
    let taken = budget.try_reserve(64 << 20);
    let (stream, whole) = stream(Compression::Zstd, 300, 5000);
    let mut decoder =
        decoder(Compression::Zstd, source(&stream, &[4000], false), with(&pool)).unwrap();
    let (mut out, mut all) = (vec![0; 5000], Vec::new());
    for _ in 0..100 {
        let Decoded::Filled(count) = decoder.read(&mut out).unwrap() else {
            panic!("there is no memory for pieces");
        };
        all.extend_from_slice(&out[..count]);
    }
    drop(taken);
    let (rest, ahead) = read_all(decoder, 5000).unwrap();
    assert!(ahead > 100 * 5000, "{ahead}");
    assert!([all, rest].concat() == whole);
}

#[test]
fn a_broken_source_is_told_after_what_had_arrived() {
    let (stream, whole) = stream(Compression::Zstd, 50, 5000);
    let source = breaking(source(&stream[..stream.len() / 2], &[3000], false));
    let decoder = decoder(Compression::Zstd, source, with(&pool())).unwrap();
    let all = before_it_breaks(decoder, 1000);
    assert!(all >= whole.len() / 2 - 10_000, "{all}");
}

#[test]
fn helpers_end_when_there_is_nothing_to_do() {
    let budget = Budget::new(64 << 20);
    let pool = pool_of(&budget);
    let (stream, _) = stream(Compression::Zstd, 400, 50_000);
    let mut decoder = decoder(Compression::Zstd, pieces(&stream, 1 << 20), with(&pool)).unwrap();
    let (mut out, mut most, mut pieces) = (vec![0; 50_000], 0, 0);
    // In the middle of the stream, after so many looks that no pause of this thread hides the helpers.
    while pieces < 30 {
        pieces += usize::from(matches!(decoder.read(&mut out).unwrap(), Decoded::Piece(_)));
        most = most.max(pool.threads());
    }
    assert!((1..=2).contains(&most), "{most}");
    drop(decoder);
    let from = std::time::Instant::now();
    while (pool.threads(), budget.in_use()) != (0, 0) {
        assert!(from.elapsed() < Duration::from_secs(20), "helpers or their memory are left");
        std::thread::sleep(Duration::from_millis(2));
    }
}
