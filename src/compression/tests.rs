use std::io::Write as _;

use super::*;

mod ahead;
mod speculative;

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(data, 3).unwrap()
}

/// Text that compresses, with some noise.
fn sample(len: usize) -> Vec<u8> {
    let mut x = 7u32;
    let noise = |i: usize| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if i.is_multiple_of(3) { (x >> 24) as u8 } else { b'a' + (i % 7) as u8 }
    };
    (0..len).map(noise).collect()
}

fn pieces(data: &[u8], size: usize) -> Box<dyn Pieces + Send> {
    let mut chunks: std::collections::VecDeque<Bytes> =
        data.chunks(size).map(Bytes::copy_from_slice).collect();
    Box::new(move || Ok(chunks.pop_front()))
}

fn decode(
    compression: Compression,
    data: &[u8],
    piece: usize,
    room: usize,
) -> Result<Vec<u8>, CompressionError> {
    read_all(decoder(compression, pieces(data, piece), Resources::serial())?, room)
        .map(|(bytes, _)| bytes)
}

/// All bytes, and how many of them came in buffers of their own.
fn read_all(mut decoder: Decoder, room: usize) -> Result<(Vec<u8>, usize), CompressionError> {
    let (mut all, mut ahead, mut out) = (Vec::new(), 0, vec![0; room]);
    loop {
        match decoder.read(&mut out)? {
            Decoded::Filled(count) => all.extend_from_slice(&out[..count]),
            Decoded::Piece(bytes) => {
                ahead += bytes.len();
                all.extend_from_slice(&bytes);
            }
            Decoded::End => return Ok((all, ahead)),
        }
    }
}

/// A source that breaks off where `source` ends.
fn breaking(mut source: Box<dyn Pieces + Send>) -> Box<dyn Pieces + Send> {
    Box::new(move || match source.next_piece()? {
        None => Err(io::Error::new(io::ErrorKind::ConnectionReset, "the blob broke off")),
        piece => Ok(piece),
    })
}

/// How many bytes come before the error of a source that is [`breaking`].
fn before_it_breaks(mut decoder: Decoder, room: usize) -> usize {
    let (mut out, mut all) = (vec![0; room], 0);
    let error = loop {
        match decoder.read(&mut out) {
            Ok(Decoded::Filled(count)) => all += count,
            Ok(Decoded::Piece(bytes)) => all += bytes.len(),
            Ok(Decoded::End) => panic!("it breaks off"),
            Err(error) => break io::Error::from(error),
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    all
}

/// Words of which few come twice: windows are soon known, and each 10,000 bytes are new.
pub(super) fn text(len: usize) -> Vec<u8> {
    let mut x = 9_u32;
    let mut text = Vec::with_capacity(len + 8);
    while text.len() < len {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.extend(format!("{:x} ", x >> 14).as_bytes());
    }
    text
}

#[test]
fn every_size_of_piece_and_room_gives_the_same() {
    let data = sample(30_000);
    let streams = [
        (Compression::None, data.clone()),
        (Compression::Gzip, gzip(&data)),
        (Compression::Zstd, zstd(&data)),
    ];
    for (compression, stream) in streams {
        for (piece, room) in [(1, 4096), (7, 1), (1 << 20, 1 << 20), (4096, 100)] {
            assert!(decode(compression, &stream, piece, room).unwrap() == data, "{compression:?}");
        }
    }
}

#[test]
fn members_and_frames_follow_each_other() {
    let (a, b) = (sample(5000), sample(900));
    let whole = [a.clone(), b.clone()].concat();
    let members = [gzip(&a), gzip(b""), gzip(&b)].concat();
    assert!(decode(Compression::Gzip, &members, 100, 333).unwrap() == whole);
    // A skippable frame: magic, length 3, three bytes.
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let frames =
        [&skippable[..], &zstd(&a), &skippable, &zstd(b""), &zstd(&b), &skippable].concat();
    assert!(decode(Compression::Zstd, &frames, 5, 333).unwrap() == whole);
}

#[test]
fn nothing_is_an_empty_layer() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        assert!(decode(compression, b"", 1, 10).unwrap().is_empty());
    }
}

#[test]
fn every_truncation_is_said() {
    let data = sample(600);
    for (compression, stream) in
        [(Compression::Gzip, gzip(&data)), (Compression::Zstd, zstd(&data))]
    {
        for cut in 1..stream.len() {
            let error = decode(compression, &stream[..cut], 64, 64).unwrap_err();
            let CompressionError::Truncated { offset, .. } = error else {
                panic!("{compression:?} cut at {cut}: {error}")
            };
            assert_eq!(offset, cut as u64);
        }
    }
}

#[test]
fn what_follows_a_gzip_member_must_be_one() {
    for tail in [&b"garbage that is long enough"[..], &[0; 512], &[0]] {
        let stream = [&gzip(b"data")[..], tail].concat();
        let error = decode(Compression::Gzip, &stream, 1000, 1000).unwrap_err();
        assert!(matches!(
            error,
            CompressionError::Corrupt { .. } | CompressionError::Truncated { .. }
        ));
    }
}

#[test]
fn a_flipped_bit_is_found_by_the_checksum() {
    let mut stream = gzip(&sample(1000));
    let crc = stream.len() - 6;
    stream[crc] ^= 1;
    let error = decode(Compression::Gzip, &stream, 1000, 1000).unwrap_err();
    assert!(matches!(error, CompressionError::Corrupt { format: "gzip", .. }), "{error}");
    let error = decode(Compression::Zstd, b"not zstd at all", 1000, 1000).unwrap_err();
    assert!(error.to_string().starts_with("zstd data is corrupt after"), "{error}");
}

