//! Maps of sparse files: where in a file the stored data belong.
//!
//! GNU tar wrote them four ways: in the header itself and blocks after it (type `S`), in PAX
//! records one by one (0.0), in one PAX record (0.1), and as lines of text before the data (1.0).

use tar::GnuSparseHeader;

use super::header::{Fault, number};
use super::pax::decimal;

/// A stretch of data in a file; what lies between two is a hole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Checks a map against the file's length and its stored bytes, and drops empty extents.
///
/// # Errors
/// Where extents overlap, go backwards or beyond the end, or do not add up to `stored`.
pub(super) fn check(map: Vec<(i64, i64)>, size: u64, stored: u64) -> Result<Vec<Extent>, Fault> {
    let (mut end, mut sum) = (0u64, 0u64);
    let mut extents = Vec::with_capacity(map.len());
    for (offset, length) in map {
        let (Ok(offset), Ok(length)) = (u64::try_from(offset), u64::try_from(length)) else {
            return Err("its sparse map has a negative number".into());
        };
        // Both are below 2^63, so that neither sum overflows at once.
        if offset < end || offset + length > size {
            return Err(format!("its sparse map does not fit into its {size} bytes"));
        }
        end = offset + length;
        sum += length;
        if length > 0 {
            extents.push(Extent { offset, length });
        }
    }
    if sum != stored {
        return Err(format!("its sparse map tells of {sum} bytes, and {stored} are stored"));
    }
    Ok(extents)
}

/// Pairs offsets with lengths.
///
/// # Errors
/// Where their number is odd or not what `count` says.
pub(super) fn pairs(numbers: &[i64], count: Option<i64>) -> Result<Vec<(i64, i64)>, Fault> {
    let map: Vec<(i64, i64)> = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    let told = count.and_then(|count| usize::try_from(count).ok());
    if !numbers.len().is_multiple_of(2) || told != Some(map.len()) {
        return Err("its sparse map is not as long as it says".into());
    }
    Ok(map)
}

/// Adds the entries of an old GNU header, up to the first that is empty.
///
/// # Errors
/// Where a field is not a number.
pub(super) fn old_gnu(entries: &[GnuSparseHeader], map: &mut Vec<(i64, i64)>) -> Result<(), Fault> {
    for entry in entries.iter().take_while(|entry| entry.offset[0] != 0) {
        map.push((
            number(&entry.offset, "sparse offset")?,
            number(&entry.numbytes, "sparse length")?,
        ));
    }
    Ok(())
}

/// Reads version 1.0's lines, which are fed in blocks as long as it asks for them.
#[derive(Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    count: Option<usize>,
    numbers: Vec<i64>,
}

impl Lines {
    /// Takes a block; returns the whole map once it is complete.
    ///
    /// # Errors
    /// Where a line is not a number.
    pub(super) fn feed(&mut self, block: &[u8]) -> Result<Option<Vec<(i64, i64)>>, Fault> {
        for &byte in block {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let value = decimal(&self.line).filter(|&n| n >= 0);
            let value = value.ok_or("its sparse map holds something else than numbers")?;
            self.line.clear();
            match self.count {
                None => self.count = usize::try_from(value).ok().filter(|&n| n < usize::MAX / 2),
                Some(_) => self.numbers.push(value),
            }
            let count = self.count.ok_or("its sparse map is too long")?;
            if self.numbers.len() == 2 * count {
                let map = self.numbers.chunks_exact(2).map(|pair| (pair[0], pair[1]));
                return Ok(Some(map.collect()));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_checked() {
        let map = vec![(0, 3), (3, 0), (10, 5), (20, 0)];
        let extents = check(map, 20, 8).unwrap();
        assert_eq!(extents, [Extent { offset: 0, length: 3 }, Extent { offset: 10, length: 5 }]);
        assert!(check(vec![(0, 5), (4, 1)], 10, 6).is_err(), "overlap");
        assert!(check(vec![(0, 11)], 10, 11).is_err(), "beyond the end");
        assert!(check(vec![(0, 5)], 10, 6).is_err(), "stored bytes nobody refers to");
        assert!(check(vec![(-1, 5)], 10, 5).is_err());
        assert!(check(vec![(i64::MAX, i64::MAX)], u64::MAX, 5).is_err());
    }

    #[test]
    fn lines_end_with_their_last_number() {
        let mut lines = Lines::default();
        assert_eq!(lines.feed(b"2\n0\n5\n1").unwrap(), None);
        assert_eq!(lines.feed(b"0\n7\n\0\0").unwrap(), Some(vec![(0, 5), (10, 7)]));
        assert_eq!(Lines::default().feed(b"0\n").unwrap(), Some(Vec::new()));
        assert!(Lines::default().feed(b"x\n").is_err());
    }
}
