//! What is done with trees afterwards, and what the writers do with large and many files.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

#[test]
fn large_files_come_out_whole_with_their_metadata() {
    let content: Vec<u8> = (0..3_000_000u32).map(|at| (at / 3) as u8).collect();
    let mut header = Archive::header(EntryType::Regular, "big", 0o4755);
    header.set_uid(8);
    header.set_size(content.len() as u64);
    let mut archive =
        Archive::default().pax(&[("SCHILY.xattr.user.k", b"v")]).add(header, &content);
    for number in 0..200 {
        archive = archive.file(&format!("many/{number}"), &content[..number * 10]);
    }
    let tree = unpacked(archive);
    assert!(fs::read(tree.path("big")).unwrap() == content);
    assert_eq!(
        (tree.mode("big"), tree.stat("big").uid(), tree.stat("big").mtime()),
        (0o4755, 8, 1_000_000)
    );
    assert_eq!(tree.xattr("big", c"user.k").unwrap(), b"v");
    for number in 0..200 {
        assert!(fs::read(tree.path(&format!("many/{number}"))).unwrap() == content[..number * 10]);
    }
    assert_eq!(tree.summary.entries, 201);
    assert_eq!(tree.summary.inodes, 203);
    assert_eq!(tree.summary.implied, [PathBuf::from("many")]);
}

/// Its blocks are taken before the first of its bytes is counted.
#[test]
fn a_large_file_that_leaves_too_little_is_not_begun() {
    let full = |_: &std::path::Path| {
        let (size_bytes, available_bytes) = (1000 << 20, 500 << 20);
        Ok(crate::sys::space::Space { size_bytes, available_bytes })
    };
    let content = vec![7; 3 << 20];
    // Of a layer of files: an image's blocks are taken one by one.
    let unpack = |min_free: u64| {
        let room = Room::seen_by(full, std::path::Path::new("/r"), MinFree::Bytes(min_free));
        try_files(
            &Archive::default().file("big", &content).end(),
            &Options { room, ..Options::default() },
        )
    };
    let error = unpack(498 << 20).err().expect("two of three MiB are free");
    assert!(
        matches!(&error, UnpackError::NoRoom(room) if room.begun && room.needed_bytes == 3 << 20),
        "{error}"
    );
    assert!(unpack(497 << 20).is_ok());
}

#[test]
fn sparse_files_have_holes() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create(dir.path().join("sparse")).unwrap();
    for (offset, length) in [(1 << 20, 5000), (8 << 20, 1_000_000)] {
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![3; length], offset).unwrap();
    }
    file.set_len(64 << 20).unwrap();
    let args = ["-c", "-S", "-f", "-", "--format=gnu", "sparse"];
    let output = std::process::Command::new("tar").args(args).current_dir(dir.path()).output();
    let tree = try_with(&output.unwrap().stdout, &Options::default()).unwrap();
    assert!(fs::read(tree.path("sparse")).unwrap() == fs::read(dir.path().join("sparse")).unwrap());
    assert!(tree.stat("sparse").blocks() * 512 < 2 << 20);
}

#[test]
fn every_truncation_of_a_layer_is_an_error_or_a_beginning() {
    let archive = Archive::default()
        .dir("d", 0o755)
        .file("d/a", &[1; 700])
        .hard_link("d/b", "d/a")
        .symlink("l", "d")
        .file("l/c", b"2")
        .0;
    let options = Options { writers: 2, ..Options::default() };
    let whole = picture(try_with(&archive, &options).unwrap().dir.path());
    for cut in (0..archive.len()).step_by(37) {
        if let Ok(tree) = try_with(&archive[..cut], &options) {
            assert!(picture(tree.dir.path()).len() <= whole.len());
        }
    }
}

#[test]
fn the_source_s_own_error_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Some(Bytes::from(Archive::default().file("a", &[1; 600]).0[..700].to_vec()));
    let mut source = || match first.take() {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(io::Error::other("connection lost")),
    };
    let recorder = LayerRecorder::detached();
    let error = unpack(&mut source, dir.path(), &Options::default(), &recorder).unwrap_err();
    let UnpackError::Archive(ArchiveError::Source(source)) = error else { panic!("{error}") };
    assert_eq!(source.to_string(), "connection lost");
}

