//! The arithmetic of a pull: rates in, times and best splits out.
//!
//! A pull is layers of known sizes that go over a shared link and then through extraction, on cores
//! and a disk that they share too. How it goes depends on who pulls: containerd downloads three layers
//! at once and extracts them one after the other, each when its download has ended; `hoist` extracts
//! while it downloads. [`simulate`] plays that out for one [`Model`] as stretches of time in which all
//! rates are constant, and gives for each layer when it was downloaded and extracted.
//!
//! With time as a function of sizes, the best sizes can be found: [`split`] does so for a load that can
//! be cut anywhere (by equations where there are some, by search otherwise), and [`plan`] for files, in
//! units that stay whole.
//!
//! Nothing here reads a clock, a file or the network; the same input gives the same output. The
//! formulas, and what they leave out, are told in `docs/model.md`.

mod pipeline;
pub mod plan;
mod profile;
mod puller;
mod sharing;
mod simulation;
pub mod split;
#[cfg(test)]
mod tests;

pub use profile::{Deviation, Profile, ProfileError, Rates};
pub use puller::Model;
pub use simulation::{Interval, LayerTimes, Load, Prediction, simulate};
