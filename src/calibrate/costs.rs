//! From what the works of a pull cost each alone to the rates of the model.
//!
//! Works differ in what they follow: inflating the compressed bytes, decoding zstd and writing the
//! uncompressed ones, hashing both, making files their number. So a chain is told by three rates, and one image's
//! rates are also another's that compresses better or has smaller files.

use std::collections::BTreeMap;

use super::all_others;
use crate::image::Compression;
use crate::model::{Deviation, Model, Rates};
use crate::units::{Rate, Seconds};

/// What a work costs more while others go on beside it: each has another's data in its cache.
/// Measured: pulls of zstd against the sum of their works (docs/performance.md).
const BESIDE_OTHERS: f64 = 1.25;

/// What containerd 2.1 needs of Go, beside what this host needs for the same: inflating, of which a part follows
/// the compressed bytes and a part what comes out, decoding zstd, and making a file. Fitted to pulls of ml, node
/// and Python (docs/performance.md, "Conversions").
const GO_INFLATE: (f64, f64) = (2.4, 3.2);
const GO_ZSTD: f64 = 2.8;
const GO_FILE: f64 = 2.8;

/// SHA-256 of one stream, beside one of two that are hashed together.
const HASH_ALONE: f64 = 2.0;

/// Seconds of one core.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Costs {
    /// The format that `decompress` is of.
    pub(super) compression: Compression,
    /// For a compressed byte that is fetched.
    pub(super) fetch: f64,
    /// For a compressed byte.
    pub(super) decompress: f64,
    /// Uncompressed bytes of a compressed one, where that was measured.
    pub(super) expansion: f64,
    /// For a byte of either form.
    pub(super) hash: f64,
    /// For an uncompressed byte.
    pub(super) write: f64,
    /// For a file, as hoistd makes it, and as a file system does.
    pub(super) file: f64,
    pub(super) plain_file: f64,
}

/// Seconds for a compressed byte, and for an uncompressed one.
type PerByte = (f64, f64);

impl Costs {
    /// hoistd's chain: the rates of extraction, everything else as it is by default.
    pub(super) fn rates(&self) -> Rates {
        let decompress = self.decompress();
        let stages = [decompress, (self.hash, self.hash), (0.0, self.write)];
        let of_sample = |(byte, unpacked): PerByte| byte + unpacked * self.expansion;
        let slowest = stages.into_iter().max_by(|a, b| of_sample(*a).total_cmp(&of_sample(*b)));
        let slowest = slowest.expect("there are three");
        let core = (self.fetch + decompress.0 + self.hash, decompress.1 + self.hash + self.write);
        let rate = |seconds: f64| Rate::measured(1.0 / seconds.max(1e-12));
        Rates {
            // Bytes that cost nothing else are still fetched.
            extract: rate(slowest.0.max(self.fetch)),
            unpack: (slowest.1 > 0.0).then(|| rate(slowest.1)),
            per_core: Some(rate(core.0 * BESIDE_OTHERS)),
            unpack_per_core: Some(rate(core.1 * BESIDE_OTHERS)),
            per_file: micros(self.file),
            ..Rates::default()
        }
    }

    /// Pullers that are not hoistd: containerd's one thread does all for a layer.
    pub(super) fn others(&self) -> BTreeMap<Model, Deviation> {
        let (byte, decoded) = match self.compression {
            Compression::Gzip => (self.decompress * GO_INFLATE.0, self.decoded() * GO_INFLATE.1),
            Compression::Zstd | Compression::None => (0.0, self.decoded() * GO_ZSTD),
        };
        let byte = byte.max(self.fetch);
        let unpacked = decoded + self.hash * HASH_ALONE + self.write;
        let rate = |seconds: f64| Some(Rate::measured(1.0 / seconds.max(1e-12)));
        all_others(&Deviation {
            extract: rate(byte),
            per_core: rate(byte),
            unpack: rate(unpacked),
            unpack_per_core: rate(unpacked),
            per_file: Some(micros(self.plain_file * GO_FILE)),
            ..Deviation::default()
        })
    }

