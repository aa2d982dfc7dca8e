"""Tar files of strangers, and the offsets of the images in a shard, found in one pass and stored in a small file.

The index's file is in a hidden folder next to the shard, or in the user's cache if that folder cannot be written, and
is valid as long as the shard's size and modification time do not change. It holds int64 numbers in rows of three: the
shard's state, the images, the remarks, and how many remarks there are.
"""

import bz2
import contextlib
import gzip
import hashlib
import lzma
import math
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from pretrain.common.errors import UserError, label
from pretrain.common.files import opened, write_atomic
from pretrain.data.folders import ALL, EXTENSIONS, Endings, label_kind, label_maps

_PADDING = 1 << 20  # tar fills its last record with zeros; no writer uses larger records
_HEADERS = 1 << 16  # bytes of all headers of one member; a name has up to 4096 bytes, in one of them
_MEMBERS = 50_000_000
_DIGITS = 300  # of a number in a header, or in a row in a name
_GLOBAL = 1000  # keys of global headers
_NAME = 4096  # characters, as many as a path may have on Linux
# What a damaged file makes tarfile and the decompressors raise, in addition to OSError
FAULTS = (
    tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, ValueError, OverflowError, RecursionError, MemoryError,
)  # fmt: skip
_PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
_RULES = 1  # which members are images; files of other rules are not read
_WORDS = re.compile(r"[a-z][\w-]*(\.[a-z][\w-]*)*")
_USUAL = ("jpg", "jpeg", "png", "webp", *(extension[1:] for extension in EXTENSIONS))


class Index(NamedTuple):
    """The images of a shard.

    Attributes:
        images: (N, 3) int64: the offset of an image's first header, the offset of its data, and their size in bytes.
        remarks: (E, 3) int64, for each kind of images that are not used, or that look like label maps: their number,
            the offset of the first one's header, and that of the image which is used instead, or -1.
    """

    images: np.ndarray
    remarks: np.ndarray


def load(shard: str, endings: Endings = ALL) -> Index:
    """Return the index of a shard. Raises `UserError` if the shard is missing, compressed, truncated or damaged."""
    index = stored(shard, endings)
    if index is None:
        state = _state(shard, endings)
        index = _scan(shard, endings)
        _store(shard, endings, np.concatenate([state, *index, [[len(index.remarks), 0, 0]]]))
    return index


def stored(shard: str, endings: Endings = ALL) -> Index | None:
    """Return the index that an earlier run stored, or None if there is none for the shard in its present state."""
    state = _state(shard, endings)
    for path in _places(shard, endings):
        with contextlib.suppress(OSError, ValueError):
            # Memory-mapped, so that processes share it. Plain integers, because NumPy parses the header of an .npy
            # file with `ast`, which sometimes fails in threads of Python 3.11 ("AST constructor recursion depth
            # mismatch").
            rows = np.memmap(path, "<i8", mode="r").reshape(-1, 3)
            if np.array_equal(rows[:1], state):
                end = len(rows) - 1 - int(rows[-1, 0])
                index = Index(rows[1:end], rows[end:-1])
                images, size = index.images, state[0, 0]
                if 0 < end < len(rows) and (images >= 0).all() and (images[:, 1:].sum(1) <= size).all():
                    return index
    return None


def name(shard: str, start: int) -> str:
    """Return the name of the member whose first header is at `start`."""
    try:
        with open(shard, "rb") as file:
            file.seek(start)
            _, member = next(members(file))
            return member.name
    except (tarfile.ReadError, OSError, ValueError, StopIteration):  # damaged after its index was made
        return f"byte {start}"


def remarks(shard: str, index: Index) -> Counter[tuple[str, str]]:
    """Return the number of images for each remark: the ending of images that are not used and of the one that is used
    instead; or, for images that are used, their `label_kind` and an empty string.
    """
    found: Counter[tuple[str, str]] = Counter()
    for count, first, instead in index.remarks.tolist():
        if instead < 0:
            found[label_kind(name(shard, first)), ""] += count
        else:
            found[_ending(name(shard, first)), _ending(name(shard, instead))] += count
    return found


