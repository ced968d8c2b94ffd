//! The rates of the model, from what can be seen of them.
//!
//! Three ways lead to a [`Profile`](crate::model::Profile): this host is measured with a layer of an image
//! ([`host`]); the pulls that hoistd has recorded say how fast their stages were ([`recorded`]); or pullers
//! that nothing can be installed beside pull from a registry of ours, which watches them ([`experiment`] is
//! what it concludes, pure; [`serve`] is that registry, and [`shelf`] what it has). What a link is follows
//! in the last two from the same question: how fast were so many connections ([`link`])?

mod costs;
pub mod experiment;
pub mod host;
pub mod link;
pub mod recorded;
pub mod serve;
pub mod shelf;
mod written;

pub use host::{CalibrateError, Probe, calibrate};

/// The value in the middle, the upper one of two; `None` of none.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
