"""Images in tar shards (WebDataset layout), read at their places, in an order that keeps to a few shards at a time.

Memory does not grow with the number of images: of each shard only the name and the number of its images are kept,
and the places of the images of those shards that are being read.
"""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pretrain.common import distributed, rng
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.data import tar_index
from pretrain.data.folders import ImageFiles

BLOCK = 16  # shards whose images are mixed
_OPEN = (
    2 * BLOCK
)  # shards that a process has open, with two file descriptors each: those of a block, and of the next
_THREADS = 8  # that read headers: on a network disk they mostly wait


class ShardImages:
    """The images of tar shards, numbered through in the order of the shards.

    Raises `UserError` naming the shard that is missing, truncated or damaged, or `key` if no shard holds an image.
    """

    def __init__(self, shards: Sequence[str], *, key: str) -> None:
        _opened.cache_clear()  # shards of the same names may have been written anew
        self._shards, self._counts = ImageFiles(shards), count_images(shards)
        self._ends = np.cumsum(self._counts)
        if not len(self):
            raise UserError(f"{key}: no image in {shards[0]} nor in any other of {len(shards)} tar shard(s)")
        names = hashlib.sha256()  # of shards and their sizes: to look at the images' own takes too long
        for shard, count in zip(shards, self._counts, strict=True):
            names.update(os.fsencode(os.path.basename(shard)) + b"\0%d\0" % count)
        self.digest = names.hexdigest()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> str:
        shard, member = self._place(index)
        return f"{shard.path}: {tar_index.name(shard.path, int(shard.index[member, 0]))}"

    def read(self, index: int) -> bytes:
        """The member's contents. Raises `OSError`, and `UserError` if the shard is damaged."""
        shard, member = self._place(index)
        return shard.read(member)

    def order(self, seed: int, epoch: int) -> "BlockOrder":
        """Shards in random order, and the images of each `BLOCK` of them mixed."""
        return BlockOrder(self._counts, seed, epoch)

    def _place(self, index: int) -> tuple["_OpenShard", int]:
        """The shard, and the number of the image in it."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        count = int(self._counts[shard])
        return _opened(self._shards[shard], count), index - int(self._ends[shard]) + count


class BlockOrder:
    """All indices once: the shards are permuted, then the images of each `BLOCK` of shards.

    A pure function of (counts, seed, epoch); any part is computed without the ones before it. One block's indices
    are in memory.

    Args:
        counts: (S,) images of each shard.
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
    """A shard that is being read. Every process opens its own."""

    def __init__(self, path: str) -> None:
        self.path, self.index = path, tar_index.load(path)
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115 (closed when the cache drops it)

    def read(self, member: int) -> bytes:
        """Raises `OSError`, also if the file has become shorter."""
        _, start, size = (int(number) for number in self.index[member])
        data = os.pread(self.file.fileno(), size, start)
        if len(data) < size:
            raise OSError(f"{self.path}: has become shorter")
        return data


@functools.lru_cache(maxsize=_OPEN)
def _opened(path: str, count: int) -> _OpenShard:
    shard = _OpenShard(path)
    if len(shard.index) != count:
        raise UserError(
            f"{path}: holds {len(shard.index)} images, and {count} are expected: sizes.json beside it is wrong, or "
            "the shard was changed during the run"
        )
    return shard


def count_images(shards: Sequence[str]) -> np.ndarray:
    """(S,) images of each shard: after a `sizes.json` beside them, or from their indices, which are made if need be.

    Every process begins at another shard, so that they share the work where they see each other's index files.
    """
    sizes = {folder: _sizes(folder) for folder in {os.path.dirname(shard) for shard in shards}}
    promised = [sizes[os.path.dirname(shard)].get(os.path.basename(shard)) for shard in shards]
    unknown = [number for number, count in enumerate(promised) if count is None]
    start = len(unknown) * distributed.rank() // distributed.world_size()
    unknown = unknown[start:] + unknown[:start]
    with ThreadPoolExecutor(_THREADS) as pool:
        indices = pool.map(lambda number: tar_index.stored(shards[number]), unknown)
        known = {
            number: len(index) for number, index in zip(unknown, indices, strict=True) if index is not None
        }
        new = [number for number in unknown if number not in known]
        if new:
            say(
                f"looking for the images in {len(new)} tar shard(s); their indices are kept for the next time"
            )
        loaded = pool.map(lambda number: len(tar_index.load(shards[number])), new)
        known.update(zip(new, loaded, strict=True))
    return np.array([known[n] if count is None else count for n, count in enumerate(promised)], np.int64)


def _sizes(folder: str) -> dict[str, int]:
    """`sizes.json`: images by name of the shard; empty where there is none. Raises `UserError` for anything else."""
    path = os.path.join(folder, "sizes.json")
    try:
        with open(path, encoding="utf-8") as file:
            sizes = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {str(error)[:160]}; mend or remove it") from error
    right = isinstance(sizes, dict) and all(type(n) is int and 0 <= n < 1 << 40 for n in sizes.values())
    if not right:
        raise UserError(f'{path}: must look like {{"train-000000.tar": 1000, ...}}; mend or remove it')
    return sizes
