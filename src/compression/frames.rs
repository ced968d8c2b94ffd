//! Where zstd frames end (RFC 8878, section 3.1): found by their headers, without decoding.
//!
//! ```text
//! frame:     magic 4 │ descriptor 1 │ window 0-1 │ dictionary 0-4 │ content size 0-8 │ blocks… │ checksum 0 or 4
//! block:     3 bytes, little endian: bit 0 last, bits 1-2 type, bits 3-23 size │ body
//! skippable: magic 4 │ size 4 │ bytes
//! ```

use super::cut::{Cut, Sizes};

const MAGIC: u32 = 0xFD2F_B528;
/// The first of sixteen.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;

/// The most bytes that a frame's header takes, with its magic number.
pub(super) const HEADER_BYTES_MAX: usize = 4 + 1 + 1 + 4 + 8;

/// The most that one block decodes to, whatever the window (section 3.1.1.2.4).
const BLOCK_BYTES_MAX: u64 = 128 << 10;

/// What stands at the beginning of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Header {
    /// It takes so many bytes in all to say.
    Short(usize),
    /// So many bytes are to be passed over, this header's among them.
    Skippable(u64),
    Frame(Frame),
    /// No frame of this format. An old format's, or garbage.
    Unknown,
}

/// What a frame says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Frame {
    /// Bytes of the header.
    pub(super) header: usize,
    /// Bytes that its blocks may refer back to.
    pub(super) window: u64,
    /// Bytes that it decodes to, where it says so.
    pub(super) content: Option<u64>,
    /// Whether four bytes of checksum follow the last block.
    pub(super) checksum: bool,
}

impl Frame {
    /// What a decoder that does not have the whole frame keeps of it.
    pub(super) fn memory(&self) -> u64 {
        self.content.map_or(self.window, |content| content.min(self.window))
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Reads the header that `bytes` begin with.
pub(super) fn header(bytes: &[u8]) -> Header {
    let Some(magic) = bytes.get(..4).map(little_endian) else { return Header::Short(5) };
    if magic & !0xF == u64::from(SKIPPABLE_MAGIC) {
        let size = bytes.get(4..8).map(little_endian);
        return size.map_or(Header::Short(8), |size| Header::Skippable(8 + size));
    }
    if magic != u64::from(MAGIC) {
        return Header::Unknown;
    }
    let Some(&descriptor) = bytes.get(4) else { return Header::Short(5) };
    let single_segment = descriptor & 0x20 != 0;
    let window_bytes = usize::from(!single_segment);
    let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let content_bytes = match descriptor >> 6 {
        0 => usize::from(single_segment),
        flag => 1 << flag,
    };
    let content_at = 5 + window_bytes + dictionary_bytes;
    let length = content_at + content_bytes;
    if bytes.len() < length {
        return Header::Short(length);
    }
    let content = (content_bytes > 0).then(|| {
        let size = little_endian(&bytes[content_at..length]);
        // Two bytes count from 256 on (section 3.1.1.1.4).
        if content_bytes == 2 { size + 256 } else { size }
    });
    let window = if single_segment {
        content.unwrap_or(0)
    } else {
        let base = 1_u64 << (10 + (bytes[5] >> 3));
        base + base / 8 * u64::from(bytes[5] & 7)
    };
    Header::Frame(Frame { header: length, window, content, checksum: descriptor & 4 != 0 })
}

/// Cuts a stream between its frames.
#[derive(Debug)]
pub(super) struct Walk {
    sizes: Sizes,
    /// The next header, of a frame or of a block, begins here; it may not have arrived.
    at: usize,
    /// The frame that `at` is in.
    frame: Option<Walked>,
    /// What the frame that ends at `at` decodes to, at most.
    ending: u64,
    /// Where the last frame ends that is there whole.
    boundary: usize,
    /// What the whole frames decode to, at most.
    content: u64,
}

#[derive(Clone, Copy, Debug)]
struct Walked {
    header: Frame,
    /// What its blocks until now decode to, at most.
    blocks: u64,
}

/// How a header was met.
enum Step {
    On,
    /// So many bytes are needed from `at` on.
    Short(usize),
    Stop,
}

impl Walk {
    pub(super) fn new(sizes: Sizes) -> Self {
        Self { sizes, at: 0, frame: None, ending: 0, boundary: 0, content: 0 }
    }

    /// Looks for an end in `bytes`, which begin where the last cut was made and grow from call to
    /// call; `ended` says that they do not any more.
    pub(super) fn next(&mut self, bytes: &[u8], ended: bool) -> Cut {
        loop {
            let step = match (bytes.get(self.at..), self.frame) {
                (None, _) => Step::Short(0),
                (Some(rest), Some(frame)) => self.block(frame, rest),
                (Some(rest), None) => {
                    self.boundary = self.at;
                    self.content += std::mem::take(&mut self.ending);
                    if self.content >= self.sizes.target_content as u64 {
                        return self.close();
                    }
                    self.begin(rest)
                }
            };
            match step {
                Step::On => {}
                Step::Short(needed) if !ended && self.at + needed <= self.sizes.max_compressed => {
                    return Cut::More(self.at + needed);
                }
                Step::Short(_) | Step::Stop => return self.close(),
            }
        }
    }

    /// What is whole, or that nothing is.
    fn close(&self) -> Cut {
        let content = usize::try_from(self.content).expect("it was held below the bound");
        match self.boundary {
            0 => Cut::None,
            compressed => Cut::At { compressed, content },
        }
    }

    fn begin(&mut self, bytes: &[u8]) -> Step {
        match header(bytes) {
            Header::Short(needed) => Step::Short(needed),
            Header::Unknown => Step::Stop,
            Header::Skippable(bytes) => self.pass(bytes),
            Header::Frame(header) => {
                let content = header.content.unwrap_or(0);
                if header.window > super::WINDOW_BYTES_MAX
                    || content > self.sizes.max_content as u64 - self.content
                {
                    return Step::Stop;
                }
                self.frame = Some(Walked { header, blocks: 0 });
                self.pass(header.header as u64)
            }
        }
    }

    fn block(&mut self, mut frame: Walked, bytes: &[u8]) -> Step {
        let Some(head) = bytes.get(..3).map(little_endian) else { return Step::Short(3) };
        let (last, kind, size) = (head & 1 != 0, head >> 1 & 3, head >> 3);
        let (body, content) = match kind {
            0 => (size, size),
            1 => (1, size),
            2 => (size, frame.header.window.min(BLOCK_BYTES_MAX)),
            _ => return Step::Stop,
        };
        frame.blocks += content;
        // A frame that does not say its size is as large as its blocks may be.
        let content = frame.header.content.unwrap_or(frame.blocks);
        if size > BLOCK_BYTES_MAX || content + self.content > self.sizes.max_content as u64 {
            return Step::Stop;
        }
        if !last {
            self.frame = Some(frame);
            return self.pass(3 + body);
        }
        self.frame = None;
        self.ending = content;
        self.pass(3 + body + if frame.header.checksum { 4 } else { 0 })
    }

    fn pass(&mut self, bytes: u64) -> Step {
        let at = usize::try_from(bytes).ok().and_then(|bytes| self.at.checked_add(bytes));
        match at.filter(|&at| at <= self.sizes.max_compressed) {
            Some(at) => {
                self.at = at;
                Step::On
            }
            None => Step::Stop,
        }
    }
}
