//! PAX extended headers: records of the form `LENGTH KEY=VALUE\n`, where LENGTH counts itself.

use std::ffi::CString;

use super::Time;
use super::header::Fault;

/// What one extended header says of the entry that follows it. An absent field, and one that
/// is there with an empty value, leaves what the entry's own header says.
#[derive(Default, Debug)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<i64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Time>,
    pub(super) atime: Option<Time>,
    pub(super) xattrs: Vec<(CString, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

/// The `GNU.sparse.*` records.
#[derive(Default, Debug)]
pub(super) struct PaxSparse {
    pub(super) major: Vec<u8>,
    pub(super) minor: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) real_size: Option<i64>,
    pub(super) block_count: Option<i64>,
    /// Offsets and lengths in turn, of version 0.0's records or 0.1's list; `None` without either.
    pub(super) map: Option<Vec<i64>>,
}

impl Pax {
    /// Reads the data of an extended header.
    ///
    /// # Errors
    /// Where a record is malformed or a value is not what its key asks for.
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, Fault> {
        let mut pax = Self::default();
        // `size` wins over `realsize` wherever it stands.
        let mut sparse_size = None;
        while !data.is_empty() {
            let (Record { key, value }, rest) = record(data)?;
            data = rest;
            match key {
                b"GNU.sparse.size" => sparse_size = integer(key, value)?,
                _ => pax.set(key, value)?,
            }
        }
        if sparse_size.is_some() {
            pax.sparse.real_size = sparse_size;
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let bytes = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = bytes(),
            b"linkpath" => self.link_path = bytes(),
            b"size" => self.size = integer(key, value)?,
            b"uid" => self.uid = integer(key, value)?,
            b"gid" => self.gid = integer(key, value)?,
            b"mtime" => self.mtime = time(key, value)?,
            b"atime" => self.atime = time(key, value)?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(name, value)?;
                } else if let Some(field) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(field, value)?;
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        let name = CString::new(name).map_err(|_| "an xattr's name has a zero byte")?;
        // A key that stands twice counts once, with its last value.
        self.xattrs.retain(|(other, _)| *other != name);
        self.xattrs.push((name, value.to_vec()));
        Ok(())
    }
}

impl PaxSparse {
    fn set(&mut self, field: &[u8], value: &[u8]) -> Result<(), Fault> {
        match field {
            b"major" => self.major = value.to_vec(),
            b"minor" => self.minor = value.to_vec(),
            b"name" => self.name = value.to_vec(),
            b"realsize" => self.real_size = integer(field, value)?,
            b"numblocks" => self.block_count = integer(field, value)?,
            b"map" => {
                let numbers = value.split(|&b| b == b',').filter(|part| !part.is_empty());
                let numbers: Option<Vec<i64>> = numbers.map(decimal).collect();
                self.map = Some(numbers.ok_or("its sparse map holds something else than numbers")?);
            }
            b"offset" | b"numbytes" => {
                let map = self.map.get_or_insert_default();
                if map.len().is_multiple_of(2) != (field == b"offset") {
                    return Err("offsets and lengths of its sparse map do not alternate".into());
                }
                map.push(decimal(value).ok_or("its sparse map holds something else than numbers")?);
            }
            _ => {}
        }
        Ok(())
    }
}

struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
}

