"""DATA.TRAIN: any number of folders, text lists and tar shards as one source of images."""

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence

import numpy as np

from pretrain.common.console import say
from pretrain.common.errors import UserError, printable
from pretrain.common.files import missing_folder
from pretrain.data.folders import (
    ALL,
    Endings,
    ImageFiles,
    Images,
    Order,
    images_below,
    label_kind,
    label_maps,
)
from pretrain.data.shards import ShardImages

_KEY = "DATA.TRAIN"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


def check(sources: Sequence[str]) -> None:
    """Raise `UserError` for a source that is not there or of no known kind, without reading any."""
    for source in sources:
        if _kind(source) == "shards":
            _shards(source)


def find(sources: Sequence[str], endings: Endings = ALL) -> Images:
    """Return the images of all sources. Raises `UserError` for a source that cannot be used.

    Args:
        sources: folders, searched recursively; `.txt` files with one path per line; tar shards, given as a path, a
            pattern `shards/*.tar` or a range `shards/train-{000000..000146}.tar`.
        endings: DATA.ENDINGS, which files of folders and shards are images. Without a choice, a line reports images of
            a folder that look like label maps.
    """
    if not sources:
        raise UserError(
            f"{_KEY}: names no images; give a folder, a list or shards, as in {_KEY} '[\"my/photos\"]'"
        )
    kinds = [_kind(source) for source in sources]
    shards = [
        shard
        for source, kind in zip(sources, kinds, strict=True)
        if kind == "shards"
        for shard in _shards(source)
    ]
    names, suspects = hashlib.sha256(), _Suspects()
    files = ImageFiles(_paths(sources, kinds, endings, names, suspects))
    files.digest = names.hexdigest()
    if not endings:
        suspects.report(files)
    if not shards:
        return files
    in_shards = ShardImages(shards, key=_KEY, endings=endings)
    return Mixed(files, in_shards) if len(files) else in_shards


class _Suspects:
    """The images of folders that have the name of a label map, found while the folders are searched."""

    def __init__(self) -> None:
        self.folders: list[tuple[str, range, list[tuple[int, str]]]] = []  # with indices of their images

    def report(self, files: ImageFiles) -> None:
        """Print a line for each kind of them that is named after other images of the folder."""
        for folder, indices, suspects in self.folders:
            above = os.path.join(folder, "")
            for kind, count, first in label_maps(suspects, (files[i].removeprefix(above) for i in indices)):
                if kind.endswith("/"):
                    remedy = f"name the folder of the photographs in {_KEY}, or choose them with DATA.ENDINGS"
                else:
                    remedy = f"leave them out: DATA.ENDINGS '[\"!{kind}\"]'"
                example = printable(files[first].removeprefix(above))
                say(
                    f"note: {_KEY} {printable(folder)}: {count} of {len(indices)} images are named like label maps of "
                    f"others ({example}): if they are, {remedy}"
                )


def _paths(
    sources: Sequence[str],
    kinds: Sequence[str],
    endings: Endings,
    names: "hashlib._Hash",
    suspects: _Suspects,
) -> Iterator[str]:
    """Yield all files of folders and lists; `names` is updated with their paths relative to the folder or list."""
    count = 0
    for source, kind in zip(sources, kinds, strict=True):
        if kind == "shards":
            continue
        paths = images_below(source, key=_KEY, endings=endings) if kind == "folder" else _listed(source)
        above = os.path.join(source if kind == "folder" else os.path.dirname(source), "")
        first, found = count, []
        for count, path in enumerate(paths, first + 1):
            name = path.removeprefix(above)
            if os.path.isabs(name):  # an absolute path in a list, valid on this machine only
                name = os.path.basename(name)
            names.update(os.fsencode(name) + b"\0")
            if label_kind(name):
                found.append((count - 1, name))
            yield path
        if kind == "folder":
            suspects.folders.append((source, range(first, count), found))


