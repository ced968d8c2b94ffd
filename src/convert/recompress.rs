//! The layers as they are, compressed anew: the archives stay the same bytes, so DiffIDs, configuration
//! and history do too.
//!
//! An archive is cut into frames at the borders of its entries, as far as they can be seen by walking the
//! headers; where they cannot, frames end where they are full. Layers are read side by side, and the
//! frames of each are compressed by several threads and written in order.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::ConvertError;
use super::header::BLOCK;
use super::produce::{Codec, Compressor, FRAME_BYTES, Sink};
use super::progress::Progress;
use super::read::Archive;
use super::source::Layer;
use super::written::Written;
use crate::layout::Staging;

/// Frames that wait for a thread, for each layer.
const FRAMES_WAITING: usize = 2;

/// Compresses `layers` with `codec` into `staging`, with `threads` threads besides those that read.
///
/// # Errors
/// Where a layer cannot be read or is not what its image says, or the disk refuses.
pub(super) fn recompress(
    layers: &[Layer],
    codec: Codec,
    threads: usize,
    staging: &Staging,
    progress: &Arc<Progress>,
) -> Result<Vec<Written>, ConvertError> {
    let next = AtomicUsize::new(0);
    let side_by_side = threads.clamp(1, layers.len().max(1));
    let each = (threads / side_by_side).max(1);
    let thread = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(layer) = layers.get(at) else { return Ok(done) };
            let sink = Sink::new(staging, format!("layer-{at}"))?;
            let entries = one(layer, &sink, codec, each, progress)?;
            done.push((at, sink.finish(codec.compression, entries, staging)?));
        }
    };
    let ended: Vec<Result<Vec<_>, ConvertError>> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..side_by_side).map(|_| scope.spawn(thread)).collect();
        all.into_iter().map(|thread| thread.join().expect("a writer does not panic")).collect()
    });
    let mut all = Vec::new();
    for done in ended {
        all.extend(done?);
    }
    all.sort_by_key(|(at, _)| *at);
    Ok(all.into_iter().map(|(_, written)| written).collect())
}

type Frame = (usize, Vec<u8>);

/// One layer through `threads` compressors; returns how many names it has.
fn one(
    layer: &Layer,
    sink: &Sink,
    codec: Codec,
    threads: usize,
    progress: &Arc<Progress>,
) -> Result<u64, ConvertError> {
    let stop = AtomicBool::new(false);
    let (frames, waiting) = sync_channel::<Frame>(FRAMES_WAITING);
    let waiting = Arc::new(Mutex::new(waiting));
    let failed =
        |source| ConvertError::Disk { what: "writing", path: "a new layer".into(), source };
    std::thread::scope(|scope| {
        let compressors: Vec<_> = (0..threads)
            .map(|_| {
                let (waiting, stop) = (Arc::clone(&waiting), &stop);
                scope.spawn(move || {
                    compress(&waiting, sink, codec, stop).inspect_err(|_| {
                        stop.store(true, Ordering::SeqCst);
                        sink.wake();
                    })
                })
            })
            .collect();
        // Only the compressors hold it: when all have ended, the reader's next frame finds nobody.
        drop(waiting);
        let read = read(layer, &frames, progress);
        drop(frames);
        let mut written = Ok(());
        for thread in compressors {
            written = written.and(thread.join().expect("a compressor does not panic"));
        }
        written.map_err(failed)?;
        read
    })
}

fn compress(
    waiting: &Mutex<Receiver<Frame>>,
    sink: &Sink,
    codec: Codec,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut compressor = Compressor::new(codec)?;
    loop {
        let frame = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((number, raw)) = frame else { return Ok(()) };
        let made = compressor.make(raw)?;
        if !sink.write(number, &made, stop)? {
            return Ok(());
        }
    }
}

