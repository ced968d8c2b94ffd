//! containerd 1.6 and 2.x with root, state, socket and configuration of their own, `hoistd` plugged in as `hoist`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sha2::Digest as _;

use super::hoistd::Hoistd;
use super::process::Daemon;
use super::registry::Registry;
use super::{cri, must};

/// Which containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generation {
    /// 1.6, as Debian 12 has it: labels reach a snapshotter through CRI alone.
    One,
    /// 2.x: `ctr image pull` goes through the transfer service and sends them too.
    Two,
}

impl Generation {
    /// Its directory in the test bed.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::One => "containerd-1",
            Self::Two => "containerd-2",
        }
    }

    /// A name that is short in the paths of sockets.
    pub(crate) fn short(self) -> &'static str {
        match self {
            Self::One => "c1",
            Self::Two => "c2",
        }
    }
}

/// The namespace in which CRI keeps its images; `ctr` is used in it as well, so that both see the same.
pub(crate) const NAMESPACE: &str = "k8s.io";
/// Where overlayfs pulls for comparison: labels and leases of the namespaces do not mix.
pub(crate) const REFERENCE: &str = "reference";

/// A running containerd.
pub(crate) struct Containerd {
    generation: Generation,
    home: PathBuf,
    programs: PathBuf,
    hosts: PathBuf,
    daemon: Daemon,
}

/// A pause image for those that run no pod.
pub(crate) const NO_PAUSE: &str = "registry.invalid/pause:none";

/// What a test's containerd has otherwise than others.
pub(crate) struct Settings<'a> {
    /// The image that holds a pod's namespaces.
    pub(crate) pause: &'a str,
    /// What stands behind its configuration.
    pub(crate) lines: &'a str,
}

impl Default for Settings<'_> {
    fn default() -> Self {
        Self { pause: NO_PAUSE, lines: "" }
    }
}

impl Containerd {
    /// Starts `command`, which runs containerd, with everything of it below `home`.
    pub(crate) fn start(
        mut command: Command,
        generation: Generation,
        programs: &Path,
        home: &Path,
        hoistd: &Hoistd,
        registry: &Registry,
        wanted: Settings<'_>,
    ) -> Self {
        std::fs::create_dir_all(home).expect("the scratch directory is writable");
        let settings = home.join("config.toml");
        let text =
            configuration(generation, home, &hoistd.socket(), &hoistd.root(), registry.hosts());
        let text = text.replace("@PAUSE@", wanted.pause) + wanted.lines;
        std::fs::write(&settings, text).expect("the scratch directory is writable");
        let path = std::env::var("PATH").unwrap_or_default();
        command.arg("--config").arg(&settings);
        // The shim and runc that came with it, not those of the machine.
        command.env("PATH", format!("{}:{path}", programs.display()));
        let daemon = Daemon::start("containerd", &command, &home.join("containerd.log"));
        let mut this = Self {
            generation,
            home: home.to_owned(),
            programs: programs.to_owned(),
            hosts: registry.hosts().to_owned(),
            daemon,
        };
        let probe = this.ctr_command(NAMESPACE, &["version"]);
        this.daemon.wait_for(|| quiet(&probe));
        this
    }

