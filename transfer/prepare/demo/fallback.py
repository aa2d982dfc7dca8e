"""The demo set without Debian packages: painted silhouettes on 14 photographs of scikit-image and scikit-learn.

So few photographs teach an encoder nothing worth transferring: such a set only shows that the chain runs. A class is
just a silhouette; its texture and colour are random and do not reveal the class.
"""

import importlib.util
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from pretrain.common.errors import UserError
from transfer.prepare.demo.compose import crop
from transfer.prepare.demo.cutouts import SPLITS, Cutout, Sources, load_photo, premultiply

SHAPES = ("disc", "ring", "triangle", "square", "star", "cross")
SHAPE_CLASSES: dict[str, tuple[str, ...]] = {shape: (shape,) for shape in SHAPES}
PHOTOS = {
    "skimage": (
        "data",
        "astronaut.png brick.png camera.png chelsea.png coffee.png grass.png gravel.png "
        "hubble_deep_field.jpg ihc.png motorcycle_left.png motorcycle_right.png rocket.jpg",
    ),
    "sklearn": ("datasets/images", "china.jpg flower.jpg"),
}
VAL_PHOTOS = {"chelsea.png", "china.jpg", "gravel.png"}
CUTOUTS = {"train": 24, "val": 8}  # per class
SIDE = 190  # px
OVERSAMPLE = 4
KIND = "shape"  # composed at any angle and with a shadow


def photo_files() -> list[Path]:
    """Return the photographs inside the two packages. Raise UserError if a package is not installed."""
    files = []
    for package, (folder, names) in PHOTOS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                "the fallback photographs are not installed: pip install scikit-image scikit-learn, "
                "or pass the Debian packages with --deb FILE ..."
            )
        base = Path(spec.submodule_search_locations[0]) / folder
        files += [base / name for name in names.split()]
    return [file for file in files if file.is_file()]


def load_sources() -> Sources:
    """Return the structure of `cutouts.load_sources`, made without packages. Its content is always the same."""
    grounds: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for file in photo_files():
        grounds["val" if file.name in VAL_PHOTOS else "train"].append(load_photo(file))
    if not all(grounds.values()):
        raise UserError("scikit-image and scikit-learn lack their usual photographs: pass --deb FILE ...")
    cutouts = {
        split: {
            shape: [_painted(shape, grounds[split], split, n) for n in range(CUTOUTS[split])]
            for shape in SHAPES
        }
        for split in SPLITS
    }
    return Sources(cutouts, extra=[], grounds=grounds, scenes=[])


def _painted(shape: str, photos: list[np.ndarray], split: str, number: int) -> Cutout:
    """Return a silhouette filled with part of a photograph, mixed 1:1 with a random colour and lit from one side."""
    rng = np.random.default_rng([SPLITS.index(split), SHAPES.index(shape), number])
    fill = crop(photos[rng.integers(len(photos))], (SIDE, SIDE), rng=rng)
    fill = 0.5 * fill + 0.5 * rng.uniform(0, 1, 3).astype(np.float32)
    across, angle = np.linspace(-1, 1, SIDE, dtype=np.float32), rng.uniform(0, 2 * np.pi)
    light = 1 + 0.3 * (np.cos(angle) * across[None, :] + np.sin(angle) * across[:, None])
    colour = np.clip(fill * light[..., None], 0, 1) * 255
    pixels = np.dstack([colour, silhouette(shape)]).astype(np.uint8)
    return Cutout(KIND, premultiply(pixels))


def silhouette(shape: str) -> np.ndarray:
    """Return the alpha of a shape that fills a square, uint8 (SIDE, SIDE), with a smooth edge."""
    side = SIDE * OVERSAMPLE
    alpha = np.zeros((side, side), np.uint8)
    middle, radius = side // 2, side // 2 - 2 * OVERSAMPLE
    if shape in ("disc", "ring"):
        cv2.circle(alpha, (middle, middle), radius, 255, -1)
        if shape == "ring":
            cv2.circle(alpha, (middle, middle), radius // 2, 0, -1)
    elif shape == "cross":
        arm = radius // 3
        alpha[middle - arm : middle + arm, middle - radius : middle + radius] = 255
        alpha[middle - radius : middle + radius, middle - arm : middle + arm] = 255
    else:
        at = partial(_corners, middle=middle)
        points = {
            "triangle": at(3, radius),
            "square": at(4, radius),
            "star": at(10, radius, inner=radius * 0.45),
        }[shape]
        cv2.fillPoly(alpha, [points], 255)
    return cv2.resize(alpha, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _corners(count: int, radius: float, inner: float | None = None, *, middle: int) -> np.ndarray:
    """Return the corners of a regular polygon, the first at the top; `inner` is every second radius, for a star."""
    angles = np.arange(count) * 2 * np.pi / count - np.pi / 2
    radii = np.where(np.arange(count) % 2 == 1, inner, radius) if inner else np.full(count, radius)
    return np.rint(middle + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(
        np.int32
    )
