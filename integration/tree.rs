//! Two file trees, compared entry by entry: what containerd's overlayfs made of an image and what hoist made of it.
//!
//! Both trees are walked in step, never through a symlink. Everything that a container can see of an entry counts: type,
//! mode, owner, modification time, size and content, link count, extended attributes, device numbers. What a tree holds
//! by being a tree does not: sizes of directories (they depend on the order of creation), and times that the pull itself
//! set, because no archive named them. The latter are recognised by being later than `began`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// At most so many differences are told.
const TOLD: usize = 20;

/// Compares the trees at `expected` and `found`; `Err` lists the first differences. `began`: when the older of both
/// trees began to be made. The answer is the number of entries compared.
#[allow(dead_code, reason = "each test program compares in one way")]
pub(crate) fn compare(expected: &Path, found: &Path, began: SystemTime) -> Result<usize, String> {
    walk(expected, found, began, false)
}

/// The same where `found` is of another image: times that `expected` has of its pull are anything there.
#[allow(dead_code, reason = "each test program compares in one way")]
pub(crate) fn compare_images(
    expected: &Path,
    found: &Path,
    began: SystemTime,
) -> Result<usize, String> {
    walk(expected, found, began, true)
}

fn walk(
    expected: &Path,
    found: &Path,
    began: SystemTime,
    any_time_of_pull: bool,
) -> Result<usize, String> {
    let began =
        began.duration_since(SystemTime::UNIX_EPOCH).expect("clocks are past 1970").as_secs();
    let mut walk = Walk {
        roots: [expected.to_owned(), found.to_owned()],
        began: began.cast_signed(),
        any_time_of_pull,
        differences: Vec::new(),
        entries: 0,
    };
    walk.directory(Path::new(""));
    if walk.differences.is_empty() {
        return Ok(walk.entries);
    }
    let mut text = format!(
        "{} differences between {} and {}:",
        walk.differences.len(),
        expected.display(),
        found.display()
    );
    for difference in walk.differences.iter().take(TOLD) {
        write!(text, "\n  {difference}").expect("a string takes every text");
    }
    Err(text)
}

struct Walk {
    roots: [PathBuf; 2],
    began: i64,
    any_time_of_pull: bool,
    differences: Vec<String>,
    entries: usize,
}

impl Walk {
    fn directory(&mut self, path: &Path) {
        self.entry(path);
        let [expected, found] = self.roots.clone().map(|root| names(&root.join(path)));
        for name in expected.union(&found) {
            let path = path.join(name);
            match (expected.contains(name), found.contains(name)) {
                (true, false) => self.differs(&path, "is missing"),
                (false, true) => self.differs(&path, "should not be there"),
                _ if self.both_directories(&path) => self.directory(&path),
                _ => self.entry(&path),
            }
        }
    }

    fn both_directories(&self, path: &Path) -> bool {
        self.roots.iter().all(|root| metadata(&root.join(path)).is_dir())
    }

    fn differs(&mut self, path: &Path, how: &str) {
        self.differences.push(format!("/{}: {how}", path.display()));
    }

    fn check<T: PartialEq + std::fmt::Debug>(&mut self, path: &Path, what: &str, values: [T; 2]) {
        if values[0] != values[1] {
            self.differs(path, &format!("{what} should be {:?}, is {:?}", values[0], values[1]));
        }
    }

    fn entry(&mut self, path: &Path) {
        self.entries += 1;
        let places = self.roots.clone().map(|root| root.join(path));
        let data = places.each_ref().map(|place| metadata(place));
        let kinds = data.each_ref().map(kind);
        if kinds[0] != kinds[1] {
            return self.check(path, "type", kinds);
        }
        let octal = |data: &Metadata| format!("{:04o}", data.mode() & 0o7777);
        self.check(path, "mode", data.each_ref().map(octal));
        self.check(path, "owner", data.each_ref().map(|data| (data.uid(), data.gid())));
        if path != Path::new("") {
            let times = data.each_ref().map(|data| self.time(data));
            if !(self.any_time_of_pull && times[0].is_none()) {
                self.check(path, "modification time", times);
            }
        }
        self.check(path, "extended attributes", places.each_ref().map(|place| attributes(place)));
        let device = kinds[0] == "character device" || kinds[0] == "block device";
        if device {
            self.check(path, "device number", data.each_ref().map(Metadata::rdev));
        }
        if kinds[0] != "directory" {
            self.check(path, "link count", data.each_ref().map(Metadata::nlink));
            self.check(path, "size", data.each_ref().map(Metadata::len));
        }
        if kinds[0] == "symlink" {
            let targets =
                places.each_ref().map(|place| std::fs::read_link(place).expect("it is a symlink"));
            self.check(path, "target", targets);
        }
        if kinds[0] == "file" && data[0].len() == data[1].len() && !same_content(&places) {
            self.differs(path, "content differs");
        }
    }

