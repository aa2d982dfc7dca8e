"""Debian packages as a source of photographs: downloads them and reads their content without dpkg.

A `.deb` is an `ar` archive with a `data.tar.*` in it; a `.rcc` is a Qt resource file, in which gcompris keeps
its pictures. Both are read in pure Python, so a `.deb` copied from elsewhere works on any system.
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
    """Download `packages` into `folder` with `apt-get download`, which needs no root and installs nothing.

    Raises UserError if apt-get is missing, does not know a package, or the network fails.
    """
    if not shutil.which("apt-get"):
        raise UserError("apt-get is not installed: pass the packages' files with --deb FILE ...")
    folder = folder.resolve()
    try:
        done = subprocess.run(
            ["apt-get", *APT_OPTIONS, "download", *packages],
            cwd=folder, capture_output=True, text=True, timeout=FETCH_LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"apt-get download took more than {FETCH_LIMIT_S} s: use --deb FILE ...") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["no reason given"]
        raise UserError(
            f"apt-get download failed ({errors[0]}): run 'apt-get update' as root, or use --deb FILE ..."
        )
    return sorted(folder.glob("*.deb"))


def package_name(deb: Path) -> str:
    """Return the package name of a file `NAME_VERSION_ARCH.deb`."""
    if not deb.is_file():
        raise UserError(f"--deb: no such file: {deb}")
    name, _, rest = deb.name.partition("_")
    if deb.suffix != ".deb" or not rest:
        raise UserError(f"--deb: {deb.name} is not named NAME_VERSION_ARCH.deb, as apt-get names files")
    return name


def read_deb(deb: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of the files of a package whose path (`usr/share/...`) is in `wanted`.

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
        raise UserError(f"{deb}: not a complete Debian package ({error}): download it again") from None


@contextmanager
def _data_tar(deb: Path) -> Iterator[IO[bytes]]:
    """Open the package's `data.tar.*` as a stream that tarfile can read."""
    with deb.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise ValueError("not an ar archive")
        while len(header := file.read(60)) == 60:
            name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
            # On Ubuntu; tarfile supports zstd from Python 3.14 on.
            if name == "data.tar.zst" and sys.version_info < (3, 14):
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
    """Yield (path, content) of the files of a Qt resource file whose path is in `wanted`.

    Format (big endian): `qres`, u32 version, u32 offsets of tree, data and names. A tree entry is u32 name
    offset, u16 flags; then for a folder (flag 2) u32 child count and u32 first child, for a file u16 country,
    u16 language and u32 data offset; and from version 2 on a u64 time. A file's data is u32 length and bytes;
    with flag 1, a u32 uncompressed length and zlib data. Files with zstd (flag 4) are skipped.
    Raises ValueError if `data` is not such a file.
    """
    try:
        magic, version, tree, contents, names = struct.unpack_from(">4sIIII", data)
        if magic != b"qres":
            raise ValueError("not a Qt resource file")
        entry_size = 14 if version == 1 else 22
        folders = [(0, "")]  # entry 0 is the root
        while folders:
            entry, prefix = folders.pop()
            count, first = struct.unpack_from(">II", data, tree + entry * entry_size + 6)
            for child in range(first, first + count):
                at = tree + child * entry_size
                name_at, flags = struct.unpack_from(">IH", data, at)
                length = struct.unpack_from(">H", data, names + name_at)[0]
                start = names + name_at + 6  # after the length and a u32 hash
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
