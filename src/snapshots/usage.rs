//! Counting what a directory occupies, for layers that containerd applied itself.
//!
//! A tree that hoist unpacked was counted while it was written. The layers of the ordinary way are
//! counted when Usage asks for the first time, never in Commit, which containerd calls inside its own
//! transaction; for a committed one the result is kept.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::records::Usage;

/// Bytes of one of the blocks that stat(2) counts in.
const BYTES_A_BLOCK: u64 = 512;

/// What the tree at `root` occupies: blocks, not lengths, and a hard-linked file once. What
/// disappears meanwhile is not counted: an active snapshot may be in use.
pub(super) fn count(root: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut add = |metadata: &fs::Metadata| {
        let several_names = metadata.nlink() > 1 && !metadata.is_dir();
        if several_names && !linked.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        usage.inodes += 1;
        usage.bytes += metadata.blocks() * BYTES_A_BLOCK;
    };
    add(&fs::symlink_metadata(root)?);
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        let Some(entries) = present(fs::read_dir(&directory))? else { continue };
        for entry in entries {
            let Some(entry) = present(entry)? else { continue };
            let Some(metadata) = present(entry.metadata())? else { continue };
            add(&metadata);
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok(usage)
}

fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_a_hard_link_once_and_follows_no_symlink() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("fs");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/file"), vec![1; 10_000]).unwrap();
        let before = count(&root).unwrap();
        assert_eq!(before.inodes, 4);
        assert!(before.bytes >= 10_000, "{before:?}");
        fs::hard_link(root.join("a/file"), root.join("a/b/again")).unwrap();
        assert_eq!(count(&root).unwrap(), before);
        std::os::unix::fs::symlink("/", root.join("out")).unwrap();
        assert_eq!(count(&root).unwrap().inodes, 5);
    }
}
