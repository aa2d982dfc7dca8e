"""Finding and decoding image files.

Pillow decodes: it reads every common format, raises on truncated files where OpenCV fills them with grey,
and its antialiased resize is the one that torchvision's transforms use.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pretrain.errors import UserError

EXTENSIONS = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 turn the picture by a quarter
Box = tuple[float, float, float, float]


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


def open_image(path: str) -> tuple[Image.Image, int, int]:
    """Read the header only: the image, and its width and height as they will be after EXIF rotation."""
    image = Image.open(path)
    width, height = image.size
    if image.getexif().get(_ORIENTATION, 1) >= 5:
        width, height = height, width
    return image, width, height


def decode(image: Image.Image, *, shrink: float = 1.0) -> Image.Image:
    """Decode to RGB, turned upright by its EXIF entry.

    Args:
        image: from `open_image`.
        shrink: a JPEG may come out smaller, by the largest power of two up to this (the decoder leaves out
            high frequencies, which saves most of its time on large photographs).
    """
    if shrink >= 2 and image.format == "JPEG":
        factor = 2 ** int(np.log2(shrink))
        image.draft("RGB", (image.width // factor, image.height // factor))
    return _eight_bits(ImageOps.exif_transpose(image)).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greyscale in its upper eight bits: Pillow's conversion would clip it to white."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if values.max(initial=0) > 255:
        values = values >> 8
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def centre_view(path: str, size: int) -> np.ndarray:
    """The central square, at 7/8 of the short side as is usual for evaluation: (size, size, 3) uint8."""
    image, width, height = open_image(path)
    side = min(width, height) * 0.875
    upright = decode(image, shrink=side / size)
    scale = upright.width / width
    left, top = (width - side) / 2, (height - side) / 2
    box = (left * scale, top * scale, (left + side) * scale, (top + side) * scale)
    return np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR, box=box))
