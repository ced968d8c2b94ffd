//! Mounts of file system images that are plain files.
//!
//! From Linux 6.12 on EROFS takes the file itself as its source (`CONFIG_EROFS_FS_BACKED_BY_FILE`),
//! without a loop device. Older kernels say `ENOTBLK`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mounts the EROFS image `image` on the directory `at`: read-only, without devices being openable
/// by way of this mount. Set-user-ID bits stay in force, as overlay takes them from its layers.
///
/// # Errors
/// What mount(2) says: `ENODEV` without EROFS in the kernel, `ENOTBLK` without mounts of files.
pub fn mount_erofs(image: &Path, at: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    Ok(mount(Some(image), at, Some("erofs"), flags, None::<&str>)?)
}

/// Unmounts what is mounted on `at`. It leaves the name space at once; overlays that were mounted
/// over it, and open files, keep it alive for as long as they need it.
///
/// # Errors
/// What umount2(2) says: `EINVAL` where nothing is mounted.
pub fn unmount(at: &Path) -> io::Result<()> {
    Ok(umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?)
}

/// The directories on which an EROFS is mounted in this mount name space, in the order of mounting.
///
/// # Errors
/// Where `/proc/self/mountinfo` cannot be read.
pub fn mounted_erofs() -> io::Result<Vec<PathBuf>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// Reads proc_pid_mountinfo(5): the fifth field is the mount point, the type stands behind ` - `.
fn parse(table: &[u8]) -> Vec<PathBuf> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|&byte| byte == b' ');
        let point = fields.nth(4)?;
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        (kind == b"erofs").then(|| PathBuf::from(OsString::from_vec(unescape(point))))
    };
    table.split(|&byte| byte == b'\n').filter_map(line).collect()
}

/// Blanks and the like stand there as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut found = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, behind @ ..] = rest {
        rest = behind;
        let escaped = match behind {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if *byte == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        found.push(escaped.unwrap_or(*byte));
        if escaped.is_some() {
            rest = &behind[3..];
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_blanks() {
        let table = b"36 35 98:0 / /mnt rw,noatime shared:1 master:2 - ext4 /dev/vda rw\n\
            37 35 0:50 / /a\\040b\\134c ro - erofs /img ro,user_xattr\n\
            38 35 0:51 / /d ro,nodev shared:7 - erofs none ro\n\
            39 35 0:52 / /erofs rw - tmpfs erofs rw\n";
        assert_eq!(parse(table), [PathBuf::from("/a b\\c"), PathBuf::from("/d")]);
    }
}
