"""Training images: the interface of every image source, and the simplest source, files in folders."""

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from pretrain.common import rng
from pretrain.common.errors import UserError

EXTENSIONS = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip


class Order(Protocol):
    """The indices of all images in some order; it can be sliced."""

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class Images(Protocol):
    """A source of images, numbered from 0.

    Attributes:
        digest: digest of the names of all images, in order, relative to their folder, list or shard. It does not depend
            on where that is, so a run may move to another disk. Empty if it was not computed.
    """

    digest: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> str:
        """Return a name for messages."""
        ...

    def read(self, index: int) -> bytes:
        """Return the contents of the image's file. Raises `OSError`, or `UserError` if the whole source is damaged."""
        ...

    def order(self, seed: int, epoch: int) -> Order:
        """Return the order in which an epoch visits the images, a pure function of the arguments."""
        ...


class ImageFiles(Sequence[str]):
    """Paths in one byte buffer, so that a million of them take little memory, which forked workers share."""

    digest: str = ""

    def __init__(self, paths: Iterable[str]) -> None:
        names, ends = bytearray(), array("q")
        for path in paths:  # an iterator keeps only one path in memory
            names += os.fsencode(path)
            ends.append(len(names))
        self._bytes, self._ends = np.frombuffer(names, np.uint8), np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index])].tobytes())

    def read(self, index: int) -> bytes:
        """Return the file's contents. Raises `OSError`."""
        with open(self[index], "rb") as file:
            return file.read()

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return a permutation of all indices."""
        return permutation(len(self), seed, epoch)


def permutation(images: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of the numbers below `images` that depends on (seed, epoch) only."""
    return rng.generator("order", seed, epoch).permutation(images)


def find_images(folders: Sequence[str], *, key: str) -> ImageFiles:
    """Return every image file below `folders`, sorted. Raises `UserError` naming the config `key` and the folder."""
    if not folders:
        raise UserError(f"{key}: names no folder; give one, as in {key} '[\"my/photos\"]'")
    return ImageFiles(path for folder in folders for path in images_below(folder, key=key))


def images_below(folder: str, *, key: str) -> Iterator[str]:
    """Yield the paths of all image files below a folder, sorted.

    Raises `UserError` naming `key` and the folder if it does not exist, cannot be read, or holds no image.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{key}: no such folder: {folder}")
    found = False
    try:
        for path in _walk(folder, set()):
            found = True
            yield path
    except OSError as error:
        raise UserError(
            f"{key}: cannot read {error.filename or folder}: {error.strerror or error}"
        ) from error
    if not found:
        raise UserError(f"{key}: no image below {folder} (looked for {' '.join(EXTENSIONS)})")


def _walk(folder: str, seen: set[str]) -> Iterator[str]:
    """Yield paths in the order of the full paths as strings, with the names of only the open folders in memory."""
    real = os.path.realpath(folder)
    if real in seen:  # a symbolic link that leads back up
        return
    seen.add(real)
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                names.append(entry.name + os.sep)
            elif is_image(entry.name):
                names.append(entry.name)
    names.sort()
    for name in names:
        if name.endswith(os.sep):
            yield from _walk(os.path.join(folder, name[:-1]), seen)
        else:
            yield os.path.join(folder, name)


def is_image(name: str) -> bool:
    """Return whether a file name has the extension of an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def class_folders(folder: str) -> list[str]:
    """Return the names of the direct subfolders that hold images, sorted.

    Returns none if there is an image next to them, or if `folder` is not a folder.
    """
    if not os.path.isdir(folder):
        return []
    top = {os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    if any(not e.is_dir() and is_image(e.name) for e in visible):
        return []
    return sorted(e.name for e in visible if e.is_dir() and any(_walk(e.path, set(top))))


def printable(name: str) -> str:
    """Return a name as one printable line: line breaks, control characters and undecodable bytes become escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
