"""Debian packages as a source of photographs: fetch them, and read what is inside without dpkg.

A `.deb` is an `ar` archive with a `data.tar.*` in it; a `.rcc` is Qt's resource file (gcompris keeps its
pictures in those). Both are read here in pure Python, so a `.deb` copied from elsewhere works on any system.
"""

import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pretrain.common.errors import UserError

FETCH_LIMIT_S = 600
APT_OPTIONS = [
    "-o",
    "Acquire::Retries=1",
    "-o",
    "Acquire::http::Timeout=30",
    "-o",
    "Acquire::https::Timeout=30",
]


def fetch(packages: list[str], folder: Path) -> list[Path]:
    """Download `packages` into `folder` with `apt-get download`: any user may, and nothing gets installed.

    Raises UserError with one line if apt-get is missing, knows no such package, or the network fails.
    """
    if not shutil.which("apt-get"):
        raise UserError("there is no apt-get here: pass the packages' files with --deb FILE ...")
    folder = folder.resolve()
    try:
        done = subprocess.run(
            ["apt-get", *APT_OPTIONS, "download", *packages],
            cwd=folder, capture_output=True, text=True, timeout=FETCH_LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"apt-get download took over {FETCH_LIMIT_S} s: use --deb FILE ...") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["no reason given"]
        raise UserError(f"apt-get download failed ({said[0]}): 'apt-get update' as root, or --deb FILE ...")
    return sorted(folder.glob("*.deb"))


def package_name(deb: Path) -> str:
    """The package that a file `NAME_VERSION_ARCH.deb` holds."""
    if not deb.is_file():
        raise UserError(f"--deb: no such file: {deb}")
    name, _, rest = deb.name.partition("_")
    if deb.suffix != ".deb" or not rest:
        raise UserError(f"--deb: {deb.name} is not named NAME_VERSION_ARCH.deb, as apt-get names it")
    return name


def read_deb(deb: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """The files of a package whose path (`usr/share/...`) is in `wanted`, as (path, content), as stored.

    Raises UserError if `deb` is not a readable Debian package.
    """
    left = set(wanted)
    try:
        with _data_tar(deb) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                if path in left and member.isfile() and (content := archive.extractfile(member)):
                    left.remove(path)
                    yield path, content.read()
                if not left:
                    return
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        raise UserError(f"{deb}: not a whole Debian package ({error}): fetch it again") from None


@contextmanager
def _data_tar(deb: Path) -> Iterator[IO[bytes]]:
    """The package's `data.tar.*` as a stream from which tarfile reads."""
    with deb.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise ValueError("no ar archive")
        while len(header := file.read(60)) == 60:
            name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
            if name == "data.tar.zst" and sys.version_info < (3, 14):  # Ubuntu; tarfile reads it from 3.14 on
                with _through_dpkg(deb) as stream:
                    yield stream
                return
            if name.startswith("data.tar"):
                yield file
                return
            file.seek(size + size % 2, os.SEEK_CUR)  # each member is padded to an even length
    raise ValueError("no data.tar inside")


@contextmanager
def _through_dpkg(deb: Path) -> Iterator[IO[bytes]]:
    if not shutil.which("dpkg-deb"):
        raise UserError(f"{deb.name} is compressed with zstd: that needs dpkg-deb or Python 3.14")
    with tempfile.TemporaryFile(dir=deb.parent) as plain:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=plain, check=True)
        plain.seek(0)
        yield plain


def read_rcc(data: bytes, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """The files of a Qt resource file whose path is in `wanted`, as (path, content).

    Format (big endian): `qres`, u32 version, u32 offsets of tree, data and names. A tree entry is u32 name
    offset, u16 flags; then for a folder (flag 2) u32 child count and u32 first child, for a file u16 country,
    u16 language and u32 data offset; and a u64 time from version 2 on. A file's data is u32 length and bytes,
    with flag 1 zlib behind a u32 plain length. zstd (flag 4) is not read: such files are left out.
    Raises ValueError if `data` is something else.
    """
    try:
        magic, version, tree, contents, names = struct.unpack_from(">4sIIII", data)
        if magic != b"qres":
            raise ValueError("no Qt resource file")
        entry_size = 14 if version == 1 else 22
        folders = [(0, "")]  # entry 0 is the root
        while folders:
            entry, prefix = folders.pop()
            count, first = struct.unpack_from(">II", data, tree + entry * entry_size + 6)
            for child in range(first, first + count):
                at = tree + child * entry_size
                name_at, flags = struct.unpack_from(">IH", data, at)
                length = struct.unpack_from(">H", data, names + name_at)[0]
                start = names + name_at + 6  # behind the length and a u32 hash
                path = prefix + data[start : start + 2 * length].decode("utf-16-be")
                if flags & 2:
                    folders.append((child, path + "/"))
                elif path in wanted and not flags & 4:
                    yield path, _rcc_file(data, contents + struct.unpack_from(">I", data, at + 10)[0], flags)
    except (struct.error, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"broken Qt resource file ({error})") from None


def _rcc_file(data: bytes, at: int, flags: int) -> bytes:
    size = struct.unpack_from(">I", data, at)[0]
    content = data[at + 4 : at + 4 + size]
    return zlib.decompress(content[4:]) if flags & 1 else content