    /// Which containerd this is.
    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.home.join("containerd.sock")
    }

    fn ctr_command(&self, namespace: &str, arguments: &[&str]) -> Vec<String> {
        let mut words = vec![
            self.programs.join("ctr").display().to_string(),
            "--address".to_owned(),
            self.socket().display().to_string(),
            "--namespace".to_owned(),
            namespace.to_owned(),
        ];
        words.extend(arguments.iter().map(|&argument| argument.to_owned()));
        words
    }

    /// `ctr`, ready to be run.
    fn ctr_process(&self, namespace: &str, arguments: &[&str]) -> Command {
        let words = self.ctr_command(namespace, arguments);
        // A pull that hangs must not hang the test run.
        let mut command = Command::new("timeout");
        command.arg("300").args(words);
        command
    }

    /// `ctr` in a namespace; panics where it fails.
    pub(crate) fn ctr(&self, namespace: &str, arguments: &[&str]) -> String {
        must(&mut self.ctr_process(namespace, arguments))
    }

    /// What `ctr` says where it has to fail.
    pub(crate) fn refuses(&self, namespace: &str, arguments: &[&str]) -> String {
        let output = self.ctr_process(namespace, arguments).output().expect("it can be started");
        assert!(!output.status.success(), "{arguments:?} succeeded");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Whether `ctr` succeeds with these arguments.
    pub(crate) fn answers(&self, arguments: &[&str]) -> bool {
        self.ctr_process(NAMESPACE, arguments).output().is_ok_and(|output| output.status.success())
    }

    /// Starts a pull with hoist and leaves it to itself.
    pub(crate) fn begin_pull(&self, image: &str) -> std::thread::JoinHandle<Result<(), String>> {
        if self.generation == Generation::One {
            let (socket, image) = (self.socket(), image.to_owned());
            return std::thread::spawn(move || cri::pull(&socket, &image).map(|_| ()));
        }
        let hosts = self.hosts.display().to_string();
        let arguments = ["image", "pull", "--hosts-dir", &hosts, "--snapshotter", "hoist", image];
        let mut command = self.ctr_process(NAMESPACE, &arguments);
        std::thread::spawn(move || {
            let output = command.stdin(std::process::Stdio::null()).output();
            let output = output.map_err(|error| error.to_string())?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() { Ok(()) } else { Err(text) }
        })
    }

    /// Pulls with hoist the way this generation sends labels: CRI for 1.6, `ctr` (the transfer service) for 2.x.
    pub(crate) fn pull(&self, image: &str) {
        let done = self.begin_pull(image).join().expect("the pulling thread does not panic");
        done.unwrap_or_else(|error| panic!("pulling {image} failed: {error}"));
    }

    /// Pulls with hoist through `ctr`, which on 1.6 sends no labels: hoist is an ordinary snapshotter then.
    pub(crate) fn pull_by_ctr(&self, image: &str) {
        self.pull_into("hoist", NAMESPACE, image);
    }

    /// Pulls through `ctr` with one of its snapshotters.
    pub(crate) fn pull_into(&self, snapshotter: &str, namespace: &str, image: &str) {
        let hosts = self.hosts.display().to_string();
        let arguments =
            ["image", "pull", "--hosts-dir", &hosts, "--snapshotter", snapshotter, image];
        self.ctr(namespace, &arguments);
    }

    /// Pulls with hoist through CRI.
    pub(crate) fn pull_by_cri(&self, image: &str) {
        cri::pull(&self.socket(), image)
            .unwrap_or_else(|error| panic!("pulling {image} failed: {error}"));
    }

    /// Pulls with overlayfs, as containerd does without hoist, in the namespace for comparisons.
    pub(crate) fn pull_reference(&self, image: &str) {
        self.pull_into("overlayfs", REFERENCE, image);
    }

    /// Removes an image that was pulled for comparison, and waits for the garbage collection.
    pub(crate) fn remove_reference(&self, image: &str) {
        self.ctr(REFERENCE, &["image", "rm", "--sync", image]);
    }

    /// Removes an image, and waits for containerd's garbage collection.
    ///
    /// Through CRI, which knows an image by several names and drops them all; what only `ctr` knows yet, through that.
    pub(crate) fn remove(&self, image: &str) {
        let by_cri = cri::remove(&self.socket(), image);
        let names = self.ctr(NAMESPACE, &["image", "ls", "-q"]);
        if names.lines().any(|name| name == image) {
            self.ctr(NAMESPACE, &["image", "rm", image]);
        } else {
            by_cri.unwrap_or_else(|error| panic!("{image} could not be removed: {error}"));
        }
        // CRI removes names without waiting; any removal that waits collects what they held.
        let _ = self.ctr_process(NAMESPACE, &["content", "prune", "references"]).output();
    }

    /// Removes all names of images, those that CRI gave too.
    pub(crate) fn remove_names(&self) {
        let names = self.ctr(NAMESPACE, &["image", "ls", "-q"]);
        for name in names.lines() {
            self.ctr(NAMESPACE, &["image", "rm", "--sync", name]);
        }
    }

    /// Removes all names of images, and waits for the garbage collection.
    pub(crate) fn remove_everything(&self) {
        self.remove_names();
        let _ = self.ctr_process(NAMESPACE, &["content", "prune", "references"]).output();
    }

    /// Has it collect garbage, and waits until it has.
    pub(crate) fn collect_garbage(&self) {
        self.ctr(NAMESPACE, &["leases", "create", "--id", "garbage"]);
        self.ctr(NAMESPACE, &["leases", "rm", "--sync", "garbage"]);
    }

    /// kill -9.
    pub(crate) fn crash(&mut self) {
        self.daemon.crash();
    }

    /// What containerd knows in the namespace of the tests, for the text of a failure.
    pub(crate) fn inventory(&self) -> String {
        let lists = [
            &["image", "ls", "-q"][..],
            &["snapshot", "--snapshotter", "hoist", "ls"],
            &["leases", "ls"],
        ];
        lists.map(|arguments| self.ctr(NAMESPACE, arguments)).join("\n")
    }

    /// The digests in the content store.
    pub(crate) fn content(&self, namespace: &str) -> Vec<String> {
        let list = self.ctr(namespace, &["content", "ls", "-q"]);
        list.lines().map(str::to_owned).collect()
    }

    /// A JSON document of the content store.
    fn document(&self, namespace: &str, digest: &str) -> serde_json::Value {
        let text = self.ctr(namespace, &["content", "get", digest]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{digest} is no JSON: {error}"))
    }

    /// An image's manifest.
    fn manifest(&self, namespace: &str, image: &str) -> serde_json::Value {
        let list = self.ctr(namespace, &["image", "ls", &format!("name=={image}")]);
        let digest = list.split_whitespace().find(|word| word.starts_with("sha256:"));
        let digest = digest.unwrap_or_else(|| panic!("{image} is not among the images:\n{list}"));
        self.document(namespace, digest)
    }

    /// The digests of an image's layers, from its manifest in the content store.
    pub(crate) fn layers(&self, namespace: &str, image: &str) -> Vec<String> {
        self.layer_sizes(namespace, image).into_iter().map(|(digest, _)| digest).collect()
    }

    /// The same with their sizes.
    pub(crate) fn layer_sizes(&self, namespace: &str, image: &str) -> Vec<(String, u64)> {
        let manifest = self.manifest(namespace, image);
        let layers = manifest["layers"].as_array().expect("a manifest has layers");
        let size = |layer: &serde_json::Value| layer["size"].as_u64().expect("a layer has a size");
        layers.iter().map(|layer| (text_of(&layer["digest"]), size(layer))).collect()
    }

    /// The name of an image's topmost snapshot: the ChainID over the DiffIDs of its configuration.
    fn chain_id(&self, namespace: &str, image: &str) -> String {
        let digest = text_of(&self.manifest(namespace, image)["config"]["digest"]);
        let config = self.document(namespace, &digest);
        let diff_ids = config["rootfs"]["diff_ids"].as_array().expect("an image has DiffIDs");
        let chained = diff_ids.iter().map(text_of).reduce(|below, diff_id| {
            let sum = sha2::Sha256::digest(format!("{below} {diff_id}").as_bytes());
            format!("sha256:{}", hex::encode(sum))
        });
        chained.expect("an image has a layer")
    }

    /// Mounts an image read-only; see [`Mounted`].
    ///
    /// Through a View of ours, not through `ctr image mount`: that of 1.6 takes overlayfs, whatever it is told.
    pub(crate) fn mount<'a>(
        &'a self,
        namespace: &'a str,
        snapshotter: &'a str,
        image: &str,
        name: &str,
    ) -> Mounted<'a> {
        let target = self.home.join(name);
        std::fs::create_dir_all(&target).expect("the scratch directory is writable");
        let point = target.display().to_string();
        let chain = self.chain_id(namespace, image);
        // In one call: with 1.6 nothing keeps such a snapshot from the next garbage collection. A mount outlives it.
        let view =
            ["snapshot", "--snapshotter", snapshotter, "view", "--target", &point, &point, &chain];
        let description = self.ctr(namespace, &view);
        // It is printed as a command, to be run as such.
        must(Command::new("sh").args(["-ec", &description]));
        let layers = layer_directories(&description);
        Mounted { containerd: self, namespace, snapshotter, layers, target }
    }

    /// Runs a command in a container of an image and gives its output.
    pub(crate) fn run(
        &self,
        snapshotter: &str,
        image: &str,
        name: &str,
        command: &[&str],
    ) -> String {
        let name = self.container(name);
        let arguments = ["run", "--rm", "--snapshotter", snapshotter, image, &name];
        self.ctr(NAMESPACE, &[&arguments[..], command].concat())
    }

    /// The container's id for a test's own name: runc keeps its containers in one place for the whole machine, so that a
    /// name must not come twice.
    pub(crate) fn container(&self, name: &str) -> String {
        let home = self.home.parent().and_then(Path::file_name).unwrap_or_default();
        format!("hoist-{}-{name}", home.to_string_lossy().replace('.', "-"))
    }

    /// Starts a container that does nothing until [`Self::end`].
    pub(crate) fn begin(&self, image: &str, name: &str) {
        let name = self.container(name);
        let run = ["run", "--detach", "--snapshotter", "hoist", image, &name, "sleep", "600"];
        self.ctr(NAMESPACE, &run);
    }

    /// Runs a command in a container that was begun, and gives its output.
    pub(crate) fn within(&self, name: &str, exec: &str, command: &[&str]) -> String {
        let name = self.container(name);
        let arguments = ["task", "exec", "--exec-id", exec, &name];
        self.ctr(NAMESPACE, &[&arguments[..], command].concat())
    }

    /// Ends and removes a container that was begun.
    pub(crate) fn end(&self, name: &str) {
        let name = self.container(name);
        self.ctr(NAMESPACE, &["task", "rm", "--force", &name]);
        self.ctr(NAMESPACE, &["container", "rm", &name]);
    }
}

