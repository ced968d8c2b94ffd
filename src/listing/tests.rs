use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

/// A directory with one of each that needs no privileges, and its listing.
fn noted() -> (tempfile::TempDir, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/file"), "content").unwrap();
    fs::write(root.join("d.file"), "").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"od\xffd\n")), "odd").unwrap();
    symlink("d/file", root.join("link")).unwrap();
    let mut listing = Vec::new();
    let noted = note(root, &mut listing).unwrap();
    assert_eq!(noted, Noted { entries: 6, bytes: 10 });
    (directory, listing)
}

fn differences(root: &Path, listing: &[u8], depth: Depth) -> Vec<(String, String)> {
    let found = compare(root, listing, depth).unwrap();
    found.into_iter().map(|difference| (difference.path, difference.what)).collect()
}

/// Sets the time that the listing has, as a fault of a disk would leave it.
fn keep_time(path: &Path, change: impl FnOnce()) {
    let before = path.metadata().unwrap().modified().unwrap();
    change();
    fs::File::open(path).unwrap().set_modified(before).unwrap();
}

#[test]
fn what_did_not_change_has_no_differences() {
    let (directory, listing) = noted();
    for depth in [Depth::Metadata, Depth::Content] {
        assert_eq!(differences(directory.path(), &listing, depth), []);
    }
    let lines = String::from_utf8(listing).unwrap();
    assert!(lines.contains(r"od\\xffd\\n"), "{lines}");
}

#[test]
fn a_byte_in_a_file_shows_where_files_are_read() {
    let (directory, listing) = noted();
    let file = directory.path().join("d/file");
    keep_time(&file, || fs::write(&file, "Content").unwrap());
    assert_eq!(differences(directory.path(), &listing, Depth::Metadata), []);
    let found = differences(directory.path(), &listing, Depth::Content);
    assert_eq!(found, [("d/file".to_owned(), "has another content".to_owned())]);
}

#[test]
fn all_else_shows_without_reading() {
    type Change = fn(&Path);
    let cases: [(&str, &str, Change); 6] = [
        ("d/file", "has 3 bytes instead of 7", |root| {
            fs::write(root.join("d/file"), "abc").unwrap()
        }),
        ("d/file", "is missing", |root| fs::remove_file(root.join("d/file")).unwrap()),
        ("d/more", "nobody put it there", |root| fs::write(root.join("d/more"), "").unwrap()),
        ("d.file", "has another mode", |root| {
            fs::set_permissions(root.join("d.file"), fs::Permissions::from_mode(0o7)).unwrap();
        }),
        ("link", "has another content", |root| {
            fs::remove_file(root.join("link")).unwrap();
            symlink("d/elif", root.join("link")).unwrap();
        }),
        ("d.file", "is of another type", |root| {
            fs::remove_file(root.join("d.file")).unwrap();
            fs::create_dir(root.join("d.file")).unwrap();
        }),
    ];
    for (path, what, change) in cases {
        let (directory, listing) = noted();
        change(directory.path());
        let found = differences(directory.path(), &listing, Depth::Metadata);
        let expected = (path.to_owned(), what.to_owned());
        assert!(found.contains(&expected), "{expected:?} is not in {found:?}");
        // The directory around it has another time now, and nothing else is told.
        let others = found.iter().filter(|(at, _)| at != path);
        assert!(others.clone().all(|(at, _)| at == "." || at == "d"), "{found:?}");
    }
}

#[test]
fn a_listing_that_is_none_is_told_with_its_line() {
    let (directory, mut listing) = noted();
    listing.extend(b"{}\n");
    let error = compare(directory.path(), &listing[..], Depth::Metadata).unwrap_err();
    assert!(error.to_string().contains("line 7"), "{error}");
    let gone = compare(&directory.path().join("none"), &b""[..], Depth::Metadata).unwrap_err();
    assert!(gone.to_string().contains("none"), "{gone}");
}
