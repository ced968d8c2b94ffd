//! Random archives: one writer, four writers and a plain model agree.
//!
//! The model is the semantics without any of the mechanism: entries in their order, one by one,
//! with the standard library, in a directory of its own.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Dir(String, u32),
    File(String, usize),
    Symlink(String, String),
    HardLink(String, String),
    Whiteout(String, String),
}

/// Paths that often meet: few names, up to three deep.
fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|parts| parts.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (path(), prop::sample::select(vec![0o755, 0o700, 0o1777, 0o2775]))
            .prop_map(|(path, mode)| Step::Dir(path, mode)),
        5 => (path(), prop_oneof![8 => 0..3000usize, 1 => 262_000..300_000usize])
            .prop_map(|(path, size)| Step::File(path, size)),
        1 => (path(), path()).prop_map(|(path, to)| Step::Symlink(path, format!("/{to}"))),
        2 => (path(), path()).prop_map(|(path, to)| Step::HardLink(path, to)),
        1 => (prop_oneof![path().prop_map(|p| p + "/"), Just(String::new())],
              prop::sample::select(vec!["a", "b", "c", "z"]))
            .prop_map(|(dir, name)| Step::Whiteout(dir, name.to_owned())),
    ]
}

fn content(size: usize, number: usize) -> Vec<u8> {
    (0..size).map(|at| (at / 7 + number) as u8).collect()
}

fn archive(steps: &[Step]) -> Vec<u8> {
    let add = |archive: Archive, (number, step): (usize, &Step)| match step {
        Step::Dir(path, mode) => archive.dir(path, *mode),
        Step::File(path, size) => archive.file(path, &content(*size, number)),
        Step::Symlink(path, target) => archive.symlink(path, target),
        Step::HardLink(path, target) => archive.hard_link(path, target),
        Step::Whiteout(dir, name) => archive.file(&format!("{dir}.wh.{name}"), b""),
    };
    steps.iter().enumerate().fold(Archive::default(), add).end()
}

/// What one entry does to a tree; `None` where it must be refused.
struct Model<'a>(&'a Path);

