"""The odd image: two layers with one of every entry that a layer may hold and few layers do.

The lower layer brings what the upper one hides, replaces or reaches into. Only cases are here that containerd's own apply
takes, for the image is pulled by containerd's overlayfs too and both trees are compared. Some blocks are put together by
hand or by GNU tar, since Python's tarfile writes neither sparse files nor attributes that are no UTF-8.
"""

import os
import subprocess
import tarfile
import tempfile

# 2024-02-29 12:34:56 UTC, and with nanoseconds.
TIME_SECONDS = 1709210096
TIME_EXACT = "1709210096.123456789"
# security.capability, version 2: effective and permitted CAP_NET_RAW, little endian.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def _entry(tar, name, kind=tarfile.REGTYPE, content=b"", mode=0o644, headers=None, **fields):
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime, entry.size = kind, mode, TIME_SECONDS, len(content)
    for field, value in fields.items():
        setattr(entry, field, value)
    # tarfile writes PAX values as UTF-8; bytes that are none go through surrogates.
    entry.pax_headers = headers or {}
    tar.addfile(entry, _Reader(content) if content else None)


class _Reader:
    def __init__(self, content):
        self.content, self.at = content, 0

    def read(self, size):
        piece = self.content[self.at : self.at + size]
        self.at += len(piece)
        return piece


def _directory(tar, name, mode=0o755, **fields):
    _entry(tar, name, tarfile.DIRTYPE, mode=mode, **fields)


def _pax_block(records):
    """A PAX extended header with these records, values as bytes: header block and padded body."""
    body = b""
    for key, value in records.items():
        rest = b" " + key.encode() + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        body += str(length).encode() + rest
    head = tarfile.TarInfo("PaxHeaders/extended")
    head.type, head.size = tarfile.XHDTYPE, len(body)
    return head.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512)


def _file_block(name, stored, kind=tarfile.REGTYPE, **fields):
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.mtime = kind, len(stored), TIME_SECONDS
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry.tobuf(tarfile.GNU_FORMAT) + stored + bytes(-len(stored) % 512)


def _sparse_files():
    """One file of 1 MiB with three islands of data, in each PAX form that GNU tar writes (Go's reader takes all three)."""
    blocks = b""
    with tempfile.TemporaryDirectory() as place:
        os.makedirs(f"{place}/odd/sparse")
        for form in ("0.0", "0.1", "1.0"):
            name = f"odd/sparse/form-{form}"
            with open(f"{place}/{name}", "wb") as file:
                for offset, content in [(0, b"head" * 128), (499_712, b"middle--" * 128), ((1 << 20) - 512, b"z" * 512)]:
                    file.seek(offset)
                    file.write(content)
            # Form 1.0 names entries by tar's process id: in a namespace of its own that is always 1.
            command = ["unshare", "--pid", "--fork", "tar", "--format=pax", "--sparse", f"--sparse-version={form}", "--hole-detection=raw", "-b1"]
            command += ["--owner=0", "--group=0", "--numeric-owner", f"--mtime=@{TIME_SECONDS}", "--mode=0644"]
            # Else the extended header's name holds the process id.
            command += ["--pax-option=exthdr.name=%d/extended-%f,delete=atime,delete=ctime", "-C", place, "-cf", "-", name]
            # Without the two zero blocks that end an archive.
            blocks += subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout[:-1024]
    return blocks


def _write(out, pieces):
    """Joins whole archives and raw blocks to one archive: `pieces` get a tar to add to, or are bytes themselves."""
    with open(out, "wb") as file:
        for piece in pieces:
            if isinstance(piece, bytes):
                file.write(piece)
                continue
            form, fill = piece
            tar = tarfile.open(fileobj=file, mode="w|", format=form)
            fill(tar)
            # Not closed: the end mark comes once, at the end of all pieces.
            tar.fileobj.buf and file.write(tar.fileobj.buf)
            tar.fileobj.buf = b""
        file.write(bytes(1024))