#[test]
fn a_window_above_128_mib_is_refused() {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(28).unwrap();
    // A frame of unknown size is not shrunk to a smaller window.
    encoder.write_all(&[5; 10]).unwrap();
    encoder.flush().unwrap();
    let stream = encoder.finish().unwrap();
    let error = decode(Compression::Zstd, &stream, 1000, 1000).unwrap_err();
    assert!(error.to_string().contains("too much memory"), "{error}");
}

#[test]
fn the_reason_of_a_broken_source_comes_through() {
    let broken = || Err(io::Error::new(io::ErrorKind::ConnectionReset, "blob sha256:… broke"));
    let mut decoder = decoder(Compression::Gzip, Box::new(broken), Resources::serial()).unwrap();
    let error = io::Error::from(decoder.read(&mut [0; 8]).unwrap_err());
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_window_above_what_it_may_take_is_told_before_memory_is_set_aside() {
    let stream = |log| {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        // The first frame's window does not say what the second's is.
        encoder.write_all(&[5; 100_000]).unwrap();
        encoder.flush().unwrap();
        [zstd(b"first"), encoder.finish().unwrap()].concat()
    };
    let decode = |log, window_bytes, piece| {
        let resources = Resources { window_bytes, ..Resources::serial() };
        let decoder = decoder(Compression::Zstd, pieces(&stream(log), piece), resources);
        read_all(decoder.unwrap(), 1000).map(|(bytes, _)| bytes.len())
    };
    for piece in [1, 5, 1000] {
        let error = decode(24, 8 << 20, piece).unwrap_err();
        assert!(!error.is_bad_data());
        let CompressionError::Window { needed, allowed } = error else { panic!("{error}") };
        assert_eq!((needed, allowed), (16 << 20, 8 << 20));
        assert_eq!(decode(24, 16 << 20, piece).unwrap(), 100_005);
    }
}

pub(super) mod deflate {
    //! What ISA-L makes of gzip streams, held against zlib-rs.

    use proptest::prelude::*;

    use super::*;

    /// Members as zlib-rs reads them: what they hold, or nothing where they are no gzip.
    fn reference(stream: &[u8]) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        let mut rest = stream;
        while !rest.is_empty() {
            let mut member = flate2::bufread::GzDecoder::new(rest);
            io::Read::read_to_end(&mut member, &mut all).ok()?;
            rest = member.into_inner();
        }
        Some(all)
    }

    /// Data of several kinds of blocks: text, noise (stored), runs, long distances.
    pub(in crate::compression) fn content() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            (1..3000usize).prop_map(sample),
            prop::collection::vec(any::<u8>(), 1..3000),
            (any::<u8>(), 1..9000usize).prop_map(|(byte, len)| vec![byte; len]),
            (1..200usize, 1..400usize).prop_map(|(len, times)| sample(len).repeat(times)),
        ];
        prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
    }

    pub(super) fn member(data: &[u8], level: u32, fields: u8) -> Vec<u8> {
        let mut builder = flate2::GzBuilder::new().mtime(7);
        if fields & 1 != 0 {
            builder = builder.filename("a name");
        }
        if fields & 2 != 0 {
            builder = builder.comment("a comment");
        }
        if fields & 4 != 0 {
            builder = builder.extra(vec![9; 300]);
        }
        let mut encoder = builder.write(Vec::new(), flate2::Compression::new(level));
        for (number, part) in data.chunks(4000).enumerate() {
            encoder.write_all(part).unwrap();
            // Empty stored blocks between others.
            if fields & 8 != 0 && number % 2 == 0 {
                encoder.flush().unwrap();
            }
        }
        encoder.finish().unwrap()
    }

    /// Bytes of a stream that are others, each somewhere, and where it is cut off.
    pub(super) type Damage = (Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>);

    pub(super) fn damage() -> impl Strategy<Value = Damage> {
        let bytes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
        (bytes, prop::option::of(any::<prop::sample::Index>()))
    }

    pub(super) fn damaged(mut stream: Vec<u8>, (bytes, cut): Damage) -> Vec<u8> {
        for (at, byte) in bytes {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        if let Some(cut) = cut {
            stream.truncate(cut.index(stream.len()));
        }
        stream
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn streams_come_out_as_they_went_in(
            members in prop::collection::vec((content(), 0..10u32, 0..16u8), 1..4),
            piece in 1..5000usize,
            room in 1..70_000usize,
        ) {
            let stream: Vec<u8> =
                members.iter().flat_map(|(data, level, fields)| member(data, *level, *fields)).collect();
            let whole: Vec<u8> = members.into_iter().flat_map(|(data, ..)| data).collect();
            prop_assert!(decode(Compression::Gzip, &stream, piece, room).unwrap() == whole);
        }

        #[test]
        fn damaged_streams_are_judged_as_by_zlib(
            (data, level, fields) in (content(), 1..10u32, 0..16u8),
            damage in damage(),
            piece in 1..5000usize,
            room in 1..70_000usize,
        ) {
            let stream = damaged(member(&data, level, fields), damage);
            let decoded = decode(Compression::Gzip, &stream, piece, room);
            match reference(&stream) {
                Some(expected) => prop_assert!(decoded.unwrap() == expected),
                None => prop_assert!(decoded.is_err()),
            }
        }

        #[test]
        fn noise_is_refused(
            noise in prop::collection::vec(any::<u8>(), 0..2000), piece in 1..500usize, room in 1..5000usize,
        ) {
            let stream = [&[0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3][..], &noise].concat();
            let decoded = decode(Compression::Gzip, &stream, piece, room);
            prop_assert_eq!(decoded.is_ok(), reference(&stream).is_some());
        }
    }
}