#[test]
fn a_writer_s_error_ends_all_and_names_the_entry() {
    let name = "n".repeat(256);
    let archive = (0..500).fold(
        Archive::default().pax(&[("path", name.as_bytes())]).file("x", b""),
        |archive, number| archive.file(&number.to_string(), &[0; 5000]),
    );
    let error = refused(archive);
    assert!(error.contains(&name) && error.contains("making the file"), "{error}");
}

/// A lower layer's tree with one directory in it.
pub(super) fn lower(name: &str, mode: u32, uid: u32) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::create_dir_all(&path).unwrap();
    std::os::unix::fs::chown(&path, Some(uid), Some(uid)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    xattrs::set_path(&c_path(&path), c"user.from", name.as_bytes()).unwrap();
    xattrs::set_path(&c_path(&path), c"trusted.overlay.opaque", b"y").unwrap();
    dir
}

#[test]
fn implied_directories_take_the_topmost_lower_s_metadata() {
    let tree =
        unpacked(Archive::default().file("tmp/x", b"").file("gone/deep/x", b"").file("new/x", b""));
    let (upper, base) = (lower("tmp", 0o1777, 3), lower("tmp", 0o700, 4));
    // A file hides what is below it; a symbolic link is followed inside its layer.
    fs::write(upper.path().join("gone"), "").unwrap();
    fs::create_dir_all(base.path().join("gone/deep")).unwrap();
    fs::set_permissions(base.path().join("gone/deep"), fs::Permissions::from_mode(0o700)).unwrap();
    let lowers = [upper.path(), base.path()];
    let implied = &tree.summary.implied;
    assert_eq!(implied.len(), 4);
    let told = implied_metadata(implied, &lowers).unwrap();
    let settled = settle(tree.dir.path(), implied, &lowers).unwrap();
    assert_eq!(settled, told);
    assert_eq!((tree.mode("tmp"), tree.stat("tmp").uid()), (0o1777, 3));
    assert_eq!(tree.xattr("tmp", c"user.from").unwrap(), b"tmp");
    assert!(!tree.is_opaque("tmp"));
    for name in ["gone", "gone/deep", "new"] {
        assert_eq!(tree.mode(name), 0o755, "{name}");
    }
    let other = implied_metadata(implied, &lowers[1..]).unwrap();
    assert_ne!(other, settled);
    assert_ne!(other.to_bytes(), settled.to_bytes());
    assert_eq!(told.to_bytes(), settled.to_bytes());
}

#[test]
fn implied_directories_inherit_the_group_of_a_setgid_parent() {
    // Once of a lower layer's directory, once of one that the archive names.
    let archive = Archive::default().file("owned/below/deep/x", b"");
    let mut named = Archive::header(EntryType::Directory, "named", 0o2750);
    named.set_gid(9);
    let tree = unpacked(archive.add(named, b"").file("named/below/x", b""));
    let base = lower("owned", 0o2750, 7);
    settle(tree.dir.path(), &tree.summary.implied, &[base.path()]).unwrap();
    let group = |name: &str| (tree.mode(name), tree.stat(name).gid());
    assert_eq!(group("owned"), (0o2750, 7));
    assert_eq!(group("owned/below"), (0o755, 7));
    assert_eq!(group("owned/below/deep"), (0o755, 0), "the bit itself is not inherited");
    assert_eq!(group("named"), (0o2750, 9));
    assert_eq!(group("named/below"), (0o755, 9));
}

#[test]
fn a_link_in_a_lower_is_followed_inside_it() {
    let tree = unpacked(Archive::default().file("bin/x", b""));
    let base = lower("usr/bin", 0o711, 3);
    std::os::unix::fs::symlink("/usr/bin", base.path().join("bin")).unwrap();
    settle(tree.dir.path(), &tree.summary.implied, &[base.path()]).unwrap();
    assert_eq!(tree.mode("bin"), 0o711);
}

