"""Decoding image files.

Pillow decodes: it reads every common format, raises on truncated files where OpenCV fills them with grey,
and its antialiased resize is the one that torchvision's transforms use.
"""

import io

import numpy as np
from PIL import Image, ImageOps

_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 turn the picture by a quarter


def open_image(data: bytes) -> tuple[Image.Image, int, int]:
    """Read the header only: the image, and its width and height as they will be after EXIF rotation."""
    image = Image.open(io.BytesIO(data))
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


def centre_view(data: bytes, size: int) -> np.ndarray:
    """The central square, at 7/8 of the short side as is usual for evaluation: (size, size, 3) uint8."""
    image, width, height = open_image(data)
    side = min(width, height) * 0.875
    upright = decode(image, shrink=side / size)
    scale = upright.width / width
    left, top = (width - side) / 2, (height - side) / 2
    box = (left * scale, top * scale, (left + side) * scale, (top + side) * scale)
    return np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR, box=box))
