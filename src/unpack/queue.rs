//! The queue between the coordinator and its writers.
//!
//! It is short: memory is bounded by the buffers that wait in it, and a long queue would only hide
//! that the writers are slower than the rest.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::UnpackError;

/// Jobs waiting and running, and the first error of any.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    /// Something for a writer to do: a job, or to leave.
    work: Condvar,
    /// Something for the coordinator: room, or that all is done.
    done: Condvar,
    capacity: usize,
}

struct State<T> {
    waiting: VecDeque<T>,
    running: usize,
    error: Option<UnpackError>,
    failed: bool,
}

impl<T> Queue<T> {
    pub(super) fn new(capacity: usize) -> Self {
        let state = State {
            waiting: VecDeque::with_capacity(capacity),
            running: 0,
            error: None,
            failed: false,
        };
        let (work, done) = (Condvar::new(), Condvar::new());
        Self { state: Mutex::new(state), work, done, capacity }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room and adds a job.
    ///
    /// # Errors
    /// The first error of a writer.
    pub(super) fn push(&self, job: T) -> Result<(), UnpackError> {
        let mut state = self.state();
        while state.waiting.len() >= self.capacity && !state.failed {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.check()?;
        state.waiting.push_back(job);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Waits until every job is done.
    ///
    /// # Errors
    /// The first error of a writer.
    pub(super) fn drain(&self) -> Result<(), UnpackError> {
        let mut state = self.state();
        while !(state.waiting.is_empty() && state.running == 0 || state.failed) {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.check()
    }

    /// Ends the queue: drops what waits, and lets the writers leave after their current job.
    pub(super) fn abort(&self) {
        let mut state = self.state();
        state.failed = true;
        state.waiting.clear();
        drop(state);
        self.work.notify_all();
    }

    /// A writer's life: does jobs until the queue is aborted or a job fails.
    pub(super) fn work(&self, mut run: impl FnMut(T) -> Result<(), UnpackError>) {
        loop {
            let mut state = self.state();
            let job = loop {
                if state.failed {
                    return;
                }
                match state.waiting.pop_front() {
                    Some(job) => break job,
                    None => state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            state.running += 1;
            drop(state);
            // Room has come.
            self.done.notify_all();
            let done = catch_unwind(AssertUnwindSafe(|| run(job)));
            self.finish(done.unwrap_or_else(|payload| Err(UnpackError::panicked(&*payload))));
        }
    }

    /// Ends a job.
    fn finish(&self, result: Result<(), UnpackError>) {
        let mut state = self.state();
        state.running -= 1;
        if let Err(error) = result {
            if !state.failed {
                (state.failed, state.error) = (true, Some(error));
            }
            // What waits holds buffers; nobody will write it any more.
            state.waiting.clear();
            self.work.notify_all();
        }
        drop(state);
        self.done.notify_all();
    }
}

impl<T> State<T> {
    fn check(&mut self) -> Result<(), UnpackError> {
        match (self.failed, self.error.take()) {
            (false, _) => Ok(()),
            (true, Some(error)) => Err(error),
            (true, None) => {
                let said = "work came for writers that had ended".to_owned();
                Err(UnpackError::Panicked { said })
            }
        }
    }
}