def _kind(source: str) -> str:
    """Return `folder`, `list` or `shards`."""
    lower = source.lower()
    if os.path.isdir(source):
        return "folder"
    if lower.endswith(_PACKED):
        raise UserError(
            f"{_KEY}: {source} is compressed: unpack it to a plain .tar (compression does not shrink images)"
        )
    if lower.endswith(".tar"):
        return "shards"
    if not os.path.exists(source):
        if lower.endswith(".txt"):
            raise UserError(f"{_KEY}: no such list: {source}")
        raise UserError(missing_folder(_KEY, source))
    if not lower.endswith(".txt") or not os.path.isfile(source):
        raise UserError(f"{_KEY}: {source} is neither a folder, a list (.txt) nor a tar shard (.tar)")
    return "list"


def _listed(path: str) -> Iterator[str]:
    """Yield the paths in a list; relative ones start from the list's folder. They need not exist yet."""
    found, folder = False, os.fsencode(os.path.dirname(path))
    try:
        with open(path, "rb") as file:
            for line in file:
                name = line.removeprefix(b"\xef\xbb\xbf").strip()  # a byte order mark, which some editors add
                if name and not name.startswith(b"#"):
                    found = True
                    yield os.fsdecode(os.path.join(folder, name))
    except OSError as error:
        raise UserError(f"{_KEY}: cannot read {path}: {error.strerror or error}") from error
    if not found:
        raise UserError(f"{_KEY}: no path in the list {path}; write one path per line")


def _shards(source: str) -> list[str]:
    """Return the shards that a path, pattern or range names, in order."""
    if os.path.isfile(source):
        return [source]
    found = []
    for pattern in _expanded(source):
        matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        if not matches:
            raise UserError(f"{_KEY}: no shard matches {pattern}")
        if not os.path.isfile(matches[0]):
            of = f" (of {source})" if pattern != source else ""
            raise UserError(f"{_KEY}: no such shard: {matches[0]}{of}")
        found += matches
    return found


def _expanded(pattern: str) -> Iterator[str]:
    """Expand ranges, as `webdataset` and shells do: `a-{08..10}.tar` -> a-08.tar, a-09.tar, a-10.tar."""
    match = _RANGE.search(pattern)
    if not match:
        yield pattern
        return
    first, last = match[1], match[2]
    if int(first) > int(last):
        raise UserError(f"{_KEY}: {pattern}: the range {match[0]} is empty; write {{{last}..{first}}}")
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{pattern[: match.start()]}{number:0{width}}{pattern[match.end() :]}")


class Mixed:
    """Single files and shards together; the files are numbered first."""

    def __init__(self, files: ImageFiles, shards: ShardImages) -> None:
        self.files, self.shards = files, shards
        self.digest = hashlib.sha256(f"{files.digest} {shards.digest}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.files) + len(self.shards)

    def __getitem__(self, index: int) -> str:
        return self.files[index] if index < len(self.files) else self.shards[index - len(self.files)]

    def read(self, index: int) -> bytes:
        """Return the contents of the image's file. Raises the errors of the part it belongs to."""
        return (
            self.files.read(index) if index < len(self.files) else self.shards.read(index - len(self.files))
        )

    def order(self, seed: int, epoch: int) -> "_MixedOrder":
        """Return an order that interleaves the orders of both parts evenly."""
        orders = self.files.order(seed, epoch), self.shards.order(seed, epoch)
        return _MixedOrder(*orders, sizes=(len(self.files), len(self.shards)))


class _MixedOrder:
    """The first p images of an epoch are p * F // (F + S) of the F files; the rest are from the S images in shards."""

    def __init__(self, files: Order, shards: Order, *, sizes: tuple[int, int]) -> None:
        self.orders, self.sizes = (files, shards), sizes

    def __getitem__(self, part: slice) -> np.ndarray:
        files, total = self.sizes[0], sum(self.sizes)
        start, stop, _ = part.indices(total)
        before = np.arange(start, stop + 1) * files // total
        from_files = before[1:] > before[:-1]
        indices = np.empty(stop - start, np.int64)
        indices[from_files] = self.orders[0][before[0] : before[-1]]
        indices[~from_files] = self.orders[1][start - before[0] : stop - before[-1]] + files
        return indices