def _state(shard: str, endings: Endings) -> np.ndarray:
    """Return the first row of an index's file: size and modification time, and a number for what counts as an image."""
    try:
        status = os.stat(shard)
    except OSError as error:
        raise UserError(f"{shard}: cannot be read: {error.strerror}") from error
    return np.array([[status.st_size, status.st_mtime_ns, _RULES + _number(endings)]])


def _number(endings: Endings) -> int:
    return int(hashlib.sha256(str(endings).encode()).hexdigest()[:12], 16) if endings else 0


def _places(shard: str, endings: Endings) -> list[Path]:
    path = Path(os.path.abspath(shard))
    name = f"{path.name}.{_number(endings):x}.index" if endings else f"{path.name}.index"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    digest = hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:16]
    return [
        path.parent / ".image_index" / name,
        cache / "moco-detection-transfer" / digest / name,
    ]


def _store(shard: str, endings: Endings, rows: np.ndarray) -> None:
    for path in _places(shard, endings):
        try:
            return write_atomic(path, lambda file: file.write(rows.astype("<i8").tobytes()))
        except UserError:  # no permission or disk space: try the next place, or store nothing
            continue


class _Bounded:
    """A tar's file that ends the reading of headers after `left` bytes.

    `tarfile` sets no bound: it follows chains of headers, reads headers of any size, some of them in quadratic time,
    and looks for the rest of a truncated sparse map for ever.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.left = file, math.inf
        self.tell, self.seekable = file.tell, file.seekable

    def read(self, size: int) -> bytes:
        self.left -= max(size, tarfile.BLOCKSIZE)  # so an end without a byte counts, too
        if size < 0 or self.left < 0:
            raise tarfile.ReadError(f"the headers of a member have more than {_HEADERS} bytes")
        data = self._file.read(size)
        if size > tarfile.BLOCKSIZE and self.left < math.inf and _longest_number(data) > _DIGITS:
            raise tarfile.ReadError("a header holds a number of too many digits")
        return data

    def seek(self, place: int) -> int:
        if place < 0 or place >= 1 << 63:
            raise tarfile.ReadError("a member does not fit in the file")
        return self._file.seek(place)


def _longest_number(data: bytes) -> int:
    return max(map(len, re.findall(rb"\d+", data)), default=0)


def members(file: IO[bytes], *, packed: bool = False) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of a tar that begins where `file` stands, each with the tar to read its content from.

    A member's headers and name are bounded. At the end, the rest of the file must be zeros; of a compressed one, the
    checksum is then compared, too.

    Args:
        packed: whether it may be compressed by gzip, bzip2 or xz.
    Raises:
        tarfile.ReadError: the file is damaged, truncated or not a tar; the reason is one line.
    """
    try:
        yield from _members(_unpacked(file) if packed else file)
    except (*FAULTS, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise tarfile.ReadError(label(reason)) from error


def content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes] | None:
    """Return the content of a regular file, to be read before the next member; None for anything else.

    Links are never followed: tarfile would search the whole archive for their target, without the bounds of `members`.
    """
    return archive.extractfile(member) if member.isreg() and not member.issparse() else None


def _unpacked(file: IO[bytes]) -> IO[bytes]:
    start = file.tell()
    head = file.read(10)
    file.seek(start)
    readers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh91AY&SY": bz2.open, b"\xfd7zXZ\0": lzma.open}
    opener = next((opener for magic, opener in readers.items() if head.startswith(magic)), None)
    return opener(file) if opener else file


