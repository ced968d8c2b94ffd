#!/usr/bin/env python3
"""images.py small|npm|big|bench WORKDIR REGISTRY: makes the test images and pushes them to a registry on loopback.

Nothing comes out of a registry of images: Debian packages, Python wheels and npm packages become layer archives
(layers.py, odd.py), these are compressed, described as an OCI image and pushed, as REGISTRY/NAME:{none,gzip,zstd}.
What was made is kept in WORKDIR, and a registry that has an image is not asked to take it again.

gzip means GNU gzip -6, one deflate stream, since that is what image builders make; zstd is the tool's default level in
one frame.
"""

import concurrent.futures
import glob
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import time

import layers
import odd

HERE = os.path.dirname(os.path.abspath(__file__))
PYTHON_PACKAGES = """python3 python3-minimal python3.11 python3.11-minimal libpython3.11-stdlib libpython3.11-minimal
    libpython3-stdlib media-types libexpat1 libffi8 libsqlite3-0 libreadline8 readline-common libncursesw6 libssl3
    libuuid1 ca-certificates openssl libgomp1 libstdc++6 zlib1g libnsl2 libtirpc3 libtirpc-common libgssapi-krb5-2
    libkrb5-3 libk5crypto3 libkeyutils1 libkrb5support0 libcom-err2""".split()
NODE_PACKAGES = """nodejs libnode108 libuv1 libc-ares2 libnghttp2-14 libbrotli1 libicu72 node-acorn
    node-cjs-module-lexer node-undici node-busboy node-xtend libssl3 openssl ca-certificates libstdc++6""".split()
WHEELS = {
    "numbers": "numpy==1.26.4 scipy==1.14.1 pandas==2.2.3 python-dateutil==2.9.0.post0 pytz==2024.2 tzdata==2024.2 six==1.16.0",
    "torch": "torch==2.5.1",
    "cudnn": "nvidia-cudnn-cu12==9.1.0.70",
    "science": """numpy==1.26.4 scipy==1.14.1 pandas==2.2.3 scikit-learn==1.5.2 matplotlib==3.9.2 pillow==11.0.0
        jinja2==3.1.4 networkx==3.4.2 sympy==1.13.1 opencv-python-headless==4.10.0.84""",
    "models": "transformers==4.46.3 datasets==3.1.0 fsspec==2024.9.0",
}
# These say "with everything that they need"; the others name all that they bring.
WHEELS_WITH_DEPENDENCIES = {"science", "models"}
SMALL_TREE_FILES = 24_000
# What the packages of an application ask for in turn is taken as it was on this day, so that the trees stay as they are.
NPM_BEFORE = "2025-01-01"
ML = ["debian", "python", "science", "models", "torch", "cudnn", "ml-cleared"]
# Of an image of many layers each has this many small files, about a megabyte.
MANY = [f"many-{number:02}" for number in range(100)]
MANY_FILES = 200
# Archives that are large and quickly made again: they go once they are compressed.
PASSING = {"ml-one"}

MEDIA_TYPES = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
COMPRESSORS = {"none": ["cat"], "gzip": ["gzip", "-n", "-6", "-c"], "zstd": ["zstd", "-q", "-3", "-c"]}
# Of each size: image, its layers from the bottom up, and the forms that it is made in.
IMAGES = {
    "small": {
        "debian": (["debian"], ["gzip"]),
        "python": (["debian", "python", "numbers", "cleared"], ["gzip", "zstd", "none"]),
        "tree": (["debian", "files"], ["gzip", "zstd", "none"]),
        "odd": (["debian", "odd-lower", "odd-upper"], ["gzip", "zstd", "none"]),
    },
    # Twenty-six thousand files of npm packages: "tree" has as many without any network, for all but the tests of trees.
    "npm": {
        "npm": (["debian", "application-small"], ["gzip", "zstd", "none"]),
    },
    "big": {
        "ml": (ML, ["gzip", "zstd"]),
        "node": (["debian", "node", "application"], ["gzip", "zstd"]),
    },
    # Shapes that are hard on a puller: all in one layer, and next to nothing in each of a hundred.
    "bench": {
        "ml-one": (["ml-one"], ["gzip"]),
        "many": (MANY, ["gzip"]),
    },
}


