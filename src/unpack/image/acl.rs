//! POSIX ACLs, as far as they and the mode have to agree.
//!
//! On other file systems the kernel keeps both in step when a mode is set (`posix_acl_chmod`), and
//! an ACL that says no more than the mode is not kept at all. In an image both stand as written, so
//! it is done here. An ACL is a version and entries of a tag, permissions and an id (Linux
//! `include/uapi/linux/posix_acl_xattr.h`).

use std::ffi::CStr;

use crate::erofs::Attributes;

const ACCESS: &CStr = c"system.posix_acl_access";

const VERSION_BYTES: usize = 4;
const VERSION: [u8; VERSION_BYTES] = 2u32.to_le_bytes();
const ENTRY_BYTES: usize = 8;

const USER_OBJ: u16 = 1;
const GROUP_OBJ: u16 = 4;
const MASK: u16 = 16;
const OTHER: u16 = 32;

fn tag(entry: &[u8]) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}

/// `None` where a value is no ACL.
pub(super) fn checked(value: &[u8]) -> Option<()> {
    let entries = value.strip_prefix(&VERSION)?;
    let has = |wanted| entries.chunks_exact(ENTRY_BYTES).any(|entry| tag(entry) == wanted);
    let whole = entries.len().is_multiple_of(ENTRY_BYTES);
    (whole && (entries.is_empty() || has(USER_OBJ) && has(GROUP_OBJ) && has(OTHER))).then_some(())
}

/// Brings the access ACL in step with the mode, and drops it where it says no more.
pub(super) fn follow_mode(attributes: &mut Attributes) {
    let found = attributes.xattrs().iter().find(|(name, _)| name.as_c_str() == ACCESS);
    let Some(mut value) = found.map(|(_, value)| value.clone()) else { return };
    let mode = attributes.mode;
    let Some(entries) = value.get_mut(VERSION_BYTES..) else { return };
    let masked = entries.chunks_exact(ENTRY_BYTES).any(|entry| tag(entry) == MASK);
    let mut more = false;
    for entry in entries.chunks_exact_mut(ENTRY_BYTES) {
        let bits = match tag(entry) {
            USER_OBJ => mode >> 6,
            GROUP_OBJ if !masked => mode >> 3,
            MASK => mode >> 3,
            OTHER => mode,
            _ => {
                more = true;
                continue;
            }
        };
        entry[2] = u8::try_from(bits & 7).expect("three bits");
    }
    if more || masked {
        // It has the length that it had, so it fits.
        let _fits = attributes.set_xattr(ACCESS, &value);
    } else {
        attributes.remove_xattr(ACCESS);
    }
}
