//! The kinds of values that keys have: how each is written, and what is said of one that is not.
//!
//! Every kind takes the table, the key and its default, some also bounds. A key that is not there is
//! its default, and so is a value that is a mistake, which is told to the table: reading goes on, so
//! that all mistakes are found at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::Section;
use super::{IoClass, MinFree, parse_duration, parse_size};
use crate::units::Rate;

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
pub(super) const TIB: u64 = 1 << 40;

/// An absolute path.
pub(super) fn path(section: &mut Section<'_, '_>, key: &'static str, default: PathBuf) -> PathBuf {
    let Some(value) = section.value(key) else { return default };
    let Some(text) = value.string() else { return default };
    if !text.starts_with('/') {
        value.mistake(format_args!("{text:?} has to be an absolute path"));
    }
    PathBuf::from(text)
}

/// An absolute path; `"off"` is none.
pub(super) fn path_or_off(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: Option<PathBuf>,
) -> Option<PathBuf> {
    match section.value(key) {
        Some(value) if value.is_word("off") => None,
        Some(_) => Some(path(section, key, PathBuf::new())),
        None => default,
    }
}

/// Absolute paths.
pub(super) fn paths(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: Vec<PathBuf>,
) -> Vec<PathBuf> {
    let Some(value) = section.value(key) else { return default };
    let Some(texts) = value.strings() else { return default };
    for text in texts.iter().filter(|text| !text.starts_with('/')) {
        value.mistake(format_args!("{text:?} has to be an absolute path"));
    }
    texts.into_iter().map(PathBuf::from).collect()
}

/// Registries, each HOST or HOST:PORT.
pub(super) fn hosts(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: Vec<String>,
) -> Vec<String> {
    let Some(value) = section.value(key) else { return default };
    let Some(texts) = value.strings() else { return default };
    for text in texts.iter().filter(|text| !is_host(text)) {
        value.mistake(format_args!("{text:?} has to be HOST or HOST:PORT, without a scheme"));
    }
    texts.into_iter().map(str::to_owned).collect()
}

/// Whether it may be HOST or HOST:PORT.
pub(super) fn is_host(text: &str) -> bool {
    !text.is_empty() && !text.contains(['/', ' '])
}

/// Bytes a second, at least so many; `"off"` is none.
pub(super) fn rate(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: Option<u64>,
    least: u64,
) -> Option<u64> {
    let Some(value) = section.value(key) else { return default };
    if value.is_word("off") {
        return None;
    }
    let Some(text) = value.string() else { return default };
    let bytes = match text.parse::<Rate>() {
        Ok(rate) => rate.whole_bytes(),
        Err(error) => {
            value.mistake(format_args!("{error}, or \"off\""));
            return default;
        }
    };
    if bytes < least {
        value.mistake(format_args!("{text:?} is less than {}/s", show_size(least)));
    }
    Some(bytes)
}

/// Room that is left free: a size, a share of the disk, or `"auto"`.
pub(super) fn min_free(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: MinFree,
) -> MinFree {
    let Some(value) = section.value(key) else { return default };
    let Some(text) = value.string() else { return default };
    if text == "auto" {
        return MinFree::Auto;
    }
    let percent = text.strip_suffix('%').map(|number| number.trim().parse::<u8>().ok());
    match percent.map(|percent| percent.filter(|&percent| percent < 100)) {
        Some(Some(percent)) => return MinFree::Percent(percent),
        None if let Ok(bytes) = parse_size(text) => {
            if (1..MinFree::LEAST_BYTES).contains(&bytes) {
                value.mistake(format_args!(
                    "{text:?} is less than {}, which is looked at too seldom to be kept; \"0B\" keeps nothing free",
                    show_size(MinFree::LEAST_BYTES)
                ));
            }
            return MinFree::Bytes(bytes);
        }
        _ => value.mistake(format_args!(
            "{text:?} has to be a size, as \"2GiB\", a share below 100, as \"5%\", or \"auto\""
        )),
    }
    default
}

