//! Odd archives: the rows of `docs/semantics.md` on metadata, links and archives as such.

use super::*;

#[test]
fn the_root_keeps_its_metadata() {
    let tree = unpacked(
        Archive::default().dir("./", 0o700).dir("..", 0o711).file("/", b"").file("a", b""),
    );
    assert_eq!(tree.mode("") & 0o777, 0o755);
    assert_eq!(tree.stat("").uid(), 0);
    assert!(tree.exists("a"));
}

#[test]
fn times_outside_of_1970_to_2262_are_1970() {
    let tree = unpacked(
        Archive::default()
            .pax(&[("mtime", b"-5.5")])
            .file("before", b"")
            .pax(&[("mtime", b"9300000000")])
            .file("after", b"")
            .pax(&[("mtime", b"1500000000.123456789")])
            .file("between", b""),
    );
    let time = |name| (tree.stat(name).mtime(), tree.stat(name).mtime_nsec());
    assert_eq!(time("before"), (0, 0));
    assert_eq!(time("after"), (0, 0));
    assert_eq!(time("between"), (1_500_000_000, 123_456_789));
}

#[test]
fn xattrs_are_set_and_trusted_ones_dropped() {
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\n\0\0\0\0\0\0\0";
    let tree = unpacked(
        Archive::default()
            .pax(&[
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.user.empty", b""),
                ("SCHILY.xattr.user.lines", b"a\nb=\0c"),
                ("SCHILY.xattr.security.capability", capability),
                ("LIBARCHIVE.xattr.user.other", b"eA=="),
                ("uid", b"70001"),
            ])
            .file("f", b"x")
            .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.d", b"1")])
            .dir("d/", 0o755)
            .pax(&[("SCHILY.xattr.user.on.a.link", b"1")])
            .symlink("l", "f"),
    );
    assert_eq!(tree.xattr("f", c"user.empty"), Some(Vec::new()));
    assert_eq!(tree.xattr("f", c"user.lines").unwrap(), b"a\nb=\0c");
    assert_eq!(tree.xattr("f", c"security.capability").unwrap(), capability);
    assert_eq!(tree.xattr("f", c"trusted.overlay.opaque"), None);
    assert_eq!(tree.xattr("f", c"user.other"), None);
    assert_eq!(tree.stat("f").uid(), 70_001);
    assert_eq!(tree.xattr("d", c"user.d").unwrap(), b"1");
    assert!(!tree.is_opaque("d"));
    assert!(tree.stat("l").is_symlink());
}

#[test]
fn a_global_header_is_ignored() {
    let mut header = Archive::header(EntryType::XGlobalHeader, "pax_global_header", 0o666);
    let record = b"52 comment=0123456789012345678901234567890123456789\n";
    header.set_size(record.len() as u64);
    let tree = unpacked(Archive::default().add(header, record).file("a", b"1"));
    assert_eq!(fs::read_dir(tree.dir.path()).unwrap().count(), 1);
}

#[test]
fn one_zero_block_or_none_ends_an_archive() {
    let options = Options::default();
    let archive = Archive::default().file("a", b"1").0;
    for zeros in [0, 512, 1024, 10_240] {
        let tree = try_with(&[&archive[..], &vec![0; zeros]].concat(), &options).unwrap();
        assert_eq!(tree.text("a"), "1");
    }
    let behind = [&archive[..], &[0; 512], &archive].concat();
    let error = try_with(&behind, &options).err().unwrap().to_string();
    assert!(error.contains("zeros"), "{error}");
    let after_the_end = [&archive[..], &[0; 1024], b"anything"].concat();
    assert!(try_with(&after_the_end, &options).unwrap().exists("a"));
    assert_eq!(try_with(b"", &options).unwrap().summary.entries, 0);
}

