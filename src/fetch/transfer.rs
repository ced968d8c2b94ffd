//! The tasks that fetch one blob.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::connections::{Connection, Wanted};
use super::restraint::Held;
use super::window::Window;
use super::{FetchError, Shared};
use crate::budget::Permit;
use crate::budget::turns::Standing;
use crate::panics;
use crate::registry::{Backoff, Blob, Body, RegistryError};
use crate::timeline::{LayerRecorder, Phase, Stall};

/// One blob on its way. Clones are for the tasks of its chunks.
#[derive(Clone)]
pub(super) struct Transfer {
    pub(super) shared: Arc<Shared>,
    pub(super) blob: Blob,
    pub(super) size: u64,
    pub(super) recorder: Arc<LayerRecorder>,
    pub(super) standing: Arc<Standing>,
    pub(super) window: Arc<Window>,
}

/// One chunk of it.
#[derive(Clone, Copy, Debug)]
struct Part {
    number: u64,
    start: u64,
    end: u64,
}

/// A body that was opened, with its leave.
struct Stream {
    body: Body,
    asked: Instant,
    /// Who was asked, to whom a redirect may have led from another host.
    host: Arc<str>,
    held: Held,
    _connection: Connection,
}

/// Chunks of a blob that may have their bytes and no connection yet: enough that every connection
/// has a chunk and the next one is waiting. More would only take the budget from other layers.
pub(super) const CHUNKS_SPARE: usize = 2;

/// Bytes that are told to the pace at once, for the sake of the lock.
const TOLD_BYTES: u64 = 1 << 20;

/// The most bytes that the HTTP client returns at once: its read buffer's bound, rounded up.
const PIECE_BYTES_MOST: u64 = 512 << 10;

/// Tells the reader when the tasks end without a word: at a panic, or with their runtime.
struct LastWord {
    window: Arc<Window>,
    said: bool,
}

impl LastWord {
    /// Says how `walk` has ended, by a panic too.
    async fn of(mut self, walk: impl Future<Output = Result<(), RegistryError>>) {
        match AssertUnwindSafe(walk).catch_unwind().await {
            // All bytes are in the window, and the reader may still be at them.
            Ok(Ok(())) => self.window.finish(),
            Ok(Err(error)) => self.window.fail(error.into()),
            Err(payload) => {
                let said = panics::said(&*payload);
                tracing::error!(said, "a fetch panicked");
                self.window.fail(FetchError::Panicked { said });
            }
        }
        self.said = true;
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if !self.said {
            self.window.fail(FetchError::Stopped);
        }
    }
}

/// The error of the first task that fails; `None` once all have ended well.
async fn failed(tasks: &mut JoinSet<Result<(), RegistryError>>) -> Option<RegistryError> {
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Some(error),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // Nobody aborts a chunk alone: the runtime is going down, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }
    None
}

impl Transfer {
    /// Fetches the whole blob.
    pub(super) fn run(self) -> impl Future<Output = ()> + Send {
        // Made here and not in the future: a runtime that is going down drops tasks that it has
        // never polled, and their readers have to hear of it as well.
        let last_word = LastWord { window: Arc::clone(&self.window), said: false };
        async move { last_word.of(self.walk()).await }
    }

    async fn walk(&self) -> Result<(), RegistryError> {
        let chunk = self.shared.limits.chunk_bytes;
        let mut tasks: JoinSet<Result<(), RegistryError>> = JoinSet::new();
        for number in 0..self.size.div_ceil(chunk) {
            let start = number * chunk;
            let part = Part { number, start, end: (start + chunk).min(self.size) };
            let reservation = tokio::select! {
                reservation = self.reserve(part) => reservation,
                Some(ended) = failed(&mut tasks) => return Err(ended),
            };
            self.window.open(number, reservation);
            let mut stream = None;
            if number == 0 && part.end < self.size {
                // Learns the redirect, the token and whether the host serves parts, for all.
                stream = self.first(part).await?;
                if stream.is_none() {
                    return Ok(());
                }
            }
            let task = self.clone();
            let fetching = async move { task.fetch(part, stream, Backpressure::Reserved).await };
            tasks.spawn(fetching.in_current_span());
        }
        failed(&mut tasks).await.map_or(Ok(()), Err)
    }

