//! The rates that pulls of hoistd have shown, from their records.
//!
//! A record has, for each layer, how long each stage was busy and with how many bytes. What the stages of a
//! layer take for a compressed byte makes the rates of the chain, as where this host is measured ([`super::host`]):
//! one core takes in what is left when it does all of them, and the chain what its slowest stage does. Writing
//! is two costs, one a byte and one a file, which layers of few large and of many small files tell apart.
//!
//! The link is what pulls got that waited for it; what others got is less than it gives.

use std::collections::BTreeMap;

use super::link::{Limit, Link, Point, link};
use super::{all_others, median};
use crate::image::{Compression, LayerKind};
use crate::model::{Deviation, Model, Profile, Rates};
use crate::timeline::{Bottleneck, LayerReport, LayerState, Phase, PullReport, PullState};
use crate::units::{Rate, Seconds, Size};

/// Layers of fewer bytes are over before a rate can be seen.
const LAYER_BYTES_LEAST: u64 = 1 << 20;

/// Pulls that brought fewer bytes say nothing of a link.
const PULL_BYTES_LEAST: u64 = 8 << 20;

/// What one core of containerd 2.1 takes in beside one core of hoist, files included: Go's gzip, its zstd
/// (`two-cores-gzip` and `two-cores-zstd` in [`Profile::named`]).
const GO_GZIP: f64 = 41.0 / 107.0;
const GO_ZSTD: f64 = 91.0 / 115.0;

/// What recorded pulls have shown.
#[derive(Clone, PartialEq, Debug)]
pub struct Recorded {
    /// The rates, as a profile.
    pub profile: Profile,
    /// Pulls that they follow from.
    pub pulls: usize,
    /// Layers of them.
    pub layers: usize,
    /// The layers' format: that of most of their bytes.
    pub compression: Compression,
    /// Whether some of the pulls waited for the network; otherwise the link is faster than the profile says.
    pub link_was_seen: bool,
    /// What limited it.
    pub limit: Limit,
}

/// A layer that was fetched and unpacked from its beginning to its end for this pull.
struct Seen<'a> {
    report: &'a LayerReport,
    compression: Compression,
}

/// The rates that `reports` show; `None` where no pull among them fetched a layer of at least a megabyte.
pub fn recorded(reports: &[PullReport], name: &str) -> Option<Recorded> {
    let ended = || reports.iter().filter(|report| report.state == PullState::Done);
    let all: Vec<Seen<'_>> = ended().flat_map(|report| &report.layers).filter_map(seen).collect();
    // Formats differ too much to be taken together, and a profile has one of each rate.
    let of = |wanted| {
        let own = all.iter().filter(move |seen| seen.compression == wanted);
        own.map(|seen| seen.report).collect::<Vec<_>>()
    };
    let bytes = |wanted| of(wanted).iter().map(|report| report.size).sum::<u64>();
    let formats = [Compression::Gzip, Compression::Zstd, Compression::None];
    let compression = formats.into_iter().max_by_key(|&format| bytes(format))?;
    let layers = of(compression);
    if layers.is_empty() {
        return None;
    }
    let (points, link_was_seen) = points(ended());
    let found = link(&points)?;
    let latest = ended().max_by(|a, b| a.began_unix_seconds.total_cmp(&b.began_unix_seconds))?;
    let latency = median(ended().filter_map(|report| report.resolve_seconds).collect());
    let chain = Chain::of(&layers)?;
    let rates = rates(&found, &chain, latest, latency.unwrap_or(0.0));
    let slower = if compression == Compression::Gzip { GO_GZIP } else { GO_ZSTD };
    let models = others_slower(chain.per_core() * slower);
    Some(Recorded {
        profile: Profile { name: name.to_owned(), rates, models },
        pulls: ended().filter(|report| report.layers.iter().any(|l| seen(l).is_some())).count(),
        layers: layers.len(),
        compression,
        link_was_seen,
        limit: found.limit,
    })
}

fn seen(report: &LayerReport) -> Option<Seen<'_>> {
    let LayerKind::Tar(compression) = LayerKind::of_media_type(&report.media_type) else {
        return None;
    };
    let own = report.state == LayerState::Done && !report.joined;
    // A layer that was resumed or begun by another pull has fewer bytes than it is large.
    let whole = report.size >= LAYER_BYTES_LEAST && report.bytes(Phase::Download) >= report.size;
    (own && whole).then_some(Seen { report, compression })
}

fn rates(found: &Link, chain: &Chain, latest: &PullReport, latency: f64) -> Rates {
    let machine = &latest.machine;
    #[allow(clippy::cast_precision_loss, reason = "a few megabytes")]
    let piece = Size(machine.chunk_bytes as f64);
    Rates {
        download: Rate::measured(found.download),
        per_connection: found.per_connection.map(Rate::measured),
        connections: u32::try_from(machine.connections).unwrap_or(u32::MAX).max(1),
        extract: Rate::measured(chain.layer()),
        per_core: Some(Rate::measured(chain.per_core().min(chain.layer()))),
        cores: u32::try_from(machine.cores).unwrap_or(u32::MAX).max(1),
        per_file: Seconds((chain.file * 1e6).round() / 1e6),
        latency: Seconds((latency * 1e3).round() / 1e3),
        piece,
        ..Rates::default()
    }
}

