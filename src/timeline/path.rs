//! The critical path of a pull: what followed what, without a gap, from its begin to its end.
//!
//! It is found from the end. The layer that was ready last is on it. Where that layer had waited in
//! the queue, the layer whose end let it begin is on it too, and so on; where no layer of this pull
//! did, other pulls had. Before the first layer the manifest was fetched, and after the last one
//! containerd had to ask for it.

use super::{LayerReport, LayerState, Phase, PullReport, PullState};

/// What a part of the path is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Manifest and configuration.
    Resolve,
    /// The layer of this index waits, and not for a layer of this pull.
    Queue(usize),
    /// The layer of this index is fetched and unpacked.
    Layer(usize),
    /// All layers are there; the pull has not ended.
    Containerd,
}

/// A part of the path, in seconds since the pull began.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Segment {
    /// What it is.
    pub step: Step,
    /// When it begins.
    pub begin: f64,
    /// When it ends.
    pub end: f64,
}

impl Segment {
    /// How long it is.
    pub fn seconds(&self) -> f64 {
        self.end - self.begin
    }
}

/// A layer's end and the begin of the one that follows it: a thread has to be woken in between.
const HANDOVER_SECONDS: f64 = 0.02;

/// The path, in the order of time. Parts that take no time are left out.
pub fn critical(report: &PullReport) -> Vec<Segment> {
    let mut path = Vec::new();
    let resolved = report.resolve_seconds.unwrap_or_default();
    let ends = (0..report.layers.len()).filter_map(|i| Some((i, report.layers[i].work()?.1)));
    let last = ends.max_by(|one, other| one.1.total_cmp(&other.1));
    let Some((last, end)) = last else {
        let step = if resolved > 0.0 { Step::Containerd } else { Step::Resolve };
        path.push(Segment { step: Step::Resolve, begin: 0.0, end: resolved });
        path.push(Segment { step, begin: resolved, end: report.seconds });
        path.retain(|segment| segment.seconds() > 0.0);
        return path;
    };
    // While layers are missing, what is behind the last step of one is no wait.
    let missing =
        |layer: &LayerReport| matches!(layer.state, LayerState::Waiting | LayerState::Running);
    let under_way = report.state == PullState::Running && report.layers.iter().any(missing);
    if !under_way && report.seconds - end > HANDOVER_SECONDS {
        path.push(Segment { step: Step::Containerd, begin: end, end: report.seconds });
    }
    let mut next = Some(last);
    let mut begin = end;
    while let Some(index) = next {
        let work = report.layers[index].work().unwrap_or((begin, begin));
        path.push(Segment { step: Step::Layer(index), begin: work.0, end: work.1 });
        begin = work.0;
        next = None;
        let waited =
            report.layers[index].phase(Phase::Wait).filter(|wait| wait.span() > HANDOVER_SECONDS);
        if let Some(wait) = waited {
            next = before(report, wait.end_seconds, begin);
            if next.is_none() {
                let begin = wait.begin_seconds.max(resolved);
                path.push(Segment { step: Step::Queue(index), begin, end: wait.end_seconds });
            }
        }
    }
    path.push(Segment { step: Step::Resolve, begin: 0.0, end: resolved.min(begin) });
    path.retain(|segment| segment.seconds() > 0.0);
    path.reverse();
    path
}

/// The layer that ended when a wait ended, and so let it end: the last one to end before.
fn before(report: &PullReport, wait_end: f64, begin: f64) -> Option<usize> {
    let works = (0..report.layers.len()).filter_map(|i| Some((i, report.layers[i].work()?)));
    let ended = works.filter(|(_, (from, to))| {
        *from < begin && *to <= begin && (wait_end - to).abs() < HANDOVER_SECONDS
    });
    ended.max_by(|one, other| one.1.1.total_cmp(&other.1.1)).map(|(index, _)| index)
}

/// Whether the layer of this index is on the path.
pub fn has_layer(path: &[Segment], index: usize) -> bool {
    path.iter().any(|segment| segment.step == Step::Layer(index))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{layer, pull};
    use super::*;

    fn steps(path: &[Segment]) -> Vec<Step> {
        path.iter().map(|segment| segment.step).collect()
    }

    #[test]
    fn a_layer_that_waited_follows_the_one_it_waited_for() {
        // Two slots: 0 and 1 begin at once, 2 begins when 1 has ended, 3 was there before the end.
        let mut layers = vec![layer(0.5, 3.0), layer(0.5, 4.0), layer(4.01, 9.0), layer(3.0, 8.0)];
        for (index, end) in [(2, 4.0), (3, 3.0)] {
            layers[index].phases.insert(0, super::super::testing::phase(Phase::Wait, 0.4, end));
        }
        let path = critical(&pull(9.5, Some(0.4), layers));
        assert_eq!(steps(&path), [Step::Resolve, Step::Layer(1), Step::Layer(2), Step::Containerd]);
        assert!(has_layer(&path, 2) && !has_layer(&path, 0));
        assert!((path[3].seconds() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn what_was_fetched_before_its_turn_is_not_a_layers_work() {
        let mut layers = vec![layer(0.5, 4.0), layer(0.6, 9.0)];
        layers[1].phases.insert(0, super::super::testing::phase(Phase::Wait, 0.4, 4.0));
        let pull = pull(9.0, Some(0.4), layers);
        let path = critical(&pull);
        assert_eq!(steps(&path), [Step::Resolve, Step::Layer(0), Step::Layer(1)]);
        assert!((path[2].seconds() - 5.0).abs() < 1e-9);
        assert!((pull.layers[1].downloading().unwrap() - 5.0).abs() < 1e-9);
        assert!((pull.layers[0].downloading().unwrap() - 3.5).abs() < 1e-9);
    }

    #[test]
    fn a_wait_for_nobody_here_is_for_others() {
        let mut layers = vec![layer(5.0, 6.0)];
        layers[0].phases.insert(0, super::super::testing::phase(Phase::Wait, 0.4, 5.0));
        let path = critical(&pull(6.0, Some(0.4), layers));
        assert_eq!(steps(&path), [Step::Resolve, Step::Queue(0), Step::Layer(0)]);
    }

    #[test]
    fn a_pull_under_way_does_not_wait_for_containerd() {
        let mut report = pull(9.0, Some(0.4), vec![layer(0.5, 3.0), layer(0.5, 4.0)]);
        report.state = PullState::Running;
        assert_eq!(steps(&critical(&report)).last(), Some(&Step::Containerd), "all are there");
        report.layers[0].state = LayerState::Running;
        assert_eq!(steps(&critical(&report)).last(), Some(&Step::Layer(1)));
    }

    #[test]
    fn a_pull_of_nothing_is_its_manifest_and_containerd() {
        assert_eq!(
            steps(&critical(&pull(1.0, Some(0.4), vec![]))),
            [Step::Resolve, Step::Containerd]
        );
        assert_eq!(steps(&critical(&pull(1.0, None, vec![]))), [Step::Resolve]);
        assert!(critical(&pull(0.0, None, vec![])).is_empty());
    }
}
