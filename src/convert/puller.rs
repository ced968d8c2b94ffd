//! Who will pull the result: what the model is asked for plans, levels and predictions.

use super::Written;
use crate::image::Compression;
use crate::model::plan::{self, Constraints};
use crate::model::{Load, Model, Prediction, Profile, Rates, simulate};

/// Layers are planned no smaller than this, in compressed bytes: below it the requests and the mounts
/// cost more than is won.
const LAYER_BYTES_LEAST: u64 = 16 << 20;

/// Units that files are put together to before they are planned. More take the planner longer and
/// gain less than the model knows.
const UNITS: u64 = 128;

/// zstd's level 19 beside its level 5, on a layer of Python packages and libraries: size (0.77 of level
/// 3, which 5 has 0.957 of), and bytes decompressed a second (docs/performance.md has what
/// decompression costs; 3 and 5 about the same).
const LEVEL_19_SIZE: f64 = 0.80;
const LEVEL_19_SPEED: f64 = 0.63;

/// The same for all that is done to an unpacked byte, of which decompressing is not half.
const LEVEL_19_CHAIN: f64 = 0.8;

/// What a compressed byte becomes, where only the choice of a level hangs on it.
const USUAL_EXPANSION: f64 = 2.5;

/// What another level than the usual one must gain: it costs whoever converts hundred times the time.
const LEVEL_WORTH: f64 = 0.05;

/// Who pulls, and what its host can do.
#[derive(Clone, PartialEq, Debug)]
pub struct Puller {
    /// How it goes about it.
    pub model: Model,
    /// The rates; `None` for two cores on a fast link, by the format of the layers. It is not this
    /// machine that counts, so that a plan is the same wherever it is made.
    pub profile: Option<Profile>,
}

impl Puller {
    /// The rates for layers of one format.
    pub fn rates(&self, compression: Compression) -> Rates {
        let usual = || {
            let gzip = compression == Compression::Gzip;
            let name = if gzip { "two-cores-gzip" } else { "two-cores-zstd" };
            Profile::named(name).expect("it is one of the names")
        };
        self.profile.clone().unwrap_or_else(usual).rates_for(self.model)
    }

    /// What is expected of a pull of `layers`, most of whose bytes are of this format.
    pub fn predict(&self, layers: &[Load], compression: Compression) -> Prediction {
        simulate(layers, &self.rates(compression), self.model)
    }

    /// The level that makes a pull of `bytes` fastest to ready.
    pub fn level(&self, compression: Compression, bytes: f64) -> i32 {
        if compression != Compression::Zstd {
            return super::default_level(compression);
        }
        let rates = self.rates(compression);
        let mut slower = rates.clone();
        let speed = LEVEL_19_SPEED / LEVEL_19_SIZE;
        // A compressed byte of level 19 holds more, and takes longer.
        slower.extract.0 *= LEVEL_19_SIZE * speed;
        slower.per_core.iter_mut().for_each(|rate| rate.0 *= LEVEL_19_SIZE * speed);
        let unpack = slower.unpack.iter_mut().chain(&mut slower.unpack_per_core);
        unpack.for_each(|rate| rate.0 *= LEVEL_19_CHAIN);
        let unpacked = bytes * USUAL_EXPANSION / 3.0;
        let load = |bytes: f64| Load { bytes: bytes / 3.0, unpacked, ..Load::default() };
        let three = |bytes: f64| vec![load(bytes); 3];
        let usual = simulate(&three(bytes), &rates, self.model).seconds;
        let small = simulate(&three(bytes * LEVEL_19_SIZE), &slower, self.model).seconds;
        if small < usual * (1.0 - LEVEL_WORTH) { 19 } else { super::default_level(compression) }
    }

    /// More layers than this gain nothing with any rates that were tried.
    fn most_layers(&self) -> usize {
        match self.model {
            Model::Containerd | Model::Fargate => 6,
            Model::ContainerdInOrder => 10,
            Model::ContainerdParallel => 12,
            Model::Hoist => 3,
        }
    }

