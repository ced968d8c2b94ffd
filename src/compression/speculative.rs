//! One deflate stream by several threads, on a guess.
//!
//! Nearly every gzip layer is a single member, and a deflate stream cannot be read but from its
//! beginning: nothing says where its blocks begin, and each may copy from the 32 KiB before. Both can
//! be got round, at a price, as pugz and rapidgzip have shown:
//!
//! ```text
//!   arrived ─▶ │ part │ part │ part │ part │ …      of the compressed stream, equally long
//!                  ▲      ▲      ▲ where a block seems to begin           (search)
//!                         ├──────┤ symbols: bytes, and places in the window before   (markers, inflater)
//!   known ────────────────▶ window ▶ bytes ▶ window ▶ …   in order          (output)
//! ```
//!
//! The stream's own thread decodes with the serial decoder from the beginning. Helpers decode parts
//! ahead of it ([`line`]). Where the serial decoder ends a block just where a helper's part begins,
//! that part is right, as far as it is deflate: what comes out of it is resolved by the window that is
//! known, handed on, and its end is where the stream stands. Where it is not so, the serial decoder
//! goes on, and what the helper did is dropped. Of parts that follow each other the windows are resolved first,
//! one by one, and the rest by helpers again ([`placed`]), so that the stream's thread only hands on.
//!
//! So it is the serial decoder that says what is wrong with a stream, always: a part in which
//! anything is, or in which the member ends, is no part for a helper. CRC and length are those of the
//! whole member, whoever decoded it.
//!
//! What is held is borrowed ([`Memory`]): compressed parts, what they come to (two bytes for one where
//! the window is not known), nothing else. The stream never waits for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::gzip::Gzip;
use super::input::{Input, Supply};
use super::memory::{Buffer, Memory};
use super::pool::{OnHelp, Pool};
use super::{CompressionError, Decoded, Format};
use line::{Line, Part, Ticket};
use placed::{Known, Made};
use search::Start;

mod bits;
mod codes;
mod inflater;
mod line;
mod markers;
mod output;
mod placed;
mod search;

pub(super) use inflater::Inflater;

/// When the parts of one gzip stream are decoded on a guess.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Speculation {
    /// Never.
    Off,
    /// Where four threads are idle and the stream is large, 32 MiB or more.
    #[default]
    Auto,
    /// Wherever there is a helper.
    On,
}

/// From so many threads on that no other stream has for its own. A helper takes half as long again
/// for a part as the serial decoder does, and what comes behind the decoder wants a core too.
const IDLE_THREADS: usize = 4;

/// Compressed bytes from which on a stream is large: it takes some tenths of a second.
const LARGE_BYTES: u64 = 32 << 20;

/// After so many parts in a row that were done in vain, the stream is not tried any more.
const FAILURES_MAX: u32 = 8;

/// A part takes so many times its compressed size of memory, about: itself, and four times as much
/// content, of two bytes each where the window is unknown.
const HELD: u64 = 12;

/// Parts are not made smaller: looking for a block takes some tens of KiB.
const PART_BYTES_LEAST: usize = 128 << 10;

/// A gzip stream that is decoded on a guess.
pub(super) struct Speculative {
    when: Speculation,
    /// All compressed bytes of the stream, as far as that is known.
    size: u64,
    pool: Pool,
    memory: Memory,
    line: Arc<Line>,
    gathering: Option<Buffer>,
    /// How many bytes a part has at most.
    part_bytes: usize,
    most_part_bytes: usize,
    stands: Stands,
    failures: u32,
    waited: Duration,
}

/// Where the stream stands.
enum Stands {
    /// The serial decoder does it all.
    Apart,
    /// The serial decoder has been given all before `fed`, which is in the front part, and is not
    /// given more than up to `until`, where a block may begin that somebody else has begun.
    Serial { fed: u64, until: Until },
    /// At the beginning of what a helper made of a part.
    Jumped(Jump),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// The front part was not looked at.
    Unknown,
    End,
    Start(Start),
}

/// What helpers made of a part, on its way out.
struct Jump {
    made: Made,
    /// Of the member until here.
    crc: u32,
    /// So many parts of the line are placed, too, and this comes behind them.
    placed: usize,
    behind: Known,
}

impl Speculative {
    pub(super) fn new(when: Speculation, size: u64, pool: Pool, on_help: Option<OnHelp>) -> Self {
        let memory = Memory::new(pool.clone());
        // As many as are decoded serially while a helper has one.
        let left = if pool.helpers() == 1 { 2 } else { 1 };
        Self {
            when,
            size,
            line: Line::new(memory.lender(), left, on_help),
            memory,
            gathering: None,
            part_bytes: 0,
            most_part_bytes: pool.sizes().part,
            pool,
            stands: Stands::Apart,
            failures: 0,
            waited: Duration::ZERO,
        }
    }

