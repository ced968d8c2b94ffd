//! `Content-Range` (RFC 9110, section 14.4): the part of a blob that an answer says it is.

use std::ops::Range;

/// What a `Content-Range` field says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ContentRange {
    /// The bytes that follow; `None` in an answer 416.
    pub(super) part: Option<Range<u64>>,
    /// The whole blob's size, where the server knows it.
    pub(super) total: Option<u64>,
}

impl ContentRange {
    /// Reads a field's value; `None` where it is not one in bytes or contradicts itself.
    pub(super) fn parse(value: &str) -> Option<Self> {
        let (unit, rest) = value.trim().split_once(' ')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (part, total) = rest.trim().split_once('/')?;
        let total = if total == "*" { None } else { Some(number(total)?) };
        if part == "*" {
            return Some(Self { part: None, total });
        }
        let (first, last) = part.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let end = last.checked_add(1)?;
        if first > last || total.is_some_and(|total| end > total) {
            return None;
        }
        Some(Self { part: Some(first..end), total })
    }
}

/// Digits alone: `str::parse` would also take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_rfc_shows_and_refuses_contradictions() {
        let read = ContentRange::parse;
        assert_eq!(
            read("bytes 42-1233/1234"),
            Some(ContentRange { part: Some(42..1234), total: Some(1234) })
        );
        assert_eq!(
            read("bytes 42-1233/*"),
            Some(ContentRange { part: Some(42..1234), total: None })
        );
        assert_eq!(read("bytes */1234"), Some(ContentRange { part: None, total: Some(1234) }));
        for wrong in [
            "",
            "bytes",
            "bytes 1-0/9",
            "bytes 0-9/9",
            "items 0-1/2",
            "bytes 0-1",
            "bytes +0-1/2",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn text_and_back(first in 0..u64::MAX / 2, more in 0..1_000_000u64, rest in 0..9u64) {
            let (last, total) = (first + more, first + more + 1 + rest);
            let read = ContentRange::parse(&format!("bytes {first}-{last}/{total}")).unwrap();
            prop_assert_eq!(read, ContentRange { part: Some(first..last + 1), total: Some(total) });
        }

        #[test]
        fn never_panics(text in "\\PC*") {
            ContentRange::parse(&text);
        }
    }
}
