//! What `hoist convert` and `hoist diff` take.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::{Compress, ContainerdArgs, ImageArgs, RegistryArgs, models};
use crate::model::Model;

/// As [`EXIT_CODES`](crate::cli::args::EXIT_CODES), with what people want first.
const CONVERT_HELP: &str = "\
Examples:
  For stock containerd, Docker, ECS and EKS as they are, from registry to registry:
    hoist convert registry.example/app:v1 registry.example/app:v1-fast
  For hosts with hoistd, into a layout that is looked at first:
    hoist convert registry.example/app:v1 oci:app:v1 --target hoist
  Only zstd instead of gzip, and the same layers:
    hoist convert registry.example/app:v1 registry.example/app:v1-zstd --keep-layers
  Above a base image that other images share:
    hoist convert registry.example/app:v1 registry.example/app:v1-fast --keep-base registry.example/base:v3

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, 4 not authorised, \
5 network or registry not reachable, 130 interrupted.";

/// Rewrite an image so that it pulls faster, with the same files in it
///
/// What no container can see is dropped, equal files become hard links, the files are cut into
/// layers that are fetched and unpacked well, and these are compressed anew. The result is read
/// again and compared with the source, entry by entry, before it appears under its name. SOURCE is
/// registry.example/repository:tag, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME]
/// or containerd:NAME; DESTINATION is a registry's, oci:DIR[:TAG] or oci-archive:FILE[:TAG].
#[derive(Debug, Args)]
#[command(after_help = CONVERT_HELP)]
pub(in crate::cli) struct Convert {
    /// The image to read
    pub(super) source: String,
    /// Where the result goes
    pub(super) destination: String,
    /// Who will pull the result: the layers are cut as the model says is fastest for it, and a pull of
    /// the source and one of the result are predicted
    #[arg(long, value_name = "MODEL", default_value = "containerd", value_parser = models())]
    pub(super) target: Model,
    /// The rates of its hosts: a file (hoist calibrate writes one), or "even", "two-cores-gzip" or
    /// "two-cores-zstd"; two cores on a fast link unless given
    #[arg(long, value_name = "FILE|NAME")]
    pub(super) profile: Option<String>,
    /// Leave the layers as they are and only compress them anew; their DiffIDs stay
    #[arg(long, conflicts_with_all = ["layers", "layer_sizes", "max_layer_size", "keep_base", "order", "dedupe"])]
    pub(super) keep_layers: bool,
    /// Leave the lowest layers as they are, byte for byte, as far as they are those of this image, so
    /// that it is still shared; what lies above is rewritten
    #[arg(long, value_name = "IMAGE")]
    pub(super) keep_base: Option<String>,
    /// So many layers of equal compressed size, 1 to 127, instead of what the model says
    #[arg(long, value_name = "N", value_parser = layers(), conflicts_with_all = ["layer_sizes", "max_layer_size"])]
    pub(super) layers: Option<usize>,
    /// Layers whose compressed sizes have these proportions, as 490MB,736MB,1474MB
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = parse_size, conflicts_with = "max_layer_size")]
    pub(super) layer_sizes: Vec<u64>,
    /// As few equal layers as are estimated to have at most so many compressed bytes each, as 500MB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) max_layer_size: Option<u64>,
    /// How layers are compressed
    #[arg(long, value_name = "FORM", value_enum, default_value_t = Compress::Zstd)]
    pub(super) compression: Compress,
    /// The level: 1 to 22 for zstd (unless given, what the model says is fastest to ready: 5, or 19 over a
    /// slow link), 1 to 9 for gzip (6 unless given)
    #[arg(long, value_name = "N")]
    pub(super) level: Option<i32>,
    /// Which equal files become hard links of one. strict: those with the same mode, owner, time and
    /// extended attributes, outside of /etc and /var; content: the time may differ, the first one's
    /// counts. A container sees a higher link count; one that writes to such a file writes to a copy
    /// of its own for one name (overlayfs breaks the link)
    #[arg(long, value_name = "WHICH", value_enum, default_value_t = Links::Strict)]
    pub(super) dedupe: Links,
    /// Paths that come first in their layers, one a line
    #[arg(long, value_name = "FILE")]
    pub(super) order: Option<PathBuf>,
    /// Convert only this platform of a multi-platform image, as linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    pub(super) platform: Option<String>,
    /// Do not read the result again to compare it with the source
    #[arg(long)]
    pub(super) no_verify: bool,
    /// Threads, 1 to 256; one for each core unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) threads: Option<u16>,
    /// Where a result for a registry waits until it is whole; it needs room for two compressed copies.
    /// TMPDIR or /var/tmp unless given
    #[arg(long, value_name = "DIR")]
    pub(super) scratch: Option<PathBuf>,
    #[command(flatten)]
    pub(super) containerd: ContainerdArgs,
    #[command(flatten)]
    pub(super) registries: RegistryArgs,
    /// No progress, only the summary
    #[arg(long, short)]
    pub(super) quiet: bool,
    /// The result as JSON instead of a table
    #[arg(long)]
    pub(super) json: bool,
}

/// Which equal files become hard links.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Links {
    Strict,
    Content,
    Off,
}

/// Compare the final file systems of two images
///
/// A line is printed for every path that is in one of them only or not the same in both, and what is
/// not the same about it.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 the same, 1 different, 2 and above as with other commands, 2 for what is 1 there."
)]
pub(in crate::cli) struct Diff {
    /// An image, named in any way that hoist convert can read
    pub(super) first: String,
    /// Another one
    pub(super) second: String,
    #[command(flatten)]
    pub(super) wanted: ImageArgs,
    #[command(flatten)]
    pub(super) containerd: ContainerdArgs,
    /// No progress
    #[arg(long, short)]
    pub(super) quiet: bool,
}

/// Reads a size such as 490MB or 16MiB; without a unit, bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale: u64 = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("its unit is none of B, kB, MB, GB, KiB, MiB, GiB".to_owned()),
    };
    let number = number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale));
    number.ok_or_else(|| "it is not a whole number of bytes, as 490MB".to_owned())
}

/// As many layers as overlayfs stacks.
fn layers() -> impl clap::builder::TypedValueParser<Value = usize> {
    let most = crate::convert::LAYERS_MOST as u64;
    clap::builder::RangedU64ValueParser::<usize>::new().range(1..=most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_size("490MB"), Ok(490_000_000));
        assert_eq!((parse_size("16MiB"), parse_size("7")), (Ok(16 << 20), Ok(7)));
        for text in ["", "MB", "1.5GB", "-1", "99999999999GB", "1 MB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
