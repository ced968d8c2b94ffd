//! Files to layers.
//!
//! The planner takes units that stay whole (a directory's files, say, so that what belongs together
//! stays together) and gives each a layer, so that the model's time is least. First it asks [`split`]
//! what sizes would be best if load could be cut anywhere, for every number of layers. Then it brings
//! the units to these sizes in two ways: by cutting the row of units where it is, which keeps
//! neighbours together, and by giving the largest first to the layer that lacks most, which comes
//! closer where units are large. The better one is improved by moving and exchanging units as long as
//! that gains anything, shaken a little and improved again. Where there are few assignments at all, all
//! of them are tried. More layers, or less neighbourhood, must gain [`WORTH`] of the time.
//!
//! [`split`]: super::split

use super::simulation::{Load, simulate};
use super::split::{self, Kind};
use super::{Model, Rates};

/// What stays together.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Unit {
    /// Compressed bytes, as expected.
    pub bytes: f64,
    /// Uncompressed bytes.
    pub unpacked: f64,
    /// Files, directories and links.
    pub files: f64,
}

/// What a plan has to keep to.
#[derive(Clone, PartialEq, Debug)]
pub struct Constraints {
    /// New layers at most; at least 1.
    pub max_layers: usize,
    /// Compressed bytes of a new layer at most.
    pub max_layer_bytes: Option<f64>,
    /// Layers that stay as they are, below the new ones.
    pub kept: Vec<Load>,
}

/// Which unit goes where, and how long the pull takes then.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// For each unit its layer: 0 is the first new one above those kept. Within a layer, units stay in
    /// their order.
    pub layer_of: Vec<usize>,
    /// The new layers.
    pub layers: Vec<Load>,
    /// What the model says of kept and new layers.
    pub seconds: f64,
}

/// Why there is no plan.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum PlanError {
    /// Nothing to put anywhere, or nowhere to put it.
    #[error("a plan needs at least one unit and one layer")]
    Nothing,
    /// One unit alone is too large.
    #[error(
        "unit {unit} has {bytes:.0} compressed bytes, more than the {limit:.0} that a layer may have; \
         allow larger layers or smaller units"
    )]
    UnitTooLarge {
        /// Its index.
        unit: usize,
        /// Its compressed bytes.
        bytes: f64,
        /// What a layer may have.
        limit: f64,
    },
    /// The layers that are allowed do not hold the units.
    #[error(
        "{bytes:.0} compressed bytes were not brought into {layers} layers of at most {limit:.0}; \
         allow more or larger layers"
    )]
    TooFewLayers {
        /// Compressed bytes of all units.
        bytes: f64,
        /// Layers that are allowed.
        layers: usize,
        /// What a layer may have.
        limit: f64,
    },
}

/// What another layer, or units apart from their neighbours, must gain.
pub const WORTH: f64 = 0.002;

/// Simulations that the improvement of one assignment may cost. A simulation takes some microseconds;
/// so many take less time than compressing a megabyte for every layer.
const TRIALS: usize = 20_000;

/// How often an assignment that nothing improves is shaken.
const SHAKES: usize = 40;

/// Up to so many assignments are all tried.
const FEW: usize = 5_000;

/// Finds the layers for `units`.
///
/// # Errors
/// There is nothing to plan, or the limits leave no room for a unit or for all of them.
pub fn plan(
    units: &[Unit],
    constraints: &Constraints,
    rates: &Rates,
    model: Model,
) -> Result<Plan, PlanError> {
    planned(units, constraints, rates, model, FEW)
}

/// [`plan`], with all assignments tried if there are at most `few`.
pub(super) fn planned(
    units: &[Unit],
    constraints: &Constraints,
    rates: &Rates,
    model: Model,
    few: usize,
) -> Result<Plan, PlanError> {
    let most = constraints.max_layers.min(units.len());
    let total: f64 = units.iter().map(|unit| unit.bytes).sum();
    if most == 0 {
        return Err(PlanError::Nothing);
    }
    let limit = constraints.max_layer_bytes.unwrap_or(f64::INFINITY);
    if let Some((unit, large)) = units.iter().enumerate().find(|(_, unit)| unit.bytes > limit) {
        return Err(PlanError::UnitTooLarge { unit, bytes: large.bytes, limit });
    }
    let task = Task { units, kept: &constraints.kept, limit, total, rates, model, few };
    let mut best: Option<Draft> = None;
    for layers in 1..=most {
        let draft = task.draft(layers);
        let better = best.as_ref().is_none_or(|best| {
            draft.overflow < best.overflow
                || (draft.overflow <= best.overflow && draft.seconds < best.seconds * (1.0 - WORTH))
        });
        if better {
            best = Some(draft);
        }
    }
    let best = best.expect("there is at least one number of layers");
    if best.overflow > 0.0 {
        return Err(PlanError::TooFewLayers { bytes: total, layers: most, limit });
    }
    Ok(best.finished())
}

