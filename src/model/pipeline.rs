//! The equations of the perfect pipeline.
//!
//! Layers are downloaded together in equal shares and extracted one after the other. Nothing waits if
//! the download of layer k + 1 ends when the extraction of layer k does. While layer k is extracted,
//! n - k layers share the link, so that each gets ρ = min(D / (n - k), c); layer k + 1 has had as many
//! bytes as layer k when that one ended. Hence, with e(s) the time to extract s bytes of the kind of k:
//!
//! ```text
//! s[k+1] = s[k] + ρ(n - k) · e(s[k])          with D alone and e(s) = s / E:
//! s[k+1] = s[k] · (1 + D / (E · (n - k)))
//! ```
//!
//! which is linear in the first size, and that is set by the sum.

use super::split::Kind;
use super::{Model, Rates};

/// The sizes, in the order of the stack; none where the equations do not hold: the model extracts
/// otherwise, not all layers are downloaded at once, or cores and disk have a say.
pub(super) fn equations(
    total: f64,
    kinds: &[Kind],
    rates: &Rates,
    model: Model,
) -> Option<Vec<f64>> {
    let shape = model.shape(rates);
    if shape.streaming || shape.unpacks != 1 || shape.downloads < kinds.len() {
        return None;
    }
    let limit = rates.per_connection.map_or(f64::INFINITY, |each| each.0);
    let mut sizes = vec![1.0];
    for (before, kind) in kinds.iter().take(kinds.len().saturating_sub(1)).enumerate() {
        #[allow(clippy::cast_precision_loss, reason = "layers are few")]
        let sharing = (kinds.len() - before - 1) as f64;
        let each = (rates.download.0 / sharing).min(limit);
        sizes.push(sizes[before] * (1.0 + each * kind.seconds_per_byte(rates)));
    }
    let sum: f64 = sizes.iter().sum();
    Some(sizes.into_iter().map(|size| size * total / sum).collect())
}
