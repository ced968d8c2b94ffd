"""Where images come from: a registry on loopback, plain, or behind a link like an object store's.

Plain is docker-registry. Shaped is a network namespace of its own whose loopback device passes 500 MB/s in all (TBF; this
machine's kernels have no netem), in which nginx sends the very files of the registry's storage at 80 MB/s a request, the
first byte after 30 ms. Other rates are named by their megabytes a second: "80:500" is the shaped one, "100" has 100 in all
and no limit of a connection. Documents still come from docker-registry, behind that nginx. Everything that pulls is started
inside of the namespace; nothing leaves the machine, and the namespace is gone at the end.
"""

import collections
import functools
import glob
import json
import os
import shutil
import socket
import subprocess
import sys

from machine import Daemons, Group, run, until, write

USUAL = ["plain", "shaped"]
FIRST_BYTE_SECONDS = 0.030
# What nginx sends before it rests: 10 ms at the rate of a connection, as its clock counts milliseconds.
PIECES_PER_SECOND = 100
# A probe of a link takes so many bytes of a connection: half a second of the shaped one.
PROBED_BYTES = 40_000_000

# Of an image: bytes of its blobs and of its archives, the blobs' files in the registry's storage, layers.
Image = collections.namedtuple("Image", "name compressed unpacked blobs layers")


def rates_of(name):
    """Bytes a second that a link gives to one connection and in all; `None` where nothing limits."""
    if name == "plain":
        return None, None
    each, _, whole = ("80:500" if name == "shaped" else name).rpartition(":")
    try:
        return (int(each) * 1_000_000 if each else None), int(whole) * 1_000_000
    except ValueError:
        sys.exit(f"bench: {name!r} is no link: plain, shaped, MB/s in all, or MB/s per connection:MB/s in all, as 80:500")


def description(name):
    """What a link is, for a heading."""
    each, whole = rates_of(name)
    if not whole:
        return "docker-registry on loopback"
    parts = [f"{each // 1_000_000} MB/s per connection"] if each else []
    return ", ".join([*parts, f"{whole // 1_000_000} MB/s in all", f"{FIRST_BYTE_SECONDS * 1e3:.0f} ms to the first byte"])


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Link:
    """A registry at the end of a link, for as long as the context lasts."""

    def __init__(self, bench, name):
        self.bench, self.name = bench, name
        self.storage = os.path.join(bench.bed, "registry")
        self.hosts = os.path.join(bench.out, "certs.d")
        self.daemons, self.group = Daemons(), Group("registry")
        self.each, self.whole = rates_of(name)
        self.namespace = f"hoist-bench-{os.getpid()}" if self.whole else None

    def inside(self, command):
        """A command that sees the link."""
        # Not `ip netns exec`, which mounts another /sys: no control groups there.
        return [*(["nsenter", f"--net=/run/netns/{self.namespace}"] if self.namespace else []), *command]

    def __enter__(self):
        self.group.__enter__()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self):
        if self.namespace:
            self._shape()
        origin, front = free_ports(2)
        self._registry(origin)
        if self.namespace:
            self._front(front, origin)
        self.address = f"127.0.0.1:{front if self.namespace else origin}"
        shutil.rmtree(self.hosts, ignore_errors=True)
        directory = os.path.join(self.hosts, self.address)
        os.makedirs(directory)
        url = f"http://{self.address}"
        text = f'server = "{url}"\n[host."{url}"]\ncapabilities = ["pull", "resolve"]\n'
        write(os.path.join(directory, "hosts.toml"), text)

    def probe(self, image):
        """What one connection gives, and what twelve give together: a row."""
        blob = max(image.blobs, key=os.path.getsize)
        size = min(os.path.getsize(blob), PROBED_BYTES)
        url = f"http://{self.address}/v2/{image.name.split(':')[0]}/blobs/sha256:{os.path.basename(os.path.dirname(blob))}"
        program = os.path.join(os.path.dirname(os.path.realpath(__file__)), "probe.py")
        ask = lambda count: run(*self.inside([sys.executable, program, url, str(size), str(count)]), capture_output=True).stdout
        return {"kind": "link", "one": json.loads(ask(1)), "twelve": json.loads(ask(12))}

    def __exit__(self, *_):
        self.daemons.__exit__()
        self.group.__exit__()
        if self.namespace:
            subprocess.run(["ip", "netns", "delete", self.namespace], check=False)

    def _shape(self):
        # Those of a bench that was killed; a process still in one keeps it alive, unnamed, as long as it lives.
        for path in glob.glob("/run/netns/hoist-bench-*"):
            if not os.path.exists(f"/proc/{path.rsplit('-', 1)[1]}"):
                run("ip", "netns", "delete", os.path.basename(path))
        run("ip", "netns", "add", self.namespace)
        run(*self.inside(["ip", "link", "set", "lo", "up"]))
        rate = f"{self.whole * 8 // 1_000_000}mbit"
        # The burst has to hold what the device takes in one go; at 500 MB/s 2 MB are 4 ms.
        shape = ["tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", rate, "burst", "2mb", "latency", "100ms"]
        run(*self.inside(shape))

    def _listens(self, port):
        probe = self.inside(["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"])
        return lambda: subprocess.run(probe, capture_output=True).returncode == 0

    def _registry(self, port):
        settings = os.path.join(self.bench.out, "registry.yml")
        text = f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {self.storage}}}}}\n"
        write(settings, text + f'http: {{addr: "127.0.0.1:{port}"}}\n')
        program = os.path.join(self.bench.bed, "containerd-1", "bin", "docker-registry")
        log = os.path.join(self.bench.out, "registry.log")
        self.daemons.start(self.inside([program, "serve", settings]), log, self.group)
        until("the registry", self._listens(port))

    def _front(self, port, origin):
        home = os.path.join(self.bench.out, "nginx")
        os.makedirs(home, exist_ok=True)
        modules = os.path.join(self.bench.bed, "nginx", "root", "usr", "lib", "nginx", "modules")
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        limit = f"limit_rate {self.each}; sendfile_max_chunk {self.each // PIECES_PER_SECOND};" if self.each else ""
        temporary = "".join(f"{kind}_temp_path {home}/temporary; " for kind in kinds)
        write(
            f"{home}/nginx.conf",
            f"""user root;
load_module {modules}/ngx_http_echo_module.so;
daemon off; worker_processes 2; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; {temporary}
  sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type application/octet-stream;
  server {{
    listen 127.0.0.1:{port};
    location ~ "^/v2/.+/blobs/sha256:([0-9a-f][0-9a-f])([0-9a-f]+)$" {{
      set $blob /docker/registry/v2/blobs/sha256/$1/$1$2/data;
      echo_sleep {FIRST_BYTE_SECONDS};
      echo_exec @blob;
    }}
    location @blob {{
      root {self.storage}; try_files $blob =404;
      {limit}
    }}
    location / {{ proxy_pass http://127.0.0.1:{origin}; proxy_set_header Host $http_host; }}
  }}
}}
""",
        )
        program = os.path.join(self.bench.bed, "nginx", "bin", "nginx")
        log = os.path.join(self.bench.out, "registry.log")
        self.daemons.start(self.inside([program, "-p", home, "-c", f"{home}/nginx.conf"]), log, self.group)
        until("nginx", self._listens(port))


