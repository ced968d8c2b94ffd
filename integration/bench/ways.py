"""The ways to pull that are compared, and one pull by one of them.

A way is a containerd with its settings and, beside it, a snapshotter's process or none. All run the same containerd on the
same link with `ctr image pull`; containerd's own PATH decides what it decompresses with.
"""

import json
import os
import subprocess
import time

from machine import Daemons, Group, processor, run, settle, until, write

# No pull here takes that long; one that does has hung.
PULL_LIMIT_SECONDS = 900
# What operators of containerd are advised to set (as Amazon EKS does); each where this version knows it.
TUNED = {
    "max_concurrent_downloads": 20,
    "concurrent_layer_fetch_buffer": 16 << 20,
    "max_concurrent_unpacks": 12,
}
TRANSFER = "[plugins.'io.containerd.transfer.v1.local']"
# containerd takes igzip or unpigz from its PATH; out of the box there is neither.
GO_GZIP = {"CONTAINERD_DISABLE_PIGZ": "1", "CONTAINERD_DISABLE_IGZIP": "1"}
MANIFEST_AND_CONFIGURATION = 2


class Way:
    """containerd's overlayfs, as it comes."""

    snapshotter = "overlayfs"

    def __init__(self, bench, name):
        self.bench, self.name = bench, name

    def transfer(self):
        """Further lines of containerd's transfer section."""
        return []

    def sections(self, home):
        """Further sections of containerd's configuration."""
        return ""

    def environment(self):
        return dict(GO_GZIP)

    def path(self, home):
        """Directories in front of containerd's PATH."""
        return []

    def start(self, link, daemons, group, home):
        """Starts what runs beside containerd."""

    def check(self, entries):
        """Raises where a pull of which containerd's content store has `entries` was not made in this way."""

    def ended(self, link, home, image):
        """What is kept of a pull."""


class Tuned(Way):
    """containerd's overlayfs with everything set that makes it fast, and igzip."""

    def transfer(self):
        told = run(f"{self.bench.programs}/containerd", "config", "default", capture_output=True).stdout
        section = told.split(TRANSFER, 1)[1].split("[", 1)[0]
        known = {line.split("=")[0].strip() for line in section.splitlines() if "=" in line}
        return [f"{key} = {value}" for key, value in TUNED.items() if key in known]

    def environment(self):
        return {"CONTAINERD_DISABLE_PIGZ": "1"}

    def path(self, home):
        return [os.path.join(self.bench.bed, "igzip", "bin")]


class Proxied(Way):
    """A snapshotter in a process of its own, which fetches layers itself."""

    @property
    def snapshotter(self):
        return self.name

    def sections(self, home):
        return f"""[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = "linux/{ {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine] }"
snapshotter = "{self.name}"
differ = "walking"
[proxy_plugins.{self.name}]
type = "snapshot"
address = "{home}/snapshotter.sock"
[proxy_plugins.{self.name}.exports]
root = "{home}/{self.name}"
enable_remote_snapshot_annotations = "true"
"""


# Settings of a hoistd that writes the compressed blobs into containerd's content store as well.
KEEPS = '[pull]\ncontent_store = "keep"\n[cri]\ncontainerd = "@HOME@/containerd.sock"\n'


def hoist_settings(home, name, socket, settings):
    """hoistd's configuration with everything of it below `home`; `settings` is TOML that is added."""
    # Top-level keys of what is added stand before any section.
    top, _, sections = ("\n" + settings.replace("@HOME@", home)).partition("\n[")
    return f"""root = "{home}/{name}"
socket = "{socket}"
control_socket = "{home}/control.sock"
{top}
[metrics]
address = "off"
{"[" + sections if sections else ""}
"""


class Hoist(Proxied):
    """hoistd, with settings of its own (`settings` is TOML that is added) or as it comes."""

    def __init__(self, bench, name, hoistd, settings=""):
        super().__init__(bench, name)
        self.hoistd, self.settings = hoistd, settings
        if not os.path.exists(hoistd):
            raise SystemExit(f"bench: {hoistd} is not there; cargo build --release makes it")

    def start(self, link, daemons, group, home):
        settings = f'{self.settings}\n[registry]\nhosts_dirs = ["{link.hosts}"]\n'
        write(f"{home}/hoist.toml", hoist_settings(home, self.name, f"{home}/snapshotter.sock", settings))
        command = link.inside([self.hoistd, "--config", f"{home}/hoist.toml"])
        daemons.start(command, os.path.join(self.bench.out, "daemons.log"), group)

    def check(self, entries):
        if entries > MANIFEST_AND_CONFIGURATION:
            raise RuntimeError(f"containerd has {entries} blobs after a pull with {self.name}: hoistd left layers to it")

    def ended(self, link, home, image):
        hoist = os.path.join(os.path.dirname(self.hoistd), "hoist")
        told = run(hoist, "--control-socket", f"{home}/control.sock", "pulls", "--json", capture_output=True)
        write(os.path.join(self.bench.out, f"{link.name}-{self.name}-{image.replace(':', '-')}.json"), told.stdout)


class Kept(Hoist):
    """hoistd, which writes the compressed blobs into containerd's content store as well."""

    def __init__(self, bench, name, hoistd):
        super().__init__(bench, name, hoistd, KEEPS)

    def check(self, entries):
        if entries <= MANIFEST_AND_CONFIGURATION:
            raise RuntimeError(f"containerd has {entries} blobs after a pull with {self.name}: hoistd kept none")


