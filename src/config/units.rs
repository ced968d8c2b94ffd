//! Sizes and durations, which always say their unit.
//!
//! A bare number is refused: whoever writes `stall_timeout = 30` and means milliseconds should
//! learn it from `hoistd --check`, not from a pull.

use std::time::Duration;

/// Why a size or a duration cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnitError {
    /// Not a whole number followed by a known unit.
    #[error(
        "{text:?} is not a size; write a whole number and a unit, as \"256MiB\" (B, KiB, MiB, GiB, TiB)"
    )]
    Size {
        /// What was written.
        text: String,
    },
    /// Not a whole number followed by a known unit.
    #[error(
        "{text:?} is not a duration; write a whole number and a unit, as \"30s\" (ms, s, m, h)"
    )]
    Duration {
        /// What was written.
        text: String,
    },
    /// More than 64 bits hold.
    #[error("{text:?} is too large")]
    Overflow {
        /// What was written.
        text: String,
    },
}

/// Splits "256MiB" into its number and its unit.
fn split(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    (end > 0).then(|| (&text[..end], text[end..].trim_start()))
}

fn scaled(text: &str, number: &str, scale: u64) -> Result<u64, UnitError> {
    let number = number.parse::<u64>().ok();
    let value = number.and_then(|number| number.checked_mul(scale));
    value.ok_or_else(|| UnitError::Overflow { text: text.to_owned() })
}

/// Reads a size in bytes, such as `"256MiB"`.
///
/// # Errors
/// The text is no whole number with a unit, or does not fit in 64 bits.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let wrong = || UnitError::Size { text: text.to_owned() };
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let scale = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    scaled(text, number, scale)
}

/// Reads a duration, such as `"30s"`.
///
/// # Errors
/// The text is no whole number with a unit, or does not fit in 64 bits of milliseconds.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let wrong = || UnitError::Duration { text: text.to_owned() };
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return Err(wrong()),
    };
    scaled(text, number, milliseconds).map(Duration::from_millis)
}
