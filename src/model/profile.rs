//! The rates of a host, and the file that they are kept in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Model;
use crate::units::{Rate, Seconds, Size};

/// What a host and its link can do. Bytes are compressed bytes unless said otherwise.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rates {
    /// D: the link, all connections together.
    pub download: Rate,
    /// c: what one connection gets at most; none where only the link limits. Object stores give 60 to
    /// 100 MB/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_connection: Option<Rate>,
    /// k: connections of a puller that fetches ranges; at least 1.
    pub connections: u32,
    /// Layers that containerd downloads at once, where it is not what the model says; at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downloads: Option<u32>,
    /// P1: what the serial chain of one layer (decompress, hash, write) takes in.
    pub extract: Rate,
    /// P: what one core takes in if it does all of that chain. Below `extract` where the chain is
    /// spread over several threads. The same as `extract` if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_core: Option<Rate>,
    /// U1: *uncompressed* bytes that the same chain puts out. What a layer takes is the sum: its
    /// compressed bytes by `extract`, and these. None where `extract` says all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unpack: Option<Rate>,
    /// U: the same of one core that does all of the chain. The same as `unpack` if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unpack_per_core: Option<Rate>,
    /// C: cores; at least 1.
    pub cores: u32,
    /// τ: what a file costs beside its bytes.
    pub per_file: Seconds,
    /// W: what the disk takes, compressed blobs and *uncompressed* files together; none where it never
    /// limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Rate>,
    /// L: before the first byte: token, manifest, configuration.
    pub latency: Seconds,
    /// The last piece through the pipe: what a puller that extracts while it downloads has still to
    /// extract when the last byte is there (hoistd: a range).
    pub piece: Size,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            download: Rate(225e6),
            per_connection: None,
            connections: 20,
            downloads: None,
            extract: Rate(225e6),
            per_core: None,
            unpack: None,
            unpack_per_core: None,
            cores: 2,
            per_file: Seconds(0.0),
            disk: None,
            latency: Seconds(0.0),
            piece: Size(0.0),
        }
    }
}

/// Where one puller differs from the others on the same host: containerd's gzip is not hoist's.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deviation {
    /// Instead of [`Rates::extract`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extract: Option<Rate>,
    /// Instead of [`Rates::per_core`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_core: Option<Rate>,
    /// Instead of [`Rates::unpack`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unpack: Option<Rate>,
    /// Instead of [`Rates::unpack_per_core`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unpack_per_core: Option<Rate>,
    /// Instead of [`Rates::latency`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Seconds>,
    /// Instead of [`Rates::per_file`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_file: Option<Seconds>,
}

/// Rates with a name, as a file keeps them.
///
/// ```toml
/// name = "our nodes"
/// [rates]
/// download = "600MB/s"
/// per_connection = "80MB/s"
/// extract = "146MB/s"
/// cores = 8
/// [models.containerd]
/// extract = "45MB/s"
/// ```
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What people call it.
    pub name: String,
    /// For every model, unless `models` says otherwise.
    #[serde(default)]
    pub rates: Rates,
    /// Where models differ.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<Model, Deviation>,
}

/// Why a profile cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProfileError {
    /// Neither TOML nor JSON, or with keys or values that a profile has not.
    #[error("it is no profile: {0}")]
    Format(String),
    /// A number that must be at least 1.
    #[error("rates.{0} must be at least 1")]
    Zero(&'static str),
}

impl Profile {
    /// The names that [`Profile::named`] knows.
    pub const NAMES: [&str; 3] = ["even", "two-cores-gzip", "two-cores-zstd"];

    /// A profile that needs no file.
    ///
    /// - `even`: the link is as fast as one layer's extraction, 225 MB/s, and nothing else limits: the
    ///   figures of the experiment that this project began with.
    /// - `two-cores-gzip`: gzip -6 layers on two Zen 4 cores with ext4, registry on loopback.
    ///   hoist's chain 146 MB/s a layer, 107 MB/s a core, 35 µs a file; containerd 2.1 with Go's gzip
    ///   41 MB/s, which is 1.88 GB in 45.8 s, files included.
    /// - `two-cores-zstd`: the same host and zstd -3 layers of several frames. hoist's chain 197 MB/s a
    ///   layer, 115 MB/s a core, 35 µs a file; containerd 2.1 91 MB/s, which is 1.53 GB in 16.9 s,
    ///   files included.
    pub fn named(name: &str) -> Option<Self> {
        let mut profile =
            Self { name: name.to_owned(), rates: Rates::default(), models: BTreeMap::new() };
        match name {
            "even" => {}
            "two-cores-gzip" => {
                profile.rates.download = Rate(1e9);
                profile.rates.extract = Rate(146e6);
                profile.rates.per_core = Some(Rate(107e6));
                profile.rates.per_file = Seconds(35e-6);
                let go = Deviation {
                    extract: Some(Rate(41e6)),
                    per_core: Some(Rate(41e6)),
                    per_file: Some(Seconds(0.0)),
                    ..Deviation::default()
                };
                for model in Model::ALL.into_iter().filter(|model| *model != Model::Hoist) {
                    profile.models.insert(model, go.clone());
                }
            }
            "two-cores-zstd" => {
                profile.rates.download = Rate(1e9);
                profile.rates.extract = Rate(197e6);
                profile.rates.per_core = Some(Rate(115e6));
                profile.rates.per_file = Seconds(35e-6);
                let go = Deviation {
                    extract: Some(Rate(91e6)),
                    per_core: Some(Rate(91e6)),
                    per_file: Some(Seconds(0.0)),
                    ..Deviation::default()
                };
                for model in Model::ALL.into_iter().filter(|model| *model != Model::Hoist) {
                    profile.models.insert(model, go.clone());
                }
            }
            _ => return None,
        }
        Some(profile)
    }

    /// Reads a profile in TOML or JSON.
    ///
    /// # Errors
    /// The text is neither, has keys that a profile has not, or says that there are no cores.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let profile: Self = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|e| ProfileError::Format(e.to_string()))?
        } else {
            toml::from_str(text).map_err(|e| ProfileError::Format(e.to_string()))?
        };
        let rates = &profile.rates;
        let counts = [
            ("cores", Some(rates.cores)),
            ("connections", Some(rates.connections)),
            ("downloads", rates.downloads),
        ];
        match counts.into_iter().find(|(_, count)| *count == Some(0)) {
            Some((name, _)) => Err(ProfileError::Zero(name)),
            None => Ok(profile),
        }
    }

    /// The rates that hold for `model`.
    pub fn rates_for(&self, model: Model) -> Rates {
        let mut rates = self.rates.clone();
        if let Some(other) = self.models.get(&model) {
            rates.extract = other.extract.unwrap_or(rates.extract);
            rates.per_core = other.per_core.or(rates.per_core);
            rates.per_file = other.per_file.unwrap_or(rates.per_file);
            rates.unpack = other.unpack.or(rates.unpack);
            rates.unpack_per_core = other.unpack_per_core.or(rates.unpack_per_core);
            rates.latency = other.latency.unwrap_or(rates.latency);
        }
        rates
    }
}