    async fn reserve(&self, part: Part) -> Permit {
        self.window.room().await;
        let wait = self.wait();
        let bytes = self.shared.budget.reserve(&self.standing, part.end - part.start).await;
        self.waited(Stall::Memory, wait);
        bytes
    }

    /// The beginning of a wait; none where the layer itself waits for its turn, and nothing is held up.
    fn wait(&self) -> Option<Instant> {
        self.standing.is_in_work().then(Instant::now)
    }

    fn waited(&self, stall: Stall, since: Option<Instant>) {
        if let Some(since) = since {
            self.recorder.stalled(stall, since);
        }
    }

    /// Asks for the first chunk and, where the whole blob comes instead, reads all of it and
    /// returns `None`. Whoever waits for a reader that has not begun holds no connection meanwhile.
    async fn first(&self, part: Part) -> Result<Option<Stream>, RegistryError> {
        let mut backoff = self.blob.backoff();
        loop {
            match self.open(part.start, part.end, false).await {
                Ok(stream) if stream.body.is_whole() && !self.standing.is_in_work() => {
                    drop(stream);
                    self.window.until_read().await;
                }
                Ok(stream) if stream.body.is_whole() => {
                    let all = Part { end: self.size, ..part };
                    self.fetch(all, Some(stream), Backpressure::Waits).await?;
                    return Ok(None);
                }
                Ok(stream) => return Ok(Some(stream)),
                Err(error) => self.pause(&mut backoff, error).await?,
            }
        }
    }

    /// Fetches one part into its place, from `stream` if that is open already, again and again from
    /// where it broke off.
    async fn fetch(
        &self,
        part: Part,
        mut stream: Option<Stream>,
        backpressure: Backpressure,
    ) -> Result<(), RegistryError> {
        let mut backoff = self.blob.backoff();
        let mut at = part.start;
        loop {
            let before = at;
            let opened = match stream.take() {
                Some(stream) => Ok(stream),
                None => self.open(at, part.end, at > part.start).await,
            };
            let ended = match opened {
                Ok(stream) => self.drain(stream, part, &mut at, backpressure).await,
                Err(error) => Err(error),
            };
            let error = match ended {
                Err(error) if at < part.end || !error.is_transient() => error,
                // With the last byte there, how the connection ends says nothing any more.
                _ => {
                    self.window.complete(part.number);
                    return Ok(());
                }
            };
            if at > before {
                backoff.progressed();
            }
            self.pause(&mut backoff, error).await?;
        }
    }

