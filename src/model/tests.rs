//! The figures that are known, and what must hold for all others.

use proptest::prelude::*;

use super::plan::{Constraints, PlanError, Unit, plan, planned};
use super::split::{self, Kind};
use super::*;
use crate::units::{Rate, Seconds, Size};

fn layers(megabytes: &[f64]) -> Vec<Load> {
    megabytes.iter().map(|mb| Kind::default().load(mb * 1e6)).collect()
}

fn seconds(megabytes: &[f64], rates: &Rates, model: Model) -> f64 {
    simulate(&layers(megabytes), rates, model).seconds
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * b.abs().max(1.0)
}

#[test]
fn the_figures_that_the_project_began_with() {
    let even = Rates::default();
    assert!(close(seconds(&[2700.0], &even, Model::Containerd), 24.0));
    // Equal shares: all three arrive at 12 s, and are then extracted one after the other.
    assert!(close(seconds(&[900.0; 3], &even, Model::Containerd), 24.0));
    let best = [2700.0 / 5.5, 2700.0 * 1.5 / 5.5, 2700.0 * 3.0 / 5.5];
    assert!(close(seconds(&best, &even, Model::Containerd), 12.0 + best[2] / 225.0));
    let rounded = seconds(&[490.9, 736.4, 1472.7], &even, Model::Containerd);
    assert!((rounded - 18.545).abs() < 0.01, "{rounded}");
    assert!(close(seconds(&[900.0; 3], &even, Model::ContainerdInOrder), 16.0));
    assert!(close(seconds(&[337.5; 8], &even, Model::ContainerdInOrder), 13.5));
    for sizes in [&[2700.0][..], &[900.0; 3], &[490.9, 736.4, 1472.7]] {
        assert!(close(seconds(sizes, &even, Model::Hoist), 12.0));
    }
}

#[test]
fn each_layer_waits_downloads_and_is_extracted_when_it_should() {
    let even = Rates { latency: Seconds(0.5), ..Rates::default() };
    let told = simulate(&layers(&[900.0; 3]), &even, Model::ContainerdInOrder);
    let spans = |l: &LayerTimes| [l.download.begin, l.download.end, l.extract.begin, l.extract.end];
    let expected = [[0.5, 4.5, 4.5, 8.5], [4.5, 8.5, 8.5, 12.5], [8.5, 12.5, 12.5, 16.5]];
    for (layer, expected) in told.layers.iter().zip(expected) {
        for (is, should) in spans(layer).into_iter().zip(expected) {
            assert!(close(is, should), "{told:?}");
        }
    }
    let empty = simulate(&[], &even, Model::Hoist);
    assert!(empty.layers.is_empty() && close(empty.seconds, 0.5));
}

#[test]
fn every_limit_limits() {
    let base = Rates { extract: Rate(1e12), cores: 64, ..Rates::default() };
    let time = |rates: &Rates, model| seconds(&[900.0, 900.0], rates, model);
    // Two connections of 50 MB/s for containerd; ranges get the link.
    let each = Rates { per_connection: Some(Rate(50e6)), ..base.clone() };
    assert!((time(&each, Model::Containerd) - 18.0).abs() < 0.01);
    assert!((time(&each, Model::Hoist) - 8.0).abs() < 0.01);
    let few = Rates { connections: 3, ..each };
    assert!((time(&few, Model::Hoist) - 12.0).abs() < 0.01);
    // The disk: files twice as large as the blobs, and the blobs themselves for who keeps them.
    let disk = Rates { disk: Some(Rate(100e6)), ..base.clone() };
    let double = Kind { expansion: 2.0, ..Kind::default() };
    let loads = [double.load(900e6)];
    assert!((simulate(&loads, &disk, Model::Hoist).seconds - 18.0).abs() < 0.01);
    assert!((simulate(&loads, &disk, Model::Containerd).seconds - 27.0).abs() < 0.01);
    // Cores: four layers at 100 MB/s each on two cores.
    let cores = Rates { extract: Rate(100e6), cores: 2, download: Rate(1e12), ..Rates::default() };
    assert!((seconds(&[100.0; 4], &cores, Model::Hoist) - 2.0).abs() < 0.01);
    assert!((seconds(&[100.0; 4], &cores, Model::ContainerdParallel) - 2.0).abs() < 0.01);
    assert!((seconds(&[100.0; 4], &cores, Model::Containerd) - 4.0).abs() < 0.01);
    // A chain over several threads is faster than a core, until the cores are all at work.
    let spread = Rates { per_core: Some(Rate(50e6)), ..cores };
    assert!((seconds(&[100.0], &spread, Model::Hoist) - 1.0).abs() < 0.01);
    assert!((seconds(&[100.0; 4], &spread, Model::Hoist) - 4.0).abs() < 0.01);
    // Files: 100,000 of 35 µs are 3.5 s in one layer.
    let files = Rates { per_file: Seconds(35e-6), ..base.clone() };
    let many = Load { files: 1e5, ..layers(&[0.001])[0].clone() };
    assert!((simulate(&[many], &files, Model::Hoist).seconds - 3.5).abs() < 0.01);
    // The last range through the pipe.
    let piece = Rates { piece: Size(225e6), ..Rates::default() };
    assert!(close(seconds(&[2700.0], &piece, Model::Hoist), 13.0));
}

