//! Names that lead elsewhere, or would: their rows of `docs/semantics.md`.

use super::*;

#[test]
fn names_lead_nowhere_outside() {
    let outside = tempfile::tempdir().unwrap();
    let escape = outside.path().to_str().unwrap();
    let tree = unpacked(
        Archive::default()
            .file("../../up", b"1")
            .file("/abs/olute", b"2")
            .symlink("out", escape)
            .file("out/x", b"3")
            .symlink("dots", "../../../elsewhere")
            .file("dots/y", b"4"),
    );
    assert_eq!((tree.text("up"), tree.text("abs/olute")), ("1".into(), "2".into()));
    assert_eq!(tree.text(&format!("{}/x", &escape[1..])), "3");
    assert_eq!(tree.text("elsewhere/y"), "4");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn hard_links_lead_nowhere_outside() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let name = secret.to_str().unwrap();
    let escape = outside.path().to_str().unwrap();
    for archive in [
        Archive::default().hard_link("a", name),
        Archive::default().hard_link("a", &format!("../../../../../..{name}")),
        Archive::default().symlink("out", escape).hard_link("a", "out/secret"),
    ] {
        let error = refused(archive);
        assert!(error.starts_with("entry \"a\""), "{error}");
    }
    assert_eq!(fs::metadata(&secret).unwrap().nlink(), 1);
}

#[test]
fn a_parent_that_is_a_link_of_the_layer_is_followed_inside() {
    let tree = unpacked(
        Archive::default()
            .dir("usr/", 0o755)
            .dir("usr/bin/", 0o755)
            .symlink("bin", "usr/bin")
            .symlink("usr/again", "/bin")
            .file("bin/sh", b"1")
            .file("usr/again/ls", b"2")
            .hard_link("bin/dash", "bin/sh")
            .file("bin/.wh.gone", b"")
            .dir("bin/sub", 0o700)
            .file("usr/bin/sh2", b""),
    );
    assert_eq!((tree.text("usr/bin/sh"), tree.text("usr/bin/ls")), ("1".into(), "2".into()));
    assert_eq!(tree.stat("usr/bin/dash").ino(), tree.stat("usr/bin/sh").ino());
    assert!(tree.is_whiteout("usr/bin/gone") && tree.stat("bin").is_symlink());
    assert_eq!(tree.mode("usr/bin/sub"), 0o700);
    assert!(tree.summary.implied.is_empty());
}

#[test]
fn a_loop_of_links_and_a_file_as_parent_are_refused() {
    let error = refused(Archive::default().symlink("a", "b").symlink("b", "a").file("a/x", b""));
    assert!(error.starts_with("entry \"a/x\""), "{error}");
    let error = refused(Archive::default().file("f", b"").file("f/x", b""));
    assert!(error.starts_with("entry \"f/x\"") && error.contains("Not a directory"), "{error}");
}

#[test]
fn endless_names_and_links_are_refused_soon() {
    let deep = "d/".repeat(400_000);
    let archive = Archive::default().pax(&[("path", deep.as_bytes())]).file("x", b"");
    assert!(refused(archive).contains("too long"));
    // Each link doubles what is to be followed.
    let mut archive = Archive::default().symlink("l0", ".");
    for number in 1..40 {
        let target = format!("l{0}/l{0}", number - 1);
        archive = archive.symlink(&format!("l{number}"), &target);
    }
    assert!(refused(archive.file("l39/f", b"")).contains("symbolic links"));
}
