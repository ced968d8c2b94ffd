//! A pull, played out.
//!
//! Between two events (a layer has arrived, has been extracted, has caught up with another) every rate
//! is constant. A step asks which flows may go on under the model, shares what is there among them,
//! and goes to the next event. There are at most a few events a layer, so a pull costs microseconds.

use serde::{Deserialize, Serialize};

use super::puller::Shape;
use super::sharing::{Flow, RESOURCES, share};
use super::{Model, Rates};
use crate::units::Rate;

/// A layer as the model sees it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Load {
    /// Compressed bytes.
    pub bytes: f64,
    /// Uncompressed bytes.
    pub unpacked: f64,
    /// Files, directories and links.
    pub files: f64,
    /// What its chain takes in a second, where it is not [`Rates::extract`]: another codec.
    pub extract: Option<Rate>,
}

/// Seconds since the pull began.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Interval {
    /// When it began.
    pub begin: f64,
    /// When it ended.
    pub end: f64,
}

/// When a layer was downloaded and extracted. Before and in between it waited.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct LayerTimes {
    /// From its first to its last byte.
    pub download: Interval,
    /// From its first byte decompressed to its last file written.
    pub extract: Interval,
}

/// How a pull is expected to go.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Prediction {
    /// Who pulls.
    pub model: Model,
    /// In the order of the stack.
    pub layers: Vec<LayerTimes>,
    /// Until the last layer was there.
    pub seconds: f64,
}

/// What is left of a layer while the pull goes on.
struct Going {
    /// Seconds that its download and its extraction would take alone.
    download_alone: f64,
    extract_alone: f64,
    /// The parts of them that are left, 1 to 0.
    download_left: f64,
    extract_left: f64,
    download: Flow,
    extract: Flow,
    download_began: Option<f64>,
    download_ended: f64,
    extract_began: Option<f64>,
    extract_ended: f64,
}

/// Two that differ by less than this part count as equal.
const EQUAL: f64 = 1e-9;

/// Plays out the pull of `layers`, in the order of the stack, by `model`.
pub fn simulate(layers: &[Load], rates: &Rates, model: Model) -> Prediction {
    let shape = model.shape(rates);
    let link = link(rates, &shape);
    let whole =
        [link, f64::from(rates.cores.max(1)), rates.disk.map_or(f64::INFINITY, |disk| disk.0)];
    let mut going: Vec<Going> =
        layers.iter().map(|layer| Going::new(layer, rates, &shape, link)).collect();
    let mut now = rates.latency.0;
    while going.iter().any(|layer| layer.extract_left > 0.0) {
        let step = if shape.streaming {
            stream(&mut going, whole, now)
        } else {
            download_then_extract(&mut going, whole, now, &shape)
        };
        assert!(step.is_finite() && step >= 0.0, "a pull that stands still: {layers:?} {rates:?}");
        now += step;
    }
    let times = going.iter().zip(layers).map(|(going, layer)| {
        let last = if shape.streaming { rates.piece.0.min(layer.bytes) } else { 0.0 };
        let rest = last / layer.bytes.max(1.0) * chain_seconds(layer, rates);
        let begin = |began: Option<f64>| began.unwrap_or(rates.latency.0);
        LayerTimes {
            download: Interval { begin: begin(going.download_began), end: going.download_ended },
            extract: Interval {
                begin: begin(going.extract_began),
                end: going.extract_ended + rest,
            },
        }
    });
    let layers: Vec<_> = times.collect();
    let seconds = layers.iter().map(|layer| layer.extract.end).fold(rates.latency.0, f64::max);
    Prediction { model, layers, seconds }
}

/// What the bytes of a layer take in its chain, without its files.
fn chain_seconds(layer: &Load, rates: &Rates) -> f64 {
    let extract = layer.extract.unwrap_or(rates.extract).0;
    layer.bytes / extract + rates.unpack.map_or(0.0, |unpack| layer.unpacked / unpack.0)
}

/// What all connections of a puller get together.
fn link(rates: &Rates, shape: &Shape) -> f64 {
    let connections = rates.per_connection.map(|each| each.0 * f64::from(rates.connections.max(1)));
    match connections {
        Some(most) if shape.ranged => most.min(rates.download.0),
        _ => rates.download.0,
    }
}

impl Going {
    fn new(layer: &Load, rates: &Rates, shape: &Shape, link: f64) -> Self {
        // An empty layer is a download and an extraction too; they take no time that anybody sees.
        let bytes = layer.bytes.max(1.0);
        let extract = layer.extract.unwrap_or(rates.extract).0;
        // A codec that is faster in one chain is faster on a core, in proportion.
        let per_core = rates.per_core.map_or(extract, |core| core.0 * extract / rates.extract.0);
        let files = layer.files * rates.per_file.0;
        let alone = chain_seconds(&Load { bytes, ..layer.clone() }, rates) + files;
        let unpack_per_core = rates.unpack_per_core.or(rates.unpack);
        let unpacked = unpack_per_core.map_or(0.0, |core| layer.unpacked / core.0);
        let cores = (bytes / per_core + unpacked + files) / alone;
        let disk = layer.unpacked / alone;
        let per_layer = if shape.ranged { None } else { rates.per_connection };
        Self {
            download_alone: bytes / link,
            extract_alone: alone,
            download_left: 1.0,
            extract_left: 1.0,
            download: Flow {
                uses: [link, 0.0, if shape.streaming { 0.0 } else { link }],
                limit: per_layer.map_or(1.0, |each| (each.0 / link).min(1.0)),
            },
            extract: Flow {
                uses: [if shape.streaming { bytes / alone } else { 0.0 }, cores, disk],
                limit: 1.0,
            },
            download_began: None,
            download_ended: 0.0,
            extract_began: None,
            extract_ended: 0.0,
        }
    }

