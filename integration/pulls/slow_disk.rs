//! Slow disks: a file system on a loop device, and a cgroup whose writes to that device the kernel throttles to so many bytes
//! a second; or device-mapper's delay on it, behind which each write takes so long.
//!
//! A limit counts for whoever hands the write to the device. cgroup v1 leaves writeback to a thread of the kernel's, which is
//! in no group, so the file system is mounted `sync`: then the process that writes a file does it. The device lies in memory,
//! so that nothing but the limit is slow.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::harness::must;

/// The file system.
pub(crate) struct SlowDisk {
    home: tempfile::TempDir,
    limit: Result<Limit, String>,
    /// Of device-mapper: the name of the mapping, and the loop device below it.
    delay: Option<(String, String)>,
}

const DISK_BYTES: u64 = 256 << 20;

/// A directory of the test's own, on the machine's own disk.
fn home() -> tempfile::TempDir {
    let parent = env!("CARGO_TARGET_TMPDIR");
    // An emulated machine does not have it yet.
    std::fs::create_dir_all(parent).unwrap();
    tempfile::tempdir_in(parent).unwrap()
}

/// device-mapper's tool, which makes the device's node itself where nobody else does.
fn dmsetup() -> Command {
    let mut dmsetup = Command::new("dmsetup");
    dmsetup.env("DM_DISABLE_UDEV", "1");
    dmsetup
}

impl SlowDisk {
    /// Mounts one; `None` where nothing can be mounted. Where the kernel has no group that could be limited, the disk has a
    /// reason instead of a limit, and is slow because each write waits for the machine's own disk.
    pub(crate) fn mount(write_bytes_per_second: u64) -> Option<Self> {
        let home = home();
        let mut disk = Self { home, limit: Err(String::new()), delay: None };
        std::fs::create_dir(disk.memory()).unwrap();
        std::fs::create_dir(disk.path()).unwrap();
        if !disk.mounted("size=300m", "sync") {
            return None;
        }
        disk.limit = Limit::new(&disk.device(), write_bytes_per_second);
        if disk.limit.is_err() {
            disk.unmount();
            return disk.mounted("", "sync,dirsync").then_some(disk);
        }
        Some(disk)
    }

    /// Makes the file system in memory of that size, or on the machine's own disk.
    fn mounted(&self, memory: &str, options: &str) -> bool {
        if !memory.is_empty() {
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", memory, "tmpfs"]).arg(self.memory());
            if !mount.status().unwrap().success() {
                return false;
            }
        }
        let file = self.memory().join("disk");
        std::fs::File::create(&file).unwrap().set_len(DISK_BYTES).unwrap();
        must(Command::new("mkfs.ext4").arg("-q").arg(&file));
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("loop,{options}")]).arg(&file).arg(self.path());
        mount.status().unwrap().success()
    }

    /// Mounts one whose writes device-mapper holds back for so long each.
    pub(crate) fn delayed(write_milliseconds: u32) -> Self {
        let home = home();
        let mut disk = Self { home, limit: Err("it is delayed".to_owned()), delay: None };
        std::fs::create_dir(disk.memory()).unwrap();
        std::fs::create_dir(disk.path()).unwrap();
        must(
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", "size=300m", "tmpfs"])
                .arg(disk.memory()),
        );
        let file = disk.memory().join("disk");
        std::fs::File::create(&file).unwrap().set_len(DISK_BYTES).unwrap();
        let device = must(Command::new("losetup").args(["--find", "--show"]).arg(&file));
        let device = device.trim();
        let name = format!("hoist-test-{}", std::process::id());
        // Reads come at once; where writes go is named a second time, with their delay.
        let sectors = DISK_BYTES / 512;
        let table = format!("0 {sectors} delay {device} 0 0 {device} 0 {write_milliseconds}");
        must(dmsetup().args(["create", &name, "--table", &table]));
        let path = format!("/dev/mapper/{name}");
        disk.delay = Some((name, device.to_owned()));
        // Its tables are written while nobody waits for them.
        must(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=1", &path]));
        must(Command::new("mount").args(["-o", "sync", &path]).arg(disk.path()));
        disk
    }

    fn unmount(&self) {
        for at in [self.path(), self.memory()] {
            // One of them may not be mounted.
            let _ = Command::new("umount").arg("--lazy").arg("--quiet").arg(at).status();
        }
    }

    fn memory(&self) -> PathBuf {
        self.home.path().join("memory")
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.home.path().join("at")
    }

    /// MAJOR:MINOR of the loop device.
    fn device(&self) -> String {
        let mut find = Command::new("findmnt");
        must(find.args(["--noheadings", "--output", "MAJ:MIN"]).arg(self.path())).trim().to_owned()
    }

    /// Whether it is slow by a delay, and needs no limit.
    pub(crate) fn is_delayed(&self) -> bool {
        self.delay.is_some()
    }

    /// The limit, or why there is none.
    pub(crate) fn limit(&self) -> Result<&Limit, &str> {
        self.limit.as_ref().map_err(String::as_str)
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        if let Some((name, device)) = &self.delay {
            let _ = Command::new("umount").arg("--quiet").arg(self.path()).status();
            let _ = dmsetup().args(["remove", name]).status();
            let _ = Command::new("losetup").args(["--detach", device]).status();
        }
        self.unmount();
    }
}