def say(text):
    print(f"images: {text}", flush=True)


class Workshop:
    """The working directory: downloads, layer archives, compressed blobs."""

    def __init__(self, root):
        self.root = os.path.abspath(root)
        for part in ("downloads", "layers", "blobs"):
            os.makedirs(os.path.join(self.root, part), exist_ok=True)

    def path(self, *parts):
        return os.path.join(self.root, *parts)

    def download(self, name, fetch):
        """The files of a download that is made once; half of one never counts."""
        done = self.path("downloads", name)
        if not os.path.isdir(done):
            begun = done + ".part"
            shutil.rmtree(begun, ignore_errors=True)
            os.makedirs(begun)
            attempts(lambda: fetch(begun))
            os.rename(begun, done)
        return sorted(glob.glob(done + "/*"))

    def wheels(self, name):
        platforms = [f"manylinux{tag}_x86_64" for tag in ("1", "2014", "_2_17", "_2_28")]
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
        command += ["--python-version", "3.11", "--implementation", "cp"]
        command += [word for platform in platforms for word in ("--platform", platform)]
        command += [] if name in WHEELS_WITH_DEPENDENCIES else ["--no-deps"]
        return self.download(name, lambda to: run([*command, "-d", to, *WHEELS[name].split()]))

    def packages(self, name, wanted):
        command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download"]
        # The archive of a later suite may be configured beside; the image is Debian 12.
        wanted = [f"{package}/bookworm" for package in wanted]
        return self.download(name + "-debs", lambda to: run([*command, *wanted], cwd=to))

    def application(self, name):
        """What npm installs for the package.json in the directory `name` beside this file."""

        def install(to):
            shutil.copy(os.path.join(HERE, name, "package.json"), to)
            command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            run([*command, f"--before={NPM_BEFORE}"], cwd=to)

        self.download(name, install)
        return self.path("downloads", name)

    def layer(self, name):
        """The path of a layer's archive, made if it is not there."""
        done = self.path("layers", name + ".tar")
        if not os.path.exists(done):
            started = time.monotonic()
            self.makers()[name](done + ".part")
            os.rename(done + ".part", done)
            if time.monotonic() - started >= 1:
                say(f"layer {name}: {os.path.getsize(done) / 1e6:.0f} MB in {time.monotonic() - started:.0f} s")
        return done

    def makers(self):
        site = layers.SITE_PACKAGES
        makers = {
            "debian": lambda out: layers.root_file_system(out, mirror()),
            "python": lambda out: layers.packages(out, self.packages("python", PYTHON_PACKAGES)),
            "node": lambda out: layers.packages(out, self.packages("node", NODE_PACKAGES)),
            "files": lambda out: layers.small_files(out, SMALL_TREE_FILES),
            "application": lambda out: layers.directory(out, self.application("application"), "application"),
            "application-small": lambda out: layers.directory(out, self.application("application-small"), "application"),
            "cleared": lambda out: layers.whiteouts(
                out, [f"{site}/scipy/stats/tests/", f"{site}/pandas/tests", "usr/share/common-licenses/GPL-1"]
            ),
            "ml-cleared": lambda out: layers.whiteouts(
                out, [f"{site}/pandas/tests/", "usr/share/common-licenses/GPL-1"]
            ),
            "ml-one": lambda out: layers.flattened(out, [self.layer(name) for name in ML]),
            "odd-lower": odd.lower,
            "odd-upper": odd.upper,
        }
        for number, name in enumerate(MANY):
            makers[name] = lambda out, number=number: layers.small_files(out, MANY_FILES, f"srv/many/{number:02}", number)
        for name in WHEELS:
            makers[name] = lambda out, name=name: layers.wheels(out, self.wheels(name))
        return makers

    def has_blob(self, name, form):
        return os.path.exists(self.path("blobs", f"{name}.{form}.json"))

    def blob(self, name, form):
        """A layer in its compressed form: path and descriptor, with its DiffID. The description is kept beside the blob."""
        note = self.path("blobs", f"{name}.{form}.json")
        if not os.path.exists(note):
            source, out = self.layer(name), self.path("blobs", f"{name}.{form}")
            with open(out, "wb") as file:
                # The archive goes by a pipe, so that gzip notes neither name nor time.
                with open(source, "rb") as archive:
                    subprocess.run(COMPRESSORS[form], stdin=archive, stdout=file, check=True)
            sizes = {"size": os.path.getsize(out), "unpacked": os.path.getsize(source)}
            write_json(note, {"digest": file_digest(out), "diff_id": file_digest(source), **sizes})
            if name in PASSING:
                os.remove(source)
        return self.path("blobs", f"{name}.{form}"), json.load(open(note))


