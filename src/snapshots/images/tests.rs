//! Image trees in a real root, mounted by this kernel.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use bytes::Bytes;

use nix::mount::{MsFlags, mount};

use super::*;
use crate::archive::Source;
use crate::image::{DiffId, Sha256};
use crate::pull::trees::{Content, HeldTree, StagedImage, TreeInfo, TreeStore as _};
use crate::snapshots::{Kind, Labels, Options};
use crate::timeline::LayerRecorder;
use crate::unpack::{self, ImageLabel};

/// An archive in one piece.
struct Whole(Option<Bytes>);

impl Source for Whole {
    fn next_bytes(&mut self) -> io::Result<Option<Bytes>> {
        Ok(self.0.take())
    }
}

/// `None`, told loudly, where this host cannot have images.
fn open(root: &Path, backend: Backend) -> Option<Arc<Snapshots>> {
    let options = Options { grace: std::time::Duration::ZERO, backend, ..Options::default() };
    match Snapshots::open(root, options) {
        Ok(snapshots) => Some(snapshots),
        Err(Error::NoImages { reason }) => {
            skipped(&reason);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[expect(clippy::print_stderr, reason = "a test that proves nothing must say so")]
fn skipped(why: &str) {
    let line = format!("snapshots::images::tests: NOT PROVED: {why}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("HOIST_SKIPPED") {
        let file = File::options().append(true).create(true).open(path);
        file.unwrap().write_all(line.as_bytes()).unwrap();
    }
}

fn diff_id(name: &str) -> DiffId {
    DiffId(Sha256::of(name.as_bytes()))
}

/// An archive of files with their own name as content, and of what is empty.
fn archive(names: &[&str]) -> Whole {
    let mut builder = tar::Builder::new(Vec::new());
    for name in names {
        let mut header = tar::Header::new_ustar();
        header.set_mode(if name.ends_with('/') { 0o1700 } else { 0o644 });
        header.set_size(if name.ends_with('/') { 0 } else { name.len() as u64 });
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        let content = if name.ends_with('/') { &b""[..] } else { name.as_bytes() };
        builder.append_data(&mut header, name, content).unwrap();
    }
    Whole(Some(builder.into_inner().unwrap().into()))
}

/// A layer, as a pull makes it.
fn publish(snapshots: &Snapshots, names: &[&str]) -> TreeInfo {
    let staged = snapshots.stage(diff_id(names[0])).unwrap();
    let (mut source, recorder) = (archive(names), LayerRecorder::detached());
    let options = unpack::Options::default();
    let summary = match &staged.image {
        Some(StagedImage { path, block }) => {
            let label = ImageLabel { block: *block, ..ImageLabel::default() };
            unpack::unpack_image(&mut source, path, label, &options, None, &recorder).unwrap()
        }
        None => unpack::unpack(&mut source, &staged.path, &options, &recorder).unwrap(),
    };
    let unpack::Summary { bytes, inodes, implied, .. } = summary;
    let content = Content { is_image: staged.image.is_some(), bytes, inodes, implied };
    snapshots.publish(staged, content).unwrap()
}

fn is_mounted(tree: &TreeInfo) -> bool {
    images::is_mounted(&tree.path).unwrap()
}

/// Puts a committed snapshot down that refers to `tree`.
fn refer(snapshots: &Snapshots, name: &str, parent: &str, tree: &TreeInfo) {
    use crate::snapshots::records::{self, NewSnapshot};
    let labels = Labels::new();
    let put = snapshots.database.write(|db| -> Result<_, Error> {
        let parent_id = records::parent_id(db, parent)?;
        let (kind, tree, usage) = (Kind::Committed, Some(tree.id), None);
        records::insert(db, &NewSnapshot { name, kind, parent_id, tree, usage, labels: &labels })
    });
    put.unwrap();
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn an_image_is_mounted_when_it_is_settled_and_after_every_start() {
    let root = tempfile::tempdir().unwrap();
    let Some(snapshots) = open(root.path(), Backend::Erofs) else { return };
    let base = publish(&snapshots, &["tmp/", "tmp/base"]);
    assert!(is_mounted(&base) && base.image.is_some());
    assert_eq!(read(&base.path.join("tmp/base")), "tmp/base");
    assert_eq!(fs::metadata(&base.path).unwrap().mode() & 0o7777, 0o755);

    // `tmp` is implied by the upper one and has the lower one's mode once it is settled.
    let upper = publish(&snapshots, &["tmp/upper"]);
    assert!(!is_mounted(&upper), "it may still change");
    let (image, lowers) = (upper.image.clone().unwrap(), [&*base.path]);
    let settled = unpack::settle_image(&image, &upper.implied, &lowers).unwrap();
    snapshots.settled(upper.id, settled.to_bytes()).unwrap();
    assert!(is_mounted(&upper));
    assert_eq!(fs::metadata(upper.path.join("tmp")).unwrap().mode() & 0o7777, 0o1700);
    for tree in [&base, &upper] {
        let kept = snapshots.find(tree.diff_id).unwrap().remove(0);
        let blocks = fs::metadata(tree.image.as_ref().unwrap()).unwrap().blocks();
        assert_eq!(kept.bytes, blocks * 512, "the bytes that it occupies");
    }
    refer(&snapshots, "base", "", &base);
    refer(&snapshots, "upper", "base", &upper);
    drop(snapshots);
    assert!(is_mounted(&base) && is_mounted(&upper), "mounts outlive the daemon");

    // As after a reboot; files of a pull from now on, beside the images.
    images::unmount(&base.path).unwrap();
    images::unmount(&upper.path).unwrap();
    let snapshots = open(root.path(), Backend::Overlay).unwrap();
    assert!(is_mounted(&base) && is_mounted(&upper), "made again, whatever is configured");
    let files = publish(&snapshots, &["tmp/", "tmp/files"]);
    assert!(files.image.is_none() && !is_mounted(&files));
    refer(&snapshots, "files", "upper", &files);

    // Somebody unmounts behind the daemon's back.
    images::unmount(&base.path).unwrap();
    let mounts = snapshots.create(Kind::Active, "key", "files", &Labels::new()).unwrap();
    assert!(is_mounted(&base));
    images::unmount(&base.path).unwrap();
    assert_eq!(snapshots.mounts("key").unwrap(), mounts);
    let merged = root.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let overlay = Some("overlay");
    let options = mounts[0].options.join(",");
    mount(overlay, &merged, overlay, MsFlags::empty(), Some(&*options)).unwrap();
    for name in ["base", "upper", "files"] {
        assert_eq!(read(&merged.join("tmp").join(name)), format!("tmp/{name}"));
    }
    fs::write(merged.join("tmp/base"), "copied up").unwrap();

    // All goes, under a container that is still there and loses nothing.
    for name in ["key", "files", "upper", "base"] {
        snapshots.remove(name).unwrap();
    }
    snapshots.sweep().unwrap();
    assert_eq!(read(&merged.join("tmp/upper")), "tmp/upper");
    images::unmount(&merged).unwrap();
    for part in ["trees", "snapshots", "trash"] {
        assert_eq!(fs::read_dir(root.path().join(part)).unwrap().count(), 0, "{part}");
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(root.path().to_str().unwrap()), "{table}");
}

#[test]
fn what_a_crash_leaves_mounted_is_unmounted_and_swept() {
    let root = tempfile::tempdir().unwrap();
    let Some(snapshots) = open(root.path(), Backend::Auto) else { return };
    if snapshots.images.wanted.is_none() {
        return skipped("auto takes files here");
    }
    let tree = publish(&snapshots, &["a"]);
    let lost = snapshots.layout.trash().join("7");
    // The row went, the daemon before it could do more; and one that was moved already.
    snapshots.database.write(|db| db.execute("DELETE FROM trees", [])).unwrap();
    fs::create_dir_all(lost.join("fs")).unwrap();
    images::mount_erofs(tree.image.as_ref().unwrap(), &lost.join("fs")).unwrap();
    drop(snapshots);
    let snapshots = open(root.path(), Backend::Overlay).unwrap();
    snapshots.sweep().unwrap();
    assert_eq!(fs::read_dir(snapshots.layout.trash()).unwrap().count(), 0);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(root.path().to_str().unwrap()), "{table}");
}

/// What `Sync::None` allows a power cut to do.
#[test]
fn an_image_that_is_damaged_is_not_used_again() {
    let root = tempfile::tempdir().unwrap();
    let Some(snapshots) = open(root.path(), Backend::Erofs) else { return };
    let tree = publish(&snapshots, &["a"]);
    refer(&snapshots, "name", "", &tree);
    drop(snapshots);
    images::unmount(&tree.path).unwrap();
    fs::write(tree.image.as_ref().unwrap(), vec![0; 8192]).unwrap();
    let snapshots = open(root.path(), Backend::Erofs).unwrap();
    assert_eq!(snapshots.find(tree.diff_id).unwrap(), [], "the layer is fetched again");
    let refused = snapshots.create(Kind::Active, "key", "name", &Labels::new()).unwrap_err();
    let image = tree.image.as_ref().unwrap().display().to_string();
    assert!(refused.to_string().contains(&image), "{refused}");
    let again = publish(&snapshots, &["a"]);
    let found = HeldTree::find(&*snapshots, tree.diff_id).unwrap().unwrap();
    assert_eq!(found.tree.id, again.id);
    drop(found);
    snapshots.remove("name").unwrap();
    snapshots.sweep().unwrap();
    assert!(!is_there(&tree) && !is_there(&again));
}

fn is_there(tree: &TreeInfo) -> bool {
    tree.path.exists()
}

/// The older kernels' way; any kernel can go it.
#[test]
fn an_image_is_mounted_by_a_loop_device() {
    let root = tempfile::tempdir().unwrap();
    let (image, at) = (root.path().join("image"), root.path().join("fs"));
    fs::create_dir(&at).unwrap();
    write_probe(&image, BlockSize::Page).unwrap();
    match images::mount_by_loop(&image, &at) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return skipped("no loop devices here");
        }
        Err(error) => panic!("{error}"),
    }
    assert!(fs::read(at.join("d/f")).unwrap().starts_with(PROBE_TEXT));
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(at.to_str().unwrap())).unwrap();
    let device = line.split_whitespace().find(|word| word.starts_with("/dev/loop")).unwrap();
    let file = format!("/sys/block/{}/loop/backing_file", device.trim_start_matches("/dev/"));
    assert_eq!(Path::new(read(Path::new(&file)).trim()), image);
    images::unmount(&at).unwrap();
    // The device goes with its mount; another may take its number at once.
    let began = std::time::Instant::now();
    while fs::read_to_string(&file).is_ok_and(|text| Path::new(text.trim()) == image) {
        assert!(began.elapsed().as_secs() < 10, "{device} stays");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
