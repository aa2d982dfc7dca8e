"""Finding image files, and their bytes."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pretrain.errors import UserError

EXTENSIONS = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip


class ImageFiles(Sequence[str]):
    """Paths in one byte buffer: a million of them stay shared with forked workers, and small."""

    def __init__(self, paths: Sequence[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index])].tobytes())

    def read(self, index: int) -> bytes:
        """The file's contents. Raises `OSError`."""
        with open(self[index], "rb") as file:
            return file.read()


def find_images(folders: Sequence[str], *, key: str) -> ImageFiles:
    """Every image file below `folders`, sorted. Raises `UserError` naming the config `key` and the folder."""
    paths: list[str] = []
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(f"{key}: no such folder: {folder}")
        found = sorted(_walk(folder, set()))
        if not found:
            raise UserError(f"{key}: no image below {folder} (looked for {' '.join(EXTENSIONS)})")
        paths.extend(found)
    if not paths:
        raise UserError(f"{key}: names no folder; give one, as in {key} '[\"my/photos\"]'")
    return ImageFiles(paths)


def _walk(folder: str, seen: set[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in seen:  # a symbolic link that leads back up
        return
    seen.add(real)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, seen)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                yield entry.path


def class_folders(folder: str) -> list[str]:
    """Names of the direct subfolders that hold images, sorted; none if an image lies beside them."""
    top = {os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    if any(not e.is_dir() and os.path.splitext(e.name)[1].lower() in EXTENSIONS for e in visible):
        return []
    return sorted(e.name for e in visible if e.is_dir() and any(_walk(e.path, set(top))))
