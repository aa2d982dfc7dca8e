"""Composes images of cut-outs on a photograph, with exact masks. During composition images are float32 RGB 0..1."""

from dataclasses import dataclass

import cv2
import numpy as np

from transfer.prepare.demo.cutouts import Cutout
from transfer.prepare.demo.recipe import Recipe

# Other kinds stay upright: they are rotated by 12 degrees at most.
ANY_ANGLE = {"coin", "tool", "fruit", "vegetable", "flower", "shape"}
IN_THE_AIR = {"bird", "fish"}  # cast no shadow on what is behind them
LEAST_VISIBLE = 0.35  # of an object that other objects cover
LEAST_AREA = 64  # px: smaller visible parts do not count as an instance
OUTSIDE = 0.15  # of an object's width and height may lie outside the image
NEAR = 0.1  # of the image's side: largest distance of a centred object from the middle
TRIES = 12


@dataclass(frozen=True)
class Instance:
    """One object in an image: its class and the mask of its visible pixels, bool (H, W)."""

    name: str
    mask: np.ndarray


def detection_image(
    cutouts: dict[str, list[Cutout]], grounds: list[np.ndarray], *, recipe: Recipe, rng: np.random.Generator
) -> tuple[np.ndarray, list[Instance]]:
    """Compose an image, uint8 (H, W, 3), and its instances. All randomness comes from `rng`."""
    canvas = crop(grounds[rng.integers(len(grounds))], (recipe.width, recipe.height), rng=rng)
    names = list(cutouts)
    instances: list[Instance] = []
    for _ in range(1 + rng.choice(len(recipe.objects), p=recipe.objects)):
        name = names[rng.integers(len(names))]
        cutout = cutouts[name][rng.integers(len(cutouts[name]))]
        low, high = np.log(recipe.longer_side)
        longer = float(np.exp(rng.uniform(low, high)))
        placed = add_object(
            canvas, cutout, [i.mask for i in instances], longer=longer, recipe=recipe, rng=rng
        )
        if placed is not None:
            instances = [Instance(i.name, i.mask & ~placed) for i in instances] + [Instance(name, placed)]
    return finish(canvas, rng), [i for i in instances if np.count_nonzero(i.mask) >= LEAST_AREA]


def object_image(
    cutout: Cutout, ground: np.ndarray, *, recipe: Recipe, rng: np.random.Generator
) -> np.ndarray:
    """Compose a square image, uint8 (S, S, 3), with one object near its middle, 50 to 110 % as long as its side."""
    side = recipe.small_side
    canvas = crop(ground, (side, side), rng=rng)
    longer = side * rng.uniform(0.5, 1.1)
    add_object(canvas, cutout, [], longer=longer, recipe=recipe, rng=rng, centred=True)
    return finish(canvas, rng)


def crop(
    photo: np.ndarray, size: tuple[int, int], *, rng: np.random.Generator, share: float = 0.0
) -> np.ndarray:
    """Return a random crop of `photo` at a random zoom, mirrored half the time, float32 (H, W, 3) of `size` (W, H).

    The crop is at least `share` of the largest possible length. `photo` is enlarged only if it is too small.
    """
    width, height = size
    largest = min(photo.shape[1], photo.shape[0] * width / height)
    smallest = min(max(width, share * largest), largest)
    crop_width = np.exp(rng.uniform(np.log(smallest), np.log(largest))) if smallest < largest else largest
    w, h = int(crop_width), int(crop_width * height / width)
    x, y = rng.integers(photo.shape[1] - w + 1), rng.integers(photo.shape[0] - h + 1)
    part = photo[y : y + h, x : x + w]
    part = cv2.resize(part, size, interpolation=cv2.INTER_AREA if w > width else cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        part = part[:, ::-1]
    return part.astype(np.float32) / 255


def add_object(
    canvas: np.ndarray, cutout: Cutout, others: list[np.ndarray], *, longer: float, recipe: Recipe,
    rng: np.random.Generator, centred: bool = False,
) -> np.ndarray | None:  # fmt: skip
    """Draw `cutout` on `canvas` at a place where enough of each mask in `others` stays visible.

    Returns the object's mask, bool (H, W), or None, with `canvas` unchanged, if no such place was found.
    """
    longer = min(longer, recipe.upscale_limit * max(cutout.pixels.shape[:2]))
    stamp = render(cutout, longer, rng=rng)
    for _ in range(TRIES):
        corner = _random_corner(stamp.shape[:2], canvas.shape[:2], rng=rng, centred=centred)
        mask = np.zeros(canvas.shape[:2], bool)
        window, part = _overlap(stamp, corner, canvas.shape[:2])
        mask[window] = part[..., 3] > 0.5
        if all(
            np.count_nonzero(other & ~mask) >= LEAST_VISIBLE * np.count_nonzero(other) for other in others
        ):
            break
    else:
        return None
    if cutout.kind not in IN_THE_AIR and rng.random() < 0.6:
        _cast_shadow(canvas, stamp, corner, rng)
    under = canvas[window]
    colour = _tone(part, under, rng)
    canvas[window] = colour + under * (1 - part[..., 3:])
    return mask


def render(cutout: Cutout, longer: float, *, rng: np.random.Generator) -> np.ndarray:
    """Return the cut-out at its size and angle, float32 (h, w, 4), premultiplied, with a tightened edge."""
    pixels = cutout.pixels
    scale = longer / max(pixels.shape[:2])
    if scale < 1:  # average over areas first, because an affine warp alone would alias
        size = (max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[0] * scale), 1))
        pixels, scale = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), 1.0
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    limit = 180 if cutout.kind in ANY_ANGLE else 12
    # In floats: bicubic rings at edges, and clipping that to 8 bits would tint them.
    stamp = _turn(pixels.astype(np.float32) / 255, rng.uniform(-limit, limit), scale)
    alpha = stamp[..., 3:]
    tight = np.clip((alpha - 0.12) / 0.88, 0, 1)  # hides the pale rim that most cut-outs have
    colour = np.clip(stamp[..., :3], 0, alpha) * (tight / np.maximum(alpha, 1 / 255))
    return np.concatenate([colour, tight], axis=2)


