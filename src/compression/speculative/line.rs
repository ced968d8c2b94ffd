//! The parts of a stream that have arrived, and who decodes which.
//!
//! ```text
//!   │ front │ left │ part │ part │ part │ last │
//!      ▲       ▲      ▲ helpers, with an unknown window
//!      ╰───────┴─ the stream's own thread, with the known one, which is faster
//! ```
//!
//! Where the stream has come to a helper's part, the windows before and behind the parts that follow it without a gap
//! are known, one after the other, and helpers put bytes for their markers; before they begin anything else, for
//! those bytes are wanted first.
//!
//! The stream's thread takes what nobody has begun when it comes there. So helpers leave some for
//! it, as many as it decodes while they decode one, and begin behind that.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bytes::Bytes;

use super::markers::{Failure, WINDOW};
use super::output::{BUFFER_BYTES, Inflated};
use super::placed::{Known, Made, Placed};
use super::search::{self, Start};
use crate::compression::memory::Lender;
use crate::compression::pool::{OnHelp, Tools, Work};

/// A part of the compressed stream.
pub(super) struct Part {
    /// Where in the stream it begins.
    pub(super) base: u64,
    pub(super) bytes: Bytes,
    start: OnceLock<Option<Start>>,
    state: Mutex<State>,
    ended: Condvar,
}

enum State {
    /// Nobody has begun it.
    Waiting,
    Running,
    Ended(Result<Inflated, Failure>),
    /// The same, with its place in the stream, or with all of its bytes.
    Made(Made),
    /// The stream's own thread has it.
    Taken,
}

impl Part {
    pub(super) fn new(base: u64, bytes: Bytes) -> Self {
        let state = Mutex::new(State::Waiting);
        Self { base, bytes, start: OnceLock::new(), state, ended: Condvar::new() }
    }

    /// The first block that seems to begin in it. Who asks first looks.
    pub(super) fn start(&self) -> Option<Start> {
        *self.start.get_or_init(|| search::first(&self.bytes))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it for the stream's own thread, unless a helper has begun it. Whether it was taken.
    pub(super) fn claim(&self) -> bool {
        let mut state = self.state();
        let waits = matches!(*state, State::Waiting);
        if waits {
            *state = State::Taken;
        }
        waits
    }

    /// Says what comes before it. What comes behind it then, if a helper has decoded it.
    fn place(&self, before: &Known) -> Option<Known> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Ended(Ok(inflated)) => {
                let placed = inflated.place(before);
                let behind = placed.behind().clone();
                *state = State::Made(Made::Placed(placed));
                Some(behind)
            }
            other => {
                *state = other;
                None
            }
        }
    }

    /// What helpers have made of it, behind `before`; waits for one that has begun something.
    pub(super) fn take(&self, before: &Known) -> Result<Made, Failure> {
        let mut state = self.state();
        while matches!(*state, State::Running) {
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match std::mem::replace(&mut *state, State::Taken) {
            State::Ended(inflated) => Ok(Made::Placed(inflated?.place(before))),
            State::Made(made) => Ok(made),
            State::Waiting | State::Taken | State::Running => Err(Failure::NotInStep),
        }
    }

    /// Takes it for a helper that puts bytes for its markers.
    fn begin_resolving(&self) -> Option<Placed> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Running) {
            State::Made(Made::Placed(placed)) => Some(placed),
            other => {
                *state = other;
                None
            }
        }
    }

    fn is_placed(&self) -> bool {
        matches!(*self.state(), State::Made(Made::Placed(_)))
    }

    fn end(&self, what: State) {
        let mut state = self.state();
        if matches!(*state, State::Running) {
            *state = what;
            self.ended.notify_all();
        }
    }
}

/// What the stream's thread and its helpers share.
pub(super) struct Line {
    lender: Lender,
    on_help: Option<OnHelp>,
    /// Parts that are left to the stream's own thread before each that a helper begins.
    left: usize,
    state: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    parts: VecDeque<Arc<Part>>,
    /// Helpers that were asked for and have not come.
    asked: usize,
    /// What a part decodes to, in its own length: the most of late.
    ratio: u64,
}

/// The ratio that is expected at first.
const RATIO_AT_FIRST: u64 = 6;

impl Line {
    pub(super) fn new(lender: Lender, left: usize, on_help: Option<OnHelp>) -> Arc<Self> {
        let state = Mutex::new(Parts { ratio: RATIO_AT_FIRST, ..Parts::default() });
        Arc::new(Self { lender, on_help, left, state })
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.parts().parts.len()
    }