def lower(out):
    """What the upper layer works upon."""

    def fill(tar):
        _directory(tar, "odd")
        _directory(tar, "odd/shared", 0o1777)
        _directory(tar, "odd/owned", 0o2750, uid=1234, gid=4321)
        _directory(tar, "odd/hidden")
        _entry(tar, "odd/hidden/one", content=b"1")
        _directory(tar, "odd/hidden/deep")
        _entry(tar, "odd/hidden/deep/two", content=b"2")
        _directory(tar, "odd/opaque", 0o751)
        _entry(tar, "odd/opaque/before", content=b"before")
        _entry(tar, "odd/gone", content=b"gone")
        _entry(tar, "odd/file-to-directory", content=b"file")
        _directory(tar, "odd/directory-to-file")
        _entry(tar, "odd/directory-to-file/inside", content=b"inside")
        _entry(tar, "odd/replaced", content=b"old", mode=0o600)
        _entry(tar, "odd/mode-only", content=b"same", mode=0o644)

    _write(out, [(tarfile.PAX_FORMAT, fill)])


def _kinds(tar):
    _directory(tar, "odd/kinds", 0o700)
    _entry(tar, "odd/kinds/regular", content=b"regular\n")
    _entry(tar, "odd/kinds/empty")
    _entry(tar, "odd/kinds/fifo", tarfile.FIFOTYPE, mode=0o620)
    _entry(tar, "odd/kinds/character", tarfile.CHRTYPE, mode=0o660, devmajor=1, devminor=3, gid=6)
    _entry(tar, "odd/kinds/block", tarfile.BLKTYPE, mode=0o660, devmajor=259, devminor=4711, gid=6)
    _entry(tar, "odd/kinds/symlink", tarfile.SYMTYPE, linkname="../kinds/regular", mode=0o777)
    _entry(tar, "odd/kinds/dangling", tarfile.SYMTYPE, linkname="/nowhere/at all", mode=0o777, uid=77)
    _entry(tar, "odd/kinds/link", tarfile.LNKTYPE, linkname="odd/kinds/regular", mode=0o644)
    _entry(tar, "odd/kinds/link-to-symlink", tarfile.LNKTYPE, linkname="odd/kinds/symlink", mode=0o777)
    # An old archive marks a directory by its slash alone.
    _entry(tar, "odd/kinds/by-slash/", tarfile.AREGTYPE, mode=0o755)
    # Three pages of data, so that more than one block of an archive holds it, and a name with bytes beyond ASCII.
    _entry(tar, "odd/kinds/gr\u00f6\u00dfer", content=bytes(range(256)) * 48)
    _entry(tar, "odd/kinds/large", content=bytes(range(251)) * 12_000)


def _metadata(tar):
    _directory(tar, "odd/metadata")
    _entry(tar, "odd/metadata/setuid", content=b"s", mode=0o4755)
    _entry(tar, "odd/metadata/setgid", content=b"g", mode=0o2755, uid=5, gid=8)
    _entry(tar, "odd/metadata/no-permissions", content=b"n", mode=0)
    _directory(tar, "odd/metadata/sticky", 0o1777)
    _directory(tar, "odd/metadata/closed", 0o000)
    _entry(tar, "odd/metadata/closed/inside", content=b"x")
    _entry(tar, "odd/metadata/big-owner", content=b"o", uid=1_000_000_000, gid=4_000_000_000)
    _entry(tar, "odd/metadata/exact-time", content=b"t", headers={"mtime": TIME_EXACT})
    _directory(tar, "odd/metadata/exact-directory", headers={"mtime": TIME_EXACT})
    _entry(tar, "odd/metadata/exact-directory/later", content=b"l", mtime=TIME_SECONDS + 999)
    _entry(tar, "odd/metadata/exact-link", tarfile.SYMTYPE, linkname="x", mode=0o777, headers={"mtime": TIME_EXACT})
    _entry(tar, "odd/metadata/epoch", content=b"0", mtime=0)
    _entry(tar, "odd/metadata/far-future", content=b"f", mtime=7_000_000_000)


