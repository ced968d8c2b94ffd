//! The package on hosts as people have them: README.md followed word for word on a clean one, and a package's life from its
//! installation to its purge, with a container that runs over all of it.
//!
//! The hosts are small Debians under a systemd of their own, with this machine's network; what they want they take from
//! Debian's archive. The package is made here of the programs that are tested; `HOIST_PACKAGES=DIR` takes the one in DIR.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use harness::containerd::eventually;
use harness::machine::Machine;
use harness::{House, loudly, must};

/// The directory where somebody has put the downloaded package.
const DOWNLOADS: &str = "root";
const CONTAINERD: &str = "/etc/containerd/config.toml";
const DROP_IN: &str = "/etc/containerd/conf.d/hoist.toml";

/// The `.deb`, put where somebody would have downloaded it to.
fn downloaded(root: &Path) -> PathBuf {
    let directory = std::env::var_os("HOIST_PACKAGES").map_or_else(made, PathBuf::from);
    let files = std::fs::read_dir(&directory).unwrap().flatten().map(|file| file.path());
    let package = files.into_iter().find(|file| file.to_string_lossy().ends_with("_amd64.deb"));
    let package = package.unwrap_or_else(|| panic!("no .deb in {}", directory.display()));
    let copy = root.join(DOWNLOADS).join(package.file_name().unwrap());
    std::fs::copy(&package, &copy).unwrap();
    copy
}

/// The `.deb` of this build.
fn made() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| harness::packages("deb")).clone()
}

/// The same package with another version.
fn as_version(package: &Path, version: &str) -> PathBuf {
    let other = package.with_file_name(format!("hoist-as-{version}.deb"));
    let parts = package.with_file_name("parts");
    must(Command::new("dpkg-deb").arg("-R").arg(package).arg(&parts));
    let control = parts.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control).unwrap();
    let before = text.lines().find(|line| line.starts_with("Version: ")).unwrap();
    std::fs::write(&control, text.replace(before, &format!("Version: {version}"))).unwrap();
    let build = ["--root-owner-group", "-Znone", "--build"];
    must(Command::new("dpkg-deb").args(build).arg(&parts).arg(&other));
    std::fs::remove_dir_all(&parts).unwrap();
    other
}

/// The commands that README.md has under "Installing on a host", as they stand there.
fn commands_of_the_readme() -> Vec<String> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"));
    let readme = readme.unwrap();
    let (_, section) = readme.split_once("\n## Installing on a host\n").expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let (_, block) = section.split_once("\n```sh\n").expect("a block of commands in the section");
    let (block, _) = block.split_once("\n```").unwrap();
    block.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

/// What the host has of containerd's configuration; a file that is not there is nothing.
fn configuration(machine: &Machine) -> [Option<Vec<u8>>; 2] {
    [CONTAINERD, DROP_IN].map(|file| std::fs::read(machine.path(file)).ok())
}

#[test]
fn the_readme_is_followed_on_a_clean_host() {
    let test = "README.md on a clean host";
    let Some(house) = House::open(test) else { return };
    let Some(root) = house.clean_debian("forky", test) else { return };
    downloaded(&root);
    let Some(machine) = house.boot_unified(root, test) else { return };
    let image = house.registry.image("python:zstd");
    let began = Instant::now();
    machine.must("apt-get --quiet update");
    let (mut pulled, mut before) = (None, None);
    for command in commands_of_the_readme() {
        let command = command.replace("REGISTRY/IMAGE", &image);
        if command.starts_with("hoist install") {
            before = Some(configuration(&machine));
        }
        let said = machine.typed(&command);
        let seconds = began.elapsed().as_secs_f64();
        loudly(&format!("README.md: after {seconds:.1} s: {command}"));
        if command.contains(&image) {
            pulled = Some(seconds);
        }
        if command.starts_with("hoist pulls") {
            assert!(said.contains("python:zstd") && said.contains("done"), "{said}");
        }
    }
    let pulled = pulled.expect("the section pulls REGISTRY/IMAGE");
    loudly(&format!("README.md: from a clean root to the first pull in {pulled:.0} s"));
    let pulls = machine.must("hoist pulls --json");
    assert!(pulls.contains(&image) && pulls.contains("\"done\""), "hoist did not pull it: {pulls}");
    let blobs = machine.must("ctr content ls").lines().filter(|line| line.contains("MB")).count();
    assert_eq!(blobs, 0, "containerd downloaded layers itself");
    // Its files are used without runc, which wants control groups that this machine may not have in their second version.
    let program = "import numpy; print(int(numpy.arange(1000).sum()))";
    let mount = format!("ctr image mount --snapshotter hoist {image} /mnt >/dev/null");
    let said = machine.must(&format!("{mount}; chroot /mnt /usr/bin/python3 -c '{program}'"));
    assert_eq!(said.trim(), "499500");
    machine.must("ctr image unmount --rm /mnt");
    taken_back(&machine, &before.expect("the section plugs hoist in"));
}

/// `hoist uninstall` leaves the files that were there before `hoist install`, byte for byte, and containerd without hoist.
fn taken_back(machine: &Machine, before: &[Option<Vec<u8>>; 2]) {
    assert_ne!(before, &configuration(machine), "hoist is not plugged in");
    machine.must("hoist uninstall containerd --yes; systemctl restart containerd");
    assert_eq!(before, &configuration(machine));
    assert!(!machine.path(&format!("{CONTAINERD}.before-hoist")).exists(), "the copy is left");
    let plugins = machine.must("ctr plugins ls");
    assert!(plugins.contains("overlayfs") && !plugins.contains("hoist"), "{plugins}");
}

