//! containerd's own conformance suite for snapshotters, run against `hoistd` on a socket.
//!
//! The suite is Go and comes with Debian's packages of containerd's sources: 1.6 from the machine's
//! own Debian 12, which this test installs if they are missing, and 2.x from a newer Debian, unpacked
//! into the target directory without being installed. Needs root (it mounts) and apt; where a
//! version cannot be had, its test says so loudly and ends. Set `HOIST_CONFORMANCE=required` to make
//! that a failure.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "this is a test: it fails by panicking and says what it did not run"
)]

#[path = "harness/skipped.rs"]
mod skipped;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use skipped::skipped;

/// The cases of containerd 1.6's suite; one of them skips itself.
const CASES_1: usize = 21;
/// The cases of containerd 2.1's suite.
const CASES_2: usize = 21;

/// What the 2.x suite imports, as Debian packages.
const PACKAGES_2: &str = "\
    golang-1.27-go golang-1.27-src golang-github-containerd-containerd-dev \
    golang-github-containerd-containerd-api-dev golang-github-containerd-continuity-dev \
    golang-github-containerd-log-dev golang-github-containerd-errdefs-dev \
    golang-github-containerd-typeurl-dev golang-github-containerd-platforms-dev \
    golang-github-containerd-ttrpc-dev golang-github-containerd-plugin-dev golang-google-grpc-dev \
    golang-google-protobuf-dev golang-google-genproto-dev golang-github-moby-sys-dev \
    golang-github-gotestyourself-gotest.tools-dev golang-golang-x-sys-dev golang-golang-x-net-dev \
    golang-golang-x-text-dev golang-golang-x-sync-dev golang-github-opencontainers-go-digest-dev \
    golang-github-opencontainers-image-spec-dev golang-github-opencontainers-specs-dev \
    golang-github-sirupsen-logrus-dev golang-github-google-go-cmp-dev \
    golang-github-golang-protobuf-1-5-dev golang-github-coreos-bbolt-dev \
    golang-github-gogo-protobuf-dev golang-github-stretchr-testify-dev \
    golang-github-stretchr-objx-dev golang-github-davecgh-go-spew-dev \
    golang-github-pmezard-go-difflib-dev golang-gopkg-yaml.v3-dev";

/// The Debian release that has them.
const RELEASE_2: &str = "forky";

#[test]
fn containerd_1_6() {
    let gopath = Path::new("/usr/share/gocode");
    let suite = gopath.join("src/github.com/containerd/containerd/snapshots/testsuite");
    let wanted = ["golang-go", "golang-github-containerd-containerd-dev"];
    if !(suite.is_dir() && Path::new("/usr/bin/go").exists()) {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive");
        apt.args(["-o", "DPkg::Lock::Timeout=300", "install", "-y", "--no-install-recommends"]);
        if let Err(why) = run(apt.args(wanted)) {
            return missing("1.6", &why);
        }
    }
    if !suite.is_dir() {
        return missing("1.6", "the installed containerd sources are not those of 1.6");
    }
    let go = Go { program: "/usr/bin/go".into(), root: None, path: gopath.to_owned() };
    conform(&go, "v1", CASES_1, "overlay");
}

#[test]
fn containerd_2() {
    let tree = scratch("containerd-2");
    let root = tree.join("usr/lib/go-1.27");
    if !root.is_dir()
        && let Err(why) = unpack_packages(RELEASE_2, PACKAGES_2, &tree)
    {
        return missing("2.x", &why);
    }
    let path = tree.join("usr/share/gocode");
    let go = Go { program: root.join("bin/go"), root: Some(root), path };
    for backend in ["overlay", "erofs"] {
        conform(&go, "v2", CASES_2, backend);
    }
}

/// A Go toolchain and the sources beside it.
struct Go {
    program: PathBuf,
    root: Option<PathBuf>,
    path: PathBuf,
}

