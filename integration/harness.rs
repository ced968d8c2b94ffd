//! The house that the tests against real parts live in: a registry, containerd 1.6 and 2.x, and `hoistd`, each a process
//! of its own with a directory of its own, on loopback and unix sockets.
//!
//! A test asks for a [`House`]; that makes sure that the test bed is there (`integration/testbed/prepare`, once for all
//! tests), opens a directory under it, and starts what the test wants. Everything ends with the value that stands for it:
//! processes by their id, then the mounts below the directory, then the directory. A test that fails shows the last lines
//! of every log.

// Each test program that brings this module in uses a part of it.
#![allow(dead_code)]

pub(crate) mod containerd;
pub(crate) mod cri;
pub(crate) mod docker;
pub(crate) mod hoistd;
pub(crate) mod link;
pub(crate) mod machine;
pub(crate) mod pod;
pub(crate) mod process;
pub(crate) mod registry;
pub(crate) mod scratch;
pub(crate) mod skipped;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use containerd::NO_PAUSE;
pub(crate) use containerd::{Containerd, Generation, Settings};
pub(crate) use hoistd::Hoistd;
pub(crate) use registry::Registry;
pub(crate) use scratch::Scratch;
pub(crate) use skipped::{loudly, skipped};

/// The directory of the test bed, prepared; `None` where that cannot be done on this machine.
fn bed() -> Option<&'static Path> {
    static BED: OnceLock<Option<PathBuf>> = OnceLock::new();
    BED.get_or_init(|| prepare("small")).as_deref()
}

/// Makes a part of the test bed, if it is not there, and gives the test bed's directory.
pub(crate) fn prepare(part: &str) -> Option<PathBuf> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bed =
        std::env::var_os("HOIST_TESTBED").map_or_else(|| checkout.join(".testbed"), PathBuf::from);
    let made = Command::new(checkout.join("integration/testbed/prepare"))
        .arg(part)
        .env("HOIST_TESTBED", &bed)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("the script is part of the checkout");
    if made.status.success() {
        return Some(bed.canonicalize().expect("the script made it"));
    }
    loudly(&format!(
        "the test bed could not be made:\n{}{}",
        String::from_utf8_lossy(&made.stdout),
        String::from_utf8_lossy(&made.stderr)
    ));
    None
}

/// A registry and a directory; the daemons of a test move in as it asks for them.
pub(crate) struct House {
    /// The registry with the small images.
    pub(crate) registry: Registry,
    /// Where everything of this test lies. The last field: it is removed when all processes have ended.
    pub(crate) scratch: Scratch,
    bed: &'static Path,
}

impl House {
    /// Opens a house for `test`; `None`, said loudly, where the test bed cannot be had.
    pub(crate) fn open(test: &str) -> Option<Self> {
        let Some(bed) = bed() else {
            skipped(test, "no test bed (see above)");
            return None;
        };
        let scratch = Scratch::new(&bed.join("runs"));
        let registry = Registry::start(bed, scratch.path());
        Some(Self { registry, scratch, bed })
    }

    /// Starts a `hoistd` with these changes to its configuration (TOML text of whole sections).
    pub(crate) fn hoistd(&self, extra: &str) -> Hoistd {
        Hoistd::start(&self.scratch.path().join("h"), &self.registry, extra)
    }

    /// A program of erofs-utils; `None` where they could not be had.
    pub(crate) fn erofs_utils(&self, program: &str) -> Option<PathBuf> {
        Some(self.bed.join("erofs/bin").join(program)).filter(|program| program.exists())
    }

    /// Starts another registry, which has nothing yet.
    pub(crate) fn empty_registry(&self) -> Registry {
        Registry::empty(self.bed, &self.scratch.path().join("r"))
    }

    /// Opens a house whose registry lets in [`Registry::USER`] alone.
    pub(crate) fn guarded(test: &str) -> Option<Self> {
        let house = Self::open(test)?;
        let registry = Registry::guarded(house.bed, &house.scratch.path().join("g"));
        Some(Self { registry, ..house })
    }