#[test]
fn a_hard_link_s_header_sets_the_inode() {
    let mut header = Archive::header(EntryType::Link, "b", 0o600);
    header.as_old_mut().linkname[0] = b'a';
    header.set_uid(7);
    header.set_mtime(2_000_000);
    // Such an entry has no data, whatever its size says.
    header.set_size(999);
    let tree = unpacked(Archive::default().file("a", b"1").add(header, b"").file("c", b"2"));
    assert_eq!(tree.stat("a").ino(), tree.stat("b").ino());
    assert_eq!(
        (tree.mode("a"), tree.stat("a").uid(), tree.stat("a").mtime()),
        (0o600, 7, 2_000_000)
    );
    assert_eq!(tree.text("c"), "2");
}

#[test]
fn linking_keeps_capabilities() {
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tree = unpacked(
        Archive::default()
            .pax(&[("SCHILY.xattr.security.capability", capability)])
            .file("ping", b"x")
            .hard_link("ping6", "ping"),
    );
    assert_eq!(tree.xattr("ping6", c"security.capability").unwrap(), capability);
}

#[test]
fn a_hard_link_to_nothing_is_refused() {
    let error = refused(Archive::default().hard_link("b", "only/below"));
    assert!(error.starts_with("entry \"b\" at byte 0 of the archive: linking it"), "{error}");
    // What comes later is nothing yet.
    let error = refused(Archive::default().hard_link("b", "later").file("later", b""));
    assert!(error.starts_with("entry \"b\"") && error.contains("No such file"), "{error}");
    let error = refused(Archive::default().dir("d", 0o755).hard_link("e", "d"));
    assert!(error.contains("entry \"e\""), "{error}");
}

#[test]
fn a_hard_link_to_a_symbolic_link_is_one() {
    let tree = unpacked(Archive::default().symlink("a", "nowhere").hard_link("b", "a"));
    assert_eq!(tree.stat("a").ino(), tree.stat("b").ino());
    assert!(tree.stat("b").is_symlink());
}

#[test]
fn a_directory_named_again_gets_the_later_metadata() {
    let mut later = Archive::header(EntryType::Directory, "d/", 0o2750);
    later.set_uid(5);
    later.set_mtime(3_000_000);
    let tree = unpacked(
        Archive::default()
            .pax(&[("SCHILY.xattr.user.a", b"1"), ("SCHILY.xattr.user.b", b"1")])
            .dir("d/", 0o1777)
            .file("d/x", b"kept")
            .pax(&[("SCHILY.xattr.user.a", b"2")])
            .add(later, b"")
            .file("d/y", b""),
    );
    assert_eq!(
        (tree.mode("d"), tree.stat("d").uid(), tree.stat("d").mtime()),
        (0o2750, 5, 3_000_000)
    );
    assert_eq!(tree.xattr("d", c"user.a").unwrap(), b"2");
    assert_eq!(tree.xattr("d", c"user.b").unwrap(), b"1");
    assert_eq!(tree.text("d/x"), "kept");
    assert_eq!(tree.stat("d/y").gid(), 0, "setgid is set after what is inside");
}

#[test]
fn the_later_entry_of_a_path_wins() {
    let tree = unpacked(
        Archive::default()
            .file("a", b"first")
            .hard_link("a2", "a")
            .file("a", b"second")
            .dir("b", 0o755)
            .file("b/inside", b"")
            .file("b", b"now a file")
            .file("c", b"")
            .dir("c", 0o711)
            .file("c/inside", b"1")
            .symlink("d", "a")
            .file("d", b"no link"),
    );
    assert_eq!((tree.text("a"), tree.text("a2")), ("second".into(), "first".into()));
    assert_eq!(tree.text("b"), "now a file");
    assert_eq!((tree.mode("c"), tree.text("c/inside")), (0o711, "1".into()));
    assert_eq!(tree.text("d"), "no link");
    let counted = crate::unpack::merge::usage(tree.dir.path()).unwrap();
    assert_eq!((tree.summary.bytes, tree.summary.inodes), counted);
}

#[test]
fn an_unknown_type_is_refused() {
    let header = Archive::header(EntryType::new(b'Z'), "odd", 0o644);
    assert!(refused(Archive::default().add(header, b"")).contains("\"odd\""));
    let header = Archive::header(EntryType::Continuous, "contiguous", 0o644);
    assert!(unpacked(Archive::default().add(header, b"")).stat("contiguous").is_file());
}