/// Reads a layer's archive to its end and hands it on in frames.
fn read(
    layer: &Layer,
    frames: &SyncSender<Frame>,
    progress: &Arc<Progress>,
) -> Result<u64, ConvertError> {
    let mut archive = Archive::open(layer, progress)?;
    let most = usize::try_from(FRAME_BYTES).expect("a frame fits into memory");
    let (mut cutter, mut number) = (Cutter::default(), 0);
    loop {
        let piece = archive.next().map_err(|error| ConvertError::of_layer(&layer.name, error))?;
        let ended = piece.is_none();
        cutter.buffer.extend_from_slice(&piece.unwrap_or_default());
        cutter.walk();
        while cutter.buffer.len() > most || (ended && !cutter.buffer.is_empty()) {
            let frame = cutter.cut(most);
            // Nobody takes it: a compressor has failed and says why.
            if frames.send((number, frame)).is_err() {
                return Ok(0);
            }
            number += 1;
        }
        if ended {
            archive.finish(layer)?;
            return Ok(cutter.entries);
        }
    }
}

/// Cuts an archive at the borders of its entries.
#[derive(Default)]
struct Cutter {
    buffer: Vec<u8>,
    /// Where the next header is expected, counted from the buffer's first byte.
    header: u64,
    /// Borders in the buffer, in order.
    borders: Vec<usize>,
    /// The last header was one that belongs to the next.
    extended: bool,
    /// Headers make no sense any more.
    lost: bool,
    entries: u64,
}

impl Cutter {
    fn walk(&mut self) {
        while !self.lost
            && let Ok(at) = usize::try_from(self.header)
            && let Some(header) = self.buffer.get(at..at + BLOCK as usize)
        {
            let header = tar::Header::from_byte_slice(header);
            let Some(size) = checked_size(header) else {
                self.lost = true;
                return;
            };
            if !self.extended && at > 0 {
                self.borders.push(at);
            }
            self.extended = matches!(header.as_old().linkflag[0], b'x' | b'g' | b'L' | b'K');
            self.entries += u64::from(!self.extended);
            self.header += BLOCK + size.next_multiple_of(BLOCK);
        }
    }

    /// The next frame: up to the last border that is not beyond `most` bytes.
    fn cut(&mut self, most: usize) -> Vec<u8> {
        let end = if self.buffer.len() <= most {
            self.buffer.len()
        } else {
            self.borders.iter().copied().take_while(|&at| at <= most).last().unwrap_or(most)
        };
        let rest = self.buffer.split_off(end);
        self.header = self.header.saturating_sub(end as u64);
        self.borders.retain_mut(|at| {
            let stays = *at > end;
            *at = at.saturating_sub(end);
            stays
        });
        std::mem::replace(&mut self.buffer, rest)
    }
}

/// The size of what follows a header; none where it is no header.
fn checked_size(header: &tar::Header) -> Option<u64> {
    let bytes = header.as_bytes();
    let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|&byte| u32::from(byte)).sum();
    let sum = sum + 8 * u32::from(b' ');
    if header.cksum().ok()? != sum {
        return None;
    }
    // Types that have no content, whatever their size field says (POSIX.1-2001, pax).
    if matches!(bytes[156], b'1'..=b'6') {
        return Some(0);
    }
    header.entry_size().ok().filter(|&size| size < 1 << 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_cut_at_borders_and_put_together_again() {
        let mut builder = tar::Builder::new(Vec::new());
        for (number, size) in [100_usize, 3000, 0, 700, 512, 9000, 1].into_iter().enumerate() {
            let mut header = tar::Header::new_gnu();
            header.set_size(size as u64);
            let name = format!("{}{number}", "long/".repeat(40 * (number % 2)));
            builder.append_data(&mut header, name, &vec![7; size][..]).unwrap();
        }
        let archive = builder.into_inner().unwrap();
        for piece in [1, 511, 4096, archive.len()] {
            let (mut cutter, mut all, mut lengths) = (Cutter::default(), Vec::new(), Vec::new());
            for bytes in archive.chunks(piece) {
                cutter.buffer.extend_from_slice(bytes);
                cutter.walk();
                while cutter.buffer.len() > 4096 {
                    let frame = cutter.cut(4096);
                    lengths.push(frame.len());
                    all.extend(frame);
                }
            }
            all.extend(cutter.cut(usize::MAX));
            assert_eq!(all, archive);
            assert_eq!((cutter.lost, cutter.entries), (true, 7), "the end is no header");
            // 1 KiB and the long name's two blocks with their header, which does not fit any more.
            assert_eq!(lengths[0], 1024, "{piece}: {lengths:?}");
            assert!(lengths.iter().all(|&length| length <= 4096), "{lengths:?}");
        }
    }
}
