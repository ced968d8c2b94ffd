//! A root that is nearly full: a small file system of its own, filled up by somebody else.

use super::*;

const MIB: u64 = 1 << 20;

/// Room for the image, which unpacks to some 400 MB, and not for much more.
const ROOT_BYTES: u64 = 900 * MIB;

/// Mounts a new ext4 where the root of the house's hoistd will be. The house unmounts it.
fn mount_root(house: &House) {
    let (file, root) = (house.scratch.path().join("root.img"), house.scratch.path().join("h/root"));
    std::fs::create_dir_all(&root).expect("there is room for it");
    std::fs::File::create(&file)
        .expect("there is room for it")
        .set_len(ROOT_BYTES)
        .expect("there is room for it");
    must(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&file));
    must(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&root));
}

impl Bench {
    fn free(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(&self.hoistd.root()).expect("it is mounted");
        found.blocks_available() * found.fragment_size()
    }

    fn ballast(&self) -> PathBuf {
        self.hoistd.root().join("ballast")
    }

    /// Fills the root until so many bytes are free.
    fn leave(&self, bytes: u64) {
        let file = std::fs::File::create(self.ballast()).expect("there is room for it");
        let length = self.free().checked_sub(bytes).expect("so much is free");
        let length = i64::try_from(length).expect("it is small");
        nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, length)
            .expect("there is room for it");
    }

    fn try_to_pull(&self, image: &str) -> Result<(), String> {
        self.containerd.begin_pull(image).join().expect("the pulling thread does not panic")
    }

    /// A pull that fails for want of room: says so, and leaves nothing.
    fn has_no_room_for(&self, image: &str, says: &[&str]) {
        let (free, told) = (self.free(), self.hoistd.log().len());
        self.try_to_pull(image).expect_err("there is no room");
        // containerd shortens what it is told; the log has it whole.
        let log = self.hoistd.log()[told..].to_owned();
        for word in says {
            assert!(log.contains(word), "{word} is not in {log}");
        }
        assert!(!log.contains("containerd pulls this layer itself"), "{log}");
        // Staged trees are removed in the background, and published ones when nobody counts on them any more.
        let clean = || self.hoistd.stored().is_empty() && self.free() + 4 * MIB >= free;
        eventually("nothing is left of the pull", clean, || self.state());
    }

    /// The same pull once there is room: the failure before it is remembered for some seconds.
    fn has_room_for(&self, image: &str) {
        std::fs::remove_file(self.ballast()).expect("it was made");
        let pulled = || self.try_to_pull(image).is_ok();
        eventually("the pull succeeds with room", pulled, || self.state());
        assert!(self.hoistd.trees() > 0, "hoist pulled it, and not containerd");
        self.assert_not_downloaded(image);
        self.remove(image);
    }
}

fn nearly_full(backend: &str, min_free: &str) -> Option<Bench> {
    let test = "a root that is nearly full";
    let house = House::open(test)?;
    mount_root(&house);
    let hoistd = house.hoistd(&format!(
        "[limits]\nmin_free = \"{min_free}\"\n[pull]\nbackend = \"{backend}\"\non_error = \"fallback\"\n"
    ));
    let containerd = house.containerd(Generation::Two, &hoistd, test)?;
    Some(Bench { containerd, hoistd, house })
}

#[test]
fn a_pull_leaves_free_what_has_to_stay_free() {
    for backend in ["overlay", "auto"] {
        let Some(bench) = nearly_full(backend, "100MiB") else { return };
        let image = bench.house.registry.image("python:zstd");
        bench.leave(160 * MIB);
        bench.has_no_room_for(&image, &["have to stay free (limits.min_free)", "needs at least"]);
        bench.has_room_for(&image);
        bench.leave(350 * MIB);
        // It is known by now what the image takes; somebody who pulls it for the first time is stopped.
        bench.has_no_room_for(&image, &["have to stay free (limits.min_free)", "needs at least"]);
        bench.has_room_for(&image);
    }
}

#[test]
fn a_pull_that_needs_more_than_was_known_is_stopped() {
    for backend in ["overlay", "auto"] {
        let Some(bench) = nearly_full(backend, "100MiB") else { return };
        let image = bench.house.registry.image("python:zstd");
        bench.leave(350 * MIB);
        bench.has_no_room_for(&image, &["have to stay free (limits.min_free)", "needs more than"]);
        bench.has_room_for(&image);
    }
}

#[test]
fn a_disk_that_is_full_to_the_last_block_is_told_and_got_over() {
    for backend in ["overlay", "auto"] {
        let Some(bench) = nearly_full(backend, "0B") else { return };
        let image = bench.house.registry.image("python:zstd");
        bench.leave(250 * MIB);
        bench.has_no_room_for(&image, &["No space left on device", "pull again"]);
        bench.has_room_for(&image);
    }
}
