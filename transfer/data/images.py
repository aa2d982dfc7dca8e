"""Read image files for detection: as detectron2 does, but with our reduction of more than 8 bits to 8.

Training, testing and visualisation read images only here. detectron2's `read_image` turns 16-bit grey white above 255
of 65535, and shows floats in [0, 1] as black; pre-training reads both correctly (`pretrain.data.decode`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from detectron2.data import detection_utils

from pretrain.common.errors import UserError
from pretrain.data.decode import eight_bits, image_at


def read(path: str, channels: str) -> np.ndarray:
    """Return the pixels of an image file, upright as its EXIF data say: (H, W, C) uint8.

    For images of 8 bits they are bit-identical to those of detectron2's `read_image`.

    Args:
        path: of the file.
        channels: INPUT.FORMAT: RGB, BGR, L, or another name that detectron2 knows.
    Raises:
        UserError: the file cannot be read, or its values are not colours.
    """
    try:
        with image_at(path) as image:
            upright = detection_utils._apply_exif_orientation(image)
            pixels: np.ndarray = detection_utils.convert_PIL_to_numpy(eight_bits(upright), channels)
            return pixels
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def header(path: str | Path) -> tuple[str, tuple[int, int]]:
    """Return Pillow's mode of an image file and its (width, height). Raises `UserError` if it is not an image."""
    try:
        with image_at(path) as image:
            return image.mode, image.size
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def check_labels(folder: str, pattern: str) -> None:
    """Raise `UserError` for the first label image below `folder` that cannot be opened as an image.

    To be called before a library opens them, which would wait for a pipe, or let Pillow start programs.
    """
    for path in sorted(Path(folder).glob(pattern)):
        header(path)


@contextmanager
def used_by_detectron2() -> Iterator[None]:
    """Let detectron2's mapper find `read` instead of its own reader inside a `with` block."""
    original = detection_utils.read_image

    def read_image(file_name: str, format: str) -> np.ndarray:
        return read(file_name, format)

    detection_utils.read_image = read_image
    try:
        yield
    finally:
        detection_utils.read_image = original