#[test]
fn the_longest_layer_is_never_the_one_that_waits() {
    // 1 GB at 100 MB/s a layer, beside nine of 100 MB, which fit beside it.
    let rates = Rates { download: Rate(200e6), extract: Rate(100e6), cores: 2, ..Rates::default() };
    let mut sizes = vec![100.0; 9];
    sizes.push(1000.0);
    let told = simulate(&layers(&sizes), &rates, Model::Hoist);
    assert!((told.seconds - 10.0).abs() < 1e-3, "{told:?}");
    assert_eq!(told.layers[9].extract.begin, 0.0);
}

#[test]
fn the_equations_are_recovered_and_the_search_finds_them() {
    let even = Rates::default();
    let kinds = vec![Kind::default(); 3];
    let exact = split::best(2700e6, &[], &kinds, &even, Model::Containerd);
    for (size, should) in exact.sizes.iter().zip([490_909_091.0, 736_363_636.0, 1_472_727_273.0]) {
        assert!((size - should).abs() < 10.0, "{exact:?}");
    }
    let searched = split::searched(2700e6, &kinds, &even, Model::Containerd);
    assert!(searched.seconds <= exact.seconds * 1.0005, "{searched:?}");
    for (size, should) in searched.sizes.iter().zip(&exact.sizes) {
        assert!((size - should).abs() < 0.01 * 2700e6, "{searched:?}");
    }
}

#[test]
fn a_search_finds_the_best_split_where_rates_differ() {
    // With three layers of three codecs, an exhaustive grid of half percents is the judge.
    let rates = Rates { per_connection: Some(Rate(90e6)), ..Rates::default() };
    let kinds =
        [150e6, 400e6, 225e6].map(|rate| Kind { extract: Some(Rate(rate)), ..Kind::default() });
    for model in [Model::Containerd, Model::ContainerdInOrder, Model::ContainerdParallel] {
        let found = split::best(2700e6, &[], &kinds, &rates, model);
        let mut grid = f64::INFINITY;
        for a in 0..=200 {
            for b in 0..=200 - a {
                let parts = [a, b, 200 - a - b].map(|part| f64::from(part) * 13.5e6);
                let loads: Vec<_> =
                    parts.iter().zip(&kinds).map(|(size, kind)| kind.load(*size)).collect();
                grid = grid.min(simulate(&loads, &rates, model).seconds);
            }
        }
        assert!(found.seconds <= grid * 1.0005, "{model}: {found:?}, the grid {grid}");
    }
}

fn rates() -> impl Strategy<Value = Rates> {
    let rate = |from: f64, to: f64| (from..to).prop_map(|mb| Rate(mb * 1e6));
    (
        rate(20.0, 1000.0),
        proptest::option::of(rate(20.0, 200.0)),
        rate(20.0, 500.0),
        1..9_u32,
        proptest::option::of(rate(50.0, 1000.0)),
        0.0..50e-6,
    )
        .prop_map(|(download, per_connection, extract, cores, disk, file)| Rates {
            download,
            per_connection,
            extract,
            cores,
            disk,
            per_file: Seconds(file),
            ..Rates::default()
        })
}

