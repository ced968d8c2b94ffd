//! Other snapshotters in hoist's containerd: its own, in the same namespace with the same name, and SOCI's, another proxy
//! plugin.

use super::*;
use crate::harness::process::Daemon;

impl Bench {
    /// A container starts on the image with a snapshotter.
    fn starts(&self, snapshotter: &str, image: &str, name: &str) {
        let release =
            self.containerd.run(snapshotter, image, name, &["cat", "/etc/debian_version"]);
        assert!(release.starts_with("12."), "{release:?} with {snapshotter}");
    }

    /// What a snapshotter of containerd has in the namespace of the tests, without the heading.
    fn snapshots(&self, snapshotter: &str) -> Vec<String> {
        let list =
            self.containerd.ctr(NAMESPACE, &["snapshot", "--snapshotter", snapshotter, "ls"]);
        list.lines().skip(1).map(str::to_owned).collect()
    }
}

/// The image is one, and has snapshots with each: those of the one are no hindrance to the other.
#[test]
fn the_same_name_in_one_namespace_is_pulled_with_overlayfs_and_with_hoist() {
    let Some(bench) = bench(Generation::Two, "one name, two snapshotters") else { return };
    let image = bench.house.registry.image("odd:zstd");
    bench.containerd.pull_into("overlayfs", NAMESPACE, &image);
    assert_eq!(bench.hoistd.stored(), Vec::<PathBuf>::new());
    bench.containerd.pull(&image);
    assert!(bench.hoistd.trees() > 0, "hoistd was not asked: {}", bench.hoistd.log());
    bench.starts("overlayfs", &image, "one");
    bench.starts("hoist", &image, "two");
    bench.remove(&image);
    let gone = || bench.snapshots("overlayfs").is_empty();
    eventually("overlayfs's snapshots are gone too", gone, || bench.state());

    // The other way round: the blobs that overlayfs is unpacked from are not there until it is pulled.
    bench.containerd.pull(&image);
    bench.assert_not_downloaded(&image);
    let name = bench.containerd.container("three");
    let run = ["run", "--rm", "--snapshotter", "overlayfs", &image, &name, "true"];
    let told = bench.containerd.refuses(NAMESPACE, &run);
    assert!(told.contains("not found"), "{told}");
    bench.containerd.pull_into("overlayfs", NAMESPACE, &image);
    bench.starts("overlayfs", &image, "four");
}

/// SOCI's snapshotter with all of it below `home`, and the lines that make containerd know it; `None`, said loudly, where
/// it cannot be had.
fn soci(home: &Path, test: &str) -> Option<(Daemon, String)> {
    let program = prepare("soci").map(|bed| bed.join("soci/bin/soci-snapshotter-grpc"));
    let Some(program) = program.filter(|program| program.exists()) else {
        skipped(test, "no SOCI snapshotter could be had from Debian 13 (see above)");
        return None;
    };
    std::fs::create_dir_all(home).expect("the scratch directory is writable");
    let socket = home.join("soci.sock");
    let settings = home.join("soci.toml");
    std::fs::write(&settings, "").expect("the scratch directory is writable");
    let mut command = Command::new(program);
    command.arg("--address").arg(&socket).arg("--root").arg(home.join("root"));
    command.arg("--config").arg(&settings);
    let mut daemon = Daemon::start("SOCI", &command, &home.join("soci.log"));
    daemon.wait_for(|| std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let lines = format!(
        "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n\
         platform = \"linux/amd64\"\nsnapshotter = \"soci\"\ndiffer = \"walking\"\n\
         [proxy_plugins.soci]\ntype = \"snapshot\"\naddress = \"{}\"\n",
        socket.display()
    );
    Some((daemon, lines))
}

/// Each goes on where the other is not there.
#[test]
fn another_proxy_snapshotter_has_the_same_image_beside_hoist() {
    let test = "SOCI beside hoist";
    let Some(house) = House::open(test) else { return };
    let Some((mut soci, lines)) = soci(&house.scratch.path().join("s"), test) else { return };
    let hoistd = house.hoistd("");
    let Some(containerd) = house.containerd_beside(&lines, &hoistd, test) else { return };
    let mut bench = Bench { containerd, hoistd, house };
    let image = bench.house.registry.image("odd:zstd");
    bench.containerd.pull_into("soci", NAMESPACE, &image);
    assert_eq!(bench.hoistd.stored(), Vec::<PathBuf>::new());
    bench.containerd.pull(&image);
    assert!(bench.hoistd.trees() > 0, "hoistd was not asked: {}", bench.hoistd.log());
    bench.hoistd.crash();
    bench.starts("soci", &image, "one");
    bench.hoistd.start_again();
    bench.wait_for_hoistd();
    soci.crash();
    bench.starts("hoist", &image, "two");
}