    pub(super) fn front(&self) -> Option<Arc<Part>> {
        self.parts().parts.front().cloned()
    }

    pub(super) fn push(&self, part: Part) {
        self.parts().parts.push_back(Arc::new(part));
    }

    pub(super) fn pop(&self) -> Option<Arc<Part>> {
        self.parts().parts.pop_front()
    }

    /// Takes the last one back.
    pub(super) fn pop_back(&self) -> Option<Arc<Part>> {
        self.parts().parts.pop_back()
    }

    /// Notes what a part of `compressed` bytes came to.
    pub(super) fn note(&self, compressed: usize, content: usize) {
        let ratio = (content as u64).div_ceil(compressed.max(1) as u64);
        let mut parts = self.parts();
        // Up at once, down slowly.
        parts.ratio = ratio.max(parts.ratio - parts.ratio.saturating_sub(ratio).div_ceil(8));
    }

    /// Says what comes before the parts behind the first `placed`, as far as helpers have decoded them; before the first
    /// of them comes `behind`. Both go with it.
    pub(super) fn place(&self, placed: &mut usize, behind: &mut Known) {
        let parts = self.parts();
        while let Some(part) = parts.parts.get(*placed)
            && let Some(next) = part.place(behind)
        {
            *placed += 1;
            *behind = next;
        }
    }

    /// How many helpers have to be asked for so that there is one for each part that one could
    /// begin; they count as asked.
    pub(super) fn ask(&self) -> usize {
        let mut parts = self.parts();
        let placed = parts.parts.iter().filter(|part| part.is_placed()).count();
        let candidates = placed + self.candidates(&parts).count();
        let missing = candidates.saturating_sub(parts.asked);
        parts.asked += missing;
        missing
    }

    /// The parts that a helper may begin, each with the one behind.
    fn candidates<'a>(
        &self,
        parts: &'a Parts,
    ) -> impl Iterator<Item = (&'a Arc<Part>, &'a Arc<Part>)> + use<'a> {
        let pairs = parts.parts.iter().zip(parts.parts.iter().skip(1)).skip(1);
        pairs.filter(|(part, _)| matches!(*part.state(), State::Waiting)).skip(self.left)
    }

    /// Does a part's work, if there is one to be done; whether there was.
    fn help(&self, tools: &mut Tools) -> bool {
        let mut parts = self.parts();
        parts.asked = parts.asked.saturating_sub(1);
        let resolving = |part: &Arc<Part>| Some((part.begin_resolving()?, Arc::clone(part)));
        if let Some((placed, part)) = parts.parts.iter().find_map(resolving) {
            drop(parts);
            part.end(guarded(|| Ok(State::Made(Made::Resolved(placed.resolve())))));
            return true;
        }
        let Some((part, next)) = self.candidates(&parts).next() else { return false };
        let (part, next) = (Arc::clone(part), Arc::clone(next));
        // As many symbols as usual and half as many again, of two bytes; and what is filled in part.
        let expected = part.bytes.len() as u64 * parts.ratio * 3 + 3 * BUFFER_BYTES as u64;
        let Some(promise) = self.lender.promise(expected) else { return false };
        *part.state() = State::Running;
        drop(parts);
        let run = || {
            let start = part.start().ok_or(Failure::NotDeflate)?;
            let stop = next.start().ok_or(Failure::NotInStep)?;
            let inflated =
                tools.inflater().run(&part.bytes, &next.bytes, (start, stop), promise)?;
            self.note(part.bytes.len(), inflated.count);
            Ok(State::Ended(Ok(inflated)))
        };
        part.end(guarded(run));
        true
    }
}

/// What a part's work comes to. A panic is a defect; to the stream it is a part that has to be done serially.
fn guarded(work: impl FnOnce() -> Result<State, Failure>) -> State {
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Failure::NotDeflate));
    result.unwrap_or_else(|failure| State::Ended(Err(failure)))
}

/// A helper is asked for. It keeps nothing of a stream that has gone.
pub(super) struct Ticket {
    line: Weak<Line>,
    on_help: Option<OnHelp>,
}

impl Ticket {
    pub(super) fn new(line: &Arc<Line>) -> Self {
        Self { line: Arc::downgrade(line), on_help: line.on_help.clone() }
    }
}

impl Work for Ticket {
    fn run(&self, tools: &mut Tools) -> bool {
        self.line.upgrade().is_some_and(|line| line.help(tools))
    }

    fn on_help(&self) -> Option<&OnHelp> {
        self.on_help.as_ref()
    }
}

const _: () = assert!(WINDOW <= BUFFER_BYTES / 2, "a window's symbols fit a buffer");
