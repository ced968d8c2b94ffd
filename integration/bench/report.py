"""The results as tables: medians, their spread, and the ratios that the goals are about."""

import collections
import statistics

from link import description, rates_of

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
# Of a pull with hoist, at most: (wall, CPU seconds) as shares of other ways', wall as a multiple of the floor. A way named
# hoist-SOMETHING has its own line or that of hoist.
GOALS = {
    ("ml:gzip", "hoist"): {"overlayfs": (0.18, 0.32), "tuned": (0.30, 0.45), "floor": 1.25},
    ("ml:zstd", "hoist"): {"overlayfs": (0.40, 0.55), "floor": 1.25},
    ("node:gzip", "hoist"): {"overlayfs": (0.15, 0.22), "tuned": (0.16, 0.22), "floor": 1.3},
    ("node:gzip", "hoist-files"): {"overlayfs": (0.28, 0.40), "tuned": (0.30, 0.40), "floor": 1.4},
    ("ml-one:gzip", "hoist"): {"overlayfs": (0.22, 0.35), "tuned": (0.38, 0.50), "floor": 1.25},
}
# hoistd's budget is 256 MiB; a tenth for what nobody can count.
MEMORY_BYTES_MOST = int((256 << 20) * 1.10)
# Bytes written to the device, of those that are occupied on it afterwards.
WRITTEN_MOST = 1.02
# On the shaped link, of the time that its rate allows.
LINK_MOST = 1.10


def floor_of(works, form):
    """The floor of a pull that writes files (`write`) or images (`write_image`)."""
    cpu = sum(works[work]["cpu"] for work in ("fetch", "hash", "decompress", form))
    parts = {"network": works["fetch"]["wall"], "CPU": cpu / works["cores"], "disk": works[form]["wall"]}
    limit = max(parts, key=parts.get)
    return {"works": works, "wall": parts[limit], "cpu": cpu, "limit": limit}


class Results:
    """Rows of one or more rounds, by link, image and way."""

    def __init__(self, rows):
        self.about = [row for row in rows if row["kind"] == "about"]
        self.probes = {row["link"]: row for row in rows if row["kind"] == "link"}
        self.pulls, self.floors = collections.defaultdict(list), collections.defaultdict(list)
        for row in rows:
            if row["kind"] == "pull":
                self.pulls[row["link"], row["image"], row["way"]].append(row)
            elif row["kind"] == "floor":
                self.floors[row["link"], row["image"]].append(row)
        measured = [row for row in rows if row["kind"] in ("pull", "floor")]
        self.links = list(dict.fromkeys(row["link"] for row in measured))
        self.images = list(dict.fromkeys(row["image"] for row in measured))
        self.ways = list(dict.fromkeys(row["way"] for row in rows if row["kind"] == "pull"))

    def of_hoist(self, way):
        return way == "hoist" or any(way in about["hoist_ways"] for about in self.about)

    def pull(self, link, image, way, field):
        """The median of a field over the runs; `None` where there are none."""
        runs = self.pulls.get((link, image, way))
        return statistics.median(run[field] for run in runs) if runs else None

    def form(self, way):
        """What a way writes: hoist takes images where the kernel has them, unless a variant says files."""
        return "write_image" if self.of_hoist(way) and "files" not in way else "write"

    def floor(self, link, image, form="write"):
        """The lowest of the runs: what disturbs the machine raises a floor, and must not flatter who stands on it."""
        runs = [floor_of(run["works"], form) for run in self.floors.get((link, image), [])]
        return min(runs, key=lambda run: run["wall"], default=None)

    def ratio(self, link, image, way, other, field):
        """Of the median of a way to that of another, or to the floor."""
        ours = self.pull(link, image, way, field)
        floor = self.floor(link, image, self.form(way)) if other == "floor" else None
        theirs = floor[field] if floor else self.pull(link, image, other, field)
        return ours / theirs if ours is not None and theirs else None

    def of_served(self, link, image, way):
        """Of a way's wall time to the floor of a machine that is its own registry: what that spends meanwhile is
        spent on the same cores."""
        floor, runs = self.floor(link, image, self.form(way)), self.pulls.get((link, image, way))
        if not floor or not runs:
            return None
        registry = statistics.median(run["cpu_of"]["registry"] for run in runs)
        served = (floor["cpu"] + registry) / floor["works"]["cores"]
        return self.pull(link, image, way, "wall") / max(floor["wall"], served)


def share(value):
    return "" if value is None else f"{value:.2f}"