/// A class of input and output; `"none"` leaves the kernel's.
pub(super) fn io_class(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: Option<IoClass>,
) -> Option<IoClass> {
    let Some(value) = section.value(key) else { return default };
    let text = value.string()?;
    let level = text.strip_prefix("best-effort:").and_then(|level| level.parse::<u8>().ok());
    match (text, level) {
        ("none", _) => return None,
        ("idle", _) => return Some(IoClass::Idle),
        (_, Some(level @ 0..=7)) => return Some(IoClass::BestEffort(level)),
        _ => value.mistake(format_args!(
            "{text:?} has to be \"none\", \"idle\" or \"best-effort:N\" with N from 0 (first) to 7"
        )),
    }
    default
}

/// Bytes, between the least and the most.
pub(super) fn size(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: u64,
    (least, most): (u64, u64),
) -> u64 {
    let Some(value) = section.value(key) else { return default };
    let Some(text) = value.string() else { return default };
    match parse_size(text) {
        Err(error) => value.mistake(error),
        Ok(size) if size < least || size > most => {
            let (least, most) = (show_size(least), show_size(most));
            value.mistake(format_args!("{text:?} is outside {least} to {most}"));
        }
        Ok(size) => return size,
    }
    default
}

fn show_size(bytes: u64) -> String {
    let units = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    let unit = units.into_iter().find(|(scale, _)| bytes >= *scale).unwrap_or((1, "B"));
    format!("{}{}", bytes / unit.0, unit.1)
}

/// A duration between so many and so many seconds.
pub(super) fn duration(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: Duration,
    seconds: (u64, u64),
) -> Duration {
    let Some(value) = section.value(key) else { return default };
    let Some(text) = value.string() else { return default };
    let (least, most) = (Duration::from_secs(seconds.0), Duration::from_secs(seconds.1));
    match parse_duration(text) {
        Err(error) => value.mistake(error),
        Ok(duration) if duration < least || duration > most => {
            value.mistake(format_args!("{text:?} is outside {}s to {}s", seconds.0, seconds.1));
        }
        Ok(duration) => return duration,
    }
    default
}

/// A number of things of which there is at least one; `"auto"` is the default, which may depend
/// on the machine.
pub(super) fn count(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: usize,
    most: usize,
) -> usize {
    match section.value(key) {
        Some(value) if value.is_word("auto") => default,
        Some(_) => number(section, key, default, (1, most)),
        None => default,
    }
}

/// A whole number, between the least and the most.
pub(super) fn number(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: usize,
    (least, most): (usize, usize),
) -> usize {
    let Some(value) = section.value(key) else { return default };
    let Some(integer) = value.integer() else { return default };
    match usize::try_from(integer) {
        Ok(number) if (least..=most).contains(&number) => return number,
        _ => value.mistake(format_args!("{integer} is outside {least} to {most}")),
    }
    default
}

/// One of these words, each with what it means.
pub(super) fn word<T: Copy>(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: T,
    words: &[(&str, T)],
) -> T {
    let Some(value) = section.value(key) else { return default };
    let Some(text) = value.string() else { return default };
    let found = words.iter().find(|(word, _)| *word == text);
    if found.is_none() {
        let known = words.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>();
        value.mistake(format_args!("{text:?} has to be {}", known.join(" or ")));
    }
    found.map_or(default, |(_, meant)| *meant)
}

/// An address to listen on; `"off"` is none.
pub(super) fn address(
    section: &mut Section<'_, '_>,
    key: &'static str,
    default: Option<SocketAddr>,
) -> Option<SocketAddr> {
    let Some(value) = section.value(key) else { return default };
    let Some(text) = value.string() else { return default };
    if text == "off" {
        return None;
    }
    let parsed = text.parse().ok();
    if parsed.is_none() {
        value.mistake(format_args!("{text:?} has to be \"IP:PORT\", or \"off\""));
    }
    parsed.or(default)
}

/// A level of logging, or a filter of levels.
pub(super) fn level(section: &mut Section<'_, '_>, key: &'static str, default: String) -> String {
    let Some(value) = section.value(key) else { return default };
    let Some(text) = value.string() else { return default };
    match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) if !text.trim().is_empty() => return text.to_owned(),
        Ok(_) => value.mistake("is empty; write error, warn, info, debug or trace"),
        Err(error) => value.mistake(format_args!("{text:?} is not a level or filter: {error}")),
    }
    default
}
