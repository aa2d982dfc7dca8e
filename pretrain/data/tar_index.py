"""The offsets of the images in a tar shard, found in one pass over its headers and then stored in a small file.

An index is an (N, 3) int64 array with a row for each image: the offset of its first header, the offset of its data, and
the data's size in bytes. Its file is in a hidden folder next to the shard, or in the user's cache if that folder cannot
be written, and is valid as long as the shard's size and modification time do not change.
"""

import contextlib
import hashlib
import os
import tarfile
from pathlib import Path

import numpy as np

from pretrain.common.errors import UserError
from pretrain.common.files import write_atomic
from pretrain.data.folders import is_image, printable

_PADDING = 1 << 20  # tar fills its last record with zeros; no writer uses larger records
_PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


def load(shard: str) -> np.ndarray:
    """Return the index of a shard. Raises `UserError` if the shard is missing, compressed, truncated or damaged."""
    index = stored(shard)
    if index is None:
        state = _state(shard)
        index = _scan(shard)
        _store(shard, np.concatenate([state, index]))
    return index


def stored(shard: str) -> np.ndarray | None:
    """Return the index that an earlier run stored, or None if there is none for the shard in its present state."""
    state = _state(shard)
    for path in _places(shard):
        with contextlib.suppress(OSError, ValueError):
            # Memory-mapped, so that processes share it. Plain integers, because NumPy parses the header of an .npy
            # file with `ast`, which sometimes fails in threads of Python 3.11 ("AST constructor recursion depth
            # mismatch").
            rows = np.memmap(path, "<i8", mode="r").reshape(-1, 3)
            if np.array_equal(rows[:1], state):
                index = rows[1:]
                if (index >= 0).all() and (index[:, 1:].sum(1) <= state[0, 0]).all():
                    return index
    return None


def name(shard: str, start: int) -> str:
    """Return the name of the member whose first header is at `start`."""
    try:
        with open(shard, "rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                member = archive.next()
                return member.name if member else "?"
    except (tarfile.TarError, OSError, ValueError):  # damaged after its index was made
        return f"byte {start}"


def _state(shard: str) -> np.ndarray:
    """Return the first row of an index's file: size and modification time, which identify the shard's state."""
    try:
        status = os.stat(shard)
    except OSError as error:
        raise UserError(f"{shard}: cannot be read: {error.strerror}") from error
    return np.array([[status.st_size, status.st_mtime_ns, 0]])


def _places(shard: str) -> list[Path]:
    path = Path(os.path.abspath(shard))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    digest = hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:16]
    return [
        path.parent / ".image_index" / f"{path.name}.index",
        cache / "moco-detection-transfer" / digest / f"{path.name}.index",
    ]


def _store(shard: str, rows: np.ndarray) -> None:
    for path in _places(shard):
        try:
            return write_atomic(path, lambda file: file.write(rows.astype("<i8").tobytes()))
        except UserError:  # no permission or disk space: try the next place, or store nothing
            continue


def _scan(shard: str) -> np.ndarray:
    """Return the index, read from the headers. Links and devices in the shard are skipped, never followed."""
    rows, end = [], 0
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = os.fstat(file.fileno()).st_size
            while member := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # or tarfile would keep all of them
                data = 0 if member.issparse() else member.size
                if data < 0 or member.offset < end or member.offset_data + data > size:
                    raise tarfile.ReadError(f"{member.name} does not fit in the file")
                end = member.offset_data
                plain = member.isreg() and not member.issparse()
                if plain and is_image(member.name) and not _is_hidden(member.name):
                    rows.append((member.offset, member.offset_data, data))
            end = archive.offset
            file.seek(end)
            rest = file.read(_PADDING) if size - end <= _PADDING else b"?"
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        raise _damaged(shard, str(error)) from error
    if not rest:  # cut between two members
        raise _damaged(shard, "its end is missing")
    if rest.strip(b"\0"):
        raise _damaged(shard, f"the data after byte {end} do not belong to it")
    return np.array(rows, np.int64).reshape(-1, 3)


def _is_hidden(member: str) -> bool:
    return os.path.basename(member).startswith(".")


def _damaged(shard: str, why: str) -> UserError:
    with contextlib.suppress(OSError), open(shard, "rb") as file:
        packer = _PACKED.get(file.read(2))
        if packer:
            return UserError(
                f"{shard}: is compressed by {packer}: unpack it to a plain .tar (compression does not shrink images)"
            )
    reason = printable(" ".join(why.split()))[:160]
    return UserError(f"{shard}: a truncated or damaged tar shard: {reason}; make or copy it again")
