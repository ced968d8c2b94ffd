//! Metadata of an inode, extended attributes among it.

use std::ffi::{CStr, CString};

use super::{LARGEST_XATTR_BYTES, LARGEST_XATTRS_BYTES, format};

/// Names and values, sorted by name.
type Xattrs = Vec<(CString, Vec<u8>)>;

/// Metadata of an inode.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Attributes {
    /// Permissions: the low twelve bits of a mode.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// When it was modified: seconds since 1970.
    pub seconds: u64,
    /// And nanoseconds.
    pub nanos: u32,
    /// Boxed, as most inodes have none.
    xattrs: Option<Box<Xattrs>>,
}

impl Attributes {
    /// Without xattrs.
    pub fn new(mode: u32, uid: u32, gid: u32, (seconds, nanos): (u64, u32)) -> Self {
        Self { mode: mode & 0o7777, uid, gid, seconds, nanos, xattrs: None }
    }

    /// Xattrs, sorted by name.
    pub fn xattrs(&self) -> &[(CString, Vec<u8>)] {
        self.xattrs.as_ref().map_or(&[], |xattrs| xattrs.as_slice())
    }

    /// Sets an xattr, made or replaced. False where EROFS has no such namespace.
    ///
    /// # Errors
    /// `E2BIG` where it, or all of them together, are larger than the format allows
    /// ([`LARGEST_XATTR_BYTES`], [`LARGEST_XATTRS_BYTES`]), `ERANGE` for a name above 255 bytes.
    pub fn set_xattr(&mut self, name: &CStr, value: &[u8]) -> std::io::Result<bool> {
        let system = |errno| std::io::Error::from_raw_os_error(errno);
        if format::xattr_prefix(name).is_none() {
            return Ok(false);
        }
        if name.to_bytes().len() > 255 {
            return Err(system(libc::ERANGE));
        }
        let after = self.xattr_bytes() + format::xattr_entry_bytes(name.to_bytes(), value);
        if value.len() > LARGEST_XATTR_BYTES
            || after + format::XATTR_BODY_BYTES > LARGEST_XATTRS_BYTES
        {
            return Err(system(libc::E2BIG));
        }
        let xattrs = self.xattrs.get_or_insert_default();
        match xattrs.binary_search_by(|(other, _)| other.as_c_str().cmp(name)) {
            Ok(at) => xattrs[at].1 = value.to_vec(),
            Err(at) => xattrs.insert(at, (name.to_owned(), value.to_vec())),
        }
        Ok(true)
    }

    /// Takes an xattr away, if it is there.
    pub fn remove_xattr(&mut self, name: &CStr) {
        if let Some(xattrs) = &mut self.xattrs {
            xattrs.retain(|(other, _)| other.as_c_str() != name);
        }
        self.xattrs.take_if(|xattrs| xattrs.is_empty());
    }

    /// Bytes of xattrs behind the inode.
    pub(super) fn xattr_bytes(&self) -> usize {
        let entry = |(name, value): &(CString, Vec<u8>)| {
            let (_, rest) = format::xattr_prefix(name).expect("checked when it was set");
            format::xattr_entry_bytes(rest, value)
        };
        match self.xattrs() {
            [] => 0,
            xattrs => format::XATTR_BODY_BYTES + xattrs.iter().map(entry).sum::<usize>(),
        }
    }

    /// About what they take in memory beside the inode, in bytes.
    pub(super) fn memory(&self) -> usize {
        let xattr = |(name, value): &(CString, Vec<u8>)| 64 + name.count_bytes() + value.len();
        self.xattrs().iter().map(xattr).sum()
    }
}