@functools.cache
def archive_bytes(blob):
    """Bytes of a blob's archive, by unpacking it."""
    with open(blob, "rb") as file:
        # A frame of zstd, or the skippable one that some begin with.
        program = "zstd" if file.read(4) in (b"\x28\xb5\x2f\xfd", b"\x5e\x2a\x4d\x18") else "gzip"
    command = ["bash", "-o", "pipefail", "-c", '"$1" -dc <"$2" | wc -c', "bash", program, blob]
    return int(run(*command, capture_output=True).stdout)


def image_of(bed, name):
    """What the registry's storage says of an image, read where it lies: no registry has to run."""
    repository, tag = name.split(":")
    home = os.path.join(bed, "registry", "docker", "registry", "v2")
    data = lambda digest: os.path.join(home, "blobs", "sha256", digest[7:9], digest[7:], "data")
    with open(os.path.join(home, "repositories", repository, "_manifests", "tags", tag, "current", "link")) as file:
        manifest = data(file.read().strip())
    with open(manifest) as file:
        layers = json.load(file)["layers"]
    notes = {}
    for path in glob.glob(os.path.join(bed, "images", "blobs", "*.json")):
        with open(path) as file:
            note = json.load(file)
        # Notes of an older test bed name no size; the archive is still there then.
        archive = os.path.join(bed, "images", "layers", os.path.basename(path).rsplit(".", 2)[0] + ".tar")
        notes[note["digest"]] = note.get("unpacked") or os.path.getsize(archive)
    # The test bed has no notes of what others put into its registry (convert, beside this).
    sizes = [notes.get(layer["digest"]) or archive_bytes(data(layer["digest"])) for layer in layers]
    unpacked = sum(sizes)
    blobs = [data(layer["digest"]) for layer in layers]
    return Image(name, sum(layer["size"] for layer in layers), unpacked, blobs, len(layers))
