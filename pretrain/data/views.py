"""The random views of MoCo v1, v2 and v3. Each is a pure function of (seed, epoch, image, view number).

Recipe v1 follows Wu et al. 2018, as in He et al. Sec. 3.3. Recipe v2 adds blur and has weaker, less frequent colour
jitter (Chen et al. 2020, "aug+"). Recipe v3, BYOL's, distorts the two views of an image differently: the first one is
always blurred, the second one seldom, but sometimes solarized (Chen, Xie and He 2021, Sec. 4). Order and parameters are
those of the authors' published training scripts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from random import Random
from typing import NamedTuple

import cv2
import numpy as np

from pretrain.common import rng
from pretrain.data import pixel_ops
from pretrain.data.decode import ImageFile
from pretrain.data.pixel_ops import resized_crop

PARTS = ("crop", "flip", "jitter", "gray", "blur", "solarize")
PACKED = 11  # numbers in `pack`
MIN_SIGMA, MAX_SIGMA = 0.1, 2.0  # standard deviation of the blur, pixels
_ATTEMPTS = 10  # as in torchvision's RandomResizedCrop
_RATIOS = (math.log(3 / 4), math.log(4 / 3))
_NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # factors that change nothing
_NUMBERS = {name: float(number) for number, name in enumerate(pixel_ops.OPERATIONS)}
_ORDERS = list(permutations(range(4)))


@dataclass(frozen=True)
class Recipe:
    """How views are distorted.

    Attributes:
        jitter: largest relative change of brightness, contrast and saturation; largest rotation of the hue.
        jitter_probability, blur_probability, gray_probability, flip_probability: share of the views.
        gray_first: whether grayscale comes before the jitter (v1) or after it (v2, v3).
        solarize_probability: share of the views that are solarized at the end; None: there is no such part, and no
            number is drawn for it, so that v1 and v2 draw what they drew before v3 existed.
        crop: whether to take a random part of the image instead of the central square.
    """

    jitter: tuple[float, float, float, float]
    jitter_probability: float
    blur_probability: float
    gray_first: bool
    gray_probability: float = 0.2
    flip_probability: float = 0.5
    crop: bool = True
    solarize_probability: float | None = None


RECIPES = {
    "v1": Recipe((0.4, 0.4, 0.4, 0.4), 1.0, 0.0, True),
    "v2": Recipe((0.4, 0.4, 0.4, 0.1), 0.8, 0.5, False),
    "v3_first": Recipe((0.4, 0.4, 0.2, 0.1), 0.8, 1.0, False, solarize_probability=0.0),
    "v3_second": Recipe((0.4, 0.4, 0.2, 0.1), 0.8, 0.1, False, solarize_probability=0.2),
}
# The recipes of the query's and of the key's view. MoCo v3 uses each view as both.
PAIRS = {"v1": ("v1", "v1"), "v2": ("v2", "v2"), "v3": ("v3_first", "v3_second")}


def recipe_without(name: str, parts: Sequence[str]) -> Recipe:
    """Return one of RECIPES without some of PARTS. The remaining parts are drawn as in the full recipe."""
    recipe = RECIPES[name]
    for part in parts:
        name, off = ("crop", False) if part == "crop" else (f"{part}_probability", 0.0)
        if getattr(recipe, name) is not None:
            recipe = replace(recipe, **{name: off})  # type: ignore[arg-type]  # names of fields
    return recipe


def pair_without(name: str, parts: Sequence[str]) -> tuple[Recipe, Recipe]:
    """Return the recipes of both views of one of PAIRS, without some of PARTS."""
    first, second = PAIRS[name]
    return recipe_without(first, parts), recipe_without(second, parts)


class View(NamedTuple):
    """Every random choice of one view.

    Attributes:
        box: left, top, width and height of the crop, in pixels of the upright image.
        jitter: (operation, factor) in the order of application; empty for no jitter.
        gray: whether the colours are removed.
        sigma: standard deviation of the Gaussian blur, in pixels of the view; 0 for no blur.
        flip: whether left and right are exchanged.
        solarize: whether bright values are inverted.
    """

    box: tuple[int, int, int, int]
    jitter: tuple[tuple[str, float], ...]
    gray: bool
    sigma: float
    flip: bool
    solarize: bool = False


def draw(random: Random, recipe: Recipe, *, width: int, height: int, min_scale: float) -> View:
    """Draw one view of an image of `width` x `height` pixels.

    Every part is drawn even if it is not used, and the box last because its number of draws varies. So leaving a part
    out of the recipe does not change the others.
    """
    chance = random.random
    flip = chance() < recipe.flip_probability
    gray = chance() < recipe.gray_probability
    blur, sigma = chance() < recipe.blur_probability, MIN_SIGMA + (MAX_SIGMA - MIN_SIGMA) * chance()
    jittered, order = chance() < recipe.jitter_probability, _ORDERS[int(chance() * len(_ORDERS))]
    changes = [strength * (2 * chance() - 1) for strength in recipe.jitter]
    steps = [
        (name, neutral + change)
        for name, neutral, change in zip(pixel_ops.OPERATIONS, _NEUTRAL, changes, strict=True)
    ]
    jitter = tuple(steps[i] for i in order) if jittered else ()
    solarize = recipe.solarize_probability is not None and chance() < recipe.solarize_probability
    box = _draw_box(random, width, height, min_scale) if recipe.crop else _central(width, height, 1.0)
    return View(box, jitter, gray, sigma if blur else 0.0, flip, solarize)


def _draw_box(random: Random, width: int, height: int, min_scale: float) -> tuple[int, int, int, int]:
    chance, (low, high) = random.random, _RATIOS
    for _ in range(_ATTEMPTS):
        area = width * height * (min_scale + (1 - min_scale) * chance())
        ratio = math.exp(low + (high - low) * chance())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(chance() * (width - w + 1)), int(chance() * (height - h + 1)), w, h
    return _central(width, height, min(max(width / height, 3 / 4), 4 / 3))


def _central(width: int, height: int, ratio: float) -> tuple[int, int, int, int]:
    """Return the largest centred box of this aspect ratio (width / height)."""
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (width - w) // 2, (height - h) // 2, w, h


def crop(pixels: np.ndarray, view: View, *, size: int, scale: float = 1.0) -> np.ndarray:
    """Apply the geometric part of a view: RGB image (H, W, 3) -> (size, size, 3) uint8.

    `scale` is the image's width divided by the width that the view was drawn for, if a JPEG was decoded smaller.
    """
    cut = resized_crop(pixels, view.box, size, scale=scale)
    return cv2.flip(cut, 1) if view.flip else cut


def recolour(pixels: np.ndarray, view: View, recipe: Recipe) -> np.ndarray:
    """Apply the other part of a view, colours, blur and solarizing, to uint8 RGB."""
    gray = (pixel_ops.GRAY,) if view.gray else ()
    steps = (*gray, *view.jitter) if recipe.gray_first else (*view.jitter, *gray)
    pixels = pixel_ops.adjust(pixels, steps)
    pixels = pixel_ops.blur(pixels, view.sigma) if view.sigma else pixels
    return pixel_ops.solarize(pixels) if view.solarize else pixels


def pack(view: View) -> list[float]:
    """Return the arguments of `recolour` as PACKED numbers.

    These are four times operation (-1: none) and factor, then gray, sigma and solarize.
    """
    steps = view.jitter or 4 * (("none", 0.0),)
    jitter = [number for name, factor in steps for number in (_NUMBERS.get(name, -1.0), factor)]
    return [*jitter, float(view.gray), view.sigma, float(view.solarize)]


def two_views(
    data: bytes,
    recipes: tuple[Recipe, Recipe],
    *,
    size: int,
    min_scale: float,
    counters: tuple[int, int, int],
    geometry_only: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the query's and the key's view of one image file, which is decoded once.

    Args:
        data: the contents of the file.
        recipes: of the query's and of the key's view.
        counters: seed, epoch and index of the image.
        geometry_only: leave colours and blur to `pretrain.data.on_device`.
    Returns:
        Two (size, size, 3) uint8 arrays, and the operations left to apply: float32, (2, PACKED) or (2, 0).
    Raises:
        Exception: of Pillow or OpenCV, for an unreadable file.
    """
    file = ImageFile(data)
    views = [
        draw(
            rng.quick("view", *counters, n), recipe, width=file.width, height=file.height, min_scale=min_scale
        )
        for n, recipe in enumerate(recipes)
    ]
    shortest = min(side for view in views for side in view.box[2:])
    upright = file.decode(shrink=shortest / size)
    scale = upright.shape[1] / file.width
    query, key = (crop(upright, view, size=size, scale=scale) for view in views)
    if geometry_only:
        return query, key, np.array([pack(view) for view in views], np.float32)
    both = zip((query, key), views, recipes, strict=True)
    query, key = (recolour(pixels, view, recipe) for pixels, view, recipe in both)
    return query, key, nothing_left(False)


def nothing_left(geometry_only: bool) -> np.ndarray:
    """Return the third result of `two_views` for views to which nothing is left to apply."""
    unchanged = View((0, 0, 1, 1), (), False, 0.0, False)
    return np.array(2 * [pack(unchanged) if geometry_only else []], np.float32)