#[test]
fn trees_merge_as_an_overlay_shows_them() {
    let base = unpacked(
        Archive::default()
            .dir("a", 0o700)
            .file("a/1", b"low")
            .file("a/2", b"low")
            .dir("o", 0o755)
            .file("o/hidden", b"")
            .file("f", b"low")
            .dir("d", 0o755)
            .file("d/x", b"")
            .file("x/.wh.nothing", b""),
    );
    let upper = unpacked(
        Archive::default()
            .dir("a", 0o711)
            .file("a/.wh.1", b"")
            .file("a/2", b"up")
            .hard_link("a/3", "a/2")
            .dir("o", 0o755)
            .file("o/.wh..wh..opq", b"")
            .file("o/shown", b"")
            .dir("f", 0o755)
            .file("f/.wh..wh..opq", b"")
            .file("d", b"file")
            .dir("new", 0o755)
            .file("new/.wh.y", b"")
            .file(".wh.never", b""),
    );
    let into = tempfile::tempdir().unwrap();
    let trees = [base.dir.keep(), upper.dir.keep()];
    merge(&trees, into.path()).unwrap();
    assert!(trees.iter().all(|tree| !tree.exists()));
    let merged = Tree { dir: into, summary: Summary::default() };
    assert_eq!((merged.mode("a"), merged.stat("a").mtime()), (0o711, 1_000_000));
    assert!(!merged.exists("a/1") && merged.text("a/2") == "up");
    assert_eq!(merged.stat("a/2").ino(), merged.stat("a/3").ino());
    assert!(!merged.exists("o/hidden") && merged.exists("o/shown") && !merged.is_opaque("o"));
    assert!(merged.stat("f").is_dir() && !merged.is_opaque("f"));
    assert_eq!(merged.text("d"), "file");
    assert!(!merged.exists("new/y") && !merged.exists("x/nothing") && !merged.exists("never"));
    assert_eq!(merged.stat("new").mtime(), 1_000_000);
}

/// A buffer that goes back to its pool when it is dropped.
struct Pooled(Vec<u8>, std::sync::Arc<(std::sync::Mutex<usize>, std::sync::Condvar)>);

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        *self.1.0.lock().unwrap() -= 1;
        self.1.1.notify_all();
    }
}

#[test]
fn a_small_pool_of_buffers_suffices() {
    const BUFFER_BYTES: usize = 256 << 10;
    const BUFFERS: usize = 16;
    let mut archive = Archive::default();
    for number in 0..400usize {
        let size = [10, 3000, 200_000, 270_000][number % 4];
        archive = archive.file(&format!("d/{number}"), &vec![number as u8; size]);
    }
    let (archive, pool) = (archive.end(), std::sync::Arc::default());
    let mut chunks = archive.chunks(BUFFER_BYTES);
    let mut source = || {
        let Some(chunk) = chunks.next() else { return Ok(None) };
        let (lent, returned): &(std::sync::Mutex<usize>, std::sync::Condvar) = &pool;
        let patience = std::time::Duration::from_secs(60);
        let lent = lent.lock().unwrap();
        let (mut lent, waited) =
            returned.wait_timeout_while(lent, patience, |lent| *lent >= BUFFERS).unwrap();
        if waited.timed_out() {
            return Err(io::Error::other("no buffer comes back"));
        }
        *lent += 1;
        Ok(Some(Bytes::from_owner(Pooled(chunk.to_vec(), std::sync::Arc::clone(&pool)))))
    };
    let dir = tempfile::tempdir().unwrap();
    let recorder = LayerRecorder::detached();
    unpack(&mut source, dir.path(), &Options::default(), &recorder).unwrap();
    assert_eq!(*pool.0.lock().unwrap(), 0, "all buffers are back");
    assert!(fs::read(dir.path().join("d/399")).unwrap() == vec![143; 270_000]);
}
