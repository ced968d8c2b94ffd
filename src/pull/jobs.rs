//! One job per layer, however many ask for it.
//!
//! A job is known by its [`Key`]. Whoever needs it holds an [`Interest`]; the job runs in a task of
//! its own, so that a caller that goes away takes nothing with it, and is cancelled when the last
//! interest is dropped before it has ended. What a job does is in `make`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::PullError;
use super::caught::caught;
use super::make::{Key, Maker, Order, Outcome};
use crate::budget::Budget;
use crate::budget::turns::Standing;
use crate::timeline::{LayerRecorder, LayerState};
use crate::unpack::NoRoom;

/// The jobs that run now.
#[derive(Clone)]
pub(super) struct Jobs(Arc<Shared>);

struct Shared {
    maker: Maker,
    running: Mutex<HashMap<Key, Running>>,
}

struct Running {
    interests: usize,
    cancel: CancellationToken,
    outcome: watch::Receiver<Option<Outcome>>,
    recorder: Arc<LayerRecorder>,
    standing: Arc<Standing>,
}

/// Somebody needs a job's tree. When the last is dropped the job is cancelled.
pub(super) struct Interest {
    key: Key,
    jobs: Arc<Shared>,
    cancel: CancellationToken,
    outcome: watch::Receiver<Option<Outcome>>,
    recorder: Arc<LayerRecorder>,
    standing: Arc<Standing>,
}

impl Interest {
    /// Waits for the job's end, for a Prepare.
    pub(super) async fn outcome(&self) -> Outcome {
        self.standing.ask_for();
        let mut outcome = self.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Err(PullError::Cancelled)),
            Err(_) => {
                let layer = self.recorder.layer().blob;
                Err(PullError::Internal { layer, what: "its job" })
            }
        }
    }

    /// What is recorded of the job.
    pub(super) fn recorder(&self) -> &Arc<LayerRecorder> {
        &self.recorder
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut running = self.jobs.running();
        // A later job of the same key has another token.
        let Some(job) =
            running.get_mut(&self.key).filter(|job| job.outcome.same_channel(&self.outcome))
        else {
            return;
        };
        job.interests -= 1;
        if job.interests == 0 {
            self.cancel.cancel();
            running.remove(&self.key);
        }
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, HashMap<Key, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Jobs {
    /// No jobs yet; `maker` will do their work.
    pub(super) fn new(maker: Maker) -> Self {
        Self(Arc::new(Shared { maker, running: Mutex::default() }))
    }

    /// What the layers in work take their bytes from.
    pub(super) fn budget(&self) -> &Budget {
        self.0.maker.budget()
    }

    /// Joins the job of `order.key`, or begins it. A job that was begun ahead of time goes before the
    /// others of its kind from the moment that somebody joins it who waits.
    pub(super) fn join(&self, order: Order) -> Interest {
        let mut running = self.0.running();
        if let Some(job) = running.get_mut(&order.key) {
            job.interests += 1;
            let interest = Interest {
                key: order.key,
                jobs: Arc::clone(&self.0),
                cancel: job.cancel.clone(),
                outcome: job.outcome.clone(),
                recorder: Arc::clone(&job.recorder),
                standing: Arc::clone(&job.standing),
            };
            drop(running);
            if order.standing.class() > interest.standing.class() {
                self.promote(&interest.standing);
            }
            return interest;
        }
        let (ended, outcome) = watch::channel(None);
        let cancel = CancellationToken::new();
        let (recorder, standing) = (Arc::clone(&order.recorder), Arc::clone(&order.standing));
        let key = order.key.clone();
        running.insert(
            key.clone(),
            Running {
                interests: 1,
                cancel: cancel.clone(),
                outcome: outcome.clone(),
                recorder: Arc::clone(&recorder),
                standing: Arc::clone(&standing),
            },
        );
        drop(running);
        let span = tracing::info_span!("layer", blob = %order.layer.blob);
        tokio::spawn(Arc::clone(&self.0).run(order, cancel.clone(), ended).instrument(span));
        Interest { key, jobs: Arc::clone(&self.0), cancel, outcome, recorder, standing }
    }

    /// What an order's layer is expected to take on disk; nothing where somebody makes it already.
    pub(super) fn expected(&self, order: &Order) -> u64 {
        if self.0.running().contains_key(&order.key) {
            return 0;
        }
        self.0.maker.room().expected(order.key.diff_id, order.layer.size)
    }

    /// Whether layers may begin that are expected to take so many bytes.
    pub(super) fn admit(&self, bytes: u64) -> Result<(), NoRoom> {
        self.0.maker.room().admit(bytes)
    }

    fn promote(&self, standing: &Standing) {
        standing.promote();
        self.0.maker.look_again();
    }
}

impl Shared {
    async fn run(
        self: Arc<Self>,
        order: Order,
        cancel: CancellationToken,
        ended: watch::Sender<Option<Outcome>>,
    ) {
        let key = order.key.clone();
        let recorder = Arc::clone(&order.recorder);
        let what = || format!("layer {}: its job", recorder.layer().blob);
        let outcome = caught(what, self.maker.make(order, &cancel)).await;
        recorder.state(match &outcome {
            Ok(_) => LayerState::Done,
            Err(PullError::Cancelled) => LayerState::Cancelled,
            Err(error) => LayerState::Failed(error.to_string()),
        });
        {
            let mut running = self.running();
            if running.get(&key).is_some_and(|job| Arc::ptr_eq(&job.recorder, &recorder)) {
                running.remove(&key);
            }
        }
        // Nobody may be left to hear it.
        let _ = ended.send(Some(outcome));
    }
}
