//! Whiteouts and opaque marks: their rows of `docs/semantics.md`.

use super::*;

#[test]
fn whiteouts_are_devices_and_marks() {
    let mut owned = Archive::header(EntryType::Regular, "d/.wh.gone", 0o644);
    owned.set_uid(9);
    let tree = unpacked(
        Archive::default()
            .dir("d", 0o755)
            .add(owned, b"")
            .file("d/.wh..wh..opq", b"")
            .file("e/.wh..wh.other", b"")
            .file(".wh.top", b"data of a whiteout are nothing"),
    );
    assert!(tree.is_whiteout("d/gone") && tree.is_whiteout("top"));
    assert_eq!(tree.stat("d/gone").uid(), 9);
    assert!(tree.is_opaque("d") && !tree.is_opaque("e"));
    assert!(tree.is_whiteout("e/.wh.other"));
    assert_eq!(tree.summary.whiteouts, 4);
    assert_eq!(tree.summary.implied, [PathBuf::from("e")]);
}

#[test]
fn a_whiteout_without_a_name_is_refused() {
    for name in ["d/.wh.", "d/.wh..", "d/.wh..."] {
        let error = refused(Archive::default().file(name, b""));
        assert!(error.contains(name) && error.contains("whiteout"), "{error}");
    }
}

#[test]
fn whiteouts_hide_only_what_is_below() {
    let tree = unpacked(
        Archive::default()
            .file("before", b"kept")
            .file(".wh.before", b"")
            .file(".wh.after", b"")
            .file("after", b"kept")
            .file(".wh.dir", b"")
            .dir("dir", 0o755)
            .file("dir/x", b"")
            .dir("late", 0o755)
            .file(".wh.late", b"")
            .file(".wh.implied", b"")
            .file("implied/x", b"")
            .file(".wh.twice", b"")
            .file(".wh.twice", b""),
    );
    assert_eq!((tree.text("before"), tree.text("after")), ("kept".into(), "kept".into()));
    assert!(tree.is_opaque("dir") && tree.is_opaque("late") && tree.is_opaque("implied"));
    assert!(tree.exists("dir/x") && tree.exists("implied/x") && tree.is_whiteout("twice"));
    assert!(tree.summary.implied.is_empty(), "what is hidden gives no metadata");
}

#[test]
fn an_opaque_mark_at_the_root_is_set() {
    let tree = unpacked(Archive::default().file(".wh..wh..opq", b""));
    assert!(tree.is_opaque(""));
}

#[test]
fn a_whiteout_in_no_directory_implies_it() {
    let tree = unpacked(Archive::default().file("a/b/.wh.c", b""));
    assert!(tree.is_whiteout("a/b/c"));
    assert_eq!(tree.summary.implied, [PathBuf::from("a"), PathBuf::from("a/b")]);
}

#[test]
fn whiteouts_have_three_forms() {
    let archive = Archive::default()
        .pax(&[("SCHILY.xattr.user.overlay.redirect", b"/etc")])
        .dir("d", 0o755)
        .file("d/.wh..wh..opq", b"")
        .file("d/.wh.x", b"");
    let form = |whiteouts| {
        try_with(&archive.clone().end(), &Options { whiteouts, ..Options::default() }).unwrap()
    };
    let user = form(Whiteouts::OverlayUser);
    assert_eq!(user.xattr("d", c"user.overlay.opaque").unwrap(), b"y");
    assert_eq!(user.xattr("d", c"user.overlay.redirect"), None);
    assert!(!user.is_opaque("d") && user.is_whiteout("d/x"));
    let none = form(Whiteouts::Drop);
    assert!(!none.is_opaque("d") && !none.exists("d/x"));
}

#[test]
fn a_device_0_0_is_a_device() {
    let mut header = Archive::header(EntryType::Char, "dev", 0o600);
    header.set_device_major(0).unwrap();
    header.set_device_minor(0).unwrap();
    let mut null = Archive::header(EntryType::Char, "null", 0o666);
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    let mut block = Archive::header(EntryType::Block, "loop", 0o660);
    block.set_device_major(7).unwrap();
    block.set_device_minor(300).unwrap();
    let fifo = Archive::header(EntryType::Fifo, "pipe", 0o622);
    let archive = Archive::default().add(header, b"").add(null, b"").add(block, b"").add(fifo, b"");
    let tree = unpacked(archive);
    assert!(tree.is_whiteout("dev"));
    assert_eq!((tree.stat("null").rdev(), tree.mode("null")), (libc::makedev(1, 3), 0o666));
    assert!(tree.stat("loop").file_type().is_block_device());
    assert_eq!(tree.stat("loop").rdev(), libc::makedev(7, 300));
    assert!(tree.stat("pipe").file_type().is_fifo() && tree.mode("pipe") == 0o622);
}
