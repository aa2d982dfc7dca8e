"""The random views of MoCo v1 and v2. Each is a pure function of (seed, epoch, image, view number).

Recipes: v1 follows Wu et al. 2018 as He et al. Sec. 3.3 does, v2 adds blur and weaker, less frequent colour
jitter (Chen et al. 2020, "aug+"). Order and parameters are those of the authors' published training script.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from pretrain import decode, rng

_ATTEMPTS = 10  # torchvision's RandomResizedCrop
_RATIOS = (math.log(3 / 4), math.log(4 / 3))
_SIGMAS = (0.1, 2.0)  # of the blur, pixels
_GRAY_PROBABILITY = 0.2


@dataclass(frozen=True)
class Recipe:
    """How a recipe distorts colours; crop, grayscale and flip are common to both.

    Attributes:
        jitter: largest relative change of brightness, contrast and saturation; largest turn of the hue.
        jitter_probability: share of the views that are jittered at all.
        blur_probability: share of the views that are blurred.
        gray_first: grayscale before the jitter (v1) or after it (v2).
    """

    jitter: tuple[float, float, float, float]
    jitter_probability: float
    blur_probability: float
    gray_first: bool


RECIPES = {
    "v1": Recipe((0.4, 0.4, 0.4, 0.4), 1.0, 0.0, True),
    "v2": Recipe((0.4, 0.4, 0.4, 0.1), 0.8, 0.5, False),
}


@dataclass(frozen=True)
class View:
    """Every random choice of one view.

    Attributes:
        box: left, top, width and height of the crop, pixels of the upright image.
        jitter: (operation, factor) in the order of application; empty: none.
        gray: whether the colours are dropped.
        sigma: of the Gaussian blur, pixels of the view; 0: no blur.
        flip: whether left and right are exchanged.
    """

    box: tuple[int, int, int, int]
    jitter: tuple[tuple[str, float], ...]
    gray: bool
    sigma: float
    flip: bool


def draw(random: np.random.Generator, recipe: Recipe, *, width: int, height: int, min_scale: float) -> View:
    """Choose one view of an image of `width` x `height` pixels."""
    box = _draw_box(random, width, height, min_scale)
    jitter: tuple[tuple[str, float], ...] = ()
    if random.random() < recipe.jitter_probability:
        brightness, contrast, saturation, hue = recipe.jitter
        factors = [
            ("brightness", random.uniform(1 - brightness, 1 + brightness)),
            ("contrast", random.uniform(1 - contrast, 1 + contrast)),
            ("saturation", random.uniform(1 - saturation, 1 + saturation)),
            ("hue", random.uniform(-hue, hue)),
        ]
        jitter = tuple(factors[i] for i in random.permutation(4))
    gray = random.random() < _GRAY_PROBABILITY
    sigma = random.uniform(*_SIGMAS) if random.random() < recipe.blur_probability else 0.0
    return View(box, jitter, bool(gray), sigma, bool(random.random() < 0.5))


def _draw_box(
    random: np.random.Generator, width: int, height: int, min_scale: float
) -> tuple[int, int, int, int]:
    for _ in range(_ATTEMPTS):
        area = width * height * random.uniform(min_scale, 1.0)
        ratio = math.exp(random.uniform(*_RATIOS))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(width - w + 1)), int(random.integers(height - h + 1)), w, h
    ratio = min(max(width / height, 3 / 4), 4 / 3)  # the largest central box of an allowed shape
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (width - w) // 2, (height - h) // 2, w, h


def render(image: Image.Image, view: View, recipe: Recipe, *, size: int, scale: float = 1.0) -> np.ndarray:
    """Carry a view out: RGB image -> (size, size, 3) uint8.

    `scale` is the image's width over the width that the view was drawn for (a JPEG decoded smaller).
    """
    left, top, w, h = (scale * side for side in view.box)
    box = (left, top, min(left + w, image.width), min(top + h, image.height))
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    if view.gray and recipe.gray_first:
        pixels = to_gray(pixels)
    for name, factor in view.jitter:
        pixels = JITTER[name](pixels, factor)
    if view.gray and not recipe.gray_first:
        pixels = to_gray(pixels)
    if view.sigma:
        pixels = cv2.GaussianBlur(pixels, (0, 0), view.sigma)
    return np.ascontiguousarray(pixels[:, ::-1] if view.flip else pixels)


def two_views(
    data: bytes, recipe: Recipe, *, size: int, min_scale: float, counters: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The query's and the key's view of one image file, decoded once: two (size, size, 3) uint8 arrays.

    `counters` are seed, epoch and index of the image. Raises Pillow's exceptions for an unreadable file.
    """
    image, width, height = decode.open_image(data)
    views = [
        draw(rng.generator("view", *counters, n), recipe, width=width, height=height, min_scale=min_scale)
        for n in range(2)
    ]
    shortest = min(side for view in views for side in view.box[2:])
    upright = decode.decode(image, shrink=shortest / size)  # never below the size that is wanted
    scale = upright.width / width
    query, key = (render(upright, view, recipe, size=size, scale=scale) for view in views)
    return query, key


def to_gray(pixels: np.ndarray) -> np.ndarray:
    """Luma by ITU-R 601, in all three channels."""
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def adjust_brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Multiply every value."""
    return _blend_with(pixels, 0.0, factor)


def adjust_contrast(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Stretch the values around the mean luma of the picture."""
    return _blend_with(pixels, math.floor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).mean() + 0.5), factor)


def adjust_saturation(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Stretch the colours around the luma of each pixel."""
    return cv2.addWeighted(pixels, factor, to_gray(pixels), 1 - factor, 0)


def adjust_hue(pixels: np.ndarray, turn: float) -> np.ndarray:
    """Turn the hue by a share of the full circle, in [-0.5, 0.5]."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(turn * 255) % 256)  # the circle is 256 steps: uint8 wraps as hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


JITTER: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def _blend_with(pixels: np.ndarray, value: float, factor: float) -> np.ndarray:
    table = np.arange(256) * factor + value * (1 - factor)
    return cv2.LUT(pixels, np.clip(np.rint(table), 0, 255).astype(np.uint8))