/// An image's merged view, mounted; unmounted on Drop.
pub(crate) struct Mounted<'a> {
    containerd: &'a Containerd,
    namespace: &'a str,
    snapshotter: &'a str,
    /// The layers' own directories, the topmost first.
    pub(crate) layers: Vec<PathBuf>,
    /// Where the merged view is.
    pub(crate) target: PathBuf,
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let point = self.target.display().to_string();
        if std::thread::panicking() {
            // The scratch directory unmounts it; a second panic would hide the first.
            return;
        }
        unmount(&self.target);
        // It may have been collected already.
        let arguments = ["snapshot", "--snapshotter", self.snapshotter, "rm", &point];
        let _ = self.containerd.ctr_process(self.namespace, &arguments).output();
    }
}

/// Unmounts what was looked at. A process that another test begins meanwhile has our handles into it until it becomes its
/// program, and as long it is busy.
fn unmount(point: &Path) {
    for _ in 0..50 {
        let done = Command::new("umount").arg(point).output().expect("umount is there");
        if done.status.success() || !String::from_utf8_lossy(&done.stderr).contains("busy") {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("it can be read");
    let point = point.display().to_string();
    let mounted = mounts.lines().any(|line| line.split(' ').nth(4) == Some(&point));
    assert!(!mounted, "{point} is still mounted");
}

fn text_of(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} should be a text")).to_owned()
}

/// The layer directories named by a mount command as `ctr snapshot mounts` prints it.
fn layer_directories(description: &str) -> Vec<PathBuf> {
    let words: Vec<&str> = description.split_whitespace().collect();
    let options = words.iter().flat_map(|word| word.split(','));
    if let Some(chain) = options.clone().find_map(|option| option.strip_prefix("lowerdir=")) {
        return chain.split(':').map(PathBuf::from).collect();
    }
    // A single layer is bound: mount -t bind SOURCE TARGET -o …
    let source = words.iter().find(|word| word.starts_with('/'));
    vec![PathBuf::from(source.unwrap_or_else(|| panic!("no directory in {description:?}")))]
}

/// Whether a command succeeds; its output is nobody's business.
fn quiet(words: &[String]) -> bool {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command.stdin(std::process::Stdio::null());
    command.output().is_ok_and(|output| output.status.success())
}

/// Waits until `done`; panics after a minute with `what`, and what `state` then tells.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool, state: impl Fn() -> String) {
    let began = Instant::now();
    while !done() {
        let waiting = began.elapsed() < Duration::from_secs(60);
        assert!(waiting, "a minute went by and still not: {what}\n{}", state());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn configuration(
    generation: Generation,
    home: &Path,
    socket: &Path,
    root: &Path,
    hosts: &Path,
) -> String {
    let (home, socket, root, hosts) =
        (home.display(), socket.display(), root.display(), hosts.display());
    let shared = format!(
        "root = \"{home}/root\"\nstate = \"{home}/state\"\n\
         [grpc]\naddress = \"{home}/containerd.sock\"\n\
         [proxy_plugins.hoist]\ntype = \"snapshot\"\naddress = \"{socket}\"\n"
    );
    // restrict_oom_score_adj: a machine without CAP_SYS_RESOURCE could not start a pod otherwise.
    match generation {
        Generation::One => format!(
            "version = 2\n{shared}\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nrestrict_oom_score_adj = true\nsandbox_image = \"@PAUSE@\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\
             snapshotter = \"hoist\"\ndisable_snapshot_annotations = false\n\
             [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{hosts}\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = \"{home}/cni\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{home}/opt\"\n"
        ),
        Generation::Two => format!(
            "version = 3\n{shared}\
             capabilities = [\"remap-ids\"]\n\
             [proxy_plugins.hoist.exports]\nroot = \"{root}\"\nenable_remote_snapshot_annotations = \"true\"\n\
             [plugins.'io.containerd.cri.v1.images']\nsnapshotter = \"hoist\"\ndisable_snapshot_annotations = false\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = \"@PAUSE@\"\n\
             [plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = \"{hosts}\"\n\
             [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n\
             [plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = \"{home}/cni\"\n\
             [plugins.'io.containerd.nri.v1.nri']\ndisable = true\n\
             [plugins.'io.containerd.internal.v1.opt']\npath = \"{home}/opt\"\n\
             [plugins.'io.containerd.image-verifier.v1.bindir']\nbin_dir = \"{home}/verifier\"\n\
             [plugins.'io.containerd.transfer.v1.local']\nconfig_path = \"{hosts}\"\n\
             [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n\
             platform = \"linux/amd64\"\nsnapshotter = \"hoist\"\ndiffer = \"walking\"\n\
             [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n\
             platform = \"linux/amd64\"\nsnapshotter = \"overlayfs\"\ndiffer = \"walking\"\n"
        ),
    }
}