/// Builds the suite and runs all of it against the `hoistd` that cargo built.
fn conform(go: &Go, version: &str, cases: usize, backend: &str) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("integration/conformance");
    let work = scratch(&format!("suite-{version}"));
    let package = work.join("src/conformance");
    fs::create_dir_all(&package).unwrap();
    for (from, to) in
        [(format!("suite_{version}.go"), "suite_test.go"), ("daemon.go".into(), "daemon_test.go")]
    {
        fs::copy(here.join(from), package.join(to)).unwrap();
    }
    let program = work.join("suite.test");
    let mut build = Command::new(&go.program);
    build.current_dir(&package).args(["test", "-c", "-o"]).arg(&program).arg(".");
    build.env("GO111MODULE", "off").env("GOFLAGS", "").env("GOTOOLCHAIN", "local");
    build.env("GOPATH", format!("{}:{}", work.display(), go.path.display()));
    build.env("GOCACHE", work.join("cache"));
    if let Some(root) = &go.root {
        build.env("GOROOT", root);
    }
    run(&mut build).unwrap_or_else(|why| panic!("the suite of containerd {version} builds: {why}"));

    let mut suite = Command::new(&program);
    suite.current_dir(&package).args([
        "-test.v",
        "-test.parallel=2",
        "-test.timeout=10m",
        "-test.root",
    ]);
    let config = work.join("hoist.toml");
    fs::write(&config, format!("[pull]\nbackend = \"{backend}\"\n[metrics]\naddress = \"off\"\n"))
        .unwrap();
    suite.env("HOISTD", env!("CARGO_BIN_EXE_hoistd")).env("HOIST_CONFIG", config);
    let Output { status, stdout, stderr } = suite.output().unwrap();
    let report = String::from_utf8_lossy(&stdout);
    let count = |word: &str| report.lines().filter(|l| l.trim_start().starts_with(word)).count();
    let sub = |word: &str| count(&format!("--- {word}: TestSnapshotter/"));
    let (passed, skipped) = (sub("PASS"), sub("SKIP"));
    let words = format!("{report}\n{}", String::from_utf8_lossy(&stderr));
    assert!(status.success(), "containerd {version}: {status}\n{words}");
    assert_eq!(passed + skipped, cases, "cases of containerd {version}\n{words}");
    assert!(skipped <= 1, "containerd {version} skips {skipped} cases\n{words}");
    println!("containerd {version}: {passed} cases passed, {skipped} skipped by the suite itself");
}

/// Downloads packages of another Debian release and unpacks them into `tree`, installing nothing.
fn unpack_packages(release: &str, packages: &str, tree: &Path) -> Result<(), String> {
    let apt = scratch("apt");
    let lists = apt.join("lists");
    for directory in
        [&lists.join("partial"), &apt.join("cache/archives/partial"), &apt.join("debs")]
    {
        fs::create_dir_all(directory).map_err(|error| error.to_string())?;
    }
    // From wherever this machine takes its packages, verified with Debian's keys.
    let targets = run(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))?;
    let source = targets.lines().find(|line| !line.contains("security"));
    let source = source.ok_or("apt knows no repository")?;
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let list = apt.join("release.list");
    let line = format!("deb [signed-by={keyring}] {source} {release} main\n");
    fs::write(&list, line).map_err(|error| error.to_string())?;
    let apt_get = || {
        let mut command = Command::new("apt-get");
        let option = |key: &str, path: &Path| format!("{key}={}", path.display());
        for option in [
            option("Dir::State::Lists", &lists),
            option("Dir::Etc::SourceList", &list),
            option("Dir::Etc::SourceParts", Path::new("/dev/null")),
            option("Dir::Cache", &apt.join("cache")),
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    };
    run(apt_get().arg("update"))?;
    let debs = apt.join("debs");
    run(apt_get().current_dir(&debs).arg("download").args(packages.split_whitespace()))?;
    // A tree that is half there would be taken for a whole one the next time.
    let half = tree.with_extension("half");
    for entry in fs::read_dir(&debs).map_err(|error| error.to_string())? {
        let deb = entry.map_err(|error| error.to_string())?.path();
        run(Command::new("dpkg").arg("-x").arg(deb).arg(&half))?;
    }
    // It was made empty; only then does this replace it.
    fs::rename(&half, tree).map_err(|error| error.to_string())
}

/// A directory for this test below cargo's target directory.
fn scratch(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance").join(name);
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Runs a command to its end: its output, or why it failed.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{command:?}: {}\n{out}{err}", output.status))
}

/// Says that a version of the suite cannot be run here, so that nobody takes it for passed.
fn missing(version: &str, why: &str) {
    let words =
        format!("NOT RUN: the conformance suite of containerd {version} is not here: {why}");
    assert!(std::env::var_os("HOIST_CONFORMANCE").is_none_or(|v| v != "required"), "{words}");
    skipped("conformance", &words);
}
