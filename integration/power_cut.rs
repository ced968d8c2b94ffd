//! What a power cut leaves of a layer, on a real file system.
//!
//! A loop device with direct I/O shows in its backing file what has reached the disk; a copy of
//! that file is what a machine would find after its power went. `sync = "layer"` has to make the
//! copy whole. (Without it the records of this small layer have not even been written.)

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hoist::archive::Source;
use hoist::image::{DiffId, Sha256};
use hoist::pull::trees::{Content, StagedTree, TreeStore as _};
use hoist::snapshots::{Backend, Error, Options, Snapshots, Sync};
use hoist::timeline::LayerRecorder;
use hoist::unpack::{self, ImageLabel};

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

impl Disk {
    /// Unmounts the images that are mounted in it, which outlive who mounted them.
    fn clear(&self) {
        for tree in fs::read_dir(self.point.join("hoist/trees")).unwrap() {
            let _ = Command::new("umount").arg(tree.unwrap().path().join("fs")).output();
        }
    }
}

/// An archive in one piece.
struct Whole(Option<bytes::Bytes>);

impl Source for Whole {
    fn next_bytes(&mut self) -> std::io::Result<Option<bytes::Bytes>> {
        Ok(self.0.take())
    }
}

/// Writes files where a pull would, or the image of them.
fn write(staged: &StagedTree, files: &[(&str, Vec<u8>)]) -> Content {
    let Some(image) = &staged.image else {
        for (name, content) in files {
            fs::write(staged.path.join(name), content).unwrap();
        }
        return Content { is_image: false, bytes: 4096, inodes: 2, implied: Vec::new() };
    };
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, &**content).unwrap();
    }
    let mut source = Whole(Some(builder.into_inner().unwrap().into()));
    let (options, recorder) = (unpack::Options::default(), LayerRecorder::detached());
    let label = ImageLabel { block: image.block, ..ImageLabel::default() };
    let written = unpack::unpack_image(&mut source, &image.path, label, &options, None, &recorder);
    let unpack::Summary { bytes, inodes, implied, .. } = written.unwrap();
    Content { is_image: true, bytes, inodes, implied }
}

/// What is found after the power went right behind the publishing of a layer with `files`.
fn after_the_cut(sync: Sync, backend: Backend, files: &[(&str, Vec<u8>)]) -> Option<Vec<Vec<u8>>> {
    let diff_id = DiffId(Sha256::of(b"a layer"));
    let work = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (file, copy) = (work.path().join("disk"), work.path().join("copy"));
    fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", file.to_str().unwrap()]);
    {
        let disk = Disk::mount(&file, work.path().join("before"));
        let options = Options { sync, backend, ..Options::default() };
        let snapshots = Snapshots::open(&disk.point.join("hoist"), options).unwrap();
        // The root itself is older than the layer.
        run("sync", &["-f", disk.point.to_str().unwrap()]);
        let staged = snapshots.stage(diff_id).unwrap();
        let content = write(&staged, files);
        snapshots.publish(staged, content).unwrap();
        fs::copy(&file, &copy).unwrap();
        disk.clear();
    }
    let disk = Disk::mount(&copy, work.path().join("after"));
    let snapshots = Snapshots::open(&disk.point.join("hoist"), Options::default()).unwrap();
    let tree = snapshots.find(diff_id).unwrap().into_iter().next();
    let found = tree.map(|tree| {
        let read = |(name, _): &(&str, Vec<u8>)| fs::read(tree.path.join(name)).unwrap_or_default();
        files.iter().map(read).collect()
    });
    disk.clear();
    found
}

/// Files always; images where this kernel can mount them, which `integration/containerd.rs` is loud about.
fn backends() -> Vec<Backend> {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = Options { backend: Backend::Erofs, ..Options::default() };
    match Snapshots::open(root.path(), options) {
        Ok(_) => vec![Backend::Overlay, Backend::Erofs],
        Err(Error::NoImages { .. }) => vec![Backend::Overlay],
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_layer_that_is_synced_survives_a_power_cut() {
    let files = [("small", b"some text".to_vec()), ("large", vec![7; 3 << 20])];
    let written: Vec<_> = files.iter().map(|(_, content)| content.clone()).collect();
    for backend in backends() {
        let found = after_the_cut(Sync::Layer, backend, &files);
        assert_eq!(found, Some(written.clone()), "{backend:?}");
        let found = after_the_cut(Sync::None, backend, &files);
        assert_ne!(found, Some(written.clone()), "{backend:?}: the cut takes nothing: no test");
    }
}
