//! Several segments of one stream at once, delivered in order.
//!
//! ```text
//!             cut                 decode               deliver
//!   input ─▶ gathered ─▶ │ job │ job │ job │ job │ ─▶ pieces of whole buffers
//!                          ▲     ▲ helpers, and this thread for what none has begun
//! ```
//!
//! The reader's thread does all that is not decoding: it gathers what has arrived, cuts it, queues
//! the segments and delivers them. When there is nothing to gather or no room for it, it decodes
//! too.
//!
//! Nothing here can make a stream come out otherwise than the serial decoder would. A segment that
//! does not decode by itself, for whatever reason (its end was guessed wrong, its bytes are
//! corrupt), is given back to the input with all that follows it, and the serial decoder says what
//! it is. That is why compressed bytes are kept until their segment's turn has come.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Format;
use super::cut::{Cut, Cutter, Sizes};
use super::input::{Input, Supply};
use super::memory::Memory;
use super::pool::{Job, OnHelp, Pool, Tools, Work};

/// Decoded bytes are handed on in pieces of at most this size, so that the stages behind can start
/// early. The buffer they lie in returns with the last of them.
const PIECE_BYTES: usize = 512 << 10;

/// The first room for compressed bytes; it doubles from there.
const GATHERED_BYTES_MIN: usize = 64 << 10;

/// After so many segments that did not decode by themselves, the stream is not tried any more.
const FAILURES_MAX: u32 = 3;

/// What a stream decodes ahead of its reader.
pub(super) struct Ahead {
    format: Format,
    sizes: Sizes,
    pool: Pool,
    memory: Memory,
    on_help: Option<OnHelp>,
    cutter: Cutter,
    /// Compressed bytes from the last cut on; counted in `memory` like those in the line.
    gathered: Vec<u8>,
    /// What the cutter said last, as long as nothing came of it.
    cut: Cut,
    /// Segments in their order, each with what its compressed bytes count in `memory`.
    line: VecDeque<(Arc<Job>, usize)>,
    /// What is being delivered.
    piece: Bytes,
    tools: Tools,
    failures: u32,
    /// Bytes to be decoded serially before segments are tried again.
    serial_for: u64,
    /// Time spent waiting for a helper.
    waited: Duration,
}

/// Why no more was gathered.
enum Stopped {
    /// There will be more to gather, or enough is in work.
    ForNow,
    /// There is no segment here, or no room for one.
    AtWall,
}

impl Ahead {
    pub(super) fn new(format: Format, pool: Pool, on_help: Option<OnHelp>) -> Self {
        Self {
            format,
            sizes: pool.sizes(),
            memory: Memory::new(pool.clone()),
            on_help,
            cutter: Cutter::new(format, pool.sizes()),
            pool,
            gathered: Vec::new(),
            cut: Cut::More(1),
            line: VecDeque::new(),
            piece: Bytes::new(),
            tools: Tools::default(),
            failures: 0,
            serial_for: 0,
            waited: Duration::ZERO,
        }
    }

    /// Notes that a frame or member of the stream came to `content` bytes and another follows, and
    /// says whether segments may be tried.
    pub(super) fn ready(&mut self, content: u64) -> bool {
        self.serial_for = self.serial_for.saturating_sub(content);
        if self.failures >= FAILURES_MAX || self.serial_for > 0 {
            return false;
        }
        // Where one frame was too large for a segment the next will be.
        if self.memory.granted() == 0 && content <= self.sizes.max_content as u64 {
            self.ask(content);
        }
        self.memory.granted() > 0
    }

    /// Asks for the memory that keeps all helpers busy with segments of `content` bytes, which take
    /// half as much again with their compressed bytes.
    fn ask(&mut self, content: u64) {
        let segment = content.max(self.sizes.target_content as u64) * 3 / 2;
        // One for each thread, one that is being gathered, one that is being delivered.
        self.memory.ask(segment * (self.pool.helpers() as u64 + 3));
    }