    /// The modification time, or `None` for one that the pull itself set.
    fn time(&self, data: &Metadata) -> Option<(i64, i64)> {
        let soon = self.began + 24 * 3600;
        let by_pull = (self.began..soon).contains(&data.mtime());
        (!by_pull).then(|| (data.mtime(), data.mtime_nsec()))
    }
}

fn metadata(path: &Path) -> Metadata {
    path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn names(directory: &Path) -> BTreeSet<std::ffi::OsString> {
    let entries = std::fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries
        .map(|entry| entry.expect("a directory that was opened can be read").file_name())
        .collect()
}

fn kind(data: &Metadata) -> &'static str {
    let kind = data.file_type();
    match () {
        () if kind.is_dir() => "directory",
        () if kind.is_file() => "file",
        () if kind.is_symlink() => "symlink",
        () if kind.is_fifo() => "fifo",
        () if kind.is_char_device() => "character device",
        () if kind.is_block_device() => "block device",
        () => "socket",
    }
}

/// All extended attributes of an entry itself, sorted.
fn attributes(path: &Path) -> BTreeSet<(String, Vec<u8>)> {
    let mut list = vec![0; 1 << 16];
    let length = match rustix::fs::llistxattr(path, &mut list) {
        Ok(length) => length,
        Err(error) if error == rustix::io::Errno::NOTSUP => return BTreeSet::new(),
        Err(error) => panic!("{}: {error}", path.display()),
    };
    let mut found = BTreeSet::new();
    for name in list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 1 << 16];
        let length = rustix::fs::lgetxattr(path, name, &mut value);
        let length = length.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        value.truncate(length);
        found.insert((String::from_utf8_lossy(name).into_owned(), value));
    }
    found
}

fn same_content(places: &[PathBuf; 2]) -> bool {
    let [mut first, mut second] =
        places.each_ref().map(|place| File::open(place).expect("root may read everything"));
    let (mut one, mut other) = (vec![0; 1 << 17], vec![0; 1 << 17]);
    loop {
        let length = fill(&mut first, &mut one);
        if length != fill(&mut second, &mut other) || one[..length] != other[..length] {
            return false;
        }
        if length == 0 {
            return true;
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("reading failed: {error}"),
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = (&'static str, fn(&Path));

    fn tree(directory: &Path) {
        std::fs::create_dir_all(directory.join("d")).unwrap();
        std::fs::write(directory.join("d/f"), b"content").unwrap();
        std::fs::write(directory.join("d/g"), b"second").unwrap();
        std::os::unix::fs::symlink("f", directory.join("d/l")).unwrap();
        for name in ["d/f", "d/g"] {
            let file = File::options().write(true).open(directory.join(name)).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000))
                .unwrap();
        }
    }

    fn rewrite(path: &Path, content: &[u8]) {
        let time = metadata(path).modified().unwrap();
        std::fs::write(path, content).unwrap();
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    /// Each change to an equal tree has to be seen, and seen as what it is.
    #[test]
    fn every_difference_is_told() {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        let changes: &[Change] = &[
            ("is missing", |d| std::fs::remove_file(d.join("d/g")).unwrap()),
            ("should not be there", |d| std::fs::write(d.join("d/new"), b"").unwrap()),
            ("content differs", |d| rewrite(&d.join("d/f"), b"CONTENT")),
            ("size should be 7, is 3", |d| rewrite(&d.join("d/f"), b"abc")),
            ("mode should be", |d| {
                std::fs::set_permissions(d.join("d/f"), std::fs::Permissions::from_mode(0o4755))
                    .unwrap();
            }),
            ("owner should be", |d| chown(d.join("d/f"), Some(70_000), None).unwrap()),
            ("modification time should be", |d| {
                let file = File::options().write(true).open(d.join("d/f")).unwrap();
                let time = SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000, 1);
                file.set_modified(time).unwrap();
            }),
            ("link count should be 1, is 2", |d| {
                std::fs::remove_file(d.join("d/g")).unwrap();
                std::fs::hard_link(d.join("d/f"), d.join("d/g")).unwrap();
            }),
            ("target should be", |d| {
                std::fs::remove_file(d.join("d/l")).unwrap();
                std::os::unix::fs::symlink("g", d.join("d/l")).unwrap();
            }),
            ("type should be \"symlink\", is \"directory\"", |d| {
                std::fs::remove_file(d.join("d/l")).unwrap();
                std::fs::create_dir(d.join("d/l")).unwrap();
            }),
            ("extended attributes should be", |d| {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(d.join("d/f"), "user.note", b"x", flags).unwrap();
            }),
        ];
        let began = SystemTime::now() - std::time::Duration::from_secs(5);
        for (expected, change) in changes {
            let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let [one, other] = ["one", "other"].map(|name| place.path().join(name));
            tree(&one);
            tree(&other);
            assert_eq!(compare(&one, &other, began), Ok(5));
            change(&other);
            let told = compare(&one, &other, began).expect_err(expected);
            assert!(told.contains(expected), "{expected:?} is not in {told}");
        }
    }
}