def _attributes():
    user = {"SCHILY.xattr.user.note": b"plain", "SCHILY.xattr.user.binary": b"\x00\xff=\n\x01"}
    return (
        _pax_block({"SCHILY.xattr.security.capability": CAPABILITY})
        + _file_block("odd/metadata/capability", b"cap", mode=0o755)
        + _pax_block(user)
        + _file_block("odd/metadata/user-attributes", b"attr")
        + _pax_block({"SCHILY.xattr.user.on-directory": b"d"})
        + _file_block("odd/metadata/with-attributes/", b"", tarfile.DIRTYPE, mode=0o755)
    )


def _long_names(tar):
    deep = "odd/long/" + "/".join(["d" * 60] * 5)
    _directory(tar, deep)
    _entry(tar, f"{deep}/{'n' * 200}", content=b"long")
    _entry(tar, f"odd/long/{'l' * 150}", tarfile.SYMTYPE, linkname="t" * 300, mode=0o777)
    _entry(tar, f"odd/long/{'h' * 150}", tarfile.LNKTYPE, linkname=f"{deep}/{'n' * 200}")
    _entry(tar, f"odd/long/exactly-{'e' * 91}", content=b"100")


def _over_the_lower(tar):
    # Directories that are implied and never named: their metadata is the lower layer's (1777, 1234:4321, and Debian's tmp).
    _entry(tar, "odd/shared/new", content=b"new")
    _entry(tar, "odd/owned/new", content=b"new")
    _entry(tar, "odd/owned/below/deep/new", content=b"new")
    _entry(tar, "tmp/implied", content=b"tmp")
    _entry(tar, "odd/only-implied/here/file", content=b"only")
    _entry(tar, "odd/.wh.gone")
    _entry(tar, "odd/.wh.hidden")
    _directory(tar, "odd/opaque", 0o711)
    _entry(tar, "odd/opaque/after", content=b"after")
    # The marker may come after entries of its own directory.
    _entry(tar, "odd/opaque/.wh..wh..opq")
    _entry(tar, "odd/opaque/last", content=b"last")
    _directory(tar, "odd/file-to-directory", 0o755)
    _entry(tar, "odd/file-to-directory/inside", content=b"i")
    _entry(tar, "odd/directory-to-file", content=b"now a file")
    _entry(tar, "odd/replaced", content=b"new content", mode=0o755)
    _entry(tar, "odd/mode-only", content=b"same", mode=0o400)
    # A path that comes twice: the later one wins, whatever it is.
    _directory(tar, "odd/twice")
    _entry(tar, "odd/twice/file", content=b"first", mode=0o600)
    _entry(tar, "odd/twice/file", content=b"second", mode=0o640)
    _entry(tar, "odd/twice/kind", tarfile.SYMTYPE, linkname="file", mode=0o777)
    _entry(tar, "odd/twice/kind", content=b"file now")
    _entry(tar, "odd/twice/directory", tarfile.DIRTYPE, mode=0o700)
    _entry(tar, "odd/twice/directory/kept", content=b"kept")
    _entry(tar, "odd/twice/directory", tarfile.DIRTYPE, mode=0o755)
    # A directory of this layer that is reached by a symlink of this layer.
    _entry(tar, "odd/twice/by-link", tarfile.SYMTYPE, linkname="directory", mode=0o777)
    _entry(tar, "odd/twice/by-link/through", content=b"through")
    # Names that need cleaning.
    _entry(tar, "./odd/twice/./dotted", content=b"dots")
    _entry(tar, "odd/twice/../twice/up-and-down", content=b"updown")
    _entry(tar, "/odd/twice/absolute", content=b"absolute")


def upper(out):
    """One of every odd entry, and what it does to the layer below."""
    _write(
        out,
        [
            (tarfile.PAX_FORMAT, _kinds),
            (tarfile.PAX_FORMAT, _metadata),
            _attributes(),
            (tarfile.GNU_FORMAT, lambda tar: _directory(tar, "odd/long")),
            (tarfile.GNU_FORMAT, _long_names),
            (tarfile.PAX_FORMAT, lambda tar: _entry(tar, "odd/long/pax-" + "p" * 180, content=b"pax")),
            _sparse_files(),
            (tarfile.PAX_FORMAT, _over_the_lower),
        ],
    )
