//! Pulling: fetch, decompress and unpack the layers of an image, one job per layer.
//!
//! A [`Puller`] knows the images that are being pulled. The first claim of an image starts all of
//! its layers, that with the longest work first; later claims find theirs under way or done. A layer is a *job* that
//! is shared by everybody who needs its DiffID, whatever the image; it runs while somebody holds
//! an interest in it and is cancelled when nobody does.
//!
//! ```text
//! claim ─▶ images (one per manifest) ─▶ jobs (one per DiffID) ─▶ make ─▶ layer: the stages of a byte
//!                                                                  ╰───▶ trees: where layers are kept
//! ```
//!
//! Where containerd is to have the compressed blobs as well, `keep` sends them there on their way.

mod admission;
mod buffers;
mod caught;
mod decode;
pub mod directory;
mod error;
mod footprint;
mod image;
mod jobs;
mod keep;
mod layer;
mod make;
mod puller;
mod resolve;
mod settle;
pub mod trees;

pub use error::PullError;
pub use keep::{Keeper, OnKept};
pub use make::Decompression;
pub use puller::{Claim, Puller, Pulling, Settings, parse_reference};
pub use resolve::{Resolved, Start, resolve};

/// What a layer of `size` compressed bytes reserves of the budget while it is in work, the window of a
/// zstd layer apart.
pub fn layer_bytes(size: u64) -> u64 {
    footprint::Footprint::of(size).bytes(crate::image::Compression::None, 0)
}