fn model() -> impl Strategy<Value = Model> {
    proptest::sample::select(Model::ALL.to_vec())
}

fn load() -> impl Strategy<Value = Load> {
    (0.0..500e6, 1.0..5.0, 0.0..5000.0_f64).prop_map(
        |(bytes, expansion, files): (f64, f64, f64)| Load {
            bytes,
            unpacked: bytes * expansion,
            files: files.floor(),
            extract: None,
        },
    )
}

/// What no puller can beat: `limits.md`'s inequality.
fn bound(layers: &[Load], rates: &Rates) -> f64 {
    let sum = |of: fn(&Load) -> f64| layers.iter().map(of).sum::<f64>();
    let chain = |l: &Load| l.bytes / rates.extract.0 + l.files * rates.per_file.0;
    let link = rates
        .per_connection
        .map_or(rates.download.0, |c| (c.0 * f64::from(rates.connections)).min(rates.download.0));
    let cores = layers.iter().map(chain).sum::<f64>() / f64::from(rates.cores);
    let longest = layers.iter().map(chain).fold(0.0, f64::max);
    let disk = rates.disk.map_or(0.0, |disk| sum(|l| l.unpacked) / disk.0);
    (sum(|l| l.bytes) / link).max(cores).max(longest).max(disk)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_pull_beats_the_bound_and_hoist_loses_to_none(
        layers in proptest::collection::vec(load(), 1..9), rates in rates()
    ) {
        let bound = bound(&layers, &rates);
        let hoist = simulate(&layers, &rates, Model::Hoist).seconds;
        for model in Model::ALL {
            let told = simulate(&layers, &rates, model);
            prop_assert!(told.seconds >= bound * (1.0 - 1e-6), "{model}: {} < {bound}", told.seconds);
            prop_assert!(hoist <= told.seconds * (1.0 + 1e-6), "hoist {hoist}, {model} {}", told.seconds);
            for layer in &told.layers {
                let ordered = [layer.download.begin, layer.download.end, layer.extract.end];
                prop_assert!(ordered.is_sorted() && layer.extract.begin <= layer.extract.end);
                if model != Model::Hoist {
                    prop_assert!(layer.download.end <= layer.extract.begin + 1e-9);
                }
            }
        }
    }

    #[test]
    fn more_of_everything_is_never_slower_for_hoist(
        layers in proptest::collection::vec(load(), 1..7), rates in rates()
    ) {
        let more = Rates {
            download: Rate(rates.download.0 * 2.0),
            extract: Rate(rates.extract.0 * 2.0),
            cores: rates.cores * 2,
            disk: rates.disk.map(|disk| Rate(disk.0 * 2.0)),
            per_connection: rates.per_connection.map(|each| Rate(each.0 * 2.0)),
            ..rates.clone()
        };
        let before = simulate(&layers, &rates, Model::Hoist).seconds;
        prop_assert!(simulate(&layers, &more, Model::Hoist).seconds <= before * (1.0 + 1e-6));
    }
}

/// The best of all assignments of `units` to at most `layers` layers.
fn exhaustive(units: &[Unit], layers: usize, limit: f64, rates: &Rates, model: Model) -> f64 {
    let count = layers.pow(u32::try_from(units.len()).unwrap());
    let mut best = f64::INFINITY;
    for mut code in 0..count {
        let mut loads = vec![Load::default(); layers];
        for unit in units {
            let load = &mut loads[code % layers];
            code /= layers;
            load.bytes += unit.bytes;
            load.unpacked += unit.unpacked;
            load.files += unit.files;
        }
        loads.retain(|load| load.bytes > 0.0);
        if loads.iter().all(|load| load.bytes <= limit) {
            best = best.min(simulate(&loads, rates, model).seconds);
        }
    }
    best
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_is_never_worse_than_one_percent_of_the_best(
        loads in proptest::collection::vec(load(), 1..7),
        rates in rates(), model in model(), max_layers in 1..4_usize
    ) {
        let units: Vec<Unit> = loads
            .iter()
            .map(|l| Unit { bytes: l.bytes + 1.0, unpacked: l.unpacked, files: l.files })
            .collect();
        let constraints = Constraints { max_layers, max_layer_bytes: None, kept: Vec::new() };
        let found = plan(&units, &constraints, &rates, model).unwrap();
        let best = exhaustive(&units, max_layers, f64::INFINITY, &rates, model);
        prop_assert!(found.seconds <= best * 1.01, "{} instead of {best}: {found:?}", found.seconds);
        // And where there would be too many to try them all.
        let large = planned(&units, &constraints, &rates, model, 0).unwrap();
        prop_assert!(large.seconds <= best * 1.01, "{} instead of {best}: {large:?}", large.seconds);
        let told = simulate(&found.layers, &rates, model).seconds;
        prop_assert!(close(told, found.seconds));
        let placed: f64 = found.layers.iter().map(|l| l.bytes).sum();
        prop_assert!(close(placed, units.iter().map(|u| u.bytes).sum()));
    }
}

