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

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::model::{Deviation, Model};

pub use host::{CalibrateError, Probe, calibrate};

/// The largest of [`pieces`].
const PIECE_BYTES: usize = 512 << 10;

/// How each puller that is not hoistd deviates, if all do it in the same way.
fn all_others(deviation: &Deviation) -> BTreeMap<Model, Deviation> {
    let others = Model::ALL.into_iter().filter(|model| *model != Model::Hoist);
    others.map(|model| (model, deviation.clone())).collect()
}

/// Bytes in pieces, as a network or a decoder gives them.
fn pieces(mut rest: Bytes) -> impl Iterator<Item = Bytes> {
    let piece = move || Some(rest.split_to(rest.len().min(PIECE_BYTES)));
    std::iter::from_fn(piece).take_while(|piece| !piece.is_empty())
}

/// The value in the middle, the upper one of two; `None` of none.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
