//! The unit under a real systemd: readiness, order, the sandbox while layers of every kind are unpacked in it, and what a
//! restart leaves alone.

mod harness;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use harness::House;
use harness::containerd::eventually;
use harness::machine::Machine;

/// As `/proc/PID/status` writes CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SYS_ADMIN, MKNOD and SETFCAP.
const CAPABILITIES: &str = "000000008820001b";

#[test]
fn a_pull_in_the_sandbox_and_a_restart_under_a_container() {
    let test = "the unit under systemd";
    let Some(house) = House::open(test) else { return };
    let Some(root) = house.debian(test) else { return };
    // Not "auto": where the machine around shares its mounts with this one, it cannot tell who sees them.
    configure(&root.join("etc/hoist/hoist.toml"), "auto", "erofs");
    let Some(machine) = house.boot(root, test) else { return };
    started_before_containerd(&machine);
    bounded(&machine);

    let image = house.registry.image("odd:gzip");
    harness::cri::pull(&machine.path("/run/containerd/containerd.sock"), &image)
        .unwrap_or_else(|error| panic!("{error}\n{}", machine.journal()));
    let pulls = machine.must("hoist pulls --json");
    assert!(pulls.contains(&image) && pulls.contains("\"done\""), "hoist did not pull it: {pulls}");
    layers_are_whole(&machine);
    let images = || machine.mounts().lines().filter(|line| line.contains(" - erofs ")).count();
    assert_eq!(images(), 3, "the machine sees them: {}", machine.mounts());

    let ctr = "ctr -n k8s.io";
    machine.must(&format!("{ctr} run -d --snapshotter hoist {image} first sleep 600"));
    // containerd mounted it, and not inside of hoistd's namespace: all of the machine sees it.
    assert!(machine.mounts().contains("lowerdir=/var/lib/hoist/trees/"), "{}", machine.mounts());
    let within = |id: &str, script: &str| {
        machine.must(&format!("{ctr} task exec --exec-id {id} first sh -c '{script}'"))
    };
    within("a", "echo kept >/tmp/kept");
    for (id, how) in [("b", "systemctl restart hoistd"), ("c", "kill -9 $(pidof hoistd)")] {
        let before = machine.property("hoistd", "MainPID");
        machine.must(how);
        let back = || {
            let now = machine.property("hoistd", "MainPID");
            now != before && now != "0" && machine.property("hoistd", "ActiveState") == "active"
        };
        eventually("hoistd is back", back, || machine.journal());
        assert_eq!(
            within(id, "cat /tmp/kept; tail -n 1 /etc/passwd | wc -l"),
            "kept\n1\n",
            "{how}"
        );
        runs(&machine, &image, id);
    }
    assert_eq!(machine.property("hoistd", "NRestarts"), "1", "the kill, not the restart");
    reloads_and_refuses(&machine);
    sandboxed(&machine);
    runs(&machine, &image, "e");
    machine.must("systemctl stop hoistd");
    assert_eq!(machine.property("hoistd", "Result"), "success", "{}", machine.journal());
    assert_eq!(images(), 3, "containers stand on them");
    within("d", "true");
}

/// A new container runs, soon: containerd waits some seconds before it connects again (gRPC's backoff), and fails calls
/// meanwhile.
fn runs(machine: &Machine, image: &str, id: &str) {
    let run = format!("ctr -n k8s.io run --rm --snapshotter hoist {image} {id} true");
    let started = || machine.inside(&run).status.success();
    eventually("a new container", started, || machine.journal());
}

/// Sets the backend in a configuration.
fn configure(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).expect("it was installed");
    let changed = text.replace(&format!("backend = \"{from}\""), &format!("backend = \"{to}\""));
    assert_ne!(text, changed);
    std::fs::write(file, changed).expect("the scratch directory is writable");
}

/// Its word is what systemd waited for, and containerd for systemd.
fn started_before_containerd(machine: &Machine) {
    assert_eq!(machine.property("hoistd", "ActiveState"), "active", "{}", machine.journal());
    let time = |unit: &str, name: &str| -> u64 {
        let value = machine.property(unit, name);
        value.parse().unwrap_or_else(|_| panic!("{unit} has no {name}: {value}"))
    };
    let ready = time("hoistd", "ActiveEnterTimestampMonotonic");
    let containerd = time("containerd", "ExecMainStartTimestampMonotonic");
    assert!(0 < ready && ready <= containerd, "containerd did not wait: {ready} {containerd}");
    let mode = |path: &str| {
        let found = std::fs::metadata(machine.path(path));
        found.unwrap_or_else(|error| panic!("{path}: {error}")).permissions().mode() & 0o7777
    };
    assert_eq!(mode("/run/hoist"), 0o700);
    assert_eq!(mode("/run/hoist/hoist.sock"), 0o600);
    assert_eq!(mode("/var/lib/hoist"), 0o711);
}

