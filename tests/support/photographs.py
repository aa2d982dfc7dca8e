"""Photographs for the tests of the views: scikit-image's where it is installed, else pictures alike."""

import random
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from pretrain.benchmark.fake_photos import fake_photo
from pretrain.data.pixel_ops import resized_crop
from pretrain.data.views import RECIPES, View, draw

NOTHING = View((0, 0, 1, 1), (), False, 0.0, False)

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


def crops(count: int = 3, size: int = 224) -> list[np.ndarray]:
    """Some crops of each photograph."""
    made = []
    for number, picture in enumerate(photographs()):
        for n in range(count):
            view = draw(
                random.Random(10 * number + n), RECIPES["v1"], width=picture.width, height=picture.height,
                min_scale=0.2,
            )  # fmt: skip
            made.append(resized_crop(np.array(picture), view.box, size))
    return made


def floats(pixels: np.ndarray) -> torch.Tensor:
    return tv.to_tensor(Image.fromarray(pixels))


def levels(image: torch.Tensor) -> np.ndarray:
    return 255 * image.permute(1, 2, 0).numpy()
