use std::io::Write as _;
use std::process::{Command, Stdio};

use tar::{Builder, EntryType, Header};

use super::*;

/// An entry with its data, each piece with its offset.
type Whole = (Entry, Vec<(u64, Vec<u8>)>);

/// Every event of an archive that comes in pieces of `size` bytes; data joined to (offset, bytes).
fn read(archive: &[u8], size: usize) -> Result<Vec<Whole>, ArchiveError> {
    let mut rest = Bytes::copy_from_slice(archive);
    let mut parser = Parser::new(move || {
        let count = rest.len().min(size);
        Ok((count > 0).then(|| rest.split_to(count)))
    });
    let mut all: Vec<Whole> = Vec::new();
    while let Some(event) = parser.next()? {
        match event {
            Event::Entry(entry) => all.push((*entry, Vec::new())),
            Event::Data { offset, bytes } => {
                assert!(!bytes.is_empty());
                let pieces = &mut all.last_mut().expect("data belong to an entry").1;
                match pieces.last_mut() {
                    Some((begin, data)) if *begin + data.len() as u64 == offset => {
                        data.extend_from_slice(&bytes);
                    }
                    _ => pieces.push((offset, bytes.to_vec())),
                }
            }
        }
    }
    Ok(all)
}

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header
}

/// Long names of both kinds, links, and data that end inside a block.
fn sample() -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let long = format!("{}/{}", "d".repeat(120), "n".repeat(130));
    builder.append_data(&mut header(EntryType::Regular, 5), &long, &b"hello"[..]).unwrap();
    builder.append_link(&mut header(EntryType::Symlink, 0), "link", &long).unwrap();
    builder
        .append_pax_extensions([
            ("path", "päx".as_bytes()),
            ("mtime", b"7.25"),
            ("SCHILY.xattr.user.a", b"b"),
        ])
        .unwrap();
    builder.append_data(&mut header(EntryType::Regular, 700), "x", &[7; 700][..]).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn what_the_builder_writes_is_read_in_pieces_of_any_size() {
    let archive = sample();
    let whole = read(&archive, usize::MAX).unwrap();
    for size in [1, 7, 511, 512, 513] {
        assert_eq!(read(&archive, size).unwrap(), whole, "pieces of {size}");
    }
    let long = format!("{}/{}", "d".repeat(120), "n".repeat(130));
    assert_eq!(whole[0].0.name, long.as_bytes());
    assert_eq!((whole[0].0.uid, whole[0].0.gid, whole[0].0.mtime.seconds), (1, 2, 3));
    assert_eq!(whole[0].1, [(0, b"hello".to_vec())]);
    assert_eq!(whole[1].0.kind, Kind::Symlink(std::ffi::CString::new(long).unwrap()));
    assert_eq!(whole[2].0.name, "päx".as_bytes());
    assert_eq!(whole[2].0.mtime, Time { seconds: 7, nanos: 250_000_000 });
    assert_eq!(whole[2].0.xattrs, [(c"user.a".to_owned(), b"b".to_vec())]);
    assert_eq!(whole[2].1, [(0, vec![7; 700])]);
}

#[test]
fn every_truncation_ends_or_is_told() {
    let archive = sample();
    let whole = read(&archive, usize::MAX).unwrap();
    for cut in 0..archive.len() {
        match read(&archive[..cut], 333) {
            Ok(entries) => assert!(whole.starts_with(&entries), "cut at {cut}"),
            Err(ArchiveError::Truncated { offset, .. }) => assert_eq!(offset, cut as u64),
            Err(error) => panic!("cut at {cut}: {error}"),
        }
    }
}

#[test]
fn flipped_bits_never_panic() {
    let archive = sample();
    for at in 0..archive.len().min(6 * 512) {
        for bit in [0, 3, 7] {
            let mut damaged = archive.clone();
            damaged[at] ^= 1 << bit;
            // A header that is damaged is told; data and extensions may be anything.
            let _outcome = read(&damaged, 4096);
        }
    }
    let mut damaged = archive.clone();
    damaged[100] ^= 1;
    let error = read(&damaged, 4096).unwrap_err().to_string();
    assert!(error.contains("checksum"), "{error}");
}