#[test]
fn small_units_come_to_the_continuous_best_in_a_row() {
    let units = vec![Unit { bytes: 1e6, unpacked: 2e6, files: 10.0 }; 2700];
    let constraints = Constraints { max_layers: 3, max_layer_bytes: None, kept: Vec::new() };
    let found = plan(&units, &constraints, &Rates::default(), Model::Containerd).unwrap();
    assert!(found.layer_of.is_sorted(), "neighbours stay together");
    assert!(found.seconds < 18.56, "{}", found.seconds);
}

#[test]
fn limits_and_kept_layers_are_kept_to() {
    let units = vec![Unit { bytes: 10e6, unpacked: 10e6, files: 1.0 }; 30];
    let kept = layers(&[200.0]);
    let limited = Constraints { max_layers: 6, max_layer_bytes: Some(60e6), kept: kept.clone() };
    let found = plan(&units, &limited, &Rates::default(), Model::Containerd).unwrap();
    assert!(found.layers.iter().all(|layer| layer.bytes <= 60e6), "{found:?}");
    let all: Vec<_> = kept.iter().cloned().chain(found.layers.clone()).collect();
    assert!(close(simulate(&all, &Rates::default(), Model::Containerd).seconds, found.seconds));

    let error = |constraints| plan(&units, &constraints, &Rates::default(), Model::Hoist);
    let small = Constraints { max_layer_bytes: Some(5e6), ..limited.clone() };
    assert!(matches!(error(small), Err(PlanError::UnitTooLarge { unit: 0, .. })));
    let few = Constraints { max_layers: 2, ..limited.clone() };
    assert!(matches!(error(few), Err(PlanError::TooFewLayers { layers: 2, .. })));
    assert_eq!(error(Constraints { max_layers: 0, ..limited }), Err(PlanError::Nothing));
}

#[test]
fn a_profile_is_read_as_it_was_written() {
    for name in Profile::NAMES {
        let profile = Profile::named(name).unwrap();
        let toml = toml::to_string(&profile).unwrap();
        assert_eq!(Profile::parse(&toml), Ok(profile.clone()), "{toml}");
        let json = serde_json::to_string(&profile).unwrap();
        assert_eq!(Profile::parse(&json), Ok(profile));
    }
    let text = "name = 'n'\n[rates]\nextract = '100MB/s'\ndisk = '1GB/s'\n[models.hoist]\nper_file = '1us'\n";
    let profile = Profile::parse(text).unwrap();
    assert_eq!(profile.rates_for(Model::Hoist).per_file, Seconds(1e-6));
    assert_eq!(profile.rates_for(Model::Containerd).per_file, Seconds(0.0));
    assert_eq!(profile.rates_for(Model::Hoist).extract, Rate(100e6));
    assert_eq!(Profile::parse("name = 'n'\n[rates]\ncores = 0"), Err(ProfileError::Zero("cores")));
    for wrong in ["", "name = 'n'\n[rates]\nspeed = '1MB/s'", "name = 'n'\n[rates]\ndisk = '5'"] {
        assert!(matches!(Profile::parse(wrong), Err(ProfileError::Format(_))), "{wrong}");
    }
}