    /// Cuts `units`, in their order, into the layers that the model says are pulled fastest above
    /// those that are `kept`: for each layer the indices of its units.
    pub(super) fn cut(
        &self,
        units: &[super::Unit],
        kept: &[Load],
        compression: Compression,
    ) -> Vec<Vec<usize>> {
        let total: u64 = units.iter().map(|unit| unit.compressed).sum();
        let most = usize::try_from(total / LAYER_BYTES_LEAST).unwrap_or(usize::MAX);
        let most = most.clamp(1, self.most_layers());
        let (bundles, loads) = bundles(units, total);
        let constraints =
            Constraints { max_layers: most, max_layer_bytes: None, kept: kept.into() };
        let planned = plan::plan(&loads, &constraints, &self.rates(compression), self.model);
        let Ok(planned) = planned else { return vec![(0..units.len()).collect()] };
        let mut layers = vec![Vec::new(); planned.layers.len()];
        for (bundle, layer) in bundles.into_iter().zip(planned.layer_of) {
            layers[layer].extend(bundle);
        }
        for layer in &mut layers {
            layer.sort_unstable();
        }
        layers
    }
}

/// Neighbours put together, so that the planner has few units to deal with.
#[allow(clippy::cast_precision_loss, reason = "sizes of images are below 2^53")]
fn bundles(units: &[super::Unit], total: u64) -> (Vec<Vec<usize>>, Vec<plan::Unit>) {
    let full = total / UNITS;
    let (mut bundles, mut loads): (Vec<Vec<usize>>, Vec<plan::Unit>) = (Vec::new(), Vec::new());
    let mut filled = u64::MAX;
    for (at, unit) in units.iter().enumerate() {
        // One that fills a bundle stands for itself.
        if filled >= full || unit.compressed >= full {
            bundles.push(Vec::new());
            loads.push(plan::Unit::default());
            filled = 0;
        }
        let (bundle, load) = bundles.last_mut().zip(loads.last_mut()).expect("one was pushed");
        bundle.push(at);
        load.bytes += unit.compressed as f64;
        load.unpacked += unit.bytes as f64;
        load.files += unit.files as f64;
        filled += unit.compressed;
    }
    (bundles, loads)
}

/// A written layer as the model sees it.
#[allow(clippy::cast_precision_loss, reason = "sizes of layers are below 2^53")]
pub(super) fn load(written: &Written) -> Load {
    Load {
        bytes: written.size as f64,
        unpacked: written.archive_bytes as f64,
        files: written.entries as f64,
        extract: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Rate;

    fn units(sizes: &[u64]) -> Vec<super::super::Unit> {
        let unit = |&s: &u64| super::super::Unit { bytes: s * 2, compressed: s, files: 1 };
        sizes.iter().map(unit).collect()
    }

    fn even(model: Model) -> Puller {
        Puller { model, profile: Profile::named("even") }
    }

    #[test]
    fn the_cut_is_the_perfect_pipeline() {
        let units = units(&[30_000_000; 90]);
        let layers = even(Model::Containerd).cut(&units, &[], Compression::Zstd);
        let sizes: Vec<f64> = layers.iter().map(|layer| layer.len() as f64 * 30e6).collect();
        let loads: Vec<Load> =
            sizes.iter().map(|&bytes| Load { bytes, ..Load::default() }).collect();
        let told = even(Model::Containerd).predict(&loads, Compression::Zstd).seconds;
        assert!(told < 18.8, "{sizes:?} take {told} s; three layers could take 18.5");
        let mut seen: Vec<usize> = layers.into_iter().flatten().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..units.len()).collect::<Vec<_>>());
        let hoist = even(Model::Hoist).cut(&units, &[], Compression::Zstd);
        assert_eq!(hoist.len(), 1, "one layer is extracted while it arrives");
    }

    #[test]
    fn small_images_stay_whole_and_nothing_is_lost() {
        let cut = |sizes: &[u64]| even(Model::Fargate).cut(&units(sizes), &[], Compression::Zstd);
        assert_eq!(cut(&[1000; 50]).len(), 1);
        assert_eq!(cut(&[]), [Vec::<usize>::new()]);
        assert_eq!(cut(&[0, 0]), [[0, 1]]);
    }

    #[test]
    fn a_slow_link_wants_small_layers_and_a_fast_one_does_not() {
        let mut slow = Profile::named("two-cores-zstd").unwrap();
        slow.rates.download = Rate(10e6);
        let level =
            |profile| Puller { model: Model::Containerd, profile }.level(Compression::Zstd, 1.5e9);
        assert_eq!((level(Some(slow)), level(None)), (19, 5));
    }
}
