//! The best sizes for a load that can be cut anywhere.
//!
//! Where the perfect pipeline's equations hold they are the answer. They do not where cores or the
//! disk are shared or where more layers are asked for than are downloaded at once; then a pattern
//! search over the sizes takes the simulation as it is. It starts from equal sizes, from
//! ramps and from the equations' answer to a simpler question, moves load between layers and groups of layers in steps
//! that grow smaller, and keeps what is faster. It has no chance in it: the same input gives the same
//! sizes.

use super::pipeline;
use super::simulation::{Load, simulate};
use super::{Model, Rates};
use crate::units::Rate;

/// What a byte of a layer brings with it.
#[derive(Clone, PartialEq, Debug)]
pub struct Kind {
    /// Uncompressed bytes for a compressed one.
    pub expansion: f64,
    /// Files for a compressed byte.
    pub files_per_byte: f64,
    /// Where it is not [`Rates::extract`].
    pub extract: Option<Rate>,
}

impl Default for Kind {
    fn default() -> Self {
        Self { expansion: 1.0, files_per_byte: 0.0, extract: None }
    }
}

impl Kind {
    /// Seconds of one layer's chain for a compressed byte.
    pub(super) fn seconds_per_byte(&self, rates: &Rates) -> f64 {
        let unpacked = rates.unpack.map_or(0.0, |rate| self.expansion / rate.0);
        1.0 / self.extract.unwrap_or(rates.extract).0
            + unpacked
            + self.files_per_byte * rates.per_file.0
    }

    /// A layer of it.
    pub fn load(&self, bytes: f64) -> Load {
        Load {
            bytes,
            unpacked: bytes * self.expansion,
            files: bytes * self.files_per_byte,
            extract: self.extract,
        }
    }
}

/// Sizes and what they cost.
#[derive(Clone, PartialEq, Debug)]
pub struct Split {
    /// Compressed bytes of each layer, in the order of the stack; they add up to the whole.
    pub sizes: Vec<f64>,
    /// What the model says of them.
    pub seconds: f64,
}

/// Steps begin with the first of these parts of the whole and end at the last.
const FIRST_STEP: f64 = 0.25;
const COARSE_STEP: f64 = 0.01;
const LAST_STEP: f64 = 1e-5;

/// A move has to gain this part of the time; less is rounding.
const GAIN: f64 = 1e-9;

/// The fastest way to cut `total` compressed bytes into `kinds.len()` layers behind `kept` ones.
pub fn best(total: f64, kept: &[Load], kinds: &[Kind], rates: &Rates, model: Model) -> Split {
    let time = |sizes: &[f64]| time(sizes, kept, kinds, rates, model);
    let solved = pipeline::equations(total, kinds, rates, model);
    let exact = kept.is_empty() && rates.disk.is_none() && rates.latency.0 == 0.0;
    if let Some(sizes) = solved.clone().filter(|_| exact && increasing(kinds, rates)) {
        return Split { seconds: time(&sizes), sizes };
    }
    let mut starts = ramps(total, kinds.len());
    starts.extend(solved);
    search(starts, &time)
}

/// Sizes that fall or rise along the stack, each so many times the one before, down to equal ones.
fn ramps(total: f64, layers: usize) -> Vec<Vec<f64>> {
    let ramp = |ratio: f64| {
        let sizes: Vec<f64> =
            std::iter::successors(Some(1.0), |size| Some(size * ratio)).take(layers).collect();
        let sum: f64 = sizes.iter().sum();
        sizes.into_iter().map(|size| size * total / sum).collect()
    };
    [1.0, 0.5, 1.25, 1.7, 2.5].map(ramp).into()
}

/// The same without the equations.
#[cfg(test)]
pub(super) fn searched(total: f64, kinds: &[Kind], rates: &Rates, model: Model) -> Split {
    search(ramps(total, kinds.len()), &|sizes| time(sizes, &[], kinds, rates, model))
}

/// The equations are exact for layers of one kind: the sizes then increase along the stack, as they
/// assume. With kinds that differ a slow layer may be better off elsewhere.
fn increasing(kinds: &[Kind], rates: &Rates) -> bool {
    let costs: Vec<f64> = kinds.iter().map(|kind| kind.seconds_per_byte(rates)).collect();
    costs.windows(2).all(|pair| (pair[0] - pair[1]).abs() <= 1e-12 * pair[0])
}

fn time(sizes: &[f64], kept: &[Load], kinds: &[Kind], rates: &Rates, model: Model) -> f64 {
    let cut = sizes.iter().zip(kinds).map(|(size, kind)| kind.load(*size));
    let loads: Vec<Load> = kept.iter().cloned().chain(cut).collect();
    simulate(&loads, rates, model).seconds
}

/// Goes downhill from every start in coarse steps, and from where that was lowest in fine ones: who
/// extracts in order has valleys of its own for every order of sizes.
fn search(starts: Vec<Vec<f64>>, time: &impl Fn(&[f64]) -> f64) -> Split {
    let coarse = starts.into_iter().map(|sizes| {
        let seconds = time(&sizes);
        descend(Split { sizes, seconds }, FIRST_STEP, COARSE_STEP, time)
    });
    let lowest = coarse.min_by(|a, b| a.seconds.total_cmp(&b.seconds)).expect("there is a start");
    descend(lowest, COARSE_STEP, LAST_STEP, time)
}

/// The time is a maximum of linear pieces, on whose ridges no move between two layers helps; moves
/// between groups, which keep the proportions inside, lead along them.
fn descend(mut best: Split, first: f64, last: f64, time: &impl Fn(&[f64]) -> f64) -> Split {
    let total: f64 = best.sizes.iter().sum();
    let moves = moves(best.sizes.len());
    let mut step = first;
    while step > last {
        let mut improved = false;
        for (from, to) in &moves {
            let mut sizes = best.sizes.clone();
            shift(&mut sizes, from.clone(), to.clone(), step * total);
            let seconds = time(&sizes);
            if seconds < best.seconds * (1.0 - GAIN) {
                best = Split { sizes, seconds };
                improved = true;
            }
        }
        if !improved {
            step /= 2.0;
        }
    }
    best
}

type Group = std::ops::Range<usize>;

/// Between any two layers, and from every run of layers to its neighbouring run.
fn moves(layers: usize) -> Vec<(Group, Group)> {
    let mut moves = Vec::new();
    for a in 0..layers {
        for b in a + 1..layers {
            moves.push((a..a + 1, b..b + 1));
            // All from a to b against all that follow, and against all before.
            moves.push((a..b, b..layers));
            moves.push((0..a + 1, a + 1..b + 1));
        }
    }
    let back: Vec<_> = moves.iter().map(|(a, b)| (b.clone(), a.clone())).collect();
    moves.extend(back);
    moves
}

/// Moves at most `amount` bytes from a run of layers to another, in the proportions of the sizes.
fn shift(sizes: &mut [f64], from: Group, to: Group, amount: f64) {
    let given: f64 = sizes[from.clone()].iter().sum();
    let amount = amount.min(given);
    if given <= 0.0 {
        return;
    }
    for size in &mut sizes[from] {
        *size -= amount * *size / given;
    }
    let had: f64 = sizes[to.clone()].iter().sum();
    #[allow(clippy::cast_precision_loss, reason = "layers are few")]
    let count = to.len() as f64;
    for size in &mut sizes[to] {
        *size += if had > 0.0 { amount * *size / had } else { amount / count };
    }
}
