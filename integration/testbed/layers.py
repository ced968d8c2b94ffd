"""Layer archives for the test images, each a deterministic tar: the same inputs give the same bytes, hence the same DiffID.

Every maker takes the path of the tar to write first. They stream: an archive of a gigabyte costs no gigabyte of memory.
The odd layers, with one of every strange entry, have a file of their own (odd.py).
"""

import hashlib
import os
import random
import subprocess
import tarfile
import zipfile

# All entries without a better time of their own get this one: 2025-01-01 00:00:00 UTC.
EPOCH_SECONDS = 1735689600
# Wheels go where Debian's Python looks for what was installed beside its own packages.
SITE_PACKAGES = "usr/local/lib/python3.11/dist-packages"
# Debian's merged /usr: what a package ships below these goes to /usr, for they are symlinks in the root file system.
MERGED = ("bin", "sbin", "lib", "lib64")


class LayerWriter:
    """A tar that names each directory once, before what lies in it."""

    def __init__(self, path):
        self.file = open(path, "wb")
        self.tar = tarfile.open(fileobj=self.file, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20)
        self.tar.copybufsize = 1 << 20
        self.seen = set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.tar.close()
        self.file.close()

    def directory(self, path):
        """Names `path` and the directories above it, those that were not named yet."""
        path = path.strip("/")
        if not path or path in self.seen:
            return
        self.directory(os.path.dirname(path))
        entry = tarfile.TarInfo(path + "/")
        entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, EPOCH_SECONDS
        self.add(entry)

    def add(self, entry, content=None):
        """Adds an entry unless its path is there already; says whether it was added."""
        path = entry.name.strip("/")
        if path in self.seen:
            return False
        self.seen.add(path)
        self.tar.addfile(entry, content)
        return True

    def regular(self, path, size, content, mode=0o644):
        """Adds a regular file of `size` bytes read from `content`, and its directories."""
        self.directory(os.path.dirname(path))
        entry = tarfile.TarInfo(path)
        entry.size, entry.mode, entry.mtime = size, mode, EPOCH_SECONDS
        return self.add(entry, content)


