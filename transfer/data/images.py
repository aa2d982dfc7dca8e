"""Read image files for detection: as detectron2 does, but with our reduction of more than 8 bits to 8.

Training, testing and visualisation read images only here. detectron2's `read_image` turns 16-bit grey white above 255
of 65535, and shows floats in [0, 1] as black; pre-training reads both correctly (`pretrain.data.decode`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from detectron2.data import detection_utils
from PIL import Image

from pretrain.common.errors import UserError
from pretrain.data.decode import eight_bits


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
        with Image.open(path) as image:
            upright = detection_utils._apply_exif_orientation(image)
            pixels: np.ndarray = detection_utils.convert_PIL_to_numpy(eight_bits(upright), channels)
            return pixels
    except Exception as error:  # Pillow raises a dozen classes for damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(
            f"{path}: not a readable image: {' '.join(reason.split()) or type(error).__name__}"
        ) from None


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