def run(command, **options):
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, **options)


def attempts(action, times=3):
    """Networks fail now and then; what downloads is asked again."""
    for attempt in range(times):
        try:
            return action()
        except subprocess.CalledProcessError:
            if attempt == times - 1:
                raise
            time.sleep(3 * (attempt + 1))


def mirror():
    """The Debian archive that this machine uses."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True, check=False
    ).stdout.split()
    found = next((uri for uri in targets if "security" not in uri), None)
    if not found:
        sys.exit("images: apt has no Debian archive in its sources; add one and run apt-get update")
    return found


def file_digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return "sha256:" + digest.hexdigest()


def write_json(path, value):
    with open(path + ".part", "w") as file:
        json.dump(value, file)
    os.rename(path + ".part", path)


class Registry:
    """The few requests of the distribution specification that a push needs."""

    def __init__(self, address):
        self.address = address

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection(self.address, timeout=600)
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer

    def has(self, path):
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        return self.request("HEAD", path, headers=accept).status == 200

    def push_blob(self, repository, digest, size, body):
        if self.has(f"/v2/{repository}/blobs/{digest}"):
            return
        begun = self.request("POST", f"/v2/{repository}/blobs/uploads/")
        location = begun.headers["Location"]
        if location.startswith("http"):
            location = "/" + location.split("/", 3)[3]
        location += ("&" if "?" in location else "?") + "digest=" + digest
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        answer = self.request("PUT", location, body, headers)
        if answer.status != 201:
            raise RuntimeError(f"the registry refused blob {digest} of {repository}: status {answer.status}")

    def push_manifest(self, repository, tag, manifest):
        headers = {"Content-Type": manifest["mediaType"]}
        answer = self.request("PUT", f"/v2/{repository}/manifests/{tag}", canonical(manifest), headers)
        if answer.status != 201:
            raise RuntimeError(f"the registry refused {repository}:{tag}: status {answer.status}")


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def describe(names, form, blobs):
    """The image configuration and the manifest of an image with these layers."""
    history = [{"created": "2025-01-01T00:00:00Z", "created_by": f"layer {name}"} for name in names]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2025-01-01T00:00:00Z",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [blob["diff_id"] for _, blob in blobs]},
        "history": history,
    }
    body = canonical(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": "sha256:" + hashlib.sha256(body).hexdigest(),
            "size": len(body),
        },
        "layers": [
            {"mediaType": MEDIA_TYPES[form], "digest": blob["digest"], "size": blob["size"]} for _, blob in blobs
        ],
    }
    return body, manifest


def push(registry, workshop, image, names, form):
    blobs = [workshop.blob(name, form) for name in names]
    for path, blob in blobs:
        with open(path, "rb") as file:
            registry.push_blob(image, blob["digest"], blob["size"], file)
    body, manifest = describe(names, form, blobs)
    registry.push_blob(image, manifest["config"]["digest"], len(body), body)
    registry.push_manifest(image, form, manifest)
    total = sum(blob["size"] for _, blob in blobs)
    say(f"pushed {image}:{form}, {len(names)} layers, {total / 1e6:.0f} MB")


def main():
    size, root, address = sys.argv[1:4]
    registry, workshop, images = Registry(address), Workshop(root), IMAGES[size]
    missing = [
        (image, names, form)
        for image, (names, forms) in images.items()
        for form in forms
        if not registry.has(f"/v2/{image}/manifests/{form}")
    ]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        forms = sorted({(name, form) for _, names, form in missing for name in names})
        wanted = {name for name, form in forms if not workshop.has_blob(name, form)}
        list(pool.map(workshop.layer, sorted(wanted, key=list(workshop.makers()).index)))
        list(pool.map(lambda it: workshop.blob(*it), forms))
    for image, names, form in missing:
        push(registry, workshop, image, names, form)


if __name__ == "__main__":
    main()