impl Model<'_> {
    /// The path with symbolic links in it followed inside the root.
    fn follow(&self, path: &str) -> Option<PathBuf> {
        let mut rest: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let (mut real, mut followed) = (PathBuf::new(), 0);
        while let Some(part) = rest.pop() {
            let next = real.join(&part);
            match fs::read_link(self.0.join(&next)) {
                Ok(target) => {
                    followed += 1;
                    if followed > 255 {
                        return None;
                    }
                    real = PathBuf::new();
                    let target = target.to_str().unwrap().to_owned();
                    rest.extend(target.trim_start_matches('/').split('/').rev().map(str::to_owned));
                }
                Err(_) => real = next,
            }
        }
        Some(real)
    }

    fn hidden(&self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|s| s.file_type().is_char_device())
    }

    fn mark(&self, path: &Path) {
        xattrs::set_path(&c_path(path), c"trusted.overlay.opaque", b"y").unwrap();
    }

    fn parent(&self, path: &str) -> Option<PathBuf> {
        let Some((parent, _)) = path.rsplit_once('/') else { return Some(self.0.to_owned()) };
        let mut at = self.0.to_owned();
        for part in &self.follow(parent)? {
            at.push(part);
            if at.is_dir() {
                continue;
            }
            let hidden = self.hidden(&at);
            if hidden {
                fs::remove_file(&at).unwrap();
            } else if fs::symlink_metadata(&at).is_ok() {
                return None;
            }
            fs::create_dir(&at).unwrap();
            fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
            if hidden {
                self.mark(&at);
            }
        }
        Some(at)
    }

    fn step(&self, number: usize, step: &Step) -> Option<()> {
        let (Step::Dir(path, _)
        | Step::File(path, _)
        | Step::Symlink(path, _)
        | Step::HardLink(path, _)) = step
        else {
            let Step::Whiteout(dir, name) = step else { unreachable!() };
            let at = self.parent(&format!("{dir}{name}"))?.join(name);
            match fs::symlink_metadata(&at) {
                Ok(stat) if stat.is_dir() => self.mark(&at),
                Ok(_) => {}
                Err(_) => {
                    let kind = nix::sys::stat::SFlag::S_IFCHR;
                    nix::sys::stat::mknod(&at, kind, nix::sys::stat::Mode::empty(), 0).unwrap();
                }
            }
            return Some(());
        };
        let at = self.parent(path)?.join(path.rsplit('/').next().unwrap());
        let hidden = self.hidden(&at);
        match (fs::symlink_metadata(&at), step) {
            (Ok(stat), Step::Dir(..)) if stat.is_dir() => {}
            (Ok(stat), _) if stat.is_dir() => fs::remove_dir_all(&at).unwrap(),
            (Ok(_), _) => fs::remove_file(&at).unwrap(),
            (Err(_), _) => {}
        }
        match step {
            Step::Dir(_, mode) => {
                if !at.is_dir() {
                    fs::create_dir(&at).unwrap();
                }
                fs::set_permissions(&at, fs::Permissions::from_mode(*mode)).unwrap();
                std::os::unix::fs::chown(&at, Some(0), Some(0)).unwrap();
                if hidden {
                    self.mark(&at);
                }
            }
            Step::File(_, size) => {
                fs::write(&at, content(*size, number)).unwrap();
                std::os::unix::fs::chown(&at, Some(0), Some(0)).unwrap();
                fs::set_permissions(&at, fs::Permissions::from_mode(0o644)).unwrap();
            }
            Step::Symlink(_, target) => {
                symlink(target, &at).unwrap();
                std::os::unix::fs::lchown(&at, Some(0), Some(0)).unwrap();
            }
            Step::HardLink(_, target) => {
                let (dir, name) = target.rsplit_once('/').unwrap_or(("", target));
                let dir = if dir.is_empty() { PathBuf::new() } else { self.follow(dir)? };
                fs::hard_link(self.0.join(dir).join(name), &at).ok()?;
                if !fs::symlink_metadata(&at).unwrap().is_symlink() {
                    fs::set_permissions(&at, fs::Permissions::from_mode(0o644)).unwrap();
                }
            }
            Step::Whiteout(..) => unreachable!("done above"),
        }
        Some(())
    }
}

/// A picture without times, which the model does not set, and without groups below setgid.
fn shape(root: &Path) -> BTreeMap<PathBuf, String> {
    let without_time = |text: String| {
        let (before, rest) = text.split_once(" mtime ").unwrap();
        format!("{before}{}", rest.split_once(' ').unwrap().1)
    };
    picture(root).into_iter().map(|(path, text)| (path, without_time(text))).collect()
}

/// The steps that a model takes one after the other.
fn without_refused(steps: Vec<Step>) -> Vec<Step> {
    let scratch = tempfile::tempdir().unwrap();
    let walk = Model(scratch.path());
    steps.into_iter().enumerate().filter_map(|(n, s)| walk.step(n, &s).map(|()| s)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn writers_and_model_agree(steps in prop::collection::vec(step(), 1..40), drop_refused: bool) {
        // Most random archives hold something that is refused. One in two is tried without.
        let steps = if drop_refused { without_refused(steps) } else { steps };
        let model = tempfile::tempdir().unwrap();
        fs::set_permissions(model.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let walk = Model(model.path());
        let accepted = steps.iter().enumerate().all(|(n, step)| walk.step(n, step).is_some());
        let with = |writers| {
            let options = Options { writers, directory_handles: 2, ..Options::default() };
            try_with(&archive(&steps), &options)
        };
        for writers in [1, 4] {
            match with(writers) {
                Ok(tree) => {
                    prop_assert!(accepted, "{writers} writers accept what the model refuses");
                    prop_assert_eq!(shape(tree.dir.path()), shape(model.path()));
                    let counted = crate::unpack::merge::usage(tree.dir.path()).unwrap();
                    prop_assert_eq!(tree.summary.inodes, counted.1);
                }
                Err(error) => prop_assert!(!accepted, "{writers} writers: {error}"),
            }
        }
    }
}
