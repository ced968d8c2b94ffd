//! This machine: hoistd and its sockets, the kernel, the disk, the clock.

use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::statfs;

use super::Check;
use crate::cli::remote;
use crate::config::{Backend, Config, MinFree};
use crate::control::{InfoRequest, InfoResponse};
use crate::sys::clock;
use crate::sys::images::{file_systems_known, is_known};
use crate::sys::space::Space;
use crate::timeline::figures::{bytes, rate};

/// What is written to measure the disk: enough to leave its cache of small writes, not long on a slow one.
const DISK_TEST_BYTES: usize = 64 << 20;

/// Slower than the smallest general purpose volume (125 MB/s), with some room.
const DISK_SLOW_BYTES_PER_SECOND: f64 = 80e6;

/// Less free than this, beside what has to stay free, holds no large image more.
const DISK_TIGHT_BYTES: u64 = 5_000_000_000;

pub(super) async fn checks(checks: &mut Vec<Check>, config: &Config, no_disk_test: bool) {
    let (check, info) = hoistd(config).await;
    checks.push(check);
    for (name, path) in [("socket", &config.socket), ("control socket", &config.control_socket)] {
        checks.push(socket(name, path));
    }
    if let Some(info) = info {
        checks.push(labels(&info));
    }
    let kernel_has = file_systems_known();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    checks.push(kernel(config.pull.backend, &kernel_has, release.trim()));
    let root = nearest(&config.root);
    checks.push(file_system(&config.root, root));
    checks.push(space(root, config.limits.min_free));
    if !no_disk_test {
        let root = root.to_owned();
        let measured = tokio::task::spawn_blocking(move || disk(&root)).await;
        checks.extend(measured.ok());
    }
    checks.push(time(clock::is_synchronised()));
}

async fn hoistd(config: &Config) -> (Check, Option<InfoResponse>) {
    const NAME: &str = "hoistd";
    let answer = async {
        let mut client = remote::connect(&config.control_socket).await?;
        client.info(InfoRequest {}).await.map_err(|status| remote::told(&status))
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), answer).await;
    let start =
        "start it: systemctl enable --now hoistd; journalctl -u hoistd says why it does not";
    let info = match answer {
        Ok(Ok(info)) => info.into_inner(),
        Ok(Err(error)) => {
            let refused = error.to_string().contains("Permission denied");
            let fix = if refused {
                "run hoist doctor as root: hoistd answers to nobody else"
            } else {
                start
            };
            return (Check::wrong(NAME, error.to_string(), fix), None);
        }
        Err(_) => return (Check::wrong(NAME, "no answer for 10 s", start), None),
    };
    (same(&info, &config.root), Some(info))
}

/// Whether what runs is what is installed and configured.
fn same(info: &InfoResponse, root: &Path) -> Check {
    const NAME: &str = "hoistd";
    let own = env!("CARGO_PKG_VERSION");
    let found = format!("version {} answers, root {}", info.version, info.root);
    if info.version != own {
        let fix = format!("this hoist is {own}: systemctl restart hoistd after an upgrade of both");
        Check::warning(NAME, found, fix)
    } else if Path::new(&info.root) == root {
        Check::ok(NAME, found)
    } else {
        let fix = format!("hoist.toml says root = {root:?}: restart hoistd");
        Check::warning(NAME, found, fix)
    }
}

fn socket(name: &'static str, path: &Path) -> Check {
    let shown = path.display();
    let restart = "restart hoistd, which makes it anew";
    match std::fs::symlink_metadata(path) {
        Err(error) => Check::wrong(name, format!("{shown}: {error}"), restart),
        Ok(found) if !found.file_type().is_socket() => Check::wrong(
            name,
            format!("{shown} is no socket"),
            format!("rm {shown}; then {restart}"),
        ),
        Ok(found) if found.mode() & 0o077 != 0 => Check::wrong(
            name,
            format!(
                "{shown} has mode {:04o}: others than root could mount as root",
                found.mode() & 0o7777
            ),
            format!("chmod 0600 {shown}"),
        ),
        Ok(found) if found.uid() != 0 => Check::wrong(
            name,
            format!("{shown} belongs to user {}", found.uid()),
            format!("chown root {shown}"),
        ),
        Ok(_) => Check::ok(name, format!("{shown}, mode 0600")),
    }
}

/// Whether containerd says which image and layer a Prepare is for.
fn labels(info: &InfoResponse) -> Check {
    const NAME: &str = "labels of pulls";
    match (info.provided, info.unlabelled) {
        (0, 0) => Check::ok(NAME, "hoistd has not been asked for a layer since it was started"),
        (provided, 0) => Check::ok(NAME, format!("they arrive: {provided} layers provided")),
        (provided, unlabelled) => Check::warning(
            NAME,
            format!(
                "{unlabelled} layers were asked for without them and left to containerd, {provided} provided"
            ),
            "see the checks of containerd's configuration; `ctr image pull` of containerd 1.x sends none, CRI does",
        ),
    }
}