def root_file_system(out, mirror):
    """Debian 12, minimal, as mmdebstrap makes it."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH_SECONDS)}
    # mmdebstrap mounts /proc and /sys into its work tree. In a mount namespace of its own they end with it, also where it
    # is killed; else whoever removes the tree afterwards would find the machine's own /sys in it.
    command = ["unshare", "--mount", "--propagation", "private"]
    command += ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--format=tar"]
    command += ["bookworm", out, mirror]
    subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL)


def _wheel_path(name):
    """Where pip would put a member of a wheel."""
    parts = name.split("/")
    if not parts[0].endswith(".data"):
        return f"{SITE_PACKAGES}/{name}"
    rest = "/".join(parts[2:])
    places = {"purelib": SITE_PACKAGES, "platlib": SITE_PACKAGES, "scripts": "usr/local/bin", "data": "usr/local"}
    return f"{places.get(parts[1], 'usr/local/include')}/{rest}"


def wheels(out, files):
    """Python wheels, unpacked as pip would."""
    with LayerWriter(out) as layer:
        for file in sorted(files, key=os.path.basename):
            with zipfile.ZipFile(file) as wheel:
                for member in sorted(wheel.infolist(), key=lambda member: member.filename):
                    if member.is_dir():
                        continue
                    mode = (member.external_attr >> 16) & 0o777 or 0o644
                    with wheel.open(member) as content:
                        layer.regular(_wheel_path(member.filename), member.file_size, content, mode)


def _package_path(name):
    while name.startswith(("./", "/")):
        name = name[1:] if name[0] == "/" else name[2:]
    return "usr/" + name if name.split("/")[0] in MERGED and "/" in name else name


def packages(out, files):
    """The files of Debian packages (no maintainer script runs)."""
    with LayerWriter(out) as layer:
        for file in sorted(files, key=os.path.basename):
            unpack = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", file], stdout=subprocess.PIPE)
            with tarfile.open(fileobj=unpack.stdout, mode="r|") as source:
                for entry in source:
                    name = _package_path(entry.name).rstrip("/")
                    if not name or name == "." or name in MERGED:
                        continue
                    entry.name = name + "/" if entry.isdir() else name
                    entry.pax_headers = {}
                    if entry.islnk():
                        entry.linkname = _package_path(entry.linkname)
                    layer.add(entry, source.extractfile(entry) if entry.isreg() else None)
            if unpack.wait() != 0:
                raise RuntimeError(f"dpkg-deb could not read {file}")


def directory(out, source, prefix):
    """A directory tree of this machine, below /`prefix`; owners and times are made equal."""
    command = ["tar", "--sort=name", "--format=pax", f"--mtime=@{EPOCH_SECONDS}", "--owner=0", "--group=0"]
    command += ["--numeric-owner", "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"]
    command += ["-C", source, "--transform", f"s,^\\./,{prefix}/,S", "-cf", out, "."]
    subprocess.run(command, check=True)


def small_files(out, count, prefix="srv/application/node_modules", seed=20250101):
    """`count` small files in the shape of an npm tree: many packages, nested, scripts with short texts, some links.

    The sizes follow what such trees have: half below 1 KiB, a tail up to some 60 KiB. Texts come out of a small
    vocabulary, so that they compress about as source code does.
    """
    chance = random.Random(seed)
    syllables = ["ka", "lo", "mi", "ren", "so", "tur", "vex", "nil", "ob", "pa", "qui", "zed"]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 4))) for _ in range(3000)]
    kinds = ["index.js", "index.d.ts", "README.md", "LICENSE", "package.json"]
    made = 0
    with LayerWriter(out) as layer:
        while made < count:
            package = f"{chance.choice(words)}-{hashlib.sha256(str(made).encode()).hexdigest()[:6]}"
            home = f"{prefix}/@{chance.choice(words)}/{package}" if chance.random() < 0.2 else f"{prefix}/{package}"
            names = list(kinds)
            for number in range(int(chance.paretovariate(1.1) * 6) % 400):
                depth = chance.choice(["lib", "lib", "dist/cjs", "dist/esm", "src/internal/util", "test"])
                names.append(f"{depth}/{chance.choice(words)}{number}.js")
            for name in names:
                text = " ".join(chance.choices(words, k=min(9000, int(chance.paretovariate(0.9) * 60)))).encode()
                layer.regular(f"{home}/{name}", len(text), _Bytes(text))
                made += 1
            link = tarfile.TarInfo(f"{prefix}/.bin/{package}")
            link.type, link.linkname, link.mode, link.mtime = tarfile.SYMTYPE, f"../{package}/index.js", 0o777, EPOCH_SECONDS
            layer.directory(f"{prefix}/.bin")
            layer.add(link)


class _Bytes:
    """The least that tarfile asks of a file."""

    def __init__(self, content):
        self.content, self.at = content, 0

    def read(self, size):
        piece = self.content[self.at : self.at + size]
        self.at += len(piece)
        return piece


def whiteouts(out, paths):
    """Hides `paths` of the layers below; one that ends in a slash becomes an opaque directory with a new file in it."""
    with LayerWriter(out) as layer:
        for path in paths:
            if path.endswith("/"):
                layer.directory(path)
                layer.regular(path + ".wh..wh..opq", 0, None)
                text = b"what was here before is hidden\n"
                layer.regular(path + "KEPT", len(text), _Bytes(text))
            else:
                parent, name = os.path.split(path)
                layer.regular(f"{parent}/.wh.{name}" if parent else f".wh.{name}", 0, None)


def _ancestors(path):
    while path := os.path.dirname(path):
        yield path


def _survivors(stack):
    """Of each archive of a stack, lowest first: the paths that can be seen through all that lies above it."""
    taken, hidden, opaque, kept = {}, set(), set(), []
    for archive in reversed(stack):
        own, new_hidden, new_opaque = {}, set(), set()
        with tarfile.open(archive) as tar:
            for entry in tar:
                path = os.path.normpath(entry.name)
                parent, name = os.path.split(path)
                if name == ".wh..wh..opq":
                    new_opaque.add(parent)
                elif name.startswith(".wh."):
                    new_hidden.add(os.path.join(parent, name[4:]))
                else:
                    own[path] = entry.isdir()
        covered = lambda path: (
            path in hidden
            or (path in taken and not (taken[path] and own[path]))
            or any(up in hidden or up in opaque or taken.get(up) is False for up in _ancestors(path))
        )
        kept.append({path for path in own if not covered(path)})
        taken.update({path: own[path] for path in kept[-1]})
        hidden |= new_hidden
        opaque |= new_opaque
    return kept[::-1]


def flattened(out, stack):
    """All layers of `stack` (archives, lowest first) in one, without what is hidden; a directory keeps its lowest metadata."""
    with LayerWriter(out) as layer:
        for archive, kept in zip(stack, _survivors(stack)):
            with tarfile.open(archive) as tar:
                for entry in tar:
                    path = os.path.normpath(entry.name)
                    if path not in kept or path == ".":
                        continue
                    if entry.islnk() and os.path.normpath(entry.linkname) not in kept:
                        raise RuntimeError(f"{path} of {archive} is a link to a file that a layer above replaces")
                    layer.add(entry, tar.extractfile(entry) if entry.isreg() else None)
