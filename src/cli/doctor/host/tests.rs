//! Each check with what breaks it, and the way out that it tells. Kernels, disks and clocks that are not right cannot be
//! had on every machine: there the answer of the system is made, and the checks are the real ones.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use super::super::Verdict;
use super::*;

/// It found nothing wrong, and has nothing to say about it.
fn is_well(check: &Check) {
    assert_eq!((check.verdict, check.fix.as_deref()), (Verdict::Ok, None), "{check:?}");
}

/// It found what these words say, and the way out has these.
fn finds(check: &Check, verdict: Verdict, found: &str, fix: &str) {
    assert_eq!(check.verdict, verdict, "{check:?}");
    assert!(check.found.contains(found), "{check:?}");
    assert!(check.fix.as_ref().is_some_and(|told| told.contains(fix)), "{check:?}");
}

const KERNEL: &str = "nodev\tsysfs\nnodev\toverlay\n\text4\n\terofs\n";

#[test]
fn a_kernel_without_erofs_is_wrong_for_images_only() {
    for backend in [Backend::Erofs, Backend::Overlay, Backend::Auto] {
        let check = kernel(backend, KERNEL, "6.18.0");
        is_well(&check);
        assert_eq!(check.found, "6.18.0 with overlay, erofs");
    }
    // A name that ends like it is another file system.
    let without = KERNEL.replace("erofs", "noterofs");
    let check = kernel(Backend::Erofs, &without, "5.4.0");
    finds(&check, Verdict::Wrong, "5.4.0 does not know erofs", "modprobe erofs");
    finds(&check, Verdict::Wrong, "pull.backend = \"erofs\"", "pull.backend = \"auto\"");
    for backend in [Backend::Overlay, Backend::Auto] {
        is_well(&kernel(backend, &without, "5.4.0"));
    }
}

#[test]
fn a_kernel_without_overlay_is_wrong() {
    let without = KERNEL.replace("overlay", "other");
    for backend in [Backend::Erofs, Backend::Overlay, Backend::Auto] {
        let check = kernel(backend, &without, "6.18.0");
        finds(&check, Verdict::Wrong, "does not know overlay", "modprobe overlay");
    }
}

#[test]
fn a_socket_is_one_and_is_roots_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hoist.sock");
    finds(&socket("socket", &path), Verdict::Wrong, "No such file", "restart hoistd");
    std::fs::write(&path, "").unwrap();
    finds(&socket("socket", &path), Verdict::Wrong, "is no socket", "rm ");
    std::fs::remove_file(&path).unwrap();
    let _listener = UnixListener::bind(&path).unwrap();
    let mode =
        |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    for open in [0o660, 0o602, 0o601] {
        mode(open);
        finds(&socket("socket", &path), Verdict::Wrong, "could mount as root", "chmod 0600");
    }
    mode(0o600);
    if nix::unistd::geteuid().is_root() {
        is_well(&socket("socket", &path));
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
    }
    finds(&socket("socket", &path), Verdict::Wrong, "belongs to user", "chown root");
}

#[test]
fn labels_that_do_not_arrive_are_told() {
    let info = |provided, unlabelled| InfoResponse { provided, unlabelled, ..Default::default() };
    is_well(&labels(&info(0, 0)));
    is_well(&labels(&info(7, 0)));
    finds(&labels(&info(0, 3)), Verdict::Warning, "3 layers were asked for without", "CRI does");
}

#[test]
fn a_daemon_that_is_another_is_told() {
    let root = Path::new("/var/lib/hoist");
    let info = |version: &str, root: &str| InfoResponse {
        version: version.to_owned(),
        root: root.to_owned(),
        ..Default::default()
    };
    let own = env!("CARGO_PKG_VERSION");
    is_well(&same(&info(own, "/var/lib/hoist"), root));
    let old = same(&info("0.0.1", "/var/lib/hoist"), root);
    finds(&old, Verdict::Warning, "version 0.0.1", "systemctl restart hoistd");
    let elsewhere = same(&info(own, "/srv"), root);
    finds(&elsewhere, Verdict::Warning, "root /srv", "root = \"/var/lib/hoist\"");
}

#[test]
fn a_file_system_that_overlay_does_not_take_is_wrong() {
    let on = |name| holds_layers(name, Path::new("/there"), "put it on ext4".to_owned());
    for good in ["ext4", "xfs", "btrfs"] {
        is_well(&on(good));
    }
    finds(&on("tmpfs"), Verdict::Warning, "layers take memory", "put it on ext4");
    finds(&on("another"), Verdict::Warning, "on another", "put it on ext4");
    for bad in ["overlay", "nfs"] {
        finds(&on(bad), Verdict::Wrong, "does not take", "put it on ext4");
    }
    // And as the kernel tells it.
    let proc = file_system(Path::new("/var/lib/hoist"), Path::new("/proc"));
    finds(&proc, Verdict::Warning, "/proc is on another", "mount one at /var/lib/hoist");
}

#[test]
fn a_disk_that_is_full_or_slow_is_told() {
    let there = Path::new("/there");
    is_well(&room(Space { size_bytes: 1 << 40, available_bytes: DISK_TIGHT_BYTES + 7 }, 7));
    finds(
        &room(Space { size_bytes: 1 << 40, available_bytes: DISK_TIGHT_BYTES + 6 }, 7),
        Verdict::Warning,
        "5.0 GB free",
        "remove images",
    );
    let full = Space { size_bytes: 1 << 40, available_bytes: 6_000_000_000 };
    finds(
        &room(full, 7_000_000_000),
        Verdict::Wrong,
        "7.0 GB have to stay free",
        "limits.min_free",
    );
    is_well(&quick(Ok(0.8), there));
    let slow = quick(Ok(0.9), there);
    finds(&slow, Verdict::Warning, "74.6 MB/s written and synced", "more throughput");
    let nowhere = disk(Path::new("/nonexistent"));
    finds(&nowhere, Verdict::Warning, "could not be measured in /nonexistent", "--no-disk-test");
}

#[test]
fn a_clock_that_nothing_keeps_right_is_told() {
    is_well(&time(Some(true)));
    finds(&time(Some(false)), Verdict::Warning, "nothing keeps it right", "chronyd");
    finds(&time(None), Verdict::Warning, "does not tell", "systemd-timesyncd");
}