#[test]
fn modes_and_owners_are_exact() {
    let mut header = Archive::header(EntryType::Regular, "su", 0o6777);
    header.set_uid(4_000_000);
    header.set_gid(70_000);
    let mut dir = Archive::header(EntryType::Directory, "team", 0o2775);
    dir.set_gid(70_000);
    let mut open = Archive::header(EntryType::Regular, "team/open", 0o666);
    open.set_mtime(1_234);
    let tree = unpacked(
        Archive::default().add(header, b"").add(dir, b"").add(open, b"").dir("tmp", 0o1777),
    );
    assert_eq!(
        (tree.mode("su"), tree.stat("su").uid(), tree.stat("su").gid()),
        (0o6777, 4_000_000, 70_000)
    );
    assert_eq!((tree.mode("team"), tree.stat("team").gid()), (0o2775, 70_000));
    assert_eq!((tree.mode("team/open"), tree.stat("team/open").gid()), (0o666, 0));
    assert_eq!(tree.mode("tmp"), 0o1777);
    assert_eq!((tree.stat("team").mtime(), tree.stat("team/open").mtime()), (1_000_000, 1_234));
}

#[test]
fn limits_are_told() {
    let archive = Archive::default().file("a", &[7; 5000]).file("b", b"").end();
    let error = |options: Options| try_with(&archive, &options).err().unwrap().to_string();
    assert!(error(Options { max_bytes: 4096, ..Options::default() }).contains("4096 bytes"));
    assert!(error(Options { max_entries: 1, ..Options::default() }).contains("1 entries"));
    // What follows the archive counts as well.
    let padded = [archive.clone(), vec![0; 100_000]].concat();
    let options = Options { max_bytes: 50_000, ..Options::default() };
    assert!(matches!(try_with(&padded, &options), Err(UnpackError::TooLarge { .. })));
}

#[test]
fn a_negative_owner_is_its_32_bits() {
    let tree =
        unpacked(Archive::default().pax(&[("uid", b"-2"), ("gid", b"-1")]).file("nobody", b""));
    assert_eq!((tree.stat("nobody").uid(), tree.stat("nobody").gid()), (u32::MAX - 1, 0));
    let error = refused(Archive::default().pax(&[("uid", b"4294967296")]).file("far", b""));
    assert!(error.contains("\"far\"") && error.contains("4294967296"), "{error}");
}

#[test]
fn many_hard_links_with_attributes_are_made_in_time() {
    let value = vec![b'v'; 3000];
    let mut archive = Archive::default().file("f", b"1");
    for number in 0..2000 {
        archive = archive
            .pax(&[("SCHILY.xattr.user.large", &value)])
            .hard_link(&format!("l{number}"), "f");
    }
    let tree = unpacked(archive);
    assert_eq!((tree.stat("f").nlink(), tree.summary.inodes), (2001, 2));
}

#[test]
fn a_default_acl_around_the_tree_changes_nothing() {
    let parent = tempfile::tempdir().unwrap();
    // Version 2; user::rwx user:1234:rwx group::rwx mask::rwx other::---, each as tag, permissions and id.
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 7u16, u32::MAX),
        (2, 7, 1234),
        (4, 7, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&permissions.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    let default = c"system.posix_acl_default";
    xattrs::set_path(&c_path(parent.path()), default, &acl).unwrap();
    let dest = parent.path().join("fs");
    fs::create_dir(&dest).unwrap();
    assert!(xattrs::get_path(&c_path(&dest), default).unwrap().is_some(), "inherited");
    let archive =
        Archive::default().dir("d", 0o750).file("d/f", b"1").file("implied/g", b"2").end();
    let options = Options { writers: 2, ..Options::default() };
    unpack(&mut pieces(&archive, 512), &dest, &options, &LayerRecorder::detached()).unwrap();
    for (name, mode) in
        [("", 0o755), ("d", 0o750), ("d/f", 0o644), ("implied", 0o755), ("implied/g", 0o644)]
    {
        let path = dest.join(name);
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o7777, mode, "{name}");
        assert!(xattrs::list_path(&c_path(&path)).unwrap().is_empty(), "{name} has attributes");
    }
}