/// The directives are in force, not only in the file.
fn bounded(machine: &Machine) {
    let status = machine.must("cat /proc/$(pidof hoistd)/status");
    for (field, value) in [("CapBnd", CAPABILITIES), ("NoNewPrivs", "1"), ("Seccomp", "2")] {
        let line = format!("{field}:\t{value}");
        assert!(status.lines().any(|found| found == line), "{line} is not in\n{status}");
    }
}

/// With the drop-in for hosts that want files: nothing but the state can be written, and "auto" knows why it takes files.
fn sandboxed(machine: &Machine) {
    let unit = "/etc/systemd/system/hoistd.service.d";
    let place = machine.root.join(unit.trim_start_matches('/'));
    std::fs::create_dir_all(&place).expect("the scratch directory is writable");
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let drop_in = checkout.join("systemd/hoistd.service.d/sandbox.conf");
    std::fs::copy(drop_in, place.join("sandbox.conf")).expect("it is part of the checkout");
    configure(&machine.root.join("etc/hoist/hoist.toml"), "erofs", "auto");
    machine.must("systemctl daemon-reload; systemctl restart hoistd");
    let log = machine.must("journalctl -u hoistd --no-pager -o cat");
    let told = log.lines().rfind(|line| line.contains("layers become")).unwrap_or_default();
    assert!(told.contains("overlay") && told.contains("mount name space"), "{told}");
    let inside =
        |command: &str| machine.inside(&format!("nsenter -m -t $(pidof hoistd) {command}"));
    for place in ["/etc/x", "/usr/bin/x", "/root/x", "/var/lib/x"] {
        let told = String::from_utf8_lossy(&inside(&format!("touch {place}")).stderr).into_owned();
        assert!(told.contains("Read-only file system"), "{place}: {told}");
    }
    assert!(inside("touch /var/lib/hoist/x").status.success());
    machine.must("rm /var/lib/hoist/x");
}

/// What takes each of the capabilities is in the layers as it should be.
fn layers_are_whole(machine: &Machine) {
    let trees = machine.path("/var/lib/hoist/trees");
    let trees: Vec<_> = std::fs::read_dir(&trees).expect("hoistd made it").flatten().collect();
    assert_eq!(trees.len(), 3, "Debian, the lower and the upper layer");
    let upper = trees
        .iter()
        .map(|tree| tree.path().join("fs/odd"))
        .find(|path| path.join("kinds").exists());
    let upper = upper.expect("one tree is the upper layer's");
    let stat = |name: &str| {
        let path = upper.join(name);
        path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    assert_eq!(stat("kinds/block").rdev(), nix::sys::stat::makedev(259, 4711));
    assert_eq!(stat("gone").rdev(), 0, "a whiteout");
    assert_eq!(stat("metadata/setuid").mode() & 0o7777, 0o4755);
    assert_eq!(stat("metadata/big-owner").gid(), 4_000_000_000);
    assert_eq!(stat("metadata/exact-time").mtime_nsec(), 123_456_789);
    let attribute = |name: &str, key: &str| {
        let mut value = [0; 64];
        let length = rustix::fs::lgetxattr(upper.join(name), key, &mut value);
        length.unwrap_or_else(|error| panic!("{key} of {name}: {error}"))
    };
    assert_eq!(attribute("metadata/capability", "security.capability"), 20);
    assert_eq!(attribute("opaque", "trusted.overlay.opaque"), 1);
}

/// A reload is answered, and a wrong configuration stops with its mistakes in the journal, not in a loop.
fn reloads_and_refuses(machine: &Machine) {
    machine.must("systemctl reload hoistd");
    assert_eq!(machine.property("hoistd", "ActiveState"), "active");
    machine.must(
        "cp /etc/hoist/hoist.toml /etc/hoist/right; echo 'rooot = 1' >>/etc/hoist/hoist.toml",
    );
    assert!(!machine.inside("systemctl restart hoistd").status.success());
    let rests = || machine.property("hoistd", "ActiveState") == "failed";
    eventually("systemd gives up", rests, || machine.journal());
    assert!(machine.journal().contains("rooot"), "{}", machine.journal());
    machine.must("mv /etc/hoist/right /etc/hoist/hoist.toml; systemctl reset-failed hoistd; systemctl start hoistd");
    assert_eq!(machine.property("hoistd", "ActiveState"), "active", "{}", machine.journal());
}
