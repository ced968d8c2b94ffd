//! Mounts of file system images that are plain files.
//!
//! From Linux 6.12 on EROFS takes the file itself as its source (`CONFIG_EROFS_FS_BACKED_BY_FILE`),
//! without a loop device. Older kernels say `ENOTBLK`, and get one.

#![allow(unsafe_code, reason = "the calls of loop devices exist only in libc")]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// The file systems that the kernel knows now, as `/proc/filesystems` lists them (proc(5)); none where it cannot be
/// read. A module that was not loaded yet is not there.
pub fn file_systems_known() -> String {
    fs::read_to_string("/proc/filesystems").unwrap_or_default()
}

/// Whether that list has one of this name.
pub fn is_known(list: &str, name: &str) -> bool {
    list.lines().any(|line| line.split_whitespace().last() == Some(name))
}

/// How a kernel takes an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attachment {
    /// The file itself.
    File,
    /// A loop device over it, which goes with its last mount.
    Loop,
}

/// Mounts the EROFS image `image` on the directory `at`: read-only, without devices being openable
/// by way of this mount. Set-user-ID bits stay in force, as overlay takes them from its layers.
///
/// # Errors
/// What mount(2) says: `ENODEV` without EROFS in the kernel; or what loop(4) says where the kernel
/// does not take files.
pub fn mount_erofs(image: &Path, at: &Path) -> io::Result<Attachment> {
    match mount_source(image, at) {
        Err(Errno::ENOTBLK) => mount_by_loop(image, at).map(|()| Attachment::Loop),
        other => Ok(other.map(|()| Attachment::File)?),
    }
}

fn mount_source(source: &Path, at: &Path) -> nix::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    mount(Some(source), at, Some("erofs"), flags, None::<&str>)
}

/// How often another process may be faster in taking a free loop device.
const LOOP_ATTEMPTS: usize = 32;

/// Mounts an image by way of a loop device (`LOOP_CONFIGURE`: Linux 5.8 and later).
pub(crate) fn mount_by_loop(image: &Path, at: &Path) -> io::Result<()> {
    let file = File::open(image)?;
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..LOOP_ATTEMPTS {
        // SAFETY: the call takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        let number = Errno::result(number)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::open(&path)?;
        let config = LoopConfig {
            fd: u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?,
            block_size: 0,
            info: LoopInfo {
                before: [0; 52],
                flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
                after: [0; 176],
            },
            reserved: [0; 64],
        };
        // SAFETY: the kernel reads one `loop_config`, which `config` is.
        let set = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        match Errno::result(set) {
            Err(Errno::EBUSY) => {}
            Err(error) => return Err(error.into()),
            // The device goes with the mount, or with `device` if there is none.
            Ok(_) => return Ok(mount_source(&path, at)?),
        }
    }
    Err(Errno::EBUSY.into())
}

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64` of `linux/loop.h`; what is not named here stays zero.
#[repr(C)]
struct LoopInfo {
    before: [u8; 52],
    flags: u32,
    after: [u8; 176],
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u8; 64],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

/// Unmounts what is mounted on `at`. It leaves the name space at once; overlays that were mounted
/// over it, and open files, keep it alive for as long as they need it.
///
/// # Errors
/// What umount2(2) says: `EINVAL` where nothing is mounted.
pub fn unmount(at: &Path) -> io::Result<()> {
    Ok(umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?)
}

/// Whether something is mounted on the directory `at`: two file systems have two device numbers.
///
/// # Errors
/// Where `at` is not there, or cannot be read.
pub fn is_mounted(at: &Path) -> io::Result<bool> {
    let above = at.parent().ok_or(Errno::EINVAL)?;
    Ok(fs::symlink_metadata(at)?.dev() != fs::symlink_metadata(above)?.dev())
}

/// Who sees the mounts that this process makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audience {
    /// Every process of this machine, as far as can be told.
    All,
    /// Only what is in this process's own mount name space.
    Own,
    /// That cannot be told: mounts come into this name space from another one and do not go back,
    /// which is a sandbox made by systemd, or a container that is a machine of its own.
    Unknown,
}

/// Who sees what this process mounts below `directory`.
///
/// # Errors
/// Where `/proc/self/mountinfo` cannot be read.
pub fn audience(directory: &Path) -> io::Result<Audience> {
    if !is_slave(&fs::read("/proc/self/mountinfo")?, directory) {
        return Ok(Audience::All);
    }
    let space = |process| fs::read_link(format!("/proc/{process}/ns/mnt"));
    Ok(match (space("self"), space("1")) {
        (Ok(own), Ok(first)) if own == first => Audience::All,
        (Ok(_), Ok(_)) => Audience::Own,
        _ => Audience::Unknown,
    })
}

/// Whether the mount that `directory` is on receives mounts and gives none (`master:`), as
/// proc_pid_mountinfo(5) tells it: the fifth field is the mount point, and optional ones stand from
/// the seventh to a hyphen.
fn is_slave(table: &[u8], directory: &Path) -> bool {
    let mut found = (0, false);
    for line in table.split(|&byte| byte == b'\n') {
        let mut fields = line.split(|&byte| byte == b' ');
        let Some(point) = fields.nth(4) else { continue };
        let point = PathBuf::from(OsString::from_vec(unescape(point)));
        let slave = fields.skip(1).take_while(|f| *f != b"-").any(|f| f.starts_with(b"master:"));
        let depth = point.components().count();
        // Of several mounts on one point the last is on top.
        if directory.starts_with(&point) && depth >= found.0 {
            found = (depth, slave);
        }
    }
    found.1
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
    fn a_mount_that_only_receives_is_told() {
        let table = b"36 35 98:0 / / rw,noatime shared:1 - ext4 /dev/vda rw\n\
            37 35 0:50 / /a\\040b\\134c ro master:3 - erofs /img ro,user_xattr\n\
            38 35 0:51 / /var ro,nodev shared:7 master:1 - ext4 none ro\n\
            39 35 0:52 / /var/lib/own rw - tmpfs master:9 rw\n";
        let slave = |path: &str| is_slave(table, Path::new(path));
        assert!(slave("/a b\\c/x") && slave("/var/lib/hoist") && slave("/var"));
        assert!(!slave("/a") && !slave("/var/lib/own/x") && !slave("/variable"));
    }
}