    /// Time spent waiting for helpers since the last call.
    pub(super) fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// The next decoded bytes of the member that is in work; `None` where the serial decoder has to go
    /// on by itself.
    ///
    /// # Errors
    /// Those of the serial decoder.
    pub(super) fn read(
        &mut self,
        gzip: &mut Gzip,
        input: &mut Input,
        out: &mut [u8],
    ) -> Result<Option<Decoded>, CompressionError> {
        if !self.join(input) {
            return Ok(None);
        }
        let mut filled = 0;
        loop {
            if let Stands::Jumped(jump) = &mut self.stands {
                self.line.place(&mut jump.placed, &mut jump.behind);
            }
            self.gather(input);
            let Some(front) = self.line.front() else {
                self.leave(input);
                break;
            };
            match &mut self.stands {
                Stands::Jumped(_) if filled > 0 => break,
                Stands::Jumped(jump) => match jump.made.next(&mut jump.crc) {
                    Some(bytes) => {
                        gzip.passed(bytes.len());
                        return Ok(Some(Decoded::Piece(bytes)));
                    }
                    None => self.land(gzip, &front),
                },
                Stands::Serial { until: Until::Unknown, .. } => self.look(&front),
                Stands::Serial { .. } | Stands::Apart => {
                    let (count, goes_on) = self.step(gzip, input, &front, &mut out[filled..])?;
                    filled += count;
                    if !goes_on {
                        break;
                    }
                }
            }
        }
        Ok((filled > 0).then_some(Decoded::Filled(filled)))
    }

    /// Whether the stream is decoded on a guess, from here on if it was not.
    fn join(&mut self, input: &Input) -> bool {
        if matches!(self.stands, Stands::Apart) {
            if !self.is_chosen(input) || !self.borrow() {
                return false;
            }
            self.stands = Stands::Serial { fed: input.taken(), until: Until::Unknown };
        }
        true
    }

    /// The serial decoder goes on in the front part: how much it has written, and whether there is room
    /// for more, and more of the member.
    fn step(
        &mut self,
        gzip: &mut Gzip,
        input: &mut Input,
        front: &Part,
        out: &mut [u8],
    ) -> Result<(usize, bool), CompressionError> {
        let Stands::Serial { fed, until } = &mut self.stands else { return Ok((0, false)) };
        let from = (*fed - front.base) as usize;
        let step = match gzip.step(&front.bytes[from..until.end(front)], out) {
            Ok(step) => step,
            Err(what) => {
                self.leave(input);
                return Err(input.corrupt(Format::Gzip.as_str(), what));
            }
        };
        *fed += step.taken as u64;
        if step.ended {
            self.leave(input);
            gzip.end_member(input)?;
            return Ok((step.written, false));
        }
        if step.taken == 0 && step.written == 0 {
            self.arrive(gzip, front);
        }
        Ok((step.written, step.written < out.len()))
    }

    /// Whether it is worth while to begin here.
    fn is_chosen(&self, input: &Input) -> bool {
        let is_large = self.size.saturating_sub(input.taken()) >= LARGE_BYTES;
        self.may_go_on() && (self.when == Speculation::On || is_large)
    }

    fn may_go_on(&self) -> bool {
        self.failures < FAILURES_MAX
            && match self.when {
                Speculation::Off => false,
                Speculation::Auto => self.pool.idle_threads() >= IDLE_THREADS,
                Speculation::On => true,
            }
    }

    /// Whether there is memory by now; says how large parts are.
    fn borrow(&mut self) -> bool {
        let (most, least) = (self.most_part_bytes, PART_BYTES_LEAST.min(self.most_part_bytes));
        let parts = self.pool.helpers() as u64 + 3;
        self.memory.ask(parts * HELD * most as u64);
        let each = self.memory.granted() / (parts * HELD);
        self.part_bytes = usize::try_from(each).unwrap_or(most).clamp(least, most);
        each >= least as u64 / 2
    }

