use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn noise(length: usize, seed: u32) -> Vec<u8> {
    let mut x = seed | 1;
    let step = |_| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x >> 8) as u8
    };
    (0..length).map(step).collect()
}

#[test]
fn every_length_around_blocks_is_as_sha2_has_it() {
    for length in 0..200 {
        let data = noise(length, 7);
        let mut hasher = Hasher::default();
        hasher.update(&data);
        assert_eq!(hasher.finish(), Sha256::of(&data), "{length} bytes");
    }
}

proptest! {
    #[test]
    fn pieces_and_pairs_change_nothing(
        cuts in prop::collection::vec((0_usize..300, 0_usize..300), 0..30),
    ) {
        let (a, b) = (noise(9000, 1), noise(9000, 2));
        let (mut at, mut bt) = (0, 0);
        let mut hashers = [Hasher::default(), Hasher::default()];
        for (x, y) in cuts {
            let [first, second] = &mut hashers;
            Hasher::update_both([first, second], [&a[at..at + x], &b[bt..bt + y]]);
            (at, bt) = (at + x, bt + y);
        }
        let [first, second] = hashers;
        prop_assert_eq!(first.finish(), Sha256::of(&a[..at]));
        prop_assert_eq!(second.finish(), Sha256::of(&b[..bt]));
    }
}

fn quiet() -> Hashed {
    Box::new(|_, _, _| {})
}

#[test]
fn streams_of_many_threads_come_out_right() {
    for threads in 0..4 {
        let hashers = Hashers::new(threads);
        let told = Arc::new(AtomicU64::new(0));
        std::thread::scope(|scope| {
            for seed in 1..8_u32 {
                let (hashers, told) = (hashers.clone(), Arc::clone(&told));
                scope.spawn(move || {
                    let data = Bytes::from(noise(200_000 + 977 * seed as usize, seed));
                    let count = Box::new(move |_, _, bytes| {
                        told.fetch_add(bytes, SeqCst);
                    });
                    let mut stream = hashers.stream(20_000, count);
                    // Pieces that do not fit beside others, and larger ones than may wait.
                    let size = 4_000 * seed as usize - 17;
                    for at in (0..data.len()).step_by(size) {
                        stream.push(data.slice(at..data.len().min(at + size)));
                    }
                    assert_eq!(stream.finish(), Sha256::of(&data));
                });
            }
        });
        let all: u64 = (1..8).map(|seed| 200_000 + 977 * seed).sum();
        assert_eq!(told.load(SeqCst), all, "{threads} threads");
    }
}

#[test]
fn a_stream_beside_an_idle_one_ends() {
    let hashers = Hashers::new(1);
    let idle = hashers.stream(1000, quiet());
    let mut stream = hashers.stream(1000, quiet());
    let data = Bytes::from(noise(100_000, 3));
    for at in (0..data.len()).step_by(400) {
        stream.push(data.slice(at..at + 400));
    }
    assert_eq!(stream.finish(), Sha256::of(&data));
    assert_eq!(idle.finish(), Sha256::of(b""));
}

/// Bytes that are counted while they are held.
struct Counted(Arc<AtomicUsize>, Vec<u8>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.1
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[test]
fn what_is_given_up_is_dropped_and_the_threads_end() {
    let held = Arc::new(AtomicUsize::new(0));
    let hashers = Hashers::new(2);
    let alive = hashers.alive();
    let mut streams: Vec<_> = (0..5).map(|_| hashers.stream(1 << 20, quiet())).collect();
    for stream in &mut streams {
        for _ in 0..5 {
            held.fetch_add(1, SeqCst);
            stream.push(Bytes::from_owner(Counted(Arc::clone(&held), noise(50_000, 9))));
        }
    }
    drop(hashers);
    assert!(alive(), "streams keep the threads");
    drop(streams);
    // Each thread has a reference until it ends.
    while alive() {
        std::thread::yield_now();
    }
    assert_eq!(held.load(SeqCst), 0);
}

#[test]
#[should_panic(expected = "a thread that hashes has panicked")]
fn a_panic_comes_to_whoever_waits() {
    let hashers = Hashers::new(1);
    let mut stream = hashers.stream(1000, Box::new(|_, _, _| panic!("as told")));
    stream.push(Bytes::from_static(b"abc"));
    stream.finish();
}