/// A cgroup whose writes to one device are throttled.
pub(crate) struct Limit {
    group: PathBuf,
    device: String,
    statistics: &'static str,
}

impl Limit {
    /// In whichever hierarchy this kernel has the controller.
    fn new(device: &str, bytes_per_second: u64) -> Result<Self, String> {
        let name = format!("hoist-test-{}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/blkio");
        let (root, file, line, statistics) = if v1.join("cgroup.procs").exists() {
            let line = format!("{device} {bytes_per_second}");
            (v1, "blkio.throttle.write_bps_device", line, "blkio.throttle.io_service_bytes")
        } else {
            let root = Path::new("/sys/fs/cgroup");
            // It may be there already; where it cannot be had, the next file is not there either.
            let _ = tell(&root.join("cgroup.subtree_control"), "+io");
            (root, "io.max", format!("{device} wbps={bytes_per_second}"), "io.stat")
        };
        let group = root.join(name);
        let told = |error: std::io::Error| format!("{} ({file}): {error}", group.display());
        std::fs::create_dir(&group).map_err(told)?;
        let limit = Self { group: group.clone(), device: device.to_owned(), statistics };
        tell(&group.join(file), &line).map_err(told)?;
        Ok(limit)
    }

    /// `command`, to be run in the group.
    pub(crate) fn around(&self, command: &Command) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(self.group.join("cgroup.procs"));
        shell.arg(command.get_program()).args(command.get_args());
        shell
    }

    /// The bytes that were written to the device by the group, as the kernel counts them.
    pub(crate) fn written_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(self.group.join(self.statistics)).unwrap();
        let own = text.lines().filter_map(|line| line.strip_prefix(&self.device));
        // "7:0 Write 123", or "7:0 rbytes=0 wbytes=123 rios=0 …".
        let number = |line: &str| {
            let words = line.trim();
            let found = words
                .strip_prefix("Write ")
                .or_else(|| words.split(' ').find_map(|word| word.strip_prefix("wbytes=")));
            found.map(|number| number.parse::<u64>().unwrap())
        };
        own.filter_map(number).sum()
    }
}

/// Writes to a file of the kernel's, which is there or is not.
fn tell(file: &Path, line: &str) -> std::io::Result<()> {
    std::fs::File::options().write(true).open(file)?.write_all(line.as_bytes())
}

impl Drop for Limit {
    fn drop(&mut self) {
        // Whoever was in it has ended; one that has not is worth no second failure.
        let _ = std::fs::remove_dir(&self.group);
    }
}
