//! Directories, links, files and xattrs of every size that the format treats in another way.

use super::*;

#[test]
fn huge_directories_and_names_of_every_length() {
    for block in BLOCKS {
        let mut archive = Archive::default();
        for number in 0..30_000 {
            archive = archive.file(&format!("many/{number:07}"), b"");
        }
        for length in 1..98 {
            // Before and after the dot names in the order of directories.
            archive = archive.file(&format!("d/{}", "!".repeat(length)), b"");
            archive = archive.file(&format!("d/{}", "~".repeat(length)), b"x");
        }
        let long = "n".repeat(255);
        for length in 1..=255 {
            let name = format!("long/{}", &long[..length]);
            archive = archive.pax(&[("path", name.as_bytes())]).file("x", b"");
        }
        let Some((image, summary)) = mounted(archive, block) else { continue };
        assert_eq!(summary.inodes, 30_000 + 194 + 255 + 4);
        for (name, count) in [("many", 30_000), ("d", 194), ("long", 255)] {
            let listed = fs::read_dir(image.root().join(name)).unwrap().count();
            assert_eq!(listed, count, "{name}");
        }
        // Each is found by its name too, which searches where listing only reads.
        for number in 0..30_000 {
            assert!(image.root().join(format!("many/{number:07}")).exists(), "{number}");
        }
        assert!(!image.root().join("many/0030000").exists());
    }
}

#[test]
fn directories_of_every_size_around_a_block() {
    for block in BLOCKS {
        let mut archive = Archive::default();
        for length in 1..=200 {
            // 16 names of 240 bytes take 4,032 of a block's bytes, the dot names 27.
            for number in 0..15 {
                let name = format!("d{length}/{number:02}{}", "n".repeat(238));
                archive = archive.pax(&[("path", name.as_bytes())]).file("x", b"");
            }
            let name = format!("d{length}/{}", "z".repeat(length));
            archive = archive.pax(&[("path", name.as_bytes())]).dir("x", 0o755);
            // Two names of 190 take 404 of a small block's.
            for number in 0..2 {
                let name = format!("s{length}/{number}{}", "n".repeat(189));
                archive = archive.pax(&[("path", name.as_bytes())]).file("x", b"");
            }
            let name = format!("s{length}/{}", "z".repeat(length));
            archive = archive.pax(&[("path", name.as_bytes())]).dir("x", 0o755);
        }
        let names = |length: usize| if length == 0 { 0 } else { 16 };
        // Named, so that they may be inline.
        let named = (1..=200).fold(archive, |archive, n| {
            archive.dir(&format!("d{n}"), 0o711).dir(&format!("s{n}"), 0o711)
        });
        let Some((image, _)) = mounted(named, block) else { continue };
        for length in 1..=200 {
            let dir = image.root().join(format!("d{length}"));
            assert_eq!(fs::read_dir(&dir).unwrap().count(), names(length), "{length}");
            assert!(dir.join("z".repeat(length)).is_dir());
            let dir = image.root().join(format!("s{length}"));
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 3, "{length}");
            assert!(dir.join("z".repeat(length)).is_dir());
        }
    }
}

#[test]
fn links_of_every_length() {
    for block in BLOCKS {
        let mut archive = Archive::default();
        let target = "t".repeat(4095);
        let lengths: Vec<usize> =
            (1..4096).step_by(61).chain(380..540).chain(3980..4020).chain([4094, 4095]).collect();
        for length in &lengths {
            let (name, target) = (format!("l{length}"), &target.as_bytes()[..*length]);
            archive = archive.pax(&[("linkpath", target)]).symlink(&name, "x");
        }
        let Some((image, _)) = mounted(archive.clone(), block) else { continue };
        for length in lengths {
            let read = fs::read_link(image.root().join(format!("l{length}"))).unwrap();
            assert_eq!(read.as_os_str().len(), length);
        }
        let too_long = format!("{target}t");
        let archive = archive.pax(&[("linkpath", too_long.as_bytes())]).symlink("l", "x");
        assert!(image_refused(archive).contains("too long"));
    }
}