    /// Time spent waiting for helpers since the last call.
    pub(super) fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// The next decoded bytes; `None` where the serial decoder has to go on, at a beginning of a
    /// frame or member.
    pub(super) fn next(&mut self, input: &mut Input) -> Option<Bytes> {
        while self.piece.is_empty() {
            let stopped = self.gather(input);
            match self.line.front() {
                Some((front, _)) if front.has_ended() => self.deliver(input)?,
                Some((front, _)) => {
                    let ran = self.line.iter().any(|(job, _)| job.run(&mut self.tools));
                    if !ran {
                        let from = Instant::now();
                        front.wait();
                        self.waited += from.elapsed();
                    }
                }
                None if matches!(stopped, Stopped::AtWall) => {
                    self.give_back_gathered(input);
                    // Or a stream of tiny members would be gathered anew at each of them.
                    self.serial_for = self.sizes.target_content as u64;
                    return None;
                }
                None => {}
            }
        }
        Some(self.piece.split_to(PIECE_BYTES.min(self.piece.len())))
    }

    /// Gathers, cuts and queues until there is enough or no more. Waits for input only where
    /// nothing else is to be done.
    fn gather(&mut self, input: &mut Input) -> Stopped {
        while self.line.len() < 2 * (self.pool.helpers() + 2) {
            let wanted = match self.cut {
                Cut::None => return Stopped::AtWall,
                Cut::At { compressed, content } => {
                    if !self.queue(input, compressed, content) {
                        return Stopped::AtWall;
                    }
                    continue;
                }
                Cut::More(wanted) => wanted,
            };
            let mut ended = false;
            while self.gathered.len() < wanted && !ended {
                match input.supply(self.line.is_empty()) {
                    Supply::There => {
                        if !self.take_in(input, wanted - self.gathered.len()) {
                            return Stopped::AtWall;
                        }
                    }
                    Supply::Later => return Stopped::ForNow,
                    Supply::End => ended = true,
                    Supply::Failed => return Stopped::AtWall,
                }
            }
            self.cut = self.cutter.next(&self.gathered, ended);
        }
        Stopped::ForNow
    }

    /// Takes up to `most` bytes of the input in, if there is room for them.
    fn take_in(&mut self, input: &mut Input, most: usize) -> bool {
        let needed = self.gathered.len() + most.min(input.at_hand());
        let capacity = self.gathered.capacity();
        if needed > capacity {
            let grown = needed.max(2 * capacity).max(GATHERED_BYTES_MIN);
            if !self.memory.charge(grown - capacity) {
                return false;
            }
            self.gathered.reserve_exact(grown - self.gathered.len());
        }
        input.move_to(&mut self.gathered, most);
        true
    }

    /// Queues the first `compressed` gathered bytes; whether there was room for what they hold.
    fn queue(&mut self, input: &mut Input, compressed: usize, content: usize) -> bool {
        self.ask(content as u64);
        let Some(room) = self.memory.buffer(content) else { return false };
        // A header, or what a search was ahead.
        input.give_back(Bytes::copy_from_slice(&self.gathered[compressed..]));
        self.gathered.truncate(compressed);
        let segment = std::mem::take(&mut self.gathered);
        let charged = segment.capacity();
        let job = Arc::new(Job::new(self.format, segment, room, self.on_help.clone()));
        self.line.push_back((Arc::clone(&job), charged));
        self.pool.submit(job as Arc<dyn Work>);
        self.start_over();
        true
    }

    fn start_over(&mut self) {
        self.cutter = Cutter::new(self.format, self.sizes);
        self.cut = Cut::More(1);
    }

    /// Takes the first segment, which has ended, out of the line. `None` where it did not decode:
    /// then all is given back.
    fn deliver(&mut self, input: &mut Input) -> Option<()> {
        let (front, charged) = self.line.pop_front().expect("the caller has looked");
        let ended = front.take();
        self.memory.release(charged);
        if let Some(decoded) = ended.decoded {
            self.piece = decoded;
            return Some(());
        }
        self.failures += 1;
        self.give_back_gathered(input);
        while let Some((job, charged)) = self.line.pop_back() {
            input.give_back(Bytes::from(job.take().compressed));
            self.memory.release(charged);
        }
        input.give_back(Bytes::from(ended.compressed));
        self.serial_for = self.sizes.target_content as u64;
        None
    }

    fn give_back_gathered(&mut self, input: &mut Input) {
        self.memory.release(self.gathered.capacity());
        input.give_back(Bytes::from(std::mem::take(&mut self.gathered)));
        self.start_over();
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        for (job, _) in &self.line {
            job.cancel();
        }
    }
}
