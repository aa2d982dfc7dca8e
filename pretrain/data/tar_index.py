"""Where the images of a tar shard are: found by one pass over its headers, then kept in a small file.

An index is an (N, 3) int64 array, a row for each image: where its first header starts, where its data start, and
how many bytes they are. Its file lies in a hidden folder beside the shard, or in the user's cache where that folder
cannot be written, and is used as long as the shard has the same size and time of change.
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

_PADDING = 1 << 20  # tar fills its last record with zeros; no writer takes larger ones
_PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


def load(shard: str) -> np.ndarray:
    """The index of a shard. Raises `UserError` naming the shard: it is missing, packed, truncated or damaged."""
    index = stored(shard)
    if index is None:
        state = _state(shard)
        index = _scan(shard)
        _store(shard, np.concatenate([state, index]))
    return index


def stored(shard: str) -> np.ndarray | None:
    """The index that an earlier run has stored; None if there is none for the shard as it is now."""
    state = _state(shard)
    for path in _places(shard):
        with contextlib.suppress(OSError, ValueError):
            # In no process's own memory. Plain integers, for NumPy reads the header of an .npy file by `ast`, which
            # fails at times in threads of Python 3.11 ("AST constructor recursion depth mismatch").
            rows = np.memmap(path, "<i8", mode="r").reshape(-1, 3)
            if np.array_equal(rows[:1], state):
                index = rows[1:]
                if (index >= 0).all() and (index[:, 1:].sum(1) <= state[0, 0]).all():
                    return index
    return None


def name(shard: str, start: int) -> str:
    """The name of the member whose first header is at `start`."""
    try:
        with open(shard, "rb") as file:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                member = archive.next()
                return member.name if member else "?"
    except (tarfile.TarError, OSError, ValueError):  # damaged since its index was made
        return f"byte {start}"


def _state(shard: str) -> np.ndarray:
    """The first row of an index's file: by its size and time of change a shard is known again."""
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
        except UserError:  # no permission, or no room: the next place, or none
            continue


def _scan(shard: str) -> np.ndarray:
    """The index, from the headers. Links and devices in the shard are passed over, and never followed."""
    rows, end = [], 0
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = os.fstat(file.fileno()).st_size
            while member := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
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
        raise _damaged(shard, "it has no end")
    if rest.strip(b"\0"):
        raise _damaged(shard, f"what follows byte {end} is no member of it")
    return np.array(rows, np.int64).reshape(-1, 3)


def _is_hidden(member: str) -> bool:
    return os.path.basename(member).startswith(".")


def _damaged(shard: str, why: str) -> UserError:
    with contextlib.suppress(OSError), open(shard, "rb") as file:
        packer = _PACKED.get(file.read(2))
        if packer:
            return UserError(
                f"{shard}: is compressed by {packer}: unpack it to a plain .tar; images do not gain by it"
            )
    reason = printable(" ".join(why.split()))[:160]
    return UserError(f"{shard}: a truncated or damaged tar shard: {reason}; make or copy it again")
