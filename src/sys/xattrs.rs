//! Extended attributes, which `nix` does not have.
//!
//! Paths are used as they are: a last part that is a symbolic link is not followed.

#![allow(unsafe_code, reason = "the calls exist only in libc")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

fn checked(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Sets `name` of an open file, made or replaced.
///
/// # Errors
/// What fsetxattr(2) says; EBADF for a handle made with `O_PATH`.
pub fn set(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    let data = value.as_ptr().cast();
    // SAFETY: `name` ends with a zero byte and `data` has `value.len()` readable bytes.
    let result = unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), data, value.len(), 0) };
    checked(result as libc::ssize_t).map(drop)
}

/// Sets `name` of what `path` names, made or replaced.
///
/// # Errors
/// What lsetxattr(2) says.
pub fn set_path(path: &CStr, name: &CStr, value: &[u8]) -> io::Result<()> {
    let data = value.as_ptr().cast();
    // SAFETY: both strings end with a zero byte and `data` has `value.len()` readable bytes.
    let result = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), data, value.len(), 0) };
    checked(result as libc::ssize_t).map(drop)
}

/// Removes `name` of what `path` names.
///
/// # Errors
/// What lremovexattr(2) says; ENODATA where there is none.
pub fn remove_path(path: &CStr, name: &CStr) -> io::Result<()> {
    // SAFETY: both strings end with a zero byte.
    let result = unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) };
    checked(result as libc::ssize_t).map(drop)
}

/// The value of `name` of what `path` names; `None` where there is none, or no file system that
/// could have one.
///
/// # Errors
/// What lgetxattr(2) says else.
pub fn get_path(path: &CStr, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let call = |buffer: &mut [u8]| {
        let data = buffer.as_mut_ptr().cast();
        // SAFETY: both strings end with a zero byte and `data` has `buffer.len()` bytes.
        checked(unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), data, buffer.len()) })
    };
    absent_is_none(growing(call))
}

/// The names of all attributes of what `path` names; none on a file system without.
///
/// # Errors
/// What llistxattr(2) says.
pub fn list_path(path: &CStr) -> io::Result<Vec<CString>> {
    let call = |buffer: &mut [u8]| {
        let data = buffer.as_mut_ptr().cast();
        // SAFETY: `path` ends with a zero byte and `data` has `buffer.len()` bytes.
        checked(unsafe { libc::llistxattr(path.as_ptr(), data, buffer.len()) })
    };
    let names = absent_is_none(growing(call))?.unwrap_or_default();
    let names = names.split(|&b| b == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| CString::new(name).expect("split at zero bytes")).collect())
}

/// Calls with a larger buffer until the answer fits. 64 KiB is the kernel's limit for both calls.
fn growing(call: impl Fn(&mut [u8]) -> io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) && buffer.len() < 65_536 => {
                buffer.resize(65_536, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

fn absent_is_none(result: io::Result<Vec<u8>>) -> io::Result<Option<Vec<u8>>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
