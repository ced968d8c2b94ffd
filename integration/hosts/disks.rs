//! hoistd's root on an instance's own disks: loop devices under udev's names for them.

use std::path::{Path, PathBuf};

use super::*;
use harness::{Scratch, skipped};

/// Large enough for an ext4.
const DISK_BYTES: u64 = 32 << 20;

/// Joins nothing, since the kernels that tests run on have no md: notes how it was called, and gives another loop device
/// the name of the array.
const MDADM: &str = "#!/bin/sh\necho \"$*\" >>@HOME@/mdadm\ncase $1 in --create) mkdir -p /dev/md; ln -s @ARRAY@ /dev/md/hoist ;; esac\n";

/// Where the script runs: a mount namespace with a /dev of its own, which has our loop devices and no others.
struct Instance {
    home: PathBuf,
    disks: Vec<String>,
    array: String,
}

impl Drop for Instance {
    fn drop(&mut self) {
        for device in self.disks.iter().chain([&self.array]) {
            let _ = Command::new("losetup").args(["--detach", device]).output();
        }
    }
}

fn disk(file: &Path) -> Option<String> {
    std::fs::File::create(file).unwrap().set_len(DISK_BYTES).unwrap();
    let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output().unwrap();
    made.status.success().then(|| String::from_utf8_lossy(&made.stdout).trim().to_owned())
}

impl Instance {
    /// With so many disks; `None`, said loudly, where there are no loop devices.
    fn new(scratch: &Scratch, count: usize) -> Option<Self> {
        let home = scratch.path().join(format!("disks-{count}"));
        std::fs::create_dir_all(home.join("by-id")).unwrap();
        std::fs::create_dir_all(home.join("root")).unwrap();
        let devices = (0..=count).map(|number| disk(&home.join(format!("disk-{number}"))));
        let devices: Option<Vec<_>> = devices.collect();
        let Some(mut disks) = devices else {
            skipped("an instance's own disks", "no loop device can be had");
            return None;
        };
        let array = disks.pop().unwrap();
        let name =
            |number: usize| format!("by-id/nvme-Amazon_EC2_NVMe_Instance_Storage_AWS{number}");
        for (number, disk) in disks.iter().enumerate() {
            // Each has two names, and the volume of the root another.
            for name in [name(number), name(number) + "_1"] {
                std::os::unix::fs::symlink(disk, home.join(name)).unwrap();
            }
        }
        let volume = home.join("by-id/nvme-Amazon_Elastic_Block_Store_vol1");
        std::os::unix::fs::symlink(&array, volume).unwrap();
        let mdadm = MDADM.replace("@HOME@", &home.display().to_string()).replace("@ARRAY@", &array);
        let this = Self { home, disks, array };
        std::fs::write(this.home.join("mdadm.sh"), mdadm).unwrap();
        Some(this)
    }

    /// Runs the script and then `then`, with `$root`, as at a boot: nothing is mounted before, nothing after.
    fn boots(&self, then: &str) -> (bool, String) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hosts/instance-store.sh");
        let home = self.home.display();
        let devices =
            self.disks.iter().chain([&self.array]).map(String::as_str).collect::<Vec<_>>();
        let inside = format!(
            "set -e; mount --make-rprivate /; mkdir -p {home}/dev {home}/bin; mount -t tmpfs none {home}/dev\n\
             cp -a /dev/null /dev/fd {} {home}/dev; mount --bind {home}/dev /dev\n\
             cp {home}/mdadm.sh {home}/bin/mdadm; chmod +x {home}/bin/mdadm; PATH={home}/bin:$PATH root={home}/root\n\
             export BLKID_FILE=/dev/null; run() {{ bash {} {home}/by-id $root; }}; run; {then}",
            devices.join(" "),
            script.display()
        );
        let output =
            Command::new("unshare").args(["--mount", "bash", "-c", &inside]).output().unwrap();
        (output.status.success(), text(&output))
    }

    fn must(&self, then: &str) -> String {
        let (done, said) = self.boots(then);
        assert!(done, "{said}");
        said
    }
}

const MOUNTED: &str = "findmnt --noheadings --output SOURCE,FSTYPE $root; stat --format=%a $root";

#[test]
fn instance_store_is_the_root_and_keeps_its_data() {
    let test = "hoistd's root on an instance's own disks";
    let Some(house) = House::open(test) else { return };
    let Some(none) = Instance::new(&house.scratch, 0) else { return };
    let said = none.must("! mountpoint --quiet $root && echo nothing");
    assert!(said.contains("no disks of its own") && said.contains("nothing"), "{said}");

    for count in [1, 2] {
        let Some(instance) = Instance::new(&house.scratch, count) else { return };
        let volume = if count == 1 { &instance.disks[0] } else { &instance.array };
        let mounted = format!("{volume} ext4");
        let said = instance.must(&format!("{MOUNTED}; echo kept >$root/kept; run; cat $root/kept"));
        assert_eq!(
            said.lines().rev().take(3).collect::<Vec<_>>(),
            ["kept", "711", mounted.as_str()],
            "{said}"
        );
        // After a reboot: nothing is mounted, and an array is there under another name.
        let said = instance.must(&format!("{MOUNTED}; cat $root/kept"));
        assert!(said.contains(volume.as_str()) && said.ends_with("kept\n"), "{said}");
        let called = std::fs::read_to_string(instance.home.join("mdadm")).unwrap_or_default();
        let created: Vec<_> = called.lines().filter(|line| line.starts_with("--create")).collect();
        if count == 1 {
            assert_eq!(called, "");
        } else {
            let disks = instance.disks.join(" ");
            assert_eq!(
                created,
                [format!("--create /dev/md/hoist --level=0 --raid-devices=2 --run {disks}")]
            );
        }
    }
}

#[test]
fn instance_store_that_others_use_is_left_alone() {
    let test = "an instance's disks that others use";
    let Some(house) = House::open(test) else { return };
    let Some(instance) = Instance::new(&house.scratch, 2) else { return };
    must(Command::new("mkfs.ext4").args(["-q", "-L", "theirs", &instance.disks[1]]));
    let said = instance.must("! mountpoint --quiet $root && echo nothing");
    assert!(said.contains("not hoist's") && said.contains("nothing"), "{said}");
    let called = std::fs::read_to_string(instance.home.join("mdadm")).unwrap();
    assert!(!called.contains("--create"), "{called}");
    let label = must(Command::new("blkid").args([
        "--probe",
        "--output",
        "value",
        "--match-tag",
        "LABEL",
        &instance.disks[1],
    ]));
    assert_eq!(label.trim(), "theirs");
}
