"""Loads and cleans photographs from the cache, and splits them so that train and val share none."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pretrain.common.errors import UserError
from pretrain.data.decode import image_at
from transfer.prepare.demo.photo_list import Listing, Photo, load_listing

CUTOUT_SIDE = 480  # px: no object is drawn larger, so larger cut-outs are reduced when they are loaded
PHOTO_SIDE = 800  # px: beyond this a small crop of a photograph is mostly blur
VAL_CUTOUTS, VAL_GROUNDS = 0.25, 0.2  # shares of the sources that only val uses
FEWEST_GROUNDS = 8
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Cutout:
    """An object without its surroundings: `pixels` is uint8 (h, w, 4), *premultiplied* RGB and alpha."""

    kind: str
    pixels: np.ndarray


@dataclass(frozen=True)
class Sources:
    """All photographs and cut-outs that images are composed from. Photographs are uint8 RGB (h, w, 3)."""

    cutouts: dict[str, dict[str, list[Cutout]]]  # split -> class -> cut-outs
    extra: list[Cutout]  # further train cut-outs of other classes: for pre-training only
    grounds: dict[str, list[np.ndarray]]  # split -> photographs that show no object of any class
    scenes: list[np.ndarray]  # photographs with such objects in them: for pre-training only


def val_names(names: Sequence[str], share: float) -> set[str]:
    """Return the part of `names` that belongs to val: a fixed choice by digest, independent of their order.

    It has at least one name if there are two or more.
    """
    count = max(round(len(names) * share), 1) if len(names) > 1 else 0
    return set(sorted(names, key=lambda name: hashlib.sha1(name.encode()).digest())[:count])


def load_sources(cache: Path, classes: dict[str, tuple[str, ...]]) -> Sources:
    """Load the photographs that `fill_cache` wrote to `cache`; `classes` maps each class to its kinds of cut-outs.

    Missing files are skipped; `demand_enough` checks whether enough are left.
    """
    listing = load_listing()
    held_back = _held_back(listing)
    cutouts: dict[str, dict[str, list[Cutout]]] = {split: {name: [] for name in classes} for split in SPLITS}
    class_of = {kind: name for name, kinds in classes.items() for kind in kinds}
    extra = []
    for photo in _present(cache, listing.cutouts):
        split = "val" if photo.path in held_back else "train"
        if photo.kind in class_of:
            cutouts[split][class_of[photo.kind]].append(load_cutout(cache / photo.cached, photo))
        elif split == "train":
            extra.append(load_cutout(cache / photo.cached, photo))
    grounds: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    scenes = []
    for photo in _present(cache, listing.photos):
        pixels = load_photo(cache / photo.cached)
        if photo.kind == "ground":
            grounds["val" if photo.path in held_back else "train"].append(pixels)
        elif photo.path not in held_back:  # some scenes are also the source of a val cut-out
            scenes.append(pixels)
    return Sources(cutouts, extra, grounds, scenes)


def _held_back(listing: Listing) -> set[str]:
    """Return the paths of the val sources, chosen from the list, so that missing files do not change the choice."""
    chosen: set[str] = set()
    for kind in sorted({photo.kind for photo in listing.cutouts}):
        chosen |= val_names([p.path for p in listing.cutouts if p.kind == kind], VAL_CUTOUTS)
    return chosen | val_names([p.path for p in listing.photos if p.kind == "ground"], VAL_GROUNDS)


def _present(cache: Path, photos: list[Photo]) -> list[Photo]:
    return [photo for photo in photos if (cache / photo.cached).is_file()]


def demand_enough(cache: Path, classes: dict[str, tuple[str, ...]]) -> None:
    """Raise UserError unless `cache` has cut-outs of every class and backgrounds, for train and for val."""
    listing = load_listing()
    held_back = _held_back(listing)
    for name, kinds in classes.items():
        found = [photo.path in held_back for photo in _present(cache, listing.cutouts) if photo.kind in kinds]
        if len(set(found)) < 2:
            raise UserError(f"the packages hold too few cut-outs of {name}: use --source fallback")
    grounds = [photo.path in held_back for photo in _present(cache, listing.photos) if photo.kind == "ground"]
    if len(set(grounds)) < 2 or len(grounds) < FEWEST_GROUNDS:
        raise UserError("the packages hold too few photographs for backgrounds: use --source fallback")


def load_photo(path: Path) -> np.ndarray:
    """Load a photograph as uint8 RGB (h, w, 3), longer side at most `PHOTO_SIDE`."""
    return shrink(_decode(path, "RGB", draft=PHOTO_SIDE), PHOTO_SIDE)


def _decode(path: Path, mode: str, *, draft: int | None = None) -> np.ndarray:
    """Return the pixels of an image file, uint8 (h, w, c). Raise UserError if it is broken."""
    try:
        with image_at(path) as image:
            if draft:  # decode a JPEG at a fraction of its size, which is much faster
                image.draft(mode, (draft, draft))
            return np.array(image.convert(mode))
    except ValueError as error:
        raise UserError(
            f"{path} is broken ({error}): remove the cache folder and run the command again"
        ) from None


def shrink(pixels: np.ndarray, side: int) -> np.ndarray:
    """Reduce `pixels` (h, w, c) so that its longer side is at most `side`."""
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def load_cutout(path: Path, photo: Photo) -> Cutout:
    """Load a picture, cut it out according to `photo.how`, clean, trim, premultiply, and reduce it to `CUTOUT_SIDE`."""
    pixels = _decode(path, "RGBA")
    if photo.how == "left half":  # two frames of an animation, side by side
        pixels = pixels[:, : pixels.shape[1] // 2]
    elif photo.how == "white ground":
        pixels[..., 3] = alpha_from_plain_ground(pixels[..., :3])
    elif photo.how == "bright rim":  # 1 px of the background of the photograph
        pixels[..., 3] = cv2.erode(np.pad(pixels[..., 3], 1), np.ones((3, 3), np.uint8))[1:-1, 1:-1]
    return Cutout(photo.kind, shrink(premultiply(clean(pixels)), CUTOUT_SIDE))


def clean(pixels: np.ndarray) -> np.ndarray:
    """Remove haze (alpha < 24) and stray parts (below 2 % of the largest part's area), and trim. uint8 (h, w, 4)."""
    solid = (pixels[..., 3] >= 24).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the surroundings
    kept = (areas >= max(0.02 * areas.max(), 1))[labels]
    rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
    if not len(rows):
        raise ValueError("an empty cut-out")
    trimmed = np.where(kept[..., None], pixels, 0).astype(np.uint8)
    return trimmed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def premultiply(pixels: np.ndarray) -> np.ndarray:
    """Convert straight RGBA to premultiplied RGBA, which can be resized without fringes of hidden colour."""
    alpha = pixels[..., 3:].astype(np.uint16)
    colour = (pixels[..., :3] * alpha + 127) // 255
    return np.concatenate([colour, alpha], axis=2).astype(np.uint8)


def alpha_from_plain_ground(rgb: np.ndarray) -> np.ndarray:
    """Return the alpha, uint8 (h, w), of an object that was photographed on a plain background.

    Background pixels are within 18 grey levels of the border's median colour, in regions that touch the border or have
    more than 60 px (holes). The object's edge is moved inwards by 1 px and softened.
    """
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    plain = np.abs(rgb.astype(int) - np.median(border, axis=0)).max(axis=2) <= 18
    _, labels, stats, _ = cv2.connectedComponentsWithStats(plain.astype(np.uint8), connectivity=4)
    ground = stats[:, cv2.CC_STAT_AREA] > 60
    ground[np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))] = True
    ground[0] = False  # label 0 is the object
    alpha = np.where(ground[labels], 0, 255).astype(np.uint8)
    return cv2.GaussianBlur(cv2.erode(alpha, np.ones((3, 3), np.uint8)), (0, 0), 0.7)
