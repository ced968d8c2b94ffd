//! What a power cut leaves of a layer, on a real file system.
//!
//! A loop device with direct I/O shows in its backing file what has reached the disk; a copy of
//! that file is what a machine would find after its power went. `sync = "layer"` has to make the
//! copy whole. (Without it the records of this small layer have not even been written.)

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hoist::image::{DiffId, Sha256};
use hoist::pull::trees::{Content, TreeStore as _};
use hoist::snapshots::{Options, Snapshots, Sync};

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {told}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A file with an ext4 in it, mounted until this is dropped.
struct Disk {
    device: String,
    point: PathBuf,
}

impl Disk {
    fn mount(file: &Path, point: PathBuf) -> Self {
        fs::create_dir(&point).unwrap();
        let file = file.to_str().unwrap();
        let device = run("losetup", &["--find", "--show", "--direct-io=on", file]);
        let disk = Self { device, point };
        run("mount", &["-t", "ext4", &disk.device, disk.point.to_str().unwrap()]);
        disk
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What fails here is left for the machine's end; the test has said what it had to say.
        let _ = Command::new("umount").arg(&self.point).status();
        let _ = Command::new("losetup").args(["--detach", &self.device]).status();
    }
}

/// What is found after the power went right behind the publishing of a layer with `files`.
fn after_the_cut(sync: Sync, files: &[(&str, Vec<u8>)]) -> Option<Vec<Vec<u8>>> {
    let diff_id = DiffId(Sha256::of(b"a layer"));
    let work = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (file, copy) = (work.path().join("disk"), work.path().join("copy"));
    fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", file.to_str().unwrap()]);
    {
        let disk = Disk::mount(&file, work.path().join("before"));
        let options = Options { sync, ..Options::default() };
        let snapshots = Snapshots::open(&disk.point.join("hoist"), options).unwrap();
        // The root itself is older than the layer.
        run("sync", &["-f", disk.point.to_str().unwrap()]);
        let staged = snapshots.stage(diff_id).unwrap();
        for (name, content) in files {
            fs::write(staged.path.join(name), content).unwrap();
        }
        let content = Content { is_image: false, bytes: 4096, inodes: 2, implied: Vec::new() };
        snapshots.publish(staged, content).unwrap();
        fs::copy(&file, &copy).unwrap();
    }
    let disk = Disk::mount(&copy, work.path().join("after"));
    let snapshots = Snapshots::open(&disk.point.join("hoist"), Options::default()).unwrap();
    let tree = snapshots.find(diff_id).unwrap().into_iter().next()?;
    let read = |(name, _): &(&str, Vec<u8>)| fs::read(tree.path.join(name)).unwrap_or_default();
    Some(files.iter().map(read).collect())
}

#[test]
fn a_layer_that_is_synced_survives_a_power_cut() {
    let files = [("small", b"some text".to_vec()), ("large", vec![7; 3 << 20])];
    let written: Vec<_> = files.iter().map(|(_, content)| content.clone()).collect();
    assert_eq!(after_the_cut(Sync::Layer, &files), Some(written.clone()));
    assert_ne!(after_the_cut(Sync::None, &files), Some(written), "the cut takes nothing: no test");
}