class Peer(Proxied):
    """Somebody else's snapshotter: a shell command that stays in the foreground and listens on $BENCH_SOCKET.

    It finds a fresh directory in $BENCH_HOME, certs.d in $BENCH_HOSTS, the registry in $BENCH_REGISTRY. Before it listens
    it may write $BENCH_HOME/containerd-more.toml, further sections for containerd, and $BENCH_HOME/bin, programs that
    containerd finds first.
    """

    def __init__(self, bench, name, command):
        super().__init__(bench, name)
        self.command = command

    def start(self, link, daemons, group, home):
        places = {"BENCH_HOME": home, "BENCH_SOCKET": f"{home}/snapshotter.sock", "BENCH_HOSTS": link.hosts}
        command = link.inside(["bash", "-c", self.command])
        log = os.path.join(self.bench.out, "daemons.log")
        daemons.start(command, log, group, {**places, "BENCH_REGISTRY": link.address})

    def environment(self):
        return {}

    def path(self, home):
        return [f"{home}/bin"]


def containerd_places(home):
    """The head of containerd's configuration, with everything of it below `home`, and without what no pull needs."""
    disabled = ["nri.v1.nri", "cri.v1.images", "cri.v1.runtime", "grpc.v1.cri"]
    return f"""version = 3
root = "{home}/containerd"
state = "{home}/state"
disabled_plugins = {json.dumps(["io.containerd." + name for name in disabled])}
[grpc]
address = "{home}/containerd.sock"
[plugins.'io.containerd.internal.v1.opt']
path = "{home}/opt"
"""


def containerd_settings(way, home, hosts):
    more = os.path.join(home, "containerd-more.toml")
    if os.path.exists(more):
        with open(more) as file:
            more = file.read()
    else:
        more = ""
    return "\n".join(
        [
            containerd_places(home),
            f'{TRANSFER}\nconfig_path = "{hosts}"',
            *way.transfer(),
            way.sections(home),
            more,
        ]
    )


def measure(bench, disk, link, way, image):
    """One pull; a row of figures. Bytes and CPU seconds are counted from the moment of asking."""
    log, programs = os.path.join(bench.out, "daemons.log"), bench.programs
    with disk, Group("containerd") as of_containerd, Group("puller") as of_puller, Group("ctr") as of_ctr, Daemons() as daemons:
        home = disk.point
        beside = type(way).start is not Way.start
        if beside:
            way.start(link, daemons, of_puller, home)
            until(way.name, lambda: os.path.exists(f"{home}/snapshotter.sock"))
        write(f"{home}/containerd.toml", containerd_settings(way, home, link.hosts))
        environment = {**way.environment(), "PATH": ":".join([*way.path(home), programs, os.environ["PATH"]])}
        command = link.inside([f"{programs}/containerd", "--config", f"{home}/containerd.toml"])
        daemons.start(command, log, of_containerd, environment)
        ctr = [f"{programs}/ctr", "--address", f"{home}/containerd.sock"]
        until("containerd", lambda: subprocess.run([*ctr, "version"], capture_output=True).returncode == 0)
        settle(image)
        disk.settled()
        groups = {"containerd": of_containerd, "puller": of_puller, "ctr": of_ctr, "registry": link.group}
        cpu = {role: group.seconds() for role, group in groups.items()}
        machine, began = processor(), time.monotonic()
        options = ["--snapshotter", way.snapshotter, "--hosts-dir", link.hosts]
        pull = link.inside([*ctr, "image", "pull", *options, f"{link.address}/{image.name}"])
        done = subprocess.run(
            pull, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PULL_LIMIT_SECONDS, preexec_fn=of_ctr.enter
        )
        wall = time.monotonic() - began
        if done.returncode != 0:
            raise RuntimeError(f"{way.name} could not pull {image.name}: {done.stderr[-2000:]}")
        cpu = {role: round(group.seconds() - cpu[role], 3) for role, group in groups.items()}
        after, began = processor(), time.monotonic()
        run("sync", "-f", home)
        synced = time.monotonic() - began
        written, occupied = disk.grown()
        content = run(*ctr, "content", "ls", "--quiet", capture_output=True).stdout
        way.check(len(content.splitlines()))
        way.ended(link, home, image.name)
        return {
            "kind": "pull",
            "way": way.name,
            "wall": round(wall, 3),
            "sync": round(synced, 3),
            "cpu": round(sum(seconds for role, seconds in cpu.items() if role != "registry"), 3),
            "cpu_of": cpu,
            "written": written,
            "occupied": occupied,
            "memory": of_puller.peak_memory() if beside else of_containerd.peak_memory(),
            "containerd_memory": of_containerd.peak_memory(),
            "machine": {name: round(after[name] - machine[name], 2) for name in machine},
        }


def measure_floor(bench, disk, link, image):
    """The four works of a pull, each alone, on the same disk and link; and what follows from them."""
    with disk, Group("floor") as group:
        into = os.path.join(disk.point, "floor")
        os.mkdir(into)
        settle(image)
        command = [bench.floor, "--hosts-dir", link.hosts, "--into", into, f"{link.address}/{image.name}"]
        told = run(*link.inside(command), capture_output=True, preexec_fn=group.enter).stdout
    return {"kind": "floor", "works": json.loads(told)}