    /// Gathers what has arrived into parts, and asks for helpers.
    fn gather(&mut self, input: &mut Input) {
        if !self.may_go_on() {
            return;
        }
        while self.line.len() < 2 * self.pool.helpers() + 4 {
            if self.gathering.is_none() {
                self.gathering = self.memory.buffer(self.part_bytes);
            }
            let Some(buffer) = &mut self.gathering else { break };
            let there = buffer.as_ref().len();
            let is_whole = match input.supply(false) {
                Supply::There => {
                    let moved = input.move_to(buffer.bytes(), self.part_bytes - there);
                    there + moved == self.part_bytes
                }
                // The serial decoder does not wait for more than there is.
                Supply::Later if self.line.len() > 0 => break,
                Supply::Later | Supply::End | Supply::Failed => {
                    self.close(input);
                    break;
                }
            };
            if is_whole {
                self.close(input);
            }
        }
        for _ in 0..self.line.ask() {
            self.pool.submit(Arc::new(Ticket::new(&self.line)));
        }
    }

    /// Makes what is gathered a part.
    fn close(&mut self, input: &Input) {
        if let Some(buffer) = self.gathering.take().filter(|buffer| !buffer.as_ref().is_empty()) {
            let base = input.taken() - buffer.as_ref().len() as u64;
            self.line.push(Part::new(base, buffer.freeze()));
        }
    }

    /// The serial decoder has come to the front part: how far does it go?
    fn look(&mut self, front: &Part) {
        let Stands::Serial { until, .. } = &mut self.stands else { return };
        if front.claim() {
            *until = Until::End;
        } else if let Some(start) = front.start() {
            *until = Until::Start(start);
        } else {
            *until = Until::End;
            self.failures += 1;
        }
    }

    /// The serial decoder has come to where it was to go, and all of that is out.
    fn arrive(&mut self, gzip: &mut Gzip, front: &Part) {
        let Stands::Serial { fed, until } = &mut self.stands else { return };
        let Until::Start(start) = *until else {
            *until = Until::Unknown;
            self.line.pop();
            return;
        };
        *until = Until::End;
        let there = start.behind(front.base as usize);
        let inflate = gzip.inflate();
        let is_there = inflate.boundary().is_some_and(|(unused, header)| {
            there.is_at(*fed as usize * 8 - unused as usize, header)
        });
        match Known::last(Bytes::copy_from_slice(inflate.window())) {
            Some(window) if is_there => {
                let crc = inflate.crc();
                self.jump(front, &window, crc);
            }
            _ => self.failures += 1,
        }
    }

    /// Takes what helpers made of the front part, if they could; whether they could.
    fn jump(&mut self, front: &Part, before: &Known, crc: u32) -> bool {
        let from = Instant::now();
        let made = front.take(before);
        self.waited += from.elapsed();
        let Ok(made) = made else {
            self.failures += 1;
            return false;
        };
        self.failures = 0;
        self.line.pop();
        let behind = made.behind().clone();
        self.stands = Stands::Jumped(Jump { made, crc, placed: 0, behind });
        true
    }

    /// All that helpers made is out: the stream stands where a block begins in the front part.
    fn land(&mut self, gzip: &mut Gzip, front: &Part) {
        let Stands::Jumped(jump) = std::mem::replace(&mut self.stands, Stands::Apart) else {
            return;
        };
        let window = jump.made.behind();
        if !front.claim() && self.jump(front, window, jump.crc) {
            if let Stands::Jumped(now) = &mut self.stands
                && let Some(placed) = jump.placed.checked_sub(1)
            {
                (now.placed, now.behind) = (placed, jump.behind);
            }
            return;
        }
        let start = front.start().expect("the part before ends there");
        gzip.inflate().resume(&window.bytes()[..], start.bits_before(&front.bytes), jump.crc);
        let fed = front.base + start.byte() as u64;
        self.stands = Stands::Serial { fed, until: Until::End };
    }

    /// Gives all back that the serial decoder has not had.
    fn leave(&mut self, input: &mut Input) {
        if let Some(buffer) = self.gathering.take() {
            input.give_back(buffer.freeze());
        }
        let stands = std::mem::replace(&mut self.stands, Stands::Apart);
        let Stands::Serial { fed, .. } = stands else { return };
        while let Some(part) = self.line.pop_back() {
            let had = fed.saturating_sub(part.base) as usize;
            input.give_back(part.bytes.slice(had..));
        }
    }
}

impl Until {
    /// How much of the part that is.
    fn end(self, part: &Part) -> usize {
        match self {
            Self::Start(start) => start.byte(),
            Self::Unknown | Self::End => part.bytes.len(),
        }
    }
}

impl Drop for Speculative {
    fn drop(&mut self) {
        while self.line.pop().is_some() {}
    }
}

#[cfg(test)]
mod tests;
