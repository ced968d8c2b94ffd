#!/usr/bin/env python3
"""licenses.py: the texts of the licences of everything that is linked into hoist and hoistd, to standard output.

Asks Cargo what is linked (dependencies of x86_64 and aarch64, no build scripts, no procedural macros: nothing of these is
in the binaries) and reads the files of licences that each crate brings, those of C libraries inside of it too. Ends with 1
where a crate has a licence that is not allowed below, or neither a text nor an entry in TEXTS_FROM.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys

# What a program under Apache-2.0 may be linked with and given away, if the text goes along.
ALLOWED = {
    "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "MIT",
    "Unicode-3.0", "Unlicense", "Zlib",
}
TARGETS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"]
# Crates that leave the text out, and the crate that brings the one which holds for them too.
TEXTS_FROM = {
    "base64-simd": "outref",  # of one author
    "containerd-snapshots": "hoist",  # Apache-2.0, whose text names nobody
    "tonic-prost": "tonic",  # of one repository
    "vsimd": "outref",  # of one author
}
# Linked too, and no crates.
OTHERS = [
    ("SQLite (in libsqlite3-sys)", "public domain"),
    ("Rust's standard library, (c) The Rust Project Contributors", "MIT OR Apache-2.0"),
]
IS_LICENSE = re.compile(r"(?i)(un)?licen[cs]e|copying|copyright|notice")
IS_CODE = re.compile(r"\.(rs|c|h|py|toml|html|json)$")
CHECKOUT = pathlib.Path(__file__).resolve().parent.parent.parent


def linked(target):
    """The crates that are linked into the programs on `target`, ours among them."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    told = json.loads(subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, check=True).stdout)
    crates = {crate["id"]: crate for crate in told["packages"]}
    nodes = {node["id"]: node for node in told["resolve"]["nodes"]}
    found, waiting = {}, [told["resolve"]["root"]]
    while waiting:
        name = waiting.pop()
        macro = any("proc-macro" in made["kind"] for made in crates[name]["targets"])
        if name in found or macro:
            continue
        found[name] = crates[name]
        normal = (need for need in nodes[name]["deps"] if any(kind["kind"] is None for kind in need["dep_kinds"]))
        waiting.extend(need["pkg"] for need in normal)
    return found


def allowed(expression):
    """Whether one of the licences that may be chosen is allowed. Old crates write a slash for OR."""
    expression = expression.replace("/", " OR ")
    while (inner := re.search(r"\(([^()]*)\)", expression)) is not None:
        word = "MIT" if allowed(inner[1]) else "none"
        expression = expression[: inner.start()] + word + expression[inner.end() :]
    ways = re.split(r"\s+OR\s+", expression.strip())
    return any(all(part.strip() in ALLOWED for part in re.split(r"\s+AND\s+", way)) for way in ways)


def texts(crate):
    """The files of licences in a crate's directory, at any depth: C libraries lie below, with their own."""
    directory = pathlib.Path(crate["manifest_path"]).parent
    if directory == CHECKOUT:
        return [directory / "LICENSE"]
    files = (file for file in sorted(directory.rglob("*")) if file.is_file())
    return [file for file in files if IS_LICENSE.match(file.name) and not IS_CODE.search(file.name)]


def main():
    crates = {}
    for target in TARGETS:
        crates.update(linked(target))
    crates = sorted(crates.values(), key=lambda crate: (crate["name"], crate["version"]))
    named = {crate["name"]: crate for crate in crates}
    wrong = []
    users, words = collections.defaultdict(list), {}
    for crate in crates:
        name = f"{crate['name']} {crate['version']}"
        if not allowed(crate["license"] or "none"):
            wrong.append(f"{name} has the licence {crate['license']}, which is not among those allowed")
        lender = TEXTS_FROM.get(crate["name"])
        files = texts(crate) or (texts(named[lender]) if lender in named else [])
        if not files:
            wrong.append(f"{name} brings no text of its licence ({crate['license']}); name in TEXTS_FROM a crate that has it")
        for file in files:
            text = file.read_text(errors="replace").strip()
            # The same words in other lines are the same text.
            key = " ".join(text.split())
            words.setdefault(key, text)
            if name not in users[key]:
                users[key].append(name)
    if wrong:
        sys.exit("licenses: " + "\nlicenses: ".join(wrong))

    print("What hoist and hoistd are linked with, and its licences.\n")
    for crate in crates:
        if crate["name"] != "hoist":
            print(f"{crate['name']} {crate['version']}: {crate['license']}")
    for name, license in OTHERS:
        print(f"{name}: {license}")
    for key, names in sorted(users.items(), key=lambda item: (-len(item[1]), item[0])):
        print(f"\n{'-' * 80}\nFor {', '.join(names)}:\n\n{words[key]}")


if __name__ == "__main__":
    main()