/// All that does not change while assignments are tried.
struct Task<'a> {
    units: &'a [Unit],
    kept: &'a [Load],
    limit: f64,
    total: f64,
    rates: &'a Rates,
    model: Model,
    few: usize,
}

/// An assignment, with what it costs.
#[derive(Clone)]
struct Draft {
    layer_of: Vec<usize>,
    layers: Vec<Load>,
    seconds: f64,
    /// Bytes above the limit of a layer, over all layers.
    overflow: f64,
}

impl Draft {
    /// Without layers that nothing is in.
    fn finished(self) -> Plan {
        let mut new_index = vec![0; self.layers.len()];
        let mut layers = Vec::new();
        for (index, layer) in self.layers.into_iter().enumerate() {
            new_index[index] = layers.len();
            if self.layer_of.contains(&index) {
                layers.push(layer);
            }
        }
        let layer_of = self.layer_of.into_iter().map(|layer| new_index[layer]).collect();
        Plan { layer_of, layers, seconds: self.seconds }
    }
}

impl Task<'_> {
    /// The best that is found with so many layers.
    fn draft(&self, layers: usize) -> Draft {
        let kind = self.average();
        let kinds = vec![kind; layers];
        let sizes = split::best(self.total, self.kept, &kinds, self.rates, self.model).sizes;
        let row = self.improved(self.cost(self.cut(&sizes), layers), true);
        let apart = self.all(layers).unwrap_or_else(|| {
            let filled = self.improved(self.cost(self.fill(&sizes), layers), false);
            let mixed = self.improved(row.clone(), false);
            self.shaken(if filled.better_than(&mixed, 0.0) { filled } else { mixed })
        });
        if apart.better_than(&row, WORTH) { apart } else { row }
    }

    /// The best of all assignments, if these are few.
    fn all(&self, layers: usize) -> Option<Draft> {
        let count = layers.checked_pow(u32::try_from(self.units.len()).ok()?)?;
        let assignment = |mut code: usize| {
            let digit = |_| {
                let layer = code % layers;
                code /= layers;
                layer
            };
            self.cost((0..self.units.len()).map(digit).collect(), layers)
        };
        let drafts = (0..count).map(assignment);
        if count > self.few {
            return None;
        }
        drafts.reduce(|best, draft| if draft.better_than(&best, 0.0) { draft } else { best })
    }

    /// Out of the hollow that an assignment lies in: three units go where chance wants, and the rest
    /// follows. Chance is a fixed sequence (xorshift), so that a plan is always the same.
    fn shaken(&self, mut best: Draft) -> Draft {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut chance = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from((state >> 33) % below.max(1) as u64).expect("it is below a usize")
        };
        // A big image has many units of every size; what is left to gain there is not worth the time.
        let shakes = if self.units.len() > 200 { 0 } else { SHAKES };
        for _ in 0..shakes {
            let mut layer_of = best.layer_of.clone();
            for _ in 0..3 {
                layer_of[chance(self.units.len())] = chance(best.layers.len());
            }
            let tried = self.improved(self.cost(layer_of, best.layers.len()), false);
            if tried.better_than(&best, 1e-9) {
                best = tried;
            }
        }
        best
    }

    fn average(&self) -> Kind {
        let bytes = self.total.max(1.0);
        Kind {
            expansion: self.units.iter().map(|unit| unit.unpacked).sum::<f64>() / bytes,
            files_per_byte: self.units.iter().map(|unit| unit.files).sum::<f64>() / bytes,
            extract: None,
        }
    }

    /// The row of units, cut where the sizes say.
    fn cut(&self, sizes: &[f64]) -> Vec<usize> {
        let mut layer = 0;
        let mut end = sizes[0];
        let mut at = 0.0;
        let place = |unit: &Unit| {
            // A unit belongs where its middle lies.
            let middle = at + unit.bytes / 2.0;
            at += unit.bytes;
            while layer + 1 < sizes.len() && middle > end {
                layer += 1;
                end += sizes[layer];
            }
            layer
        };
        self.units.iter().map(place).collect()
    }

    /// The largest first, each to the layer that lacks most.
    fn fill(&self, sizes: &[f64]) -> Vec<usize> {
        let mut lacks = sizes.to_vec();
        let mut order: Vec<usize> = (0..self.units.len()).collect();
        order.sort_by(|&a, &b| self.units[b].bytes.total_cmp(&self.units[a].bytes));
        let mut layer_of = vec![0; self.units.len()];
        for unit in order {
            let most = (0..lacks.len()).max_by(|&a, &b| lacks[a].total_cmp(&lacks[b]));
            let layer = most.expect("there are layers");
            lacks[layer] -= self.units[unit].bytes;
            layer_of[unit] = layer;
        }
        layer_of
    }

    fn cost(&self, layer_of: Vec<usize>, layers: usize) -> Draft {
        let mut loads = vec![Load::default(); layers];
        for (unit, &layer) in self.units.iter().zip(&layer_of) {
            change(&mut loads[layer], unit, 1.0);
        }
        self.costed(layer_of, loads)
    }

    fn costed(&self, layer_of: Vec<usize>, layers: Vec<Load>) -> Draft {
        let used = layers.iter().filter(|load| load.bytes > 0.0 || load.files > 0.0);
        let all: Vec<Load> = self.kept.iter().chain(used).cloned().collect();
        let seconds = simulate(&all, self.rates, self.model).seconds;
        let above = |load: &Load| (load.bytes - self.limit).max(0.0);
        // A sum of fractions may be off by less than a byte.
        let overflow = layers.iter().map(above).filter(|above| *above >= 1.0).sum();
        Draft { layer_of, layers, seconds, overflow }
    }

    /// Moves and exchanges units while that gains anything; with `in_a_row`, only such that the row
    /// stays a row: the units at a layer's ends go over to its neighbour.
    fn improved(&self, mut best: Draft, in_a_row: bool) -> Draft {
        let mut trials = 0;
        loop {
            let before = best.clone();
            for unit in 0..self.units.len() {
                for step in self.steps(&best, unit, in_a_row) {
                    if trials == TRIALS {
                        return best;
                    }
                    trials += 1;
                    let tried = self.tried(&best, &step);
                    if tried.better_than(&best, 1e-9) {
                        best = tried;
                    }
                }
            }
            if !best.better_than(&before, 1e-9) {
                return best;
            }
        }
    }

    /// What may be tried with a unit: lists of (unit, its new layer).
    fn steps(&self, draft: &Draft, unit: usize, in_a_row: bool) -> Vec<Vec<(usize, usize)>> {
        let at = draft.layer_of[unit];
        let layer_of = &draft.layer_of;
        if in_a_row {
            let next = layer_of.get(unit + 1).filter(|next| **next != at);
            let last = unit.checked_sub(1).map(|before| &layer_of[before]).filter(|l| **l != at);
            return next.into_iter().chain(last).map(|&to| vec![(unit, to)]).collect();
        }
        let moves = (0..draft.layers.len()).filter(|to| *to != at).map(|to| vec![(unit, to)]);
        // Exchanges are quadratic; of very many units the near ones are like the far ones.
        let others = (unit + 1..self.units.len().min(unit + 64)).filter(|&o| layer_of[o] != at);
        let exchanges = others.map(|other| vec![(unit, layer_of[other]), (other, at)]);
        // Whole layers may change places: the order of sizes matters to who extracts in order.
        let places = (0..draft.layers.len()).filter(|&to| to != at && is_first(layer_of, unit));
        let whole = places.map(|to| {
            let all = layer_of.iter().enumerate();
            all.filter_map(|(other, &layer)| match layer {
                layer if layer == at => Some((other, to)),
                layer if layer == to => Some((other, at)),
                _ => None,
            })
            .collect()
        });
        moves.chain(exchanges).chain(whole).collect()
    }

    fn tried(&self, draft: &Draft, step: &[(usize, usize)]) -> Draft {
        let mut layer_of = draft.layer_of.clone();
        let mut layers = draft.layers.clone();
        for &(unit, to) in step {
            // The step was made for a draft that may have changed since; it is still an assignment.
            change(&mut layers[layer_of[unit]], &self.units[unit], -1.0);
            change(&mut layers[to], &self.units[unit], 1.0);
            layer_of[unit] = to;
        }
        self.costed(layer_of, layers)
    }
}

impl Draft {
    fn better_than(&self, other: &Self, by: f64) -> bool {
        self.overflow < other.overflow
            || (self.overflow <= other.overflow && self.seconds < other.seconds * (1.0 - by))
    }
}

fn is_first(layer_of: &[usize], unit: usize) -> bool {
    layer_of.iter().position(|&layer| layer == layer_of[unit]) == Some(unit)
}

fn change(load: &mut Load, unit: &Unit, sign: f64) {
    load.bytes = (load.bytes + sign * unit.bytes).max(0.0);
    load.unpacked = (load.unpacked + sign * unit.unpacked).max(0.0);
    load.files = (load.files + sign * unit.files).max(0.0);
}
