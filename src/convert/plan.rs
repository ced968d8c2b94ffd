//! Which files go into which layer. Pure: sizes in, lists out.
//!
//! Without a wish, the model cuts (`puller`). Otherwise, what is planned are [`Unit`]s: a file with all of its names, which must lie in one layer. Large
//! ones are dealt out first, each to the layer that has most room, then the small ones fill the
//! layers one after the other in the order they were given, which keeps directories together.

use super::ConvertError;
use super::puller::Puller;
use crate::image::Compression;
use crate::model::Load;

/// The most layers that are planned: docker's bound is 127 (overlayfs on older kernels).
pub const LAYERS_MOST: usize = 127;

/// Something that lies in one layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unit {
    /// Bytes in an archive, headers included.
    pub bytes: u64,
    /// What they are estimated to be when compressed.
    pub compressed: u64,
    /// Names.
    pub files: u64,
}

/// How an image is to be cut.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wish {
    /// What the model says is pulled fastest.
    Best,
    /// The layers that there are; only their compression changes.
    Keep,
    /// So many layers of equal compressed size.
    Equal(usize),
    /// Layers whose compressed sizes have these proportions, the lowest first.
    Sizes(Vec<u64>),
    /// As few equal layers as have at most so many compressed bytes each.
    Most(u64),
}

/// One layer of a plan.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct LayerPlan {
    /// The units by their index, in the order given.
    pub(super) units: Vec<usize>,
    /// Compressed bytes, as estimated.
    pub(super) compressed: u64,
    /// Bytes of the archive.
    pub(super) bytes: u64,
}

/// For whom layers are planned.
pub(super) struct Aim<'a> {
    pub(super) puller: &'a Puller,
    /// The layers below.
    pub(super) kept: &'a [Load],
    /// How the new ones will be compressed.
    pub(super) compression: Compression,
}

impl LayerPlan {
    fn of(members: Vec<usize>, units: &[Unit]) -> Self {
        let sum = |part: fn(&Unit) -> u64| members.iter().map(|&at| part(&units[at])).sum();
        Self {
            compressed: sum(|unit| unit.compressed),
            bytes: sum(|unit| unit.bytes),
            units: members,
        }
    }
}

/// Plans layers for `units`, each of which is in exactly one of them. A layer may be empty only
/// where there are fewer units than layers were wished for.
///
/// # Errors
/// Where the wish cannot be had; the error says why.
pub(super) fn plan(
    units: &[Unit],
    wish: &Wish,
    aim: &Aim<'_>,
) -> Result<Vec<LayerPlan>, ConvertError> {
    let refuse = |text: String| Err(ConvertError::Plan(text));
    let total: u64 = units.iter().map(|unit| unit.compressed).sum();
    match wish {
        Wish::Best => {
            let layers = aim.puller.cut(units, aim.kept, aim.compression);
            Ok(layers.into_iter().map(|layer| LayerPlan::of(layer, units)).collect())
        }
        Wish::Keep => refuse("layers that are kept are not cut".to_owned()),
        Wish::Equal(count) if (1..=LAYERS_MOST).contains(count) => {
            Ok(deal(units, &vec![1; *count]))
        }
        Wish::Equal(count) => refuse(format!("{count} layers; it has to be 1 to {LAYERS_MOST}")),
        Wish::Sizes(sizes) if sizes.is_empty() || sizes.len() > LAYERS_MOST => {
            refuse(format!("{} sizes of layers; it has to be 1 to {LAYERS_MOST}", sizes.len()))
        }
        Wish::Sizes(sizes) if sizes.contains(&0) => refuse("a layer of size 0".to_owned()),
        Wish::Sizes(sizes) => Ok(deal(units, sizes)),
        Wish::Most(0) => refuse("layers of at most 0 bytes".to_owned()),
        Wish::Most(most) => {
            let largest = units.iter().map(|unit| unit.compressed).max().unwrap_or(0);
            if largest > *most {
                return refuse(format!(
                    "layers of at most {most} bytes: one file alone is estimated to have {largest} when compressed"
                ));
            }
            let first = usize::try_from(total.div_ceil(*most)).unwrap_or(usize::MAX).max(1);
            let fitting = (first..=LAYERS_MOST)
                .map(|count| deal(units, &vec![1; count]))
                .find(|layers| layers.iter().all(|layer| layer.compressed <= *most));
            fitting.map_or_else(
                || {
                    refuse(format!(
                        "layers of at most {most} bytes would be more than {LAYERS_MOST}"
                    ))
                },
                Ok,
            )
        }
    }
}