def spread(seconds):
    """The median of some runs, and how they lie about it."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f}; {len(seconds)})"


def table(head, lines):
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return ["", *("| " + " | ".join(cells) + " |" for cells in [head, rule, *lines])] if lines else []


def pulls(results, link):
    bases = [way for way in ("overlayfs", "tuned") if way in results.ways]
    head = ["image", "way", "n", "wall s", "min–max", "CPU s", "registry CPU s", "peak MiB", "written MB", "of occupied"]
    head += [f"{what} / {base}" for base in bases for what in ("wall", "CPU")]
    head += ["wall / floor", "CPU / floor", "wall / floor and registry"]
    lines = []
    for image in results.images:
        for way in results.ways:
            runs = results.pulls.get((link, image, way))
            if not runs:
                continue
            median = lambda field: results.pull(link, image, way, field)
            walls = [run["wall"] for run in runs]
            registry = statistics.median(run["cpu_of"]["registry"] for run in runs)
            line = [image, way, str(len(runs)), f"{median('wall'):.2f}", f"{min(walls):.2f}–{max(walls):.2f}"]
            line += [f"{median('cpu'):.1f}", f"{registry:.1f}", f"{max(run['memory'] for run in runs) / 2**20:.0f}"]
            line += [f"{median('written') / 1e6:.0f}", f"{median('written') / max(1, median('occupied')):.3f}"]
            for base in bases:
                pairs = [results.ratio(link, image, way, base, field) for field in ("wall", "cpu")]
                line += [share(pair) if base != way else "" for pair in pairs]
            line += [share(results.ratio(link, image, way, "floor", field)) for field in ("wall", "cpu")]
            lines.append([*line, share(results.of_served(link, image, way))])
    return table(head, lines)


def floors(results, link):
    head = ["image", "MB", "unpacked MB", "entries", "fetch s (CPU)", "hash CPU s", "decompress CPU s", "write s (CPU)"]
    head += ["as images", "all CPU s", "floor s", "set by", "floor of images s"]
    lines = []
    for image in results.images:
        floor = results.floor(link, image)
        if not floor:
            continue
        cost = lambda work, field: floor["works"][work][field]
        both = lambda work: f"{cost(work, 'wall'):.2f} ({cost(work, 'cpu'):.2f})"
        line = [image, *(f"{floor['works'][size] / 1e6:.0f}" for size in ("compressed", "unpacked"))]
        line += [f"{floor['works']['entries']:,}", both("fetch"), f"{cost('hash', 'cpu'):.2f}"]
        line += [f"{cost('decompress', 'cpu'):.2f}", both("write"), both("write_image"), f"{floor['cpu']:.2f}"]
        images = results.floor(link, image, "write_image")
        lines.append([*line, f"{floor['wall']:.2f}", floor["limit"], f"{images['wall']:.2f}"])
    return table(head, lines)


def goals_of(results, link, image, way):
    """What is asked of a pull: name, value, most."""
    asked = GOALS.get((image, way), GOALS.get((image, "hoist"), {})) if link == "plain" else {}
    for base, most in asked.items():
        if base == "floor":
            yield "wall / floor", results.ratio(link, image, way, "floor", "wall"), most
        else:
            for field, name, bound in zip(("wall", "cpu"), ("wall", "CPU"), most):
                yield f"{name} / {base}", results.ratio(link, image, way, base, field), bound
    memory = max(run["memory"] for run in results.pulls[link, image, way])
    yield "peak MiB", memory / 2**20, MEMORY_BYTES_MOST / 2**20
    written = results.pull(link, image, way, "written") / max(1, results.pull(link, image, way, "occupied"))
    yield "written / occupied", written, WRITTEN_MOST
    rate, floor = rates_of(link)[1], results.floor(link, image)
    # Only where the link is what limits: else its time says nothing.
    if rate and floor and floor["limit"] == "network":
        least = floor["works"]["compressed"] / rate
        yield "wall / link", results.pull(link, image, way, "wall") / least, LINK_MOST


def goals(results, link):
    lines = []
    for image in results.images:
        for way in filter(results.of_hoist, results.ways):
            if (link, image, way) not in results.pulls:
                continue
            for name, value, most in goals_of(results, link, image, way):
                if value is None:
                    continue
                places = 0 if name == "peak MiB" else 3 if name.startswith("written") else 2
                mark = "reached" if value <= most else "**missed**"
                lines.append([image, way, name, f"{value:.{places}f}", f"{most:.{places}f}", mark])
    return table(["image", "way", "figure", "measured", "at most", ""], lines)


def heading(results):
    told = []
    for about in results.about:
        lines = [
            f"Measured on {about['at'][:10]}: {about['machine']}; a fresh ext4 on a loop device for every run.",
            f"containerd {about['containerd']}, {about['hoist']} at {about['commit']}.",
            f"*tuned* is containerd's overlayfs with {about['tuned']}.",
            *(f"*{name}* is `{what}`." for name, what in about["others"].items()),
        ]
        told += [line for line in lines if line not in told]
    return told


def markdown(rows):
    results = Results(rows)
    lines = heading(results)
    lines += [
        "Medians of n runs, ways in turn. CPU seconds are of containerd, the snapshotter, their children and `ctr`; peak is",
        "the snapshotter's resident memory, containerd's where there is none. The floor is the largest of: fetching alone,",
        "the CPU seconds of all four works over the cores, writing the files alone from memory; the lowest of n. The last",
        "column has the registry's CPU seconds during the pull among them, for they are spent on the same cores.",
    ]
    for link in results.links:
        lines += ["", f"### {link.capitalize()} link: {description(link)}"]
        if link in results.probes:
            probe = results.probes[link]
            one, twelve = (f"{probe[count]['rate'] / 1e6:.0f} MB/s" for count in ("one", "twelve"))
            first = f"first byte after {probe['one']['first_byte'] * 1e3:.1f} ms"
            lines += ["", f"Measured: {first}, {one} on one connection, {twelve} on twelve."]
        lines += pulls(results, link)
        part = floors(results, link)
        lines += ["", "The four works, each alone:"] + part if part else []
        part = goals(results, link)
        lines += ["", "Goals:"] + part if part else []
    # A table begins with an empty line, a heading too.
    kept = [line for number, line in enumerate(lines) if line or number == 0 or lines[number - 1]]
    return "\n".join(kept) + "\n"


def into_document(document, text):
    """`document` with `text` between the two marks, and nothing else changed."""
    if document.count(BEGIN) != 1 or document.count(END) != 1 or document.index(BEGIN) > document.index(END):
        raise RuntimeError(f"the document has not exactly one {BEGIN} before one {END}: nothing is written")
    before, after = document.split(BEGIN)[0], document.split(END)[1]
    return f"{before}{BEGIN}\n{text}{END}{after}"
