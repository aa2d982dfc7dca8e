"""Synthetic pictures with the statistics of photographs, for use when there are no photographs."""

import io
import math

import cv2
import numpy as np
from PIL import Image

SIZE = (500, 375)  # pixels: the usual size in ImageNet
QUALITY = 92


def to_jpeg(picture: Image.Image) -> bytes:
    """Return the picture as the bytes of a JPEG file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def fake_photo(number: int) -> Image.Image:
    """Return a picture with the statistics of photographs: discs that occlude each other (Lee et al. 2001), and grain.

    The radii r of the discs have a density of r^-3, so that there are edges at every scale, as in nature.
    """
    random = np.random.default_rng(number)
    width, height = SIZE
    pixels = np.full((height, width, 3), random.integers(256, size=3), np.uint8)
    for chance in random.random(2000):
        radius = round(6 / math.sqrt(1 - chance * (1 - (6 / 150) ** 2)))  # 6 to 150 pixels
        centre = int(random.integers(width)), int(random.integers(height))
        cv2.circle(pixels, centre, radius, random.integers(256, size=3).tolist(), -1, cv2.LINE_AA)
    grain = cv2.GaussianBlur(random.normal(0, 16, pixels.shape), (0, 0), 1.0)
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