#[test]
fn extensions_are_bounded() {
    for kind in [EntryType::XHeader, EntryType::GNULongName, EntryType::XGlobalHeader] {
        let mut bomb = header(kind, MAX_EXTENSION_BYTES + 1);
        bomb.set_cksum();
        let error = read(bomb.as_bytes(), 512).unwrap_err().to_string();
        assert!(error.contains("larger than 1048576 bytes"), "{error}");
    }
}

/// Runs a program that writes an archive to its standard output.
fn made_by(program: &str, args: &[&str], dir: &std::path::Path) -> Vec<u8> {
    let output = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A file of many extents: more than an old GNU header and one block behind it can hold.
fn sparse_file(dir: &std::path::Path) -> Vec<u8> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::create(dir.join("sparse")).unwrap();
    for at in 0..40u8 {
        file.write_all_at(&[at + 1; 100], u64::from(at) * 1_048_576).unwrap();
    }
    file.set_len(50 << 20).unwrap();
    std::fs::read(dir.join("sparse")).unwrap()
}

#[test]
fn sparse_files_of_gnu_tar_are_read_in_all_four_forms() {
    let dir = tempfile::tempdir().unwrap();
    let content = sparse_file(dir.path());
    for form in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let args = [&["-c", "-S", "-f", "-"], form, &["sparse"]].concat();
        let archive = made_by("tar", &args, dir.path());
        let entries = read(&archive, 10_000).unwrap();
        let (entry, data) = &entries[0];
        assert_eq!(entry.name, b"sparse", "{form:?}");
        assert_eq!(entry.kind, Kind::Regular { sparse: true }, "{form:?}");
        assert_eq!(entry.size, content.len() as u64, "{form:?}");
        let mut read_back = vec![0; content.len()];
        for (offset, bytes) in data {
            let offset = usize::try_from(*offset).unwrap();
            read_back[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        assert!(read_back == content, "{form:?}");
        let stored: usize = data.iter().map(|(_, bytes)| bytes.len()).sum();
        assert_eq!(stored as u64, entry.stored, "{form:?}");
        assert!(stored < 1 << 20, "{form:?}: holes are not stored");
    }
}

#[test]
fn what_python_writes_is_read() {
    let script = r#"
import sys, tarfile
for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=form) as tar:
        info = tarfile.TarInfo("é" * 80)
        info.uid, info.gid, info.mtime, info.size = 3000000, 2097152, 1.5, 0
        tar.addfile(info)
    sys.stdout.buffer.flush()
"#;
    let mut child = Command::new("python3")
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let both = child.wait_with_output().unwrap().stdout;
    for archive in both.chunks(10_240) {
        let entry = &read(archive, 512).unwrap()[0].0;
        assert_eq!(entry.name, "é".repeat(80).as_bytes());
        assert_eq!((entry.uid, entry.gid, entry.mtime.seconds), (3_000_000, 2_097_152, 1));
    }
    assert_eq!(both.len(), 20_480, "two archives of one record each");
}

#[test]
fn old_archives_name_directories_with_a_slash() {
    let mut old = Header::new_old();
    old.as_old_mut().name[..2].copy_from_slice(b"d/");
    old.as_old_mut().linkflag[0] = 0;
    old.set_size(0);
    old.set_mode(0o755);
    old.set_uid(0);
    old.set_gid(0);
    old.set_mtime(0);
    old.set_cksum();
    assert_eq!(read(old.as_bytes(), 512).unwrap()[0].0.kind, Kind::Directory);
}

#[test]
fn an_error_of_the_source_comes_through() {
    let mut parser = Parser::new(|| Err(io::Error::other("digest does not match")));
    let error = io::Error::from(parser.next().unwrap_err());
    assert_eq!(error.to_string(), "digest does not match");
}