    /// Waits before another try, or returns the error that does not deserve one.
    async fn pause(
        &self,
        backoff: &mut Backoff,
        error: RegistryError,
    ) -> Result<(), RegistryError> {
        let Some(pause) = backoff.pause(&error) else { return Err(error) };
        tracing::debug!(%error, ?pause, "another try follows");
        self.recorder.retried();
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn open(&self, start: u64, end: u64, resumes: bool) -> Result<Stream, RegistryError> {
        let wait = self.wait();
        let connections = &self.shared.connections;
        let asked_host: Arc<str> = self.blob.host().into();
        let restraints = &self.shared.restraints;
        let wanted = Wanted::of(&asked_host, restraints.of(&self.blob.asked()).as_deref());
        let connection = connections.open(&self.standing, wanted).await;
        self.waited(Stall::Connection, wait);
        let mut asked = Instant::now();
        let body = if resumes {
            self.blob.resume(start..end).await
        } else {
            self.blob.range(start..end).await
        };
        let challenged = body.as_ref().ok().and_then(Body::challenged);
        if let Some((from, to)) = challenged {
            // The request that was refused, what it took to answer, and the one that counts.
            self.recorder.spent(Phase::Connect, asked, from);
            self.recorder.spent(Phase::Auth, from, to);
            asked = to;
        }
        self.recorder.spent(Phase::Connect, asked, Instant::now());
        let host = asked_host;
        match body {
            Ok(body) => {
                connections.answered(&host, asked);
                self.recorder.host(body.host());
                let held = restraints.held(&self.blob.asked());
                Ok(Stream { body, asked, host, held, _connection: connection })
            }
            Err(error) => {
                if let Some(pause) = error.overload() {
                    connections.refused(&host, asked, pause);
                }
                Err(error)
            }
        }
    }

    /// Reads a body into the window; `at` moves with what was read.
    async fn drain(
        &self,
        mut stream: Stream,
        part: Part,
        at: &mut u64,
        backpressure: Backpressure,
    ) -> Result<(), RegistryError> {
        let chunk = self.shared.limits.chunk_bytes;
        let (connections, host) = (&self.shared.connections, &stream.host);
        let body = &mut stream.body;
        if body.is_whole() && backpressure == Backpressure::Reserved && *at > chunk {
            // To read up to there for each chunk would be many times the blob.
            let (host, what) = (body.host().to_owned(), format!("blob {}", self.blob.digest()));
            return Err(RegistryError::RangeIgnored { host, what, at: *at });
        }
        let (mut first, mut untold) = (true, 0);
        while body.position() < part.end || part.end == self.size {
            if backpressure == Backpressure::Waits {
                self.window.below(chunk.saturating_sub(PIECE_BYTES_MOST)).await;
            }
            let position = body.position();
            let began = Instant::now();
            let piece = body.next().await?;
            let now = Instant::now();
            self.recorder.spent(Phase::Download, began, now);
            let Some(piece) = piece else { break };
            if std::mem::take(&mut first) {
                self.recorder.spent(Phase::FirstByte, stream.asked, now);
            }
            self.recorder.bytes(Phase::Download, piece.len() as u64);
            untold += piece.len() as u64;
            if untold >= TOLD_BYTES {
                connections.arrived(host, std::mem::take(&mut untold));
            }
            // Before anybody has them, or a layer of one piece would never wait.
            stream.held.came(piece.len() as u64, &self.standing, &self.recorder).await;
            let wanted = within(piece, position, *at, part.end);
            *at += wanted.len() as u64;
            self.window.push(part.number, wanted);
        }
        connections.arrived(host, untold);
        if !body.is_whole() {
            // Up to the end of the answer, which gives the connection back.
            while body.next().await?.is_some() {}
        }
        Ok(())
    }
}

/// Who keeps the window within its bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Backpressure {
    /// The chunk's whole size is reserved.
    Reserved,
    /// The blob comes through a reservation that is smaller than it, and waits for the reader.
    Waits,
}

/// The bytes of `piece`, which lies at `position`, that are within `start..end`.
fn within(mut piece: Bytes, position: u64, start: u64, end: u64) -> Bytes {
    let length = piece.len() as u64;
    // Both are at most the piece's length, which is a usize.
    let to = end.saturating_sub(position).min(length) as usize;
    let from = start.saturating_sub(position).min(to as u64) as usize;
    piece.truncate(to);
    piece.slice(from..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_of_a_chunk_is_what_the_reader_hears() {
        let window = Arc::new(Window::new(2));
        let walk = async {
            let mut tasks = JoinSet::new();
            tasks.spawn(async { panic!("chunk {}", 7) });
            failed(&mut tasks).await.map_or(Ok(()), Err)
        };
        LastWord { window: Arc::clone(&window), said: false }.of(walk).await;
        let heard = window.take();
        assert!(
            matches!(&heard, Err(FetchError::Panicked { said }) if said == "chunk 7"),
            "{heard:?}"
        );
    }

    #[test]
    fn within_is_the_common_part() {
        let piece = |start, end| within(Bytes::from_static(b"abcdef"), 10, start, end);
        assert_eq!(piece(10, 16), "abcdef");
        assert_eq!(piece(0, 99), "abcdef");
        assert_eq!(piece(12, 14), "cd");
        assert_eq!(piece(16, 20), "");
        assert_eq!(piece(0, 10), "");
        assert_eq!(piece(0, 5), "");
    }
}
