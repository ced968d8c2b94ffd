//! Images, read back by the kernel, by `fsck.erofs` and by `dump.erofs`.
//!
//! [`agrees`] is asked for every archive that any test of this room unpacks into files.

mod sizes;

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;
use crate::erofs::{self, BlockSize};
use crate::sys::images;
use crate::unpack::{ImageLabel, settle_image, unpack_image};

/// All that an image's blocks may be.
const BLOCKS: [BlockSize; 2] = [BlockSize::Sector, BlockSize::Page];

/// An image and where it is mounted.
struct Mounted {
    dir: TempDir,
}

impl Mounted {
    /// `None`, told loudly, where this kernel cannot mount an image file.
    fn new(dir: TempDir) -> Option<Self> {
        let (image, root) = (dir.path().join("layer.erofs"), dir.path().join("fs"));
        fs::create_dir_all(&root).unwrap();
        match images::mount_erofs(&image, &root) {
            Ok(_) => Some(Self { dir }),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOTBLK)) => {
                skipped("this kernel mounts no EROFS image files (Linux 6.12 does)");
                None
            }
            Err(error) => panic!("mounting {}: {error}", image.display()),
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("fs")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        images::unmount(&self.root()).unwrap();
    }
}

/// Says what was not proved, to the terminal and to the test command.
#[expect(clippy::print_stderr, reason = "a test that proves nothing must say so")]
fn skipped(why: &str) {
    let line = format!("unpack::tests::images: NOT PROVED: {why}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("HOIST_SKIPPED") {
        use std::io::Write as _;
        let file = fs::File::options().append(true).create(true).open(path);
        file.unwrap().write_all(line.as_bytes()).unwrap();
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn image(
    archive: &[u8],
    options: &Options,
    block: BlockSize,
) -> Result<(TempDir, Summary), UnpackError> {
    let dir = tempfile::tempdir().unwrap();
    let label = ImageLabel { uuid: *b"0123456789abcdef", seconds: now(), block };
    let recorder = LayerRecorder::detached();
    let dest = dir.path().join("layer.erofs");
    let mut source = pieces(archive, 70_000);
    let summary = unpack_image(&mut source, &dest, label, options, None, &recorder)?;
    Ok((dir, summary))
}

/// An archive as a tree that is a mounted image.
fn mounted(archive: Archive, block: BlockSize) -> Option<(Mounted, Summary)> {
    let (dir, summary) = image(&archive.end(), &Options::default(), block).unwrap();
    check(dir.path());
    Some((Mounted::new(dir)?, summary))
}

/// Where the test bed has erofs-utils: Debian 12's own knows no blocks but those of 4 KiB, and Debian
/// 13's breaks down at the checksum of others.
fn erofs_utils() -> PathBuf {
    let checkout = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".testbed");
    let bed = std::env::var_os("HOIST_TESTBED").map_or_else(checkout, PathBuf::from);
    bed.join("erofs/bin")
}

/// `fsck.erofs` reads every inode and every byte.
fn check(dir: &Path) {
    let programs = erofs_utils();
    if !programs.exists() {
        return skipped("no erofs-utils in the test bed (integration/testbed/prepare)");
    }
    let run = |program: &str, args: &[&str]| {
        let output =
            Command::new(programs.join(program)).args(args).arg(dir.join("layer.erofs")).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        let words = [&output.stdout[..], &output.stderr].concat();
        let words = String::from_utf8_lossy(&words).into_owned();
        assert!(output.status.success(), "{program}: {} {words}", output.status);
        words
    };
    let words = run("fsck.erofs", &["-d3", "--extract"]);
    assert!(words.contains("No errors found"), "{words}");
    let words = run("dump.erofs", &["-s"]);
    assert!(words.contains("sb_csum"), "{words}");
}

/// A picture in which the times that an unpacking sets by itself are all the same.
fn timeless(root: &Path, since: u64) -> BTreeMap<PathBuf, String> {
    let soften = |text: String| {
        let (before, rest) = text.split_once(" mtime ").unwrap();
        let (time, rest) = rest.split_once(' ').unwrap();
        let seconds: u64 = time.split('.').next().unwrap().parse().unwrap();
        match (since..since + 3600).contains(&seconds) {
            true => format!("{before} mtime now {rest}"),
            false => text.clone(),
        }
    };
    let mut picture: BTreeMap<_, _> =
        picture(root).into_iter().map(|(path, text)| (path, soften(text))).collect();
    // The file system that holds the tree may have its own attributes on the directory itself.
    picture.remove(Path::new(""));
    picture
}

/// Asserts that an archive comes to the same as an image as it came to in files.
pub(super) fn agrees(archive: &[u8], options: &Options, files: &Result<Tree, UnpackError>) {
    BLOCKS.into_iter().for_each(|block| agrees_with(archive, options, files, block));
}

fn agrees_with(
    archive: &[u8],
    options: &Options,
    files: &Result<Tree, UnpackError>,
    block: BlockSize,
) {
    let begun = now() - 600;
    let (tree, (dir, summary)) = match (files, image(archive, options, block)) {
        (Ok(tree), Ok(image)) => (tree, image),
        (Err(files), Err(image)) => {
            // Which of several names of one place is told may differ, the archive's may not.
            assert_eq!(files.is_bad_archive(), image.is_bad_archive(), "{files} / {image}");
            return;
        }
        (Ok(_), Err(error)) => panic!("only the image is refused: {error}"),
        (Err(error), Ok(_)) => panic!("the image is not refused, but files are: {error}"),
    };
    let counts = |s: &Summary| (s.inodes, s.entries, s.whiteouts, s.implied.clone());
    assert_eq!(counts(&summary), counts(&tree.summary));
    check(dir.path());
    let Some(image) = Mounted::new(dir) else { return };
    let (expected, found) = (timeless(tree.dir.path(), begun), timeless(&image.root(), begun));
    for (path, text) in &expected {
        assert_eq!(found.get(path), Some(text), "{}", path.display());
    }
    assert_eq!(found.len(), expected.len());
    let links = |root: &Path, path: &Path| fs::symlink_metadata(root.join(path)).unwrap().nlink();
    for path in expected.keys() {
        let both = [tree.dir.path(), &image.root()].map(|root| links(root, path));
        assert_eq!(both[0], both[1], "links of {}", path.display());
    }
    let root = fs::symlink_metadata(image.root()).unwrap();
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o755, 0, 0));
    let opaque = |root: &Path| xattrs::get_path(&c_path(root), c"trusted.overlay.opaque").unwrap();
    assert_eq!(opaque(&image.root()), opaque(tree.dir.path()));
}