#[test]
fn a_package_lives_under_a_container() {
    let test = "a package's life under a container";
    let Some(house) = House::open(test) else { return };
    let Some(root) = house.clean_debian("bookworm", test) else { return };
    let package = downloaded(&root);
    let next = as_version(&package, "99.0");
    let Some(machine) = house.boot(root, test) else { return };
    let name = |package: &Path| format!("/{DOWNLOADS}/{}", package.file_name().unwrap().display());
    let apt = "DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes";
    machine.must(&format!("{apt} update; {apt} install {}", name(&package)));
    assert_eq!(machine.property("hoistd", "ActiveState"), "active", "{}", machine.journal());

    // containerd 1.6, which tells a snapshotter of images through CRI alone.
    let before = configuration(&machine);
    machine.must("hoist install containerd --yes; systemctl restart containerd");
    let image = house.registry.image("python:gzip");
    harness::cri::pull(&machine.path("/run/containerd/containerd.sock"), &image)
        .unwrap_or_else(|error| panic!("{error}\n{}", machine.journal()));
    let pulls = machine.must("hoist pulls --json");
    assert!(pulls.contains(&image) && pulls.contains("\"done\""), "hoist did not pull it: {pulls}");
    let ctr = "ctr -n k8s.io";
    machine.must(&format!("{ctr} run -d --snapshotter hoist {image} lives sleep 3600"));
    let container = |step: &str, script: &str| {
        machine.must(&format!("{ctr} task exec --exec-id {step} lives sh -c '{script}'"))
    };
    container("begin", "echo kept >/kept");
    let lives = |step: &str| {
        // A file of its own, one of the image that nobody has read yet, and a program with its libraries.
        let said =
            container(step, "cat /kept; tail -n 1 /etc/group | wc -l; python3 -c \"print(6 * 7)\"");
        assert_eq!(said, "kept\n1\n42\n", "{step}");
    };

    for (package, version) in [(&next, "99.0"), (&package, env!("CARGO_PKG_VERSION"))] {
        let pid = machine.property("hoistd", "MainPID");
        machine.must(&format!("{apt} install --allow-downgrades {}", name(package)));
        let installed = machine.must("dpkg-query --showformat '${Version}' --show hoist");
        assert_eq!(installed, version);
        assert_ne!(pid, machine.property("hoistd", "MainPID"), "{version} runs");
        assert_eq!(machine.property("hoistd", "ActiveState"), "active", "{}", machine.journal());
        lives(&format!("on-{version}"));
        let run = format!("{ctr} run --rm --snapshotter hoist {image} new-{version} true");
        let started = || machine.inside(&run).status.success();
        eventually("a new container", started, || machine.journal());
    }
    refuses_a_newer_store(&machine);
    lives("beside-a-newer-store");

    let remove = format!("{apt} remove hoist");
    assert!(!machine.inside(&remove).status.success(), "removed under containerd");
    assert_eq!(machine.property("hoistd", "ActiveState"), "active", "a refusal stops nothing");
    taken_back(&machine, &before);
    machine.must(&remove);
    assert!(machine.path("/etc/hoist/hoist.toml").exists(), "a removal keeps what is set");
    lives("after-the-removal");
    let said = machine.must(&format!("{apt} purge hoist 2>&1"));
    assert!(said.contains("containers still use /var/lib/hoist"), "{said}");
    lives("after-the-purge");
    machine.must(&format!("{ctr} task delete --force lives"));
    purged_once_unused(
        &machine,
        &format!("{apt} install {}", name(&package)),
        &format!("{apt} purge hoist"),
    );
}

/// A downgrade to a hoist that does not know the store's format: it says so, and touches nothing.
fn refuses_a_newer_store(machine: &Machine) {
    machine.must("systemctl stop hoistd");
    let store = machine.root.join("var/lib/hoist/metadata.db");
    let set = |format: i64| {
        let store = rusqlite::Connection::open(&store).unwrap();
        let before = store.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        store.pragma_update(None, "user_version", format).unwrap();
        before
    };
    let format: i64 = set(4711);
    assert!(!machine.inside("systemctl start hoistd").status.success());
    let journal = machine.journal();
    assert!(journal.contains("format 4711") && journal.contains("newer hoist"), "{journal}");
    assert_eq!(set(format), 4711);
    machine.must("systemctl reset-failed hoistd; systemctl start hoistd");
}

/// When the last container has gone, a purge takes everything, mounted images too.
fn purged_once_unused(machine: &Machine, install: &str, purge: &str) {
    let mounts = || machine.mounts().lines().filter(|line| line.contains("/var/lib/hoist")).count();
    machine.must(install);
    assert_ne!(mounts(), 0, "the layers are mounted again");
    machine.must(purge);
    assert_eq!(mounts(), 0, "{}", machine.mounts());
    for left in ["/var/lib/hoist", "/etc/hoist", "/usr/bin/hoistd", "/usr/share/doc/hoist"] {
        assert!(!machine.path(left).exists(), "{left} is left behind");
    }
}