    /// Starts a containerd of `generation` that knows `hoistd`; `None`, said loudly, where there is none.
    pub(crate) fn containerd(
        &self,
        generation: Generation,
        hoistd: &Hoistd,
        test: &str,
    ) -> Option<Containerd> {
        self.containerd_with_pause(generation, hoistd, test, NO_PAUSE)
    }

    /// A containerd 2.x at the far end of a link.
    pub(crate) fn containerd_behind(
        &self,
        link: &link::Link,
        hoistd: &Hoistd,
        test: &str,
    ) -> Option<Containerd> {
        let inside = |program: &Path| link.inside(&program.display().to_string());
        self.begin(Generation::Two, "cl", hoistd, test, Settings::default(), inside)
    }

    /// The same as [`Self::containerd`], with the image that holds a pod's namespaces.
    pub(crate) fn containerd_with_pause(
        &self,
        generation: Generation,
        hoistd: &Hoistd,
        test: &str,
        pause: &str,
    ) -> Option<Containerd> {
        let here = |program: &Path| Command::new(program);
        let settings = Settings { pause, ..Settings::default() };
        self.begin(generation, generation.short(), hoistd, test, settings, here)
    }

    /// A containerd 2.x with these lines behind its configuration, one that knows another snapshotter beside hoist.
    pub(crate) fn containerd_beside(
        &self,
        lines: &str,
        hoistd: &Hoistd,
        test: &str,
    ) -> Option<Containerd> {
        let here = |program: &Path| Command::new(program);
        let settings = Settings { lines, ..Settings::default() };
        self.begin(Generation::Two, Generation::Two.short(), hoistd, test, settings, here)
    }

    /// Starts a containerd in the directory `home` of the scratch, as `run` runs a program.
    fn begin(
        &self,
        generation: Generation,
        home: &str,
        hoistd: &Hoistd,
        test: &str,
        settings: Settings<'_>,
        run: impl FnOnce(&Path) -> Command,
    ) -> Option<Containerd> {
        let programs = self.bed.join(generation.directory()).join("bin");
        let program = programs.join("containerd");
        if !program.exists() {
            skipped(test, "no containerd of this generation could be had");
            return None;
        }
        let (home, registry) = (self.scratch.path().join(home), &self.registry);
        let program = run(&program);
        Some(Containerd::start(program, generation, &programs, &home, hoistd, registry, settings))
    }
}

/// The programs of Docker and of containerd 2.x; `None`, said loudly, where they cannot be had.
pub(crate) fn docker_programs(test: &str) -> Option<[PathBuf; 2]> {
    let bed = prepare("docker")?;
    let programs = ["docker/bin", "containerd-2/bin"].map(|part| bed.join(part));
    let there = programs[0].join("dockerd").exists() && programs[1].join("containerd").exists();
    if !there {
        skipped(test, "no Docker could be had from Debian's testing suite");
    }
    there.then_some(programs)
}

/// The directory with a package ("deb", "rpm", "tar") of the programs of this test run, compressed in haste.
pub(crate) fn packages(kind: &str) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("packages-{kind}"));
    let programs = Path::new(env!("CARGO_BIN_EXE_hoist")).parent().expect("it is in a directory");
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut build = Command::new(checkout.join("integration/packages/build"));
    build.env("HOIST_PACKAGE_LEVEL", "1").env("HOIST_PACKAGE_KINDS", kind);
    must(build.arg(programs).arg(&out));
    out
}

/// A port of loopback that nobody listens on now.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener.local_addr().expect("a bound socket has an address").port()
}

/// Runs a command to its end and gives its standard output; panics with both outputs where it fails.
pub(crate) fn must(command: &mut Command) -> String {
    let output = command.stdin(std::process::Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed ({}):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
