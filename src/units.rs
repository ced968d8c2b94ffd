//! Sizes, rates and durations, which always say their unit.
//!
//! A bare number is refused: whoever writes `stall_timeout = 30` and means milliseconds should
//! learn it from `hoistd --check`, not from a pull.
//!
//! What bounds the daemon is exact ([`parse_size`], [`parse_duration`]: whole numbers, binary units).
//! What is measured or estimated ([`Size`], [`Rate`], [`Seconds`]) may have a fraction, and decimal
//! units too, because that is how links and disks are sold: `490.9MB`, `1.4GiB`, `225MB/s`, `35us`.

use std::fmt;
use std::str::FromStr;
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
    /// Not a number followed by a unit of what was asked for.
    #[error("{text:?} is not {what}; write a number and a unit, as {example}")]
    Quantity {
        /// What was written.
        text: String,
        /// What should stand there.
        what: &'static str,
        /// How it may look, with all units.
        example: &'static str,
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

/// Units of bytes; the decimal ones are what figures are shown in.
const BYTE_UNITS: [(&str, f64); 10] = [
    ("TB", 1e12),
    ("GB", 1e9),
    ("MB", 1e6),
    ("kB", 1e3),
    ("B", 1.0),
    ("KB", 1e3),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
];

const TIME_UNITS: [(&str, f64); 6] =
    [("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("m", 60.0), ("h", 3600.0)];

/// "490.9MB" by a table of units; `None` unless it is a finite number of at least 0.
fn quantity(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let unit = text[end..].trim_start();
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    let value = text[..end].parse::<f64>().ok()? * scale;
    value.is_finite().then_some(value)
}

/// A figure in the largest of `units` (largest first) that leaves at least 1 before the point, with
/// six digits: more than any measurement has.
fn written(value: f64, units: &[(&str, f64)]) -> String {
    let fits = units.iter().find(|(_, scale)| value >= *scale);
    let (unit, scale) = fits.or(units.last()).expect("every table has a unit");
    let text = format!("{:.6}", value / scale);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{unit}")
}

/// A measured quantity of a unit of its own, read and written with that unit.
macro_rules! measured {
    ($(#[$doc:meta])* $name:ident, $read:expr, $write:expr, $what:literal, $example:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, PartialOrd, Debug, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub f64);

        impl FromStr for $name {
            type Err = UnitError;
            fn from_str(text: &str) -> Result<Self, UnitError> {
                let read: fn(&str) -> Option<f64> = $read;
                read(text).map(Self).ok_or_else(|| UnitError::Quantity {
                    text: text.to_owned(),
                    what: $what,
                    example: $example,
                })
            }
        }

        impl TryFrom<String> for $name {
            type Error = UnitError;
            fn try_from(text: String) -> Result<Self, UnitError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let write: fn(f64) -> String = $write;
                f.pad(&write(self.0))
            }
        }
    };
}

measured! {
    /// Bytes: `490.9MB`, `1.4GiB`; at least 0.
    Size,
    |text| quantity(text, &BYTE_UNITS),
    |bytes| written(bytes, &BYTE_UNITS[..5]),
    "a size", "\"490MB\" or \"1.4GiB\" (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)"
}

measured! {
    /// Bytes a second: `225MB/s`, `1.25GB/s`; more than 0.
    Rate,
    |text| quantity(text.trim().strip_suffix("/s")?, &BYTE_UNITS).filter(|rate| *rate > 0.0),
    |rate| written(rate, &BYTE_UNITS[..5]) + "/s",
    "a rate above zero", "\"225MB/s\" (B/s, kB/s, MB/s, GB/s, KiB/s, MiB/s, GiB/s)"
}

impl Rate {
    /// In whole bytes a second, rounded down; the most that 64 bits hold for more.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
    pub fn whole_bytes(self) -> u64 {
        self.0 as u64
    }

    /// A measured one, to a tenth of a megabyte a second: more digits than a measurement has.
    pub fn measured(bytes_per_second: f64) -> Self {
        Self((bytes_per_second / 1e5).round() * 1e5)
    }
}

measured! {
    /// Seconds: `35us`, `50ms`, `1.5s`; at least 0.
    Seconds,
    |text| quantity(text, &TIME_UNITS),
    |seconds| written(seconds, &TIME_UNITS[..3]),
    "a time", "\"35us\" or \"1.5s\" (us, ms, s, m, h)"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_may_have_a_fraction() {
        assert_eq!("490.9MB".parse(), Ok(Size(490.9e6)));
        assert_eq!(" 1.5 GiB ".parse(), Ok(Size(1.5 * 1_073_741_824.0)));
        assert_eq!("0B".parse(), Ok(Size(0.0)));
        assert_eq!("225MB/s".parse(), Ok(Rate(225e6)));
        assert_eq!("35us".parse::<Seconds>().unwrap().to_string(), "35us");
        assert_eq!(Seconds(1.5).to_string(), "1.5s");
        assert_eq!(Rate(107_250_000.0).to_string(), "107.25MB/s");
        assert_eq!([Size(0.0).to_string(), Size(2.7e9).to_string()], ["0B", "2.7GB"]);
    }

    #[test]
    fn what_is_no_quantity_is_told_with_the_way_out() {
        for wrong in ["", "12", "-3MB", "1e3MB", "MB", "1.2.3MB", "5 parsecs", "MB5"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
            assert!(wrong.parse::<Seconds>().is_err(), "{wrong}");
        }
        for wrong in ["225MB", "225", "0MB/s", "225Mbit/s", "225MB/h"] {
            let told = wrong.parse::<Rate>().unwrap_err().to_string();
            assert!(told.contains(wrong) && told.contains("225MB/s"), "{told}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for bytes in [1.0, 999.0, 1000.0, 490.9e6, 2.7e9, 3.125e12] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
            assert_eq!(Rate(bytes).to_string().parse(), Ok(Rate(bytes)));
        }
    }
}