/// Deals `units` out to layers in these proportions.
fn deal(units: &[Unit], shares: &[u64]) -> Vec<LayerPlan> {
    let total: u128 = units.iter().map(|unit| u128::from(unit.compressed)).sum();
    let all: u128 = shares.iter().map(|&share| u128::from(share)).sum();
    // What a layer is to have, as a signed number: large units may go beyond it.
    let mut room: Vec<i128> = shares
        .iter()
        .map(|&share| i128::try_from(total * u128::from(share) / all).unwrap_or(i128::MAX))
        .collect();
    let mut layers = vec![LayerPlan::default(); shares.len()];
    let smallest = room.iter().copied().min().unwrap_or(0);
    let is_large = |unit: &Unit| i128::from(unit.compressed) * 50 > smallest && shares.len() > 1;
    let mut large: Vec<usize> = (0..units.len()).filter(|&at| is_large(&units[at])).collect();
    large.sort_by_key(|&at| (std::cmp::Reverse(units[at].compressed), at));
    let mut put = |layer: usize, at: usize, room: &mut Vec<i128>| {
        room[layer] -= i128::from(units[at].compressed);
        layers[layer].units.push(at);
        layers[layer].compressed += units[at].compressed;
        layers[layer].bytes += units[at].bytes;
    };
    for at in large {
        let most = (0..room.len()).max_by_key(|&l| (room[l], std::cmp::Reverse(l)));
        put(most.expect("there is a layer"), at, &mut room);
    }
    let mut layer = 0;
    for at in (0..units.len()).filter(|&at| !is_large(&units[at])) {
        // Half a unit beyond is as good as half a unit short.
        while layer + 1 < room.len() && room[layer] < i128::from(units[at].compressed / 2).max(1) {
            layer += 1;
        }
        put(layer, at, &mut room);
    }
    for layer in &mut layers {
        layer.units.sort_unstable();
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(units: &[Unit], wish: &Wish) -> Result<Vec<LayerPlan>, ConvertError> {
        let puller = Puller { model: crate::model::Model::Containerd, profile: None };
        let compression = Compression::Zstd;
        super::plan(units, wish, &Aim { puller: &puller, kept: &[], compression })
    }

    fn units(sizes: &[u64]) -> Vec<Unit> {
        sizes.iter().map(|&s| Unit { bytes: s * 2, compressed: s, files: 1 }).collect()
    }

    fn sizes(layers: &[LayerPlan]) -> Vec<u64> {
        layers.iter().map(|layer| layer.compressed).collect()
    }

    #[test]
    fn shares_come_out_as_wished() {
        let many = units(&[10; 1000]);
        assert_eq!(sizes(&plan(&many, &Wish::Equal(4)).unwrap()), [2500; 4]);
        let wish = Wish::Sizes(vec![1, 2, 7]);
        assert_eq!(sizes(&plan(&many, &wish).unwrap()), [1000, 2000, 7000]);
        assert_eq!(plan(&many, &Wish::Most(3400)).unwrap().len(), 3);
        assert_eq!(plan(&many, &Wish::Best).unwrap().len(), 1, "small images stay whole");
        // A large file has a layer nearly for itself, and the others share the rest.
        let uneven = units(&[&[1000][..], &[1; 1000]].concat());
        assert_eq!(sizes(&plan(&uneven, &Wish::Equal(2)).unwrap()), [1000, 1000]);
    }

    #[test]
    fn what_cannot_be_is_said() {
        for (wish, word) in [
            (Wish::Equal(0), "1 to 127"),
            (Wish::Equal(128), "1 to 127"),
            (Wish::Sizes(vec![]), "1 to 127"),
            (Wish::Sizes(vec![1, 0]), "size 0"),
            (Wish::Most(0), "0 bytes"),
            (Wish::Most(9), "one file alone"),
        ] {
            let error = plan(&units(&[10; 3]), &wish).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let error = plan(&units(&[10; 1000]), &Wish::Most(11)).unwrap_err().to_string();
        assert!(error.contains("more than 127"), "{error}");
    }

    proptest! {
        #[test]
        fn every_unit_is_in_one_layer_and_shares_are_close(
            each in proptest::collection::vec(0_u64..100_000, 0..400),
            shares in proptest::collection::vec(1_u64..10, 1..8),
        ) {
            let units = units(&each);
            let layers = plan(&units, &Wish::Sizes(shares.clone())).unwrap();
            let mut seen: Vec<usize> = layers.iter().flat_map(|l| l.units.clone()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..units.len()).collect::<Vec<_>>());
            let (total, all): (u64, u64) = (each.iter().sum(), shares.iter().sum());
            let largest = each.iter().max().copied().unwrap_or(0);
            for (layer, share) in layers.iter().zip(shares) {
                let wished = total * share / all;
                prop_assert!(layer.compressed <= wished + 2 * largest + 1);
            }
        }
    }
}
