//! A small Debian under a systemd of its own, booted by systemd-nspawn: what an operator's machine does with our unit.
//!
//! The root is the test bed's, copied; hoist is installed in it as the README says. The network is that of this machine,
//! so that the registry on loopback is there too. Commands are run inside by entering the namespaces of its first process.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::link::Link;
use super::process::Daemon;
use super::{House, must, prepare, skipped};

/// How long systemd may take to answer at all; it takes one second.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);
/// How long a command inside may take.
const COMMAND_SECONDS: &str = "120";

/// A machine whose systemd answers. It is switched off when the value goes.
pub(crate) struct Machine {
    /// Its root, from outside.
    pub(crate) root: PathBuf,
    leader: String,
    groups: Groups,
    _nspawn: Daemon,
    _alone: MutexGuard<'static, ()>,
}

/// One machine at a time: they all have this machine's network, where each hoistd wants the same port.
static ALONE: Mutex<()> = Mutex::new(());

/// Where a machine has its control groups.
enum Groups {
    /// In those of this machine.
    AsHere,
    /// In the unified hierarchy, in a group of this name.
    Own(String),
}

impl House {
    /// A copy of the test bed's Debian with containerd and without hoist; `None`, said loudly, where there is none.
    pub(crate) fn debian_without_hoist(&self, test: &str) -> Option<PathBuf> {
        let Some(bed) = prepare("machine") else {
            skipped(test, "no Debian could be made (see above)");
            return None;
        };
        let root = self.scratch.path().join("root");
        must(Command::new("cp").arg("-a").arg(bed.join("machine/root")).arg(&root));
        Some(root)
    }

    /// The same with hoist installed in it, ready to boot.
    pub(crate) fn debian(&self, test: &str) -> Option<PathBuf> {
        let root = self.debian_without_hoist(test)?;
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
        let place = |from: &Path, to: &str, mode: u32| {
            let to = root.join(to);
            std::fs::create_dir_all(to.parent().expect("a name in a directory")).expect("writable");
            std::fs::copy(from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(mode)).expect("writable");
        };
        place(Path::new(env!("CARGO_BIN_EXE_hoistd")), "usr/bin/hoistd", 0o755);
        place(Path::new(env!("CARGO_BIN_EXE_hoist")), "usr/bin/hoist", 0o755);
        let unit = checkout.join("systemd/hoistd.service");
        place(&unit, "etc/systemd/system/hoistd.service", 0o644);
        place(&checkout.join("config/hoist.toml"), "etc/hoist/hoist.toml", 0o644);
        place(&checkout.join("config/containerd-1.x.toml"), "etc/containerd/config.toml", 0o644);
        must(own(&root, "systemctl").arg("--root").arg(&root).args(["enable", "hoistd"]));
        Some(root)
    }

    /// A copy of a Debian as its installer leaves it: apt, no containerd, no hoist; `None`, said loudly, where there is none.
    pub(crate) fn clean_debian(&self, suite: &str, test: &str) -> Option<PathBuf> {
        let Some(bed) = prepare("clean") else {
            skipped(test, "no clean Debian could be made (see above)");
            return None;
        };
        let root = self.scratch.path().join("root");
        must(Command::new("cp").arg("-a").arg(bed.join("clean").join(suite)).arg(&root));
        Some(root)
    }

    /// Boots the system in `root`; `None`, said loudly, where no systemd can be booted on this machine.
    pub(crate) fn boot(&self, root: PathBuf, test: &str) -> Option<Machine> {
        let nspawn = own(&root, "systemd-nspawn");
        self.start(nspawn, Groups::AsHere, root, test)
    }

    /// The same at the far end of a link, with these directories of this machine in it.
    pub(crate) fn boot_behind(
        &self,
        link: &Link,
        directories: &[PathBuf],
        root: PathBuf,
        test: &str,
    ) -> Option<Machine> {
        let nspawn = own(&root, "systemd-nspawn");
        let mut command = link.inside(&nspawn.get_program().to_string_lossy());
        command.args(nspawn.get_args());
        command.args(directories.iter().map(|path| format!("--bind-ro={}", path.display())));
        self.start(command, Groups::AsHere, root, test)
    }