#[test]
fn the_same_archive_makes_the_same_image() {
    let archive =
        Archive::default().file("d/b", &[1; 5000]).file("d/a", b"").symlink("l", "d").end();
    let bytes = |block| {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("image");
        let label = ImageLabel { uuid: [3; 16], seconds: 7, block };
        let (options, recorder) = (Options::default(), LayerRecorder::detached());
        let mut source = pieces(&archive, 777);
        unpack_image(&mut source, &dest, label, &options, None, &recorder).unwrap();
        fs::read(dest).unwrap()
    };
    for block in BLOCKS {
        assert!(bytes(block) == bytes(block));
    }
}

fn image_refused(archive: Archive) -> String {
    image(&archive.end(), &Options::default(), BlockSize::Sector).expect_err("refused").to_string()
}

#[test]
fn implied_directories_are_settled_in_the_image() {
    for block in BLOCKS {
        let mut whiteout = Archive::default().file("tmp/x", b"1").file("tmp/deep/er/y", b"2");
        for number in 0..200 {
            whiteout = whiteout.file(&format!("tmp/many-{number}"), b"");
        }
        let archive = whiteout.file("tmp/.wh..wh..opq", b"").file("other/x", b"3");
        let options = Options::default();
        let (dir, summary) = image(&archive.clone().end(), &options, block).unwrap();
        let lower = super::trees::lower("tmp/deep", 0o1777, 3);
        for number in 0..40 {
            let name = CString::new(format!("user.number.{number}")).unwrap();
            let path = c_path(&lower.path().join("tmp/deep"));
            xattrs::set_path(&path, &name, &[b'v'; 50]).unwrap();
        }
        fs::set_permissions(
            lower.path().join("tmp"),
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .unwrap();
        let path = dir.path().join("layer.erofs");
        let lowers = [lower.path()];
        let once = settle_image(&path, &summary.implied, &lowers).unwrap();
        // Again, as after a crash in between.
        assert_eq!(settle_image(&path, &summary.implied, &lowers).unwrap(), once);
        let tree = unpacked(archive);
        settle(tree.dir.path(), &tree.summary.implied, &lowers).unwrap();
        check(dir.path());
        let Some(image) = Mounted::new(dir) else { continue };
        let begun = now() - 600;
        assert_eq!(timeless(&image.root(), begun), timeless(tree.dir.path(), begun));
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let missing = erofs::Amendment {
            path: "nowhere".into(),
            mode: 0,
            uid: 0,
            gid: 0,
            xattrs: Vec::new(),
        };
        assert!(matches!(
            erofs::amend(&file, &[missing]),
            Err(erofs::ImageError::NotProvisional { .. })
        ));
    }
}

#[test]
fn images_stack_as_layers() {
    for block in BLOCKS {
        let base = Archive::default()
            .dir("d", 0o755)
            .file("d/hidden", b"")
            .dir("o", 0o755)
            .file("o/hidden", b"")
            .file("kept", b"base");
        let upper = Archive::default()
            .file("d/.wh.hidden", b"")
            .file("o/.wh..wh..opq", b"")
            .file("o/shown", b"")
            .file("new", b"1");
        let (Some((base, _)), Some((upper, _))) = (mounted(base, block), mounted(upper, block))
        else {
            continue;
        };
        let scratch = tempfile::tempdir().unwrap();
        let part = |name: &str| {
            let path = scratch.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (top, work, merged) = (part("upper"), part("work"), part("merged"));
        let data = format!(
            "lowerdir={}:{},upperdir={},workdir={},index=off",
            upper.root().display(),
            base.root().display(),
            top.display(),
            work.display()
        );
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(&*data)).unwrap();
        let base_root = base.root().canonicalize().unwrap();
        assert!(images::is_mounted(&base_root).unwrap());
        // A mounted overlay keeps its layers, whoever unmounts them elsewhere.
        drop((base, upper));
        let names = |name: &str| {
            let mut all: Vec<_> =
                fs::read_dir(merged.join(name)).unwrap().map(|e| e.unwrap().file_name()).collect();
            all.sort();
            all
        };
        assert!(!base_root.exists());
        let seen = (names("d"), names("o"), fs::read_to_string(merged.join("kept")).unwrap());
        fs::write(merged.join("kept"), "changed").unwrap();
        let copied = fs::read_to_string(top.join("kept")).unwrap();
        umount2(&merged, MntFlags::MNT_DETACH).unwrap();
        assert_eq!(seen, (vec![], vec!["shown".into()], "base".to_owned()));
        assert_eq!(copied, "changed");
    }
}