    /// Inflating follows the compressed bytes, decoding zstd what comes out of it.
    fn decompress(&self) -> PerByte {
        match self.compression {
            Compression::Gzip => (self.decompress, 0.0),
            Compression::Zstd | Compression::None => (0.0, self.decoded()),
        }
    }

    /// What decompressing costs by what comes out of it, for an uncompressed byte.
    fn decoded(&self) -> f64 {
        self.decompress / self.expansion.max(1e-6)
    }
}

/// To a tenth of a microsecond: more digits than a measurement has.
fn micros(seconds: f64) -> Seconds {
    Seconds((seconds * 1e7).round() / 1e7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Load, Profile, simulate};

    fn costs(compression: Compression) -> Costs {
        Costs {
            compression,
            fetch: 0.5e-9,
            decompress: 4e-9,
            expansion: 2.0,
            hash: 0.5e-9,
            write: 0.25e-9,
            file: 2e-6,
            plain_file: 30e-6,
        }
    }

    fn seconds(costs: &Costs, model: Model, unpacked: f64, layers: u32) -> f64 {
        // One layer has all the cores that it can use, several share two.
        let cores = if layers == 1 { 16 } else { 2 };
        let rates = Rates { download: Rate(1e15), cores, ..costs.rates() };
        let profile = Profile { name: String::new(), rates, models: costs.others() };
        let load = Load { bytes: 1e9, unpacked, files: 10_000.0, extract: None };
        simulate(&vec![load; layers as usize], &profile.rates_for(model), model).seconds
    }

    fn near(is: f64, should: f64) {
        assert!((is / should - 1.0).abs() < 0.01, "{is} and not {should}");
    }

    #[test]
    fn inflating_follows_the_compressed_bytes_and_zstd_the_others() {
        let (gzip, zstd) = (costs(Compression::Gzip), costs(Compression::Zstd));
        // One layer of a gigabyte waits for its decoder alone, however well it is compressed.
        near(seconds(&gzip, Model::Hoist, 2e9, 1), 4.02);
        near(seconds(&gzip, Model::Hoist, 4e9, 1), 4.02);
        // A gigabyte that is fetched, and what zstd has to make of it.
        near(seconds(&zstd, Model::Hoist, 2e9, 1), 0.5 + 4.0 + 0.02);
        near(seconds(&zstd, Model::Hoist, 4e9, 1), 0.5 + 8.0 + 0.02);
        // Six of them keep two cores busy with all works, of which each costs more beside the others.
        let works = BESIDE_OTHERS * (0.5 + 4.0 + 0.5 + 2.0 * 0.75);
        near(seconds(&gzip, Model::Hoist, 2e9, 6), (works + 0.02) * 3.0);
    }

    #[test]
    fn containerd_does_all_on_one_thread() {
        let gzip = costs(Compression::Gzip);
        let of_bytes = 4.0 * GO_INFLATE.0;
        let of_unpacked = 4.0 / 2.0 * GO_INFLATE.1 + 0.5 * HASH_ALONE + 0.25;
        let go = |unpacked: f64| of_bytes + unpacked * of_unpacked + 0.3 * GO_FILE;
        near(seconds(&gzip, Model::Containerd, 2e9, 1), go(2.0));
        near(seconds(&gzip, Model::Containerd, 4e9, 1), go(4.0));
        near(seconds(&gzip, Model::Containerd, 2e9, 2), go(2.0) * 2.0);
        let zstd = costs(Compression::Zstd);
        let go = 0.5 + 4.0 * GO_ZSTD + 2.0 * (0.5 * HASH_ALONE + 0.25) + 0.3 * GO_FILE;
        near(seconds(&zstd, Model::Containerd, 2e9, 1), go);
    }
}
