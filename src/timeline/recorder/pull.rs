//! What is recorded of one pull as a whole, around the recorders of its layers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::LayerRecorder;
use crate::image::{BlobDigest, ImageLayer};
use crate::sys::processors::{self, Processors};
use crate::timeline::report::{LayerState, MachineReport, PullReport, PullState, VERSION};

/// What a pull may use, for whoever judges how it went. Zero where it is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bounds {
    /// Connections for one image.
    pub connections: usize,
    /// Bytes that one request asks for at most.
    pub chunk_bytes: u64,
    /// Threads that write the files of one layer.
    pub writers: usize,
    /// The memory budget that all pulls share.
    pub memory_bytes: u64,
}

/// What is recorded of one pull.
#[derive(Debug)]
pub struct PullRecorder {
    id: u64,
    image: String,
    bounds: Bounds,
    began: Instant,
    began_at: SystemTime,
    processors: Processors,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    manifest: Option<BlobDigest>,
    resolved: Option<Duration>,
    authorized: Option<Duration>,
    trace_parent: Option<String>,
    layers: Vec<Arc<LayerRecorder>>,
    ended: Option<(Duration, PullState, Processors)>,
}

impl PullRecorder {
    /// A pull of `image` that begins now and may use so much.
    pub fn new(id: u64, image: &str, bounds: Bounds) -> Self {
        Self {
            id,
            image: image.to_owned(),
            bounds,
            began: Instant::now(),
            began_at: SystemTime::now(),
            processors: Processors::now(),
            inner: Mutex::new(Inner {
                manifest: None,
                resolved: None,
                authorized: None,
                trace_parent: None,
                layers: Vec::new(),
                ended: None,
            }),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pull's number, unique among those that are kept.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The image reference.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// When it began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Notes that manifest and configuration are known; answering challenges took `authorized` of it.
    pub fn resolved(&self, manifest: BlobDigest, authorized: Duration) {
        let mut inner = self.inner();
        inner.manifest = Some(manifest);
        inner.resolved = Some(self.began.elapsed());
        inner.authorized = (!authorized.is_zero()).then_some(authorized);
    }

    /// Notes the trace that this pull is part of. The first word counts.
    pub fn traced(&self, parent: &str) {
        self.inner().trace_parent.get_or_insert_with(|| parent.to_owned());
    }

    /// Adds a recorder for `layer`.
    pub fn layer(&self, layer: ImageLayer) -> Arc<LayerRecorder> {
        let recorder = Arc::new(LayerRecorder::new(self.began, layer));
        self.attach(Arc::clone(&recorder));
        recorder
    }

    /// Adds the recorder of a job that another pull began, for a layer that both need.
    pub fn attach(&self, layer: Arc<LayerRecorder>) {
        self.inner().layers.push(layer);
    }

    /// Notes how it ended. The first word counts; whether this was it is returned.
    pub fn ended(&self, state: PullState) -> bool {
        let elapsed = self.began.elapsed();
        let mut inner = self.inner();
        let first = inner.ended.is_none();
        inner.ended.get_or_insert_with(|| (elapsed, state, Processors::now()));
        first
    }

    /// The figures so far.
    pub fn report(&self) -> PullReport {
        let inner = self.inner();
        let (elapsed, state, processors) = inner
            .ended
            .clone()
            .unwrap_or_else(|| (self.began.elapsed(), PullState::Running, Processors::now()));
        let began = self.began_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let layers = inner.layers.iter().map(|layer| {
            let mut report = layer.report_since(self.began);
            // Its job may end later, or go on for another pull; with this one it is over.
            let open = matches!(report.state, LayerState::Waiting | LayerState::Running);
            if open && matches!(state, PullState::Cancelled | PullState::Failed(_)) {
                report.state = LayerState::Cancelled;
            }
            report
        });
        let layers = layers.collect();
        PullReport {
            version: VERSION,
            id: self.id,
            image: self.image.clone(),
            manifest: inner.manifest,
            began_unix_seconds: began.as_secs_f64(),
            seconds: elapsed.as_secs_f64(),
            resolve_seconds: inner.resolved.map(|d| d.as_secs_f64()),
            auth_seconds: inner.authorized.map(|d| d.as_secs_f64()),
            trace_parent: inner.trace_parent.clone(),
            state,
            machine: self.machine(&processors),
            layers,
            judgement: None,
        }
    }

    fn machine(&self, until: &Processors) -> MachineReport {
        let Bounds { connections, chunk_bytes, writers, memory_bytes } = self.bounds;
        MachineReport {
            cores: processors::usable(),
            cpu_seconds: until.process_seconds - self.processors.process_seconds,
            busy_share: self.processors.busy_share(until),
            connections,
            chunk_bytes,
            writers,
            memory_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_counts() {
        let pull = PullRecorder::new(1, "registry/a:b", Bounds::default());
        assert_eq!(pull.report().state, PullState::Running);
        assert!(pull.ended(PullState::Done));
        assert!(!pull.ended(PullState::Cancelled));
        assert_eq!(pull.report().state, PullState::Done);
    }

    #[test]
    fn no_layer_is_at_work_in_a_pull_that_is_over() {
        let failed = || PullState::Failed("why".to_owned());
        for (end, open) in [
            (PullState::Cancelled, LayerState::Cancelled),
            (failed(), LayerState::Cancelled),
            (PullState::FellBack("why".to_owned()), LayerState::Waiting),
        ] {
            let pull = PullRecorder::new(1, "registry/a:b", Bounds::default());
            let layers = [LayerState::Done, LayerState::Waiting].map(|state| {
                let layer = Arc::new(LayerRecorder::detached());
                layer.state(state);
                pull.attach(Arc::clone(&layer));
                layer
            });
            let states = || pull.report().layers.into_iter().map(|l| l.state).collect::<Vec<_>>();
            assert_eq!(states(), [LayerState::Done, LayerState::Waiting]);
            pull.ended(end);
            assert_eq!(states(), [LayerState::Done, open]);
            drop(layers);
        }
    }
}
