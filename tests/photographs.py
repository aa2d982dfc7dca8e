"""Photographs for the tests of the views: scikit-image's where it is installed, else pictures alike."""

from functools import lru_cache

import numpy as np
from PIL import Image

from pretrain.benchmark.fake_photos import fake_photo

NAMES = ("astronaut", "coffee", "chelsea", "rocket")


@lru_cache
def photograph(name: str) -> Image.Image:
    """RGB, 400 to 640 pixels wide."""
    try:
        from skimage import data
    except ImportError:
        return fake_photo(NAMES.index(name))
    return Image.fromarray(getattr(data, name)())


def photographs() -> list[Image.Image]:
    return [photograph(name) for name in NAMES]


def close(ours: list[np.ndarray], theirs: list[np.ndarray], *, mean: float = 1.0, p99: float = 4.0) -> None:
    """Assert that values of 0 to 255, all pictures' together, differ no more in the mean and at the percentile."""
    pairs = zip(ours, theirs, strict=True)
    difference = np.concatenate(
        [np.abs(np.asarray(a, float) - np.asarray(b, float)).ravel() for a, b in pairs]
    )
    found = difference.mean(), np.percentile(difference, 99)
    assert found[0] <= mean and found[1] <= p99, f"mean {found[0]:.2f}, 99th percentile {found[1]:.2f}"