#[test]
fn files_with_holes_keep_them_and_cost_little() {
    for block in BLOCKS {
        let mut archive = Vec::new();
        for (size, extents) in [
            (64 << 20, vec![(1 << 20, 5000), (8 << 20, 1_000_000)]),
            (5_000_000_000, vec![(0, 1), (4_999_999_999, 1)]),
            (10_000, vec![(4096, 4096)]),
            (70_000, vec![]),
        ] {
            archive = sparse(archive, size, &extents);
        }
        let dir = tempfile::tempdir().unwrap();
        let options = Options::default();
        let (image_dir, summary) =
            image(&[&archive[..], &[0; 1024]].concat(), &options, block).unwrap();
        assert!(summary.bytes < 2 << 20, "{}", summary.bytes);
        check(image_dir.path());
        let Some(image) = Mounted::new(image_dir) else { continue };
        let read = |name: &str, at: u64| {
            let mut byte = [9];
            let file = fs::File::open(image.root().join(name)).unwrap();
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, at).unwrap();
            byte[0]
        };
        let size = |name: &str| fs::metadata(image.root().join(name)).unwrap().len();
        assert_eq!((size("s5000000000"), read("s5000000000", 4_999_999_999)), (5_000_000_000, 3));
        assert_eq!((read("s5000000000", 0), read("s5000000000", 2_500_000_000)), (3, 0));
        for (name, extents) in [
            ("s67108864", vec![(1 << 20, 5000), (8 << 20, 1_000_000)]),
            ("s10000", vec![(4096, 4096)]),
        ] {
            let mut expected = vec![0; usize::try_from(size(name)).unwrap()];
            extents.into_iter().for_each(|(at, len)| expected[at..at + len].fill(3));
            assert!(fs::read(image.root().join(name)).unwrap() == expected, "{name}");
        }
        assert!(fs::read(image.root().join("s70000")).unwrap() == vec![0; 70_000]);
        drop(dir);
    }
}

/// Adds a sparse file as GNU tar writes it in PAX format 1.0.
fn sparse(archive: Vec<u8>, size: u64, extents: &[(u64, usize)]) -> Vec<u8> {
    let mut map = format!("{}\n", extents.len().max(1));
    if extents.is_empty() {
        map.push_str(&format!("{size}\n0\n"));
    }
    extents.iter().for_each(|(at, length)| map.push_str(&format!("{at}\n{length}\n")));
    let mut data = map.into_bytes();
    data.resize(data.len().next_multiple_of(512), 0);
    extents.iter().for_each(|(_, length)| data.resize(data.len() + length, 3));
    let (name, text) = (format!("s{size}"), size.to_string());
    Archive(archive)
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", name.as_bytes()),
            ("GNU.sparse.realsize", text.as_bytes()),
        ])
        .file("GNUSparseFile.0/x", &data)
        .0
}

#[test]
fn xattrs_beyond_a_block_and_acls() {
    for block in BLOCKS {
        let acl: Vec<u8> = [2u32.to_le_bytes().to_vec()]
            .into_iter()
            .chain(
                [
                    (1u16, 6u16, u32::MAX),
                    (2, 7, 5),
                    (4, 5, u32::MAX),
                    (16, 7, u32::MAX),
                    (32, 4, u32::MAX),
                ]
                .map(|(tag, perm, id)| {
                    [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
                }),
            )
            .flatten()
            .collect();
        let archive = Archive::default()
            .pax(&[("SCHILY.xattr.system.posix_acl_access", &acl)])
            .file("acl", b"1")
            .pax(&[("SCHILY.xattr.system.posix_acl_default", &acl)])
            .dir("empty", 0o755);
        // On files too: the kernel brings ACL and mode in step.
        let tree = unpacked(archive);
        assert_eq!(tree.mode("acl"), 0o644);
        let large = vec![b'v'; 60_000];
        let archive = Archive::default()
            .pax(&[("SCHILY.xattr.user.large", &large), ("SCHILY.xattr.user.small", b"1")])
            .file("f", b"after")
            .file("g", b"next");
        let Some((image, _)) = mounted(archive, block) else { continue };
        let get = |key| xattrs::get_path(&c_path(&image.root().join("f")), key).unwrap();
        assert!(get(c"user.large").unwrap() == large && get(c"user.small").unwrap() == b"1");
        assert_eq!(fs::read(image.root().join("g")).unwrap(), b"next");
        let too_large = vec![b'v'; 65_536];
        let archive =
            Archive::default().pax(&[("SCHILY.xattr.user.large", &too_large)]).file("f", b"");
        assert!(image_refused(archive).contains("\"f\""));
    }
}