    /// The same for a systemd that knows version 2 of the control groups alone, whatever this machine has: the kernel has both.
    pub(crate) fn boot_unified(&self, root: PathBuf, test: &str) -> Option<Machine> {
        if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            return self.boot(root, test);
        }
        let name = format!("hoist-{}", std::process::id());
        let nspawn = own(&root, "systemd-nspawn");
        let mut command = Command::new("unshare");
        let enter = "umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; mkdir /sys/fs/cgroup/$0; \
                     echo $$ >/sys/fs/cgroup/$0/cgroup.procs; exec \"$@\"";
        command.args(["--mount", "sh", "-ec", enter, &name]);
        command.arg(nspawn.get_program()).args(nspawn.get_args());
        self.start(command, Groups::Own(name), root, test)
    }

    fn start(
        &self,
        mut command: Command,
        groups: Groups,
        root: PathBuf,
        test: &str,
    ) -> Option<Machine> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("--machine=hoist-{}", std::process::id());
        command.arg("--directory").arg(&root).args(["--boot", "--console=pipe", &name]);
        // The clock of a clean root is its own, for packages to set up.
        command.arg("--timezone=off");
        // There is no systemd around it that it could tell of itself.
        command.args(["--register=no", "--keep-unit"]);
        // runc does in there what it does elsewhere.
        command.args(["--capability=all", "--system-call-filter=bpf @keyring"]);
        let log = self.scratch.path().join("systemd.log");
        let nspawn = Daemon::start("systemd", &command, &log);
        let began = Instant::now();
        while began.elapsed() < BOOT_PATIENCE {
            if let Some(leader) = child_of(nspawn.id()) {
                let root = root.clone();
                let machine = Machine { root, leader, groups, _nspawn: nspawn, _alone: alone };
                return machine.settle(began).or_else(|| {
                    skipped(test, "systemd does not boot in systemd-nspawn on this machine");
                    None
                });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        skipped(test, &format!("systemd-nspawn starts nothing on this machine: {}", nspawn.log()));
        None
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Without the way through all units' ends, for which containers' shims take their time.
        let _ = self.inside("systemctl --force --force poweroff");
        if let Groups::Own(name) = &self.groups {
            let sweep = "mount -t cgroup2 none /sys/fs/cgroup; \
                         for n in 1 2 3 4 5 6 7 8 9; do find /sys/fs/cgroup/$0 -depth -type d -exec rmdir {} + && break; sleep 1; done";
            let mut command = Command::new("unshare");
            let _ = command.args(["--mount", "sh", "-c", sweep, name]).output();
        }
    }
}

impl Machine {
    /// Waits until everything that starts by itself was started, well or not.
    fn settle(self, began: Instant) -> Option<Self> {
        while began.elapsed() < BOOT_PATIENCE {
            let state = self.inside("systemctl is-system-running");
            let state = String::from_utf8_lossy(&state.stdout).into_owned();
            if ["running", "degraded"].contains(&state.trim()) {
                // runc makes a group for each container. On a machine with version 1 of the control groups nspawn leaves them
                // read-only.
                let _ = self.inside("for m in /sys/fs/cgroup/* /sys/fs/cgroup; do mount -o remount,bind,rw $m; done");
                return Some(self);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        None
    }

    /// Runs a script inside.
    pub(crate) fn inside(&self, script: &str) -> Output {
        let mut command = Command::new("timeout");
        command.args([COMMAND_SECONDS, "nsenter", "-a", "-t", &self.leader, "sh", "-ec", script]);
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let output = command.env("PATH", path).stdin(std::process::Stdio::null()).output();
        output.expect("util-linux is part of the test bed")
    }

    /// What somebody at a terminal inside sees who types this and answers a question with yes; panics where it fails.
    pub(crate) fn typed(&self, command: &str) -> String {
        // A terminal of this machine, which the command inside inherits.
        let entered = format!(
            "exec timeout --foreground {COMMAND_SECONDS} nsenter -a -t {} env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \
             HOME=/root LC_ALL=C TERM=dumb DEBIAN_FRONTEND=noninteractive sh -c 'cd; eval \"$1\"' sh \"$TYPED\"",
            self.leader
        );
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &entered, "/dev/null"]);
        script.env("TYPED", command).stdin(std::process::Stdio::piped());
        script.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut running = script.spawn().expect("bsdutils is part of Debian");
        let mut keyboard = running.stdin.take().expect("it is piped");
        // Again and again, since some throw away what was typed before they asked; until nobody is there to read it.
        std::thread::spawn(move || {
            while keyboard.write_all(b"y\n").is_ok() {
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        let output = running.wait_with_output().expect("our own child can be waited for");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{command}: {}\n{text}\n{}",
            output.status,
            self.journal()
        );
        text
    }

    /// Runs a script inside and gives its output; panics, with the journal, where it fails.
    pub(crate) fn must(&self, script: &str) -> String {
        let output = self.inside(script);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{script}: {}\n{text}{errors}\n{}",
            output.status,
            self.journal()
        );
        text
    }

    /// What hoistd and systemd said of it, the long lines cut.
    pub(crate) fn journal(&self) -> String {
        let output = self.inside("journalctl -u hoistd --no-pager -n 40 | cut -c1-300");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A property of a unit.
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        self.must(&format!("systemctl show --value -p {name} {unit}")).trim().to_owned()
    }

    /// A path inside as this process reaches it, mounts of the machine included.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.leader))
    }

    /// What is mounted, as the machine's first process sees it.
    pub(crate) fn mounts(&self) -> String {
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.leader));
        table.expect("the machine is running")
    }
}

/// A program of the root `root`, on its own libraries: they fit each other, whatever this machine has.
fn own(root: &Path, program: &str) -> Command {
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let path = format!("{0}:{0}/systemd", libraries.display());
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    command.args(["--library-path", &path]).arg(root.join("usr/bin").join(program));
    command
}

/// The first child of a process.
fn child_of(id: u32) -> Option<String> {
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
    let child = children.split_whitespace().next()?.to_owned();
    // It is systemd once it has replaced the part of nspawn that sets it up.
    let name = std::fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
    (name.trim() == "systemd").then_some(child)
}