def _turn(pixels: np.ndarray, degrees: float, scale: float) -> np.ndarray:
    """Rotate and scale about the middle, and cut the result to its smallest upright box."""
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    w, h = int(np.ceil(width * cos + height * sin)) + 2, int(np.ceil(width * sin + height * cos)) + 2
    matrix[:, 2] += ((w - width) / 2, (h - height) / 2)
    turned = cv2.warpAffine(pixels, matrix, (w, h), flags=cv2.INTER_CUBIC, borderValue=(0, 0, 0, 0))
    solid = turned[..., 3] >= 0.1
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return turned[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _random_corner(
    stamp: tuple[int, int], canvas: tuple[int, int], *, rng: np.random.Generator, centred: bool
) -> tuple[int, int]:
    """Return (y, x) of the stamp's upper left corner: anywhere, or near the middle if it is centred or too large."""
    corner = []
    for inner, outer in zip(stamp, canvas, strict=True):
        low, high = -OUTSIDE * inner, outer - (1 - OUTSIDE) * inner
        if centred or low > high:
            low, high = (outer - inner) / 2 - NEAR * outer, (outer - inner) / 2 + NEAR * outer
        corner.append(round(rng.uniform(low, high)))
    return corner[0], corner[1]


def _overlap(
    stamp: np.ndarray, corner: tuple[int, int], canvas: tuple[int, int]
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Return the window of the canvas that the stamp covers, and the part of the stamp inside it."""
    (y, x), (h, w), (height, width) = corner, stamp.shape[:2], canvas
    top, left, bottom, right = max(y, 0), max(x, 0), min(y + h, height), min(x + w, width)
    return (slice(top, bottom), slice(left, right)), stamp[top - y : bottom - y, left - x : right - x]


def _tone(part: np.ndarray, under: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the object's premultiplied colour in a different light, and 15 % closer to the colours below it."""
    gain, contrast = rng.uniform(0.85, 1.15), rng.uniform(0.9, 1.1)
    colour, alpha = part[..., :3], part[..., 3:]
    weight = max(float(alpha.sum()), 1.0)
    mean = colour.sum(axis=(0, 1)) / weight
    toward = 0.15 * ((under * alpha).sum(axis=(0, 1)) / weight - mean)
    toned = gain * (contrast * colour + (1 - contrast) * mean * alpha) + toward.astype(np.float32) * alpha
    return np.clip(toned, 0, alpha)


def _cast_shadow(
    canvas: np.ndarray, stamp: np.ndarray, corner: tuple[int, int], rng: np.random.Generator
) -> None:
    """Darken the background softly, slightly below and to one side of the object. Masks exclude the shadow."""
    height = stamp.shape[0]
    sigma = max(0.04 * height, 1.0)
    pad = int(np.ceil(3 * sigma))
    shade = cv2.GaussianBlur(np.pad(stamp[..., 3], pad), (0, 0), sigma)[..., None]
    aside = round(rng.uniform(-0.03, 0.03) * stamp.shape[1])
    below = round(0.04 * height)
    window, part = _overlap(shade, (corner[0] - pad + below, corner[1] - pad + aside), canvas.shape[:2])
    canvas[window] *= 1 - 0.35 * part


def finish(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add noise to the whole image, which makes the layers look alike, and convert it to uint8."""
    noisy = canvas * 255 + 2 * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