def _members(file: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    bounded: Any = _Bounded(file)  # not a whole IO[bytes]
    bounded.left, end = _HEADERS, file.tell()
    with tarfile.open(fileobj=bounded, mode="r:") as archive:  # reads the first header
        for number in range(_MEMBERS + 1):
            bounded.left = _HEADERS
            member = archive.next()
            bounded.left = math.inf
            if member is None:
                break
            archive.members = []  # type: ignore[attr-defined]  # or tarfile would keep all of them
            if number == _MEMBERS or len(archive.pax_headers) > _GLOBAL:  # each member gets a copy of those
                raise tarfile.ReadError("it has too many members or global headers")
            if len(member.name) > _NAME or "\0" in member.name:
                raise tarfile.ReadError("the name of a member is too long, or holds a zero byte")
            if member.size < 0 or member.offset < end or archive.offset < member.offset_data:
                raise tarfile.ReadError(f"{label(member.name)} does not fit in the file")
            end = member.offset_data
            yield archive, member
        file.seek(archive.offset)
        rest = file.read(_PADDING + 1)
    if rest.strip(b"\0") or len(rest) > _PADDING:
        raise tarfile.ReadError(f"the data after byte {archive.offset} do not belong to it")


def _scan(shard: str, endings: Endings) -> Index:
    """Return the index, read from the headers. Links and devices in the shard are skipped, never followed."""
    rows: list[tuple[int, int, int]] = []
    names: list[str] = []
    end = 0
    try:
        with opened(Path(shard)) as file:
            size = os.fstat(file.fileno()).st_size
            for archive, member in members(file):
                end = archive.offset
                data = 0 if member.issparse() else member.size
                if member.offset_data + data > size:
                    raise tarfile.ReadError(f"{label(member.name)} does not fit in the file")
                plain = member.isreg() and not member.issparse()
                if plain and endings.match(member.name) and not _is_hidden(member.name):
                    names.append(member.name)
                    rows.append((member.offset, member.offset_data, data))
            if end >= size:  # cut between two members: the zeros of the end are missing
                raise tarfile.ReadError("its end is missing")
    except tarfile.ReadError as error:
        raise _damaged(shard, str(error)) from error
    return _select(np.array(rows, np.int64).reshape(-1, 3), names, endings)


def _select(rows: np.ndarray, names: Sequence[str], endings: Endings) -> Index:
    """Return the index with one image of each sample, as WebDataset calls files of one name up to its first dot.

    That is the one whose ending, from the first dot on, comes first in DATA.ENDINGS or among the usual ones. All are
    used if a sample has none of these, as `1.left.png` and `1.right.png`, or if they have the same name. So are files
    whose names happen to hold dots, as `2021.05.jpg` next to `2021.jpg`.
    """
    order = [ending.removeprefix(".") for ending in endings.used] or list(_USUAL)
    place = {ending: number for number, ending in reversed(list(enumerate(order)))}
    best: dict[str, int] = {}  # sample -> index of its image
    for number, name in enumerate(names):
        sample, rank = _sample(name), place.get(_ending(name))
        if rank is not None and (sample not in best or rank < place[_ending(names[best[sample]])]):
            best[sample] = number
    images: list[int] = []
    unused: dict[tuple[str, str], tuple[int, int, int]] = {}  # endings -> first one, its image, their number
    for number, name in enumerate(names):
        instead = best.get(_sample(name), number)
        ending, used = _ending(name), _ending(names[instead])
        if ending == used or not _WORDS.fullmatch(ending):
            images.append(number)
        else:
            first, _, count = unused.get((ending, used), (number, instead, 0))
            unused[ending, used] = first, instead, count + 1
    remarks = [(count, rows[first, 0], rows[instead, 0]) for first, instead, count in unused.values()]
    if not endings:
        kept = [names[number] for number in images]
        suspects = [(number, name) for number, name in enumerate(kept) if label_kind(name)]
        remarks += [(found.number, rows[images[found.first], 0], -1) for found in label_maps(suspects, kept)]
    return Index(rows[images].reshape(-1, 3), np.array(remarks, np.int64).reshape(-1, 3))


def _sample(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _ending(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _is_hidden(member: str) -> bool:
    return os.path.basename(member).startswith(".")


def _damaged(shard: str, why: str) -> UserError:
    with contextlib.suppress(OSError), open(shard, "rb") as file:
        packer = _PACKED.get(file.read(2))
        if packer:
            return UserError(
                f"{shard}: is compressed by {packer}: unpack it to a plain .tar (compression does not shrink images)"
            )
    reason = label(" ".join(why.split()))
    return UserError(f"{shard}: a truncated or damaged tar shard: {reason}; make or copy it again")
