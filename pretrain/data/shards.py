"""Images in tar shards (WebDataset layout), read by their offsets, in an order that uses a few shards at a time.

Memory does not grow with the number of images: only the name and the number of images of each shard are kept, and the
offsets of the images of those shards that are being read.
"""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pretrain.common import rng
from pretrain.common.console import say
from pretrain.common.errors import UserError, printable
from pretrain.common.files import load_json
from pretrain.data import tar_index
from pretrain.data.folders import ALL, Endings, ImageFiles

BLOCK = 16  # shards whose images are mixed
# Shards that a process keeps open, with two file descriptors each: those of one block and of the next
_OPEN = 2 * BLOCK
_LINES = 5  # remarks that are printed, those about the most files
_THREADS = 8  # for reading headers: on a network disk they mostly wait


class ShardImages:
    """The images of tar shards, numbered consecutively in the order of the shards.

    Raises `UserError` naming a shard that is missing, truncated or damaged, or `key` if no shard holds an image.
    """

    def __init__(self, shards: Sequence[str], *, key: str, endings: Endings = ALL) -> None:
        _opened.cache_clear()  # shards of the same names may have been rewritten
        self._shards, self._endings, self._counts = ImageFiles(shards), endings, count_images(shards, endings)
        self._ends = np.cumsum(self._counts)
        if not len(self):
            wanted = f" (looked for DATA.ENDINGS {endings})" if endings else ""
            raise UserError(
                f"{key}: no image in {shards[0]} or any other of the {len(shards)} tar shard(s){wanted}"
            )
        # The digest is over shards and their image counts: reading the images' names would take too long.
        names = hashlib.sha256(str(endings).encode())
        for shard, count in zip(shards, self._counts, strict=True):
            names.update(os.fsencode(os.path.basename(shard)) + b"\0%d\0" % count)
        self.digest = names.hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> str:
        shard, member = self._place(index)
        return f"{shard.path}: {tar_index.name(shard.path, int(shard.index[member, 0]))}"

    def read(self, index: int) -> bytes:
        """Return the member's contents. Raises `OSError`, or `UserError` if the shard is damaged."""
        shard, member = self._place(index)
        return shard.read(member)

    def order(self, seed: int, epoch: int) -> "BlockOrder":
        """Return an order with the shards permuted and the images of each `BLOCK` of them mixed."""
        return BlockOrder(self._counts, seed, epoch)

    def _place(self, index: int) -> tuple["_OpenShard", int]:
        """Return the shard, and the number of the image in it."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        count = int(self._counts[shard])
        return _opened(self._shards[shard], count, self._endings), index - int(self._ends[shard]) + count


class BlockOrder:
    """An order of all images: the shards are permuted, then the images of each `BLOCK` of shards.

    It is a pure function of (counts, seed, epoch). Any part can be computed without the parts before it, and only one
    block's indices are in memory.

    Args:
        counts: (S,) number of images in each shard.
    """

    def __init__(self, counts: np.ndarray, seed: int, epoch: int) -> None:
        self._counts, self._firsts = counts, np.cumsum(counts) - counts
        self._seed, self._epoch = seed, epoch
        self._shards = rng.generator("shards", seed, epoch).permutation(len(counts))
        ends = np.cumsum(counts[self._shards])
        self._ends = np.append(ends[BLOCK - 1 : -1 : BLOCK], ends[-1])
        self._block, self._images = -1, np.empty(0, np.int64)

    def __getitem__(self, part: slice) -> np.ndarray:
        position, stop, _ = part.indices(int(self._ends[-1]))
        parts = [np.empty(0, np.int64)]
        while position < stop:
            block = int(np.searchsorted(self._ends, position, side="right"))
            images = self._images_of(block)
            first = int(self._ends[block]) - len(images)
            parts.append(images[position - first : stop - first])
            position += len(parts[-1])
        return np.concatenate(parts)

    def _images_of(self, block: int) -> np.ndarray:
        if block != self._block:
            shards = self._shards[block * BLOCK : (block + 1) * BLOCK]
            images = [np.arange(self._firsts[s], self._firsts[s] + self._counts[s]) for s in shards]
            random = rng.generator("block", self._seed, self._epoch, block)
            self._block, self._images = block, random.permutation(np.concatenate(images))
        return self._images


class _OpenShard:
    """A shard that is being read. Each process opens the file itself."""

    def __init__(self, path: str, endings: Endings) -> None:
        self.path, self.index = path, tar_index.load(path, endings).images
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed when the cache drops it)

    def read(self, member: int) -> bytes:
        """Return the contents of a member. Raises `OSError`, also if the file has been truncated."""
        _, start, size = (int(number) for number in self.index[member])
        data = os.pread(self.file.fileno(), size, start)
        if len(data) < size:
            raise OSError(f"{self.path}: is shorter than its index says")
        return data


@functools.lru_cache(maxsize=_OPEN)
def _opened(path: str, count: int, endings: Endings) -> _OpenShard:
    shard = _OpenShard(path, endings)
    if len(shard.index) != count:
        raise UserError(
            f"{path}: holds {len(shard.index)} images, and {count} are expected: sizes.json in its folder is wrong "
            "(each sample has one image), or the shard was changed during the run"
        )
    return shard


def count_images(shards: Sequence[str], endings: Endings) -> np.ndarray:
    """Return (S,) the number of images in each shard, from `sizes.json` in its folder or else from the shard's index.

    Missing indices are made. Each process starts at another shard, so processes that see each other's index files share
    the work. A line is printed about images that are not used, and about those that look like label maps.
    """
    sizes = {folder: _sizes(folder) for folder in {os.path.dirname(shard) for shard in shards}}
    promised = [sizes[os.path.dirname(shard)].get(os.path.basename(shard)) for shard in shards]
    unknown = [number for number, count in enumerate(promised) if count is None]
    from pretrain.common import distributed  # imports PyTorch, which takes seconds

    start = len(unknown) * distributed.rank() // distributed.world_size()
    unknown = unknown[start:] + unknown[:start]
    remarks: Counter[tuple[str, str]] = Counter()
    known: dict[int, int] = {}

    def note(number: int, index: tar_index.Index | None) -> None:  # and drop it: there may be thousands
        if index is not None:
            known[number] = len(index.images)
            remarks.update(tar_index.remarks(shards[number], index))

    with ThreadPoolExecutor(_THREADS) as pool:
        stored = pool.map(lambda number: tar_index.stored(shards[number], endings), unknown)
        for number, index in zip(unknown, stored, strict=True):
            note(number, index)
        new = [number for number in unknown if number not in known]
        if new:
            say(f"indexing the images of {len(new)} tar shard(s); the indices are stored for the next run")
        loaded = pool.map(lambda number: tar_index.load(shards[number], endings), new)
        for number, index in zip(new, loaded, strict=True):
            note(number, index)
    _report(remarks)
    return np.array([known[n] if count is None else count for n, count in enumerate(promised)], np.int64)


def _report(total: Counter[tuple[str, str]]) -> None:
    for (kind, instead), count in total.most_common(_LINES):
        if instead:
            say(
                f"note: files with the ending {printable(kind)} in tar shards are not used ({count}): the image of "
                f"their sample is its {printable(instead)}; DATA.ENDINGS chooses others"
            )
        else:
            say(
                f"note: images in tar shards are named like label maps of others ({printable(kind)}, {count}): if they "
                "are, choose the photographs with DATA.ENDINGS"
            )


def _sizes(folder: str) -> dict[str, int]:
    """Return `sizes.json`, images by shard name, or an empty dict if it is missing. Raises `UserError` if invalid."""
    path = os.path.join(folder, "sizes.json")
    if not os.path.lexists(path):
        return {}
    try:
        sizes = load_json(Path(path))
    except UserError as error:
        raise UserError(f"{error}; fix or remove it") from None
    right = isinstance(sizes, dict) and all(type(n) is int and 0 <= n < 1 << 40 for n in sizes.values())
    if not right:
        raise UserError(f'{path}: must look like {{"train-000000.tar": 1000, ...}}; fix or remove it')
    return sizes
