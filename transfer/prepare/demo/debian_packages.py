"""Debian packages as a source of photographs: downloads them and reads their content without dpkg.

A `.deb` is an `ar` archive with a `data.tar.*` in it; a `.rcc` is a Qt resource file, in which gcompris keeps
its pictures. Both are read in pure Python, so a `.deb` copied from elsewhere works on any system.
"""

import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pretrain.common.errors import UserError, label
from pretrain.data.tar_index import FAULTS, content, members

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
        with _data_tar(deb) as file:
            for archive, member in members(file, packed=True):  # to the end, which has the checksum
                path = member.name.removeprefix("./")
                if path in left and (found := content(archive, member)):
                    left.remove(path)
                    yield path, found.read()
    except (*FAULTS, OSError) as error:
        reason = label(str(error))
        raise UserError(f"{deb}: not a complete Debian package ({reason}): download it again") from None


@contextmanager
def _data_tar(deb: Path) -> Iterator[IO[bytes]]:
    """Copy the package's `data.tar.*` to a temporary file, and open that."""
    with deb.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise ValueError("not an ar archive")
        while len(header := file.read(60)) == 60:
            name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
            if name == "data.tar.zst":  # on Ubuntu
                with _through_dpkg(deb) as stream:
                    yield stream
                return
            if name.startswith("data.tar"):
                with tempfile.TemporaryFile(dir=deb.parent) as part:
                    while size > 0 and (block := file.read(min(size, 1 << 20))):
                        size -= part.write(block)
                    part.seek(0)
                    yield part
                return
            if size < 0:
                raise ValueError("a damaged ar archive")
            file.seek(size + size % 2, os.SEEK_CUR)  # each member is padded to an even length
    raise ValueError("no data.tar inside")


@contextmanager
def _through_dpkg(deb: Path) -> Iterator[IO[bytes]]:
    if not shutil.which("dpkg-deb"):
        raise UserError(f"{deb.name} is compressed with zstd: that needs dpkg-deb")
    with tempfile.TemporaryFile(dir=deb.parent) as plain:
        command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
        if subprocess.run(command, stdout=plain, stderr=subprocess.DEVNULL).returncode:
            raise ValueError("dpkg-deb cannot read it")
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
        folders, left = [(0, "")], len(data) // entry_size  # entry 0 is the root
        while folders:
            entry, prefix = folders.pop()
            count, first = struct.unpack_from(">II", data, tree + entry * entry_size + 6)
            left -= count
            if left < 0:
                raise ValueError("a Qt resource file whose folders hold each other")
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
