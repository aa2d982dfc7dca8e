"""Images to train on: what every source of them offers, and the plainest one, files in folders."""

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
    """The indices of all images in some order, of which slices are taken."""

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class Images(Protocol):
    """A source of images, numbered from 0.

    Attributes:
        digest: of the names of all images, in order, below the folder, list or shard that they come from: the same
            wherever that lies, so that a run may move to another disk; empty where nobody has computed it.
    """

    digest: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> str:
        """A name for messages."""
        ...

    def read(self, index: int) -> bytes:
        """The contents of the image's file. Raises `OSError`; `UserError` if the whole source is damaged."""
        ...

    def order(self, seed: int, epoch: int) -> Order:
        """The order in which an epoch visits the images, a pure function of the arguments."""
        ...


class ImageFiles(Sequence[str]):
    """Paths in one byte buffer: a million of them stay shared with forked workers, and small."""

    digest: str = ""

    def __init__(self, paths: Iterable[str]) -> None:
        names, ends = bytearray(), array("q")
        for path in paths:  # an iterator's paths never exist all at once
            names += os.fsencode(path)
            ends.append(len(names))
        self._bytes, self._ends = np.frombuffer(names, np.uint8), np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index])].tobytes())

    def read(self, index: int) -> bytes:
        """The file's contents. Raises `OSError`."""
        with open(self[index], "rb") as file:
            return file.read()

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """A permutation of all indices."""
        return permutation(len(self), seed, epoch)


def permutation(images: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers below `images` in an order of (seed, epoch)."""
    return rng.generator("order", seed, epoch).permutation(images)


def find_images(folders: Sequence[str], *, key: str) -> ImageFiles:
    """Every image file below `folders`, sorted. Raises `UserError` naming the config `key` and the folder."""
    if not folders:
        raise UserError(f"{key}: names no folder; give one, as in {key} '[\"my/photos\"]'")
    return ImageFiles(path for folder in folders for path in images_below(folder, key=key))


def images_below(folder: str, *, key: str) -> Iterator[str]:
    """Paths of every image file below a folder, sorted.

    Raises `UserError` naming `key` and the folder: it does not exist, cannot be read, or holds no image.
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
    """In the order of the whole paths as texts, while no more than one folder's names are in memory."""
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
    """Whether a file's name ends like an image's."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def class_folders(folder: str) -> list[str]:
    """Names of the direct subfolders that hold images, sorted; none if an image lies beside them.

    None either if it is no folder.
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
    """A name as one line of text that any terminal takes: bytes that are no text, and line breaks, as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