/// For each pull, how fast its bytes came over how many connections; of those that waited for the network,
/// where there are some, which is said.
fn points<'a>(reports: impl Iterator<Item = &'a PullReport>) -> (Vec<Point>, bool) {
    let all: Vec<(Point, bool)> = reports.filter_map(point).collect();
    let waited = all.iter().any(|(_, waited)| *waited);
    let chosen = all.into_iter().filter(|(_, own)| *own || !waited);
    (chosen.map(|(point, _)| point).collect(), waited)
}

#[allow(clippy::cast_precision_loss, reason = "bytes of a pull are below 2^53")]
fn point(report: &PullReport) -> Option<(Point, bool)> {
    let phases = || report.layers.iter().filter_map(|layer| layer.phase(Phase::Download));
    let bytes: u64 = phases().map(|phase| phase.bytes).sum();
    let seconds = covered(phases().map(|phase| (phase.begin_seconds, phase.end_seconds)).collect());
    if bytes < PULL_BYTES_LEAST || seconds <= 0.0 {
        return None;
    }
    let busy = report.busy_seconds(Phase::Download);
    let judged = crate::timeline::judge(report).map(|judgement| judgement.bottleneck);
    let waited = matches!(judged, Some(Bottleneck::Network | Bottleneck::FirstByte));
    Some((Point { connections: (busy / seconds).max(1.0), rate: bytes as f64 / seconds }, waited))
}

/// Seconds that lie in at least one of the spans.
fn covered(mut spans: Vec<(f64, f64)>) -> f64 {
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut all, mut until) = (0.0, f64::NEG_INFINITY);
    for (begin, end) in spans {
        all += (end - begin.max(until)).max(0.0);
        until = until.max(end);
    }
    all
}

/// Seconds of the stages of a layer.
struct Chain {
    /// For a compressed byte.
    decompress: f64,
    hash: f64,
    write: f64,
    /// For a file.
    file: f64,
    /// Compressed bytes a second of the layer that was fastest from its turn to its end.
    fastest: f64,
}

impl Chain {
    #[allow(clippy::cast_precision_loss, reason = "bytes of layers are below 2^53")]
    fn of(layers: &[&LayerReport]) -> Option<Self> {
        let size: u64 = layers.iter().map(|layer| layer.size).sum();
        let each = |phase| {
            let busy = layers.iter().filter_map(|l| l.phase(phase)).map(|p| p.busy_seconds);
            busy.sum::<f64>() / size as f64
        };
        let written = layers.iter().map(|layer| {
            let seconds = layer.phase(Phase::Write).map_or(0.0, |phase| phase.busy_seconds);
            [layer.size as f64, layer.entries as f64, seconds]
        });
        let (write, file) = two_costs(&written.collect::<Vec<_>>());
        let speed = |layer: &&LayerReport| {
            layer.work().map(|(begin, end)| layer.size as f64 / (end - begin).max(1e-6))
        };
        let chain = Self {
            decompress: each(Phase::Decompress),
            hash: each(Phase::Hash),
            write,
            file,
            fastest: layers.iter().filter_map(speed).fold(0.0, f64::max),
        };
        (chain.decompress + chain.hash + chain.write > 0.0).then_some(chain)
    }

    /// Compressed bytes a second of a core that does all.
    fn per_core(&self) -> f64 {
        1.0 / (self.decompress + self.hash + self.write)
    }

    /// Compressed bytes a second of the chain: of its slowest stage on one thread, or what was seen, where
    /// several threads share a stage.
    fn layer(&self) -> f64 {
        (1.0 / self.decompress.max(self.hash).max(self.write)).max(self.fastest)
    }
}

/// The costs a and b, none below 0, for which a · bytes + b · files is nearest to the seconds: least squares
/// over rows of bytes, files and seconds. Where rows do not differ all of it is the bytes'.
fn two_costs(rows: &[[f64; 3]]) -> (f64, f64) {
    let sum = |a: usize, b: usize| rows.iter().map(|row| row[a] * row[b]).sum::<f64>();
    let (bb, bf, ff, bs, fs) = (sum(0, 0), sum(0, 1), sum(1, 1), sum(0, 2), sum(1, 2));
    let bytes_alone = if bb > 0.0 { bs / bb } else { 0.0 };
    let determinant = bb * ff - bf * bf;
    // Rows that are multiples of each other but for a hundred-thousandth of noise say nothing.
    if determinant <= bb * ff * 1e-5 {
        return (bytes_alone, 0.0);
    }
    let (a, b) = ((bs * ff - fs * bf) / determinant, (fs * bb - bs * bf) / determinant);
    match (a >= 0.0, b >= 0.0) {
        (true, true) => (a, b),
        (true, false) => (bytes_alone, 0.0),
        (false, _) => (0.0, fs / ff),
    }
}

/// What is said of pullers that are not hoistd: so many compressed bytes a second, for a layer and for a core.
fn others_slower(rate: f64) -> BTreeMap<Model, Deviation> {
    let slower = Some(Rate::measured(rate));
    all_others(&Deviation { extract: slower, per_core: slower, ..Deviation::default() })
}

#[cfg(test)]
mod tests;