/// The first record of `data`, and what follows it.
fn record(data: &[u8]) -> Result<(Record<'_>, &[u8]), Fault> {
    let fault = || "its extended header has a malformed record".to_owned();
    let space = data.iter().take(20).position(|&b| b == b' ').ok_or_else(fault)?;
    let length = decimal(&data[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(fault)?;
    if length > data.len() || length < space + 4 || data[length - 1] != b'\n' {
        return Err(fault());
    }
    let text = &data[space + 1..length - 1];
    let equals = text.iter().position(|&b| b == b'=').filter(|&at| at > 0).ok_or_else(fault)?;
    let (key, value) = (&text[..equals], &text[equals + 1..]);
    let in_name = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname") && value.contains(&0);
    if key.contains(&0) || in_name {
        return Err("its extended header has a zero byte in a name".into());
    }
    Ok((Record { key, value }, &data[length..]))
}

/// A decimal number with an optional minus.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    if text.starts_with('+') { None } else { text.parse().ok() }
}

fn integer(key: &[u8], value: &[u8]) -> Result<Option<i64>, Fault> {
    if value.is_empty() {
        return Ok(None);
    }
    let number = decimal(value).ok_or_else(|| {
        format!("{} in its extended header is no number", String::from_utf8_lossy(key))
    })?;
    Ok(Some(number))
}

/// Seconds with an optional fraction, of which nine digits count.
fn time(key: &[u8], value: &[u8]) -> Result<Option<Time>, Fault> {
    if value.is_empty() {
        return Ok(None);
    }
    let parsed = || {
        let mut halves = value.splitn(2, |&b| b == b'.');
        let whole = halves.next()?;
        let seconds = decimal(whole)?;
        let fraction = halves.next().unwrap_or_default();
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let digit = |at: usize| u32::from(fraction.get(at).map_or(0, |b| b - b'0'));
        let nanos = (0..9).fold(0, |sum, at| sum * 10 + digit(at));
        Some(if whole.starts_with(b"-") && nanos > 0 {
            Time { seconds: seconds.checked_sub(1)?, nanos: 1_000_000_000 - nanos }
        } else {
            Time { seconds, nanos }
        })
    };
    let fault = || format!("{} in its extended header is no time", String::from_utf8_lossy(key));
    parsed().map(Some).ok_or_else(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let length = (1..).map(|digits| rest + digits).find(|n| n.to_string().len() + rest == *n);
        let mut line = format!("{} {key}=", length.unwrap()).into_bytes();
        line.extend_from_slice(value);
        line.push(b'\n');
        line
    }

    #[test]
    fn records_may_hold_newlines_and_zero_bytes_in_values() {
        let value = b"\x01\0\0\x02\n=\n\0\xff";
        let data = [line("SCHILY.xattr.security.capability", value), line("uid", b"70000")];
        let pax = Pax::parse(&data.concat()).unwrap();
        assert_eq!(pax.xattrs, [(c"security.capability".to_owned(), value.to_vec())]);
        assert_eq!(pax.uid, Some(70_000));
        assert!(Pax::parse(&line("path", b"a\0b")).is_err());
    }

    #[test]
    fn empty_values_are_absent_except_for_xattrs() {
        let data = [line("path", b""), line("size", b""), line("SCHILY.xattr.user.e", b"")];
        let pax = Pax::parse(&data.concat()).unwrap();
        assert!(pax.path.is_none() && pax.size.is_none());
        assert_eq!(pax.xattrs, [(c"user.e".to_owned(), Vec::new())]);
    }

    #[test]
    fn times_have_nine_digits_and_a_sign() {
        for (text, expected) in [
            ("1.5", Some((1, 500_000_000))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.25", Some((-1, 750_000_000))),
            ("12", Some((12, 0))),
            ("12.", Some((12, 0))),
            ("1.1234567899", Some((1, 123_456_789))),
            ("x", None),
            ("1.x", None),
        ] {
            let time = Pax::parse(&line("mtime", text.as_bytes())).ok().and_then(|p| p.mtime);
            assert_eq!(time.map(|t| (t.seconds, t.nanos)), expected, "{text}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for data in [
            "5 a=b\n",
            "7 a=b\n",
            "6 a=b\n6 a",
            "6 =ab\n",
            "x a=b\n",
            "3 \n",
            "99999999999999999999 a=b\n",
        ] {
            assert!(Pax::parse(data.as_bytes()).is_err(), "{data:?}");
        }
        assert!(Pax::parse(b"6 a=b\n").is_ok());
    }
}
