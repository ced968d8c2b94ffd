//! A directory for one test, with a short name (paths of unix sockets end at 108 bytes), gone with the test.
//!
//! containerd mounts things below its directories. A tree with mounts in it must never be removed by name, for what is
//! mounted would go with it: everything below is unmounted first, and where that fails the directory stays.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, umount2};

/// A directory that is removed on Drop, after the mounts below it.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes one under `parent`, and removes what programs left there that were killed.
    pub(crate) fn new(parent: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEPT: Once = Once::new();
        SWEPT.call_once(|| sweep(parent));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{:x}.{number:x}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the test bed is writable");
        assert!(
            path.as_os_str().len() < 80,
            "{} is too long for unix sockets; set HOIST_TESTBED to a shorter path",
            path.display()
        );
        Self(path)
    }

    /// Its path, absolute.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

/// Where something is mounted below `directory`, the innermost last.
fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    // Spaces and the like are octal there; scratch paths have none, and others are not ours.
    points.map(PathBuf::from).filter(|point| point.starts_with(directory)).collect()
}

/// Unmounts what is mounted below a directory, as far as that works: a daemon that was killed leaves its layers mounted.
pub(crate) fn unmount_below(directory: &Path) {
    for point in mounts_below(directory).iter().rev() {
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
}

/// Removes a directory after the mounts below it.
fn remove(directory: &Path) {
    unmount_below(directory);
    let left = mounts_below(directory);
    if left.is_empty() {
        let _ = std::fs::remove_dir_all(directory);
    } else {
        super::loudly(&format!("{} stays: {left:?} are still mounted below", directory.display()));
    }
}

/// Removes the directories of processes that are no more: gigabytes, where a test was killed in the middle of a pull.
fn sweep(parent: &Path) {
    // There is nothing yet in a new test bed.
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.split_once('.'));
        let process = process.and_then(|(process, _)| u32::from_str_radix(process, 16).ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            remove(&entry.path());
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Adds all text below a directory. A daemon may sweep meanwhile: what is gone says nothing.
pub(crate) fn text_below(directory: &Path, into: &mut String) {
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return,
        Err(error) => panic!("{}: {error}", directory.display()),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => text_below(&path, into),
            Ok(kind) if kind.is_file() => match std::fs::read(&path) {
                Ok(bytes) => into.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) if gone(&error) => {}
                Err(error) => panic!("{}: {error}", path.display()),
            },
            _ => {}
        }
    }
}
