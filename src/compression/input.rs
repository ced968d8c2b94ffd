//! The compressed bytes of one stream, as a decoder takes them.

use std::collections::VecDeque;
use std::io;

use bytes::{Bytes, BytesMut};

use super::{Arrival, CompressionError, Pieces};

/// The piece that is being decoded, and where the next ones come from.
pub(super) struct Input {
    pieces: Box<dyn Pieces + Send>,
    piece: Bytes,
    /// What was taken and given back: it comes before what `pieces` bring.
    returned: VecDeque<Bytes>,
    /// Compressed bytes that were taken and not given back.
    taken: u64,
    ended: bool,
    failed: Option<io::Error>,
}

/// Whether there are bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Supply {
    There,
    /// They have not arrived yet; said only to who does not want to wait.
    Later,
    /// The stream has ended.
    End,
    /// The source has failed; [`Input::peek`] says why.
    Failed,
}

impl Input {
    pub(super) fn new(pieces: Box<dyn Pieces + Send>) -> Self {
        Self {
            pieces,
            piece: Bytes::new(),
            returned: VecDeque::new(),
            taken: 0,
            ended: false,
            failed: None,
        }
    }

    /// Sees to it that there is a piece, if there is any left.
    pub(super) fn supply(&mut self, wait: bool) -> Supply {
        while self.piece.is_empty() {
            if let Some(piece) = self.returned.pop_front() {
                self.piece = piece;
                continue;
            }
            if self.failed.is_some() {
                return Supply::Failed;
            }
            if self.ended {
                return Supply::End;
            }
            let arrival = if wait {
                self.pieces.next_piece().map(|piece| piece.map_or(Arrival::End, Arrival::Piece))
            } else {
                self.pieces.ready_piece()
            };
            match arrival {
                Ok(Arrival::Piece(piece)) => self.piece = piece,
                Ok(Arrival::Later) => return Supply::Later,
                Ok(Arrival::End) => self.ended = true,
                Err(error) => self.failed = Some(error),
            }
        }
        Supply::There
    }

    /// Compressed bytes not yet taken; empty only at the end.
    pub(super) fn peek(&mut self) -> Result<&[u8], CompressionError> {
        if self.supply(true) == Supply::Failed {
            // Who asks again finds the stream cut off.
            self.ended = true;
            return Err(CompressionError::Input(
                self.failed.take().expect("it has just been said to be there"),
            ));
        }
        Ok(&self.piece)
    }

    /// The next bytes in one slice: `count` of them, fewer only at the end of the stream.
    pub(super) fn prefix(&mut self, count: usize) -> Result<&[u8], CompressionError> {
        self.peek()?;
        if self.piece.len() < count {
            let mut joined = BytesMut::from(&self.piece[..]);
            self.piece = Bytes::new();
            while joined.len() < count && self.supply(true) == Supply::There {
                let mut next = std::mem::take(&mut self.piece);
                joined.extend_from_slice(&next.split_to(next.len().min(count - joined.len())));
                if !next.is_empty() {
                    self.returned.push_front(next);
                }
            }
            self.piece = joined.freeze();
        }
        Ok(&self.piece[..count.min(self.piece.len())])
    }

    pub(super) fn take(&mut self, count: usize) {
        // A piece that is used up goes at once: its memory is somebody's budget.
        self.piece =
            if count == self.piece.len() { Bytes::new() } else { self.piece.slice(count..) };
        self.taken += count as u64;
    }

    /// Compressed bytes that were taken and not given back.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// How many bytes are at hand in one piece.
    pub(super) fn at_hand(&self) -> usize {
        self.piece.len()
    }

    /// Moves up to `most` of the bytes at hand to the end of `to`, and says how many.
    pub(super) fn move_to(&mut self, to: &mut Vec<u8>, most: usize) -> usize {
        let count = most.min(self.piece.len());
        to.extend_from_slice(&self.piece[..count]);
        self.take(count);
        count
    }

    /// Puts back what was taken last.
    pub(super) fn give_back(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.taken -= bytes.len() as u64;
        let current = std::mem::replace(&mut self.piece, bytes);
        if !current.is_empty() {
            self.returned.push_front(current);
        }
    }

    pub(super) fn corrupt(&self, format: &'static str, what: impl ToString) -> CompressionError {
        CompressionError::Corrupt { format, offset: self.taken, what: what.to_string() }
    }

    pub(super) fn truncated(&self, format: &'static str) -> CompressionError {
        CompressionError::Truncated { format, offset: self.taken }
    }
}
