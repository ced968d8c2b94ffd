"""What a run stands on: a fresh file system, control groups that count, processes that end, a settled machine."""

import ctypes
import fcntl
import json
import os
import platform
import subprocess
import sys
import time

# The loop device's file ends at a whole number of these.
GIB = 1 << 30
# Touched before each run, at most: the file's pages of the largest image twice over, which is what the floor dirties.
TOUCHED_BYTES_MOST = 11 << 30


def say(text):
    print(f"bench: {text}", flush=True)


def run(*command, **options):
    return subprocess.run(command, check=True, text=True, stdin=subprocess.DEVNULL, **options)


def write(path, text):
    """Writes a whole file; a reader never finds half of it."""
    with open(path + ".part", "w") as file:
        file.write(text)
    os.rename(path + ".part", path)


def until(what, ready, seconds=60):
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} does not answer")
        time.sleep(0.05)


class Disk:
    """A fresh ext4 on a loop device, again for every run.

    Writing again where many files were just deleted costs ext4 ten times the CPU, so nothing is deleted. The file below
    is written once, not only allocated: the first write to an allocated extent costs more than the next ones. One bench
    at a time has it.
    """

    def __init__(self, directory, size):
        self.file = os.path.join(directory, "bench.disk")
        self.point = os.path.join(directory, "bench.mount")
        os.makedirs(self.point, exist_ok=True)
        self.lock = open(self.file + ".lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another bench uses {self.file}; waiting for it")
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.take_down()
        size = -(-size // GIB) * GIB
        if not os.path.exists(self.file) or os.path.getsize(self.file) < size:
            say(f"writing a disk of {size // GIB} GiB")
            run("dd", "if=/dev/zero", f"of={self.file}", "bs=4M", f"count={size >> 22}", "conv=fsync", "status=none")

    @classmethod
    def for_images(cls, directory, images, spare=GIB // 2):
        """Large enough for each of them by any way: overlayfs keeps blobs and trees; small files occupy whole blocks, and the
        file system wants something for itself."""
        return cls(directory, max(image.compressed + image.unpacked * 5 // 4 for image in images) + spare)

    def __enter__(self):
        options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
        run("mkfs.ext4", "-q", "-F", "-E", options, self.file)
        found = run("losetup", "--find", "--show", "--direct-io=on", self.file, capture_output=True)
        self.device = found.stdout.strip()
        # Else a thread of the kernel zeroes inode tables during the pull, and that counts as written.
        run("mount", "-o", "noinit_itable", self.device, self.point)
        self.before = self._written(), self._used()
        return self

    def _written(self):
        with open(f"/sys/block/{os.path.basename(self.device)}/stat") as file:
            # The seventh figure counts sectors of 512 bytes, whatever the device's own are.
            return int(file.read().split()[6]) * 512

    def _used(self):
        found = os.statvfs(self.point)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def settled(self):
        """Begins to count here."""
        self.before = self._written(), self._used()

    def grown(self):
        """Bytes that reached the device since then, and bytes that are occupied on it now and were not."""
        return self._written() - self.before[0], self._used() - self.before[1]

    def __exit__(self, *_):
        self.take_down()

    def take_down(self):
        """Unmounts what is there, the innermost first: containerd leaves mounts of its own, a killed bench all of it."""
        with open("/proc/self/mountinfo") as file:
            points = [line.split()[4] for line in file]
        for point in sorted((p for p in points if p == self.point or p.startswith(self.point + "/")), reverse=True):
            # A process that has just ended may still be letting go of its files.
            for _ in range(20):
                done = subprocess.run(["umount", point], capture_output=True, text=True)
                if done.returncode == 0:
                    break
                time.sleep(0.25)
            else:
                # Nothing more is touched: what is busy may be somebody else's run.
                raise RuntimeError(f"{done.stderr.strip()}: end what uses it, or choose another place with --disk")
        found = run("losetup", "--associated", self.file, "--noheadings", "--output", "NAME", capture_output=True)
        for device in found.stdout.split():
            run("losetup", "--detach", device)


class Group:
    """A control group that counts the CPU time of all in it, children that ended too. Version 1 or 2, what there is."""

    def __init__(self, role):
        old = "/sys/fs/cgroup/cpuacct"
        self.old = os.path.isdir(old)
        self.path = os.path.join(old if self.old else "/sys/fs/cgroup", f"hoist-bench-{os.getpid()}-{role}")

    def __enter__(self):
        os.makedirs(self.path, exist_ok=True)
        return self

    def enter(self):
        """Called in the child, before it becomes the program."""
        with open(os.path.join(self.path, "cgroup.procs"), "w") as file:
            file.write(str(os.getpid()))

    def seconds(self):
        if self.old:
            with open(os.path.join(self.path, "cpuacct.usage")) as file:
                return int(file.read()) / 1e9
        with open(os.path.join(self.path, "cpu.stat")) as file:
            return next(int(line.split()[1]) for line in file if line.startswith("usage_usec")) / 1e6

    def peak_memory(self):
        """The most bytes that the processes now in it had resident, each by itself, added up."""
        total = 0
        with open(os.path.join(self.path, "cgroup.procs")) as file:
            processes = file.read().split()
        for process in processes:
            with open(f"/proc/{process}/status") as file:
                total += next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")), 0)
        return total

    def __exit__(self, *_):
        # The kernel takes a moment to forget who has ended.
        for _ in range(100):
            try:
                return os.rmdir(self.path)
            except OSError:
                time.sleep(0.05)
        say(f"{self.path} cannot be removed")


class Daemons:
    """Processes that are ended in the reverse order of their start."""

    def __init__(self):
        self.running = []

    def start(self, command, log, group, environment=None):
        with open(log, "a") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
                preexec_fn=group.enter,
            )
        self.running.append(process)
        return process

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.running):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def processor():
    """Busy, idle and stolen seconds of the whole machine."""
    with open("/proc/stat") as file:
        values = [int(word) / os.sysconf("SC_CLK_TCK") for word in file.readline().split()[1:]]
    return {"busy": sum(values[:3]) + values[5] + values[6], "idle": values[3] + values[4], "stolen": values[7]}


# The pages of blobs that stay in memory until the bench ends: what is mapped and locked is not dropped with the caches.
KEPT = {}


def keep_in_memory(path):
    if path in KEPT:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    read, shared_locked = 1, 0x2001
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        found = libc.mmap(None, size, read, shared_locked, file.fileno(), 0)
    if found == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), f"{path}: its pages cannot be kept in memory")
    # Never unmapped: a bench ends soon enough.
    KEPT[path] = found


def settle(image):
    """The same start for every run: nothing to be written, nothing cached but what the registry will send.

    A registry stands for a network here; that its own disk is slow, or not, is nobody's figure. Memory that was free for
    long is slow at its first touch on virtual machines, so it is touched once.
    """
    for path in image.blobs:
        keep_in_memory(path)
    run("sync")
    # No `write`: this is no file that could be renamed into place.
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3\n")
    bytes_touched = min(TOUCHED_BYTES_MOST, 2 * (image.unpacked + image.compressed) + (256 << 20))
    # In a process of its own, so that the memory is free again.
    run(sys.executable, "-c", f"b = bytearray({bytes_touched}); b[::4096] = b'x' * len(b[::4096])")


def description():
    """The machine, as the results name it."""
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}, {memory:.0f} GiB, Linux {os.uname().release.split('-')[0]}"


def read_json_lines(path):
    with open(path) as file:
        return [json.loads(line) for line in file]