/// What the kernel of this `release` can do; `known` is its `/proc/filesystems`.
fn kernel(backend: Backend, known: &str, release: &str) -> Check {
    const NAME: &str = "kernel";
    let has = |name: &str| is_known(known, name);
    if backend == Backend::Erofs && !has("erofs") {
        Check::wrong(
            NAME,
            format!(
                "{release} does not know erofs now, and hoist.toml says pull.backend = \"erofs\""
            ),
            "modprobe erofs; and a line `erofs` in /etc/modules-load.d/hoist.conf; or pull.backend = \"auto\"",
        )
    } else if has("overlay") {
        let erofs = if has("erofs") { ", erofs" } else { "" };
        Check::ok(NAME, format!("{release} with overlay{erofs}"))
    } else {
        Check::wrong(
            NAME,
            format!("{release} does not know overlay now"),
            "modprobe overlay; and a line `overlay` in /etc/modules-load.d/hoist.conf",
        )
    }
}

/// The path, or what there is of it.
fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn file_system(root: &Path, there: &Path) -> Check {
    const NAME: &str = "file system of the root";
    let fix = format!(
        "put it on ext4 or xfs: mount one at {0}, or set root in hoist.toml",
        root.display()
    );
    let kind = match statfs::statfs(there) {
        Ok(found) => found.filesystem_type(),
        Err(error) => return Check::wrong(NAME, format!("{}: {error}", there.display()), fix),
    };
    let known = [
        (statfs::EXT4_SUPER_MAGIC, "ext4"),
        (statfs::XFS_SUPER_MAGIC, "xfs"),
        (statfs::BTRFS_SUPER_MAGIC, "btrfs"),
        (statfs::TMPFS_MAGIC, "tmpfs"),
        (statfs::OVERLAYFS_SUPER_MAGIC, "overlay"),
        (statfs::NFS_SUPER_MAGIC, "nfs"),
    ];
    let name = known.iter().find(|(magic, _)| *magic == kind).map_or("another", |(_, name)| name);
    holds_layers(name, there, fix)
}

fn holds_layers(file_system: &str, there: &Path, fix: String) -> Check {
    const NAME: &str = "file system of the root";
    let found = format!("{} is on {file_system}", there.display());
    match file_system {
        "ext4" | "xfs" | "btrfs" => Check::ok(NAME, found),
        "tmpfs" => Check::warning(NAME, format!("{found}: layers take memory"), fix),
        "overlay" | "nfs" => Check::wrong(
            NAME,
            format!("{found}, which overlay does not take as an upper layer"),
            fix,
        ),
        _ => Check::warning(NAME, found, fix),
    }
}

fn space(there: &Path, min_free: MinFree) -> Check {
    const NAME: &str = "disk space";
    match Space::of(there) {
        Ok(found) => room(found, min_free.bytes(found.size_bytes)),
        Err(error) => Check::wrong(NAME, error.to_string(), "see df"),
    }
}

fn room(found: Space, min_free: u64) -> Check {
    const NAME: &str = "disk space";
    let Space { size_bytes, available_bytes: free } = found;
    let told = format!("{} free of {}", bytes(free), bytes(size_bytes));
    if free < min_free {
        Check::wrong(
            NAME,
            format!("{told}: pulls are refused, as {} have to stay free", bytes(min_free)),
            "remove images, give the root a larger volume, or lower limits.min_free in hoist.toml",
        )
    } else if free < min_free + DISK_TIGHT_BYTES {
        let told = format!("{told}, of which {} have to stay free", bytes(min_free));
        Check::warning(NAME, told, "remove images, or give the root a larger volume")
    } else {
        Check::ok(NAME, told)
    }
}

/// How fast the root's disk takes a file, synced.
fn disk(there: &Path) -> Check {
    let path = there.join(format!(".hoist-doctor.{}", std::process::id()));
    let measured = write(&path);
    // It may not have been made.
    let _ = std::fs::remove_file(&path);
    quick(measured, there)
}

/// Whether [`DISK_TEST_BYTES`] in so many seconds are quick enough.
fn quick(measured: std::io::Result<f64>, there: &Path) -> Check {
    const NAME: &str = "disk rate";
    match measured {
        Err(error) => Check::warning(
            NAME,
            format!("could not be measured in {}: {error}", there.display()),
            "run hoist doctor as root, or with --no-disk-test",
        ),
        Ok(seconds) => {
            let found = format!("{} written and synced", rate(DISK_TEST_BYTES as u64, seconds));
            #[allow(clippy::cast_precision_loss, reason = "some megabytes")]
            if (DISK_TEST_BYTES as f64) < seconds * DISK_SLOW_BYTES_PER_SECOND {
                let fix = "pulls will wait for it: instance store, or a volume with more throughput and IOPS";
                Check::warning(NAME, found, fix)
            } else {
                Check::ok(NAME, found)
            }
        }
    }
}

fn write(path: &Path) -> std::io::Result<f64> {
    let began = Instant::now();
    let mut file = std::fs::File::options().write(true).create_new(true).open(path)?;
    // Not zeros, which some file systems do not write.
    let piece: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    for _ in 0..DISK_TEST_BYTES / piece.len() {
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    Ok(began.elapsed().as_secs_f64())
}

fn time(synchronised: Option<bool>) -> Check {
    const NAME: &str = "clock";
    let fix = "enable chronyd or systemd-timesyncd: tokens and certificates have times";
    match synchronised {
        Some(true) => Check::ok(NAME, "the kernel says that it is kept right"),
        Some(false) => Check::warning(NAME, "nothing keeps it right", fix),
        None => Check::warning(NAME, "the kernel does not tell whether it is kept right", fix),
    }
}

#[cfg(test)]
mod tests;