    fn serial_left(&self) -> f64 {
        self.extract_left * self.extract_alone
    }

    /// Goes on with the download for `step` seconds at `speed`; whether it has ended.
    fn go_download(&mut self, speed: f64, now: f64, step: f64) {
        if speed > 0.0 {
            self.download_began.get_or_insert(now);
        }
        self.download_left -= speed * step / self.download_alone;
        if self.download_left <= EQUAL {
            self.download_left = 0.0;
            self.download_ended = now + step;
        }
    }

    fn go_extract(&mut self, speed: f64, now: f64, step: f64) {
        if speed > 0.0 {
            self.extract_began.get_or_insert(now);
        }
        self.extract_left -= speed * step / self.extract_alone;
        if self.extract_left <= EQUAL {
            self.extract_left = 0.0;
            self.extract_ended = now + step;
        }
    }
}

/// When something that is `left` seconds from its end, going at `speed`, ends.
fn ends(left: f64, speed: f64) -> f64 {
    if speed > 0.0 { left / speed } else { f64::INFINITY }
}

/// A step of a puller that extracts a layer when all of it is there.
fn download_then_extract(
    going: &mut [Going],
    mut left: [f64; RESOURCES],
    now: f64,
    shape: &Shape,
) -> f64 {
    let downloading: Vec<usize> =
        (0..going.len()).filter(|&i| going[i].download_left > 0.0).take(shape.downloads).collect();
    let waiting = (0..going.len()).filter(|&i| going[i].extract_left > 0.0);
    let there = |i: &usize| going[*i].download_left == 0.0;
    let extracting: Vec<usize> = if shape.unpacks == 1 {
        waiting.take(1).filter(there).collect()
    } else {
        waiting.filter(there).take(shape.unpacks).collect()
    };
    let flows: Vec<Flow> = downloading
        .iter()
        .map(|&i| going[i].download)
        .chain(extracting.iter().map(|&i| going[i].extract))
        .collect();
    let speeds = share(&flows, &mut left);
    let (down, extract) = speeds.split_at(downloading.len());
    let next_download = downloading
        .iter()
        .zip(down)
        .map(|(&i, &speed)| ends(going[i].download_left * going[i].download_alone, speed));
    let next_extract =
        extracting.iter().zip(extract).map(|(&i, &speed)| ends(going[i].serial_left(), speed));
    let step = next_download.chain(next_extract).fold(f64::INFINITY, f64::min);
    for (&i, &speed) in downloading.iter().zip(down) {
        going[i].go_download(speed, now, step);
    }
    for (&i, &speed) in extracting.iter().zip(extract) {
        going[i].go_extract(speed, now, step);
    }
    step
}

/// A step of a puller that extracts while it downloads. Layers with the longest remaining serial work
/// come first; those whose work is equally long go on together, so that it stays equal.
fn stream(going: &mut [Going], mut left: [f64; RESOURCES], now: f64) -> f64 {
    let mut order: Vec<usize> = (0..going.len()).filter(|&i| going[i].extract_left > 0.0).collect();
    order.sort_by(|&a, &b| going[b].serial_left().total_cmp(&going[a].serial_left()));
    let longest = going[order[0]].serial_left();
    let mut speeds = Vec::with_capacity(order.len());
    let mut step = f64::INFINITY;
    let mut ahead: Option<(f64, f64)> = None;
    let mut rest = order.as_slice();
    while let Some(&first) = rest.first() {
        let work = going[first].serial_left();
        let alike =
            rest.iter().take_while(|&&i| work - going[i].serial_left() <= EQUAL * longest).count();
        let (group, after) = rest.split_at(alike);
        rest = after;
        let flows: Vec<Flow> = group.iter().map(|&i| going[i].extract).collect();
        let shared = share(&flows, &mut left);
        let speed = shared[0];
        step = shared.iter().fold(step, |step, &speed| step.min(ends(work, speed)));
        if let Some((longer, faster)) = ahead {
            step = step.min(ends(longer - work, faster - speed));
        }
        ahead = Some((work, speed));
        speeds.extend(shared);
    }
    for (&i, &speed) in order.iter().zip(&speeds) {
        going[i].go_extract(speed, now, step);
        going[i].download_began = going[i].extract_began;
        going[i].download_ended = going[i].extract_ended;
    }
    step
}
