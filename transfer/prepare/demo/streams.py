"""The streams of images that a demo set consists of, one for each folder.

An image depends only on (seed, stream, index), so any process can make any image in any order.
"""

from pathlib import Path

import numpy as np

from transfer.prepare.demo.compose import Instance, crop, detection_image, finish, object_image
from transfer.prepare.demo.cutouts import Sources
from transfer.prepare.demo.recipe import Recipe

DETECTION = ("train", "val")
STREAMS = (*DETECTION, "pretrain/object", "pretrain/photo", "knn/train", "knn/val")
"""Folders of images. Their order is part of the random seed: append to it, never insert."""


def count(stream: str, recipe: Recipe) -> int:
    """Return the number of images in a stream."""
    return {
        "train": recipe.train,
        "val": recipe.val,
        "pretrain/object": recipe.pretrain - recipe.pretrain // 2,
        "pretrain/photo": recipe.pretrain // 2,
        "knn/train": recipe.knn_train,
        "knn/val": recipe.knn_val,
    }[stream]


def path(stream: str, index: int, recipe: Recipe) -> Path:
    """Return the path of image `index` of a stream in the set's folder. kNN images are in class folders."""
    parent = Path(stream, _class_of(index, recipe)) if stream.startswith("knn/") else Path(stream)
    return parent / f"{index:06}.jpg"


def make(
    sources: Sources, stream: str, index: int, *, recipe: Recipe, seed: int
) -> tuple[np.ndarray, list[Instance]]:
    """Make image `index` of a stream, uint8 (H, W, 3), and its instances (for the detection streams only)."""
    rng = np.random.default_rng([seed, STREAMS.index(stream), index])
    if stream in DETECTION:
        return detection_image(sources.cutouts[stream], sources.grounds[stream], recipe=recipe, rng=rng)
    if stream == "pretrain/object":
        return object_centred(sources, recipe=recipe, rng=rng), []
    if stream == "pretrain/photo":
        return photo_crop(sources, recipe=recipe, rng=rng), []
    split, name = stream.removeprefix("knn/"), _class_of(index, recipe)
    return labelled(sources, split, name=name, recipe=recipe, rng=rng), []


def _class_of(index: int, recipe: Recipe) -> str:
    """Return the class of a kNN image. The classes take turns, so that all have the same number of images."""
    return list(recipe.classes)[index % len(recipe.classes)]


def object_centred(sources: Sources, *, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Make an image of one train cut-out of any kind on a train background, uint8 (S, S, 3)."""
    pool = [cutout for found in sources.cutouts["train"].values() for cutout in found] + sources.extra
    grounds = sources.grounds["train"]
    ground = grounds[rng.integers(len(grounds))]
    return object_image(pool[rng.integers(len(pool))], ground, recipe=recipe, rng=rng)


def photo_crop(sources: Sources, *, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Make a square crop, 35 to 100 % of the short side, of a photograph not used by val, uint8 (S, S, 3)."""
    photos = sources.scenes + sources.grounds["train"]
    side = recipe.small_side
    return finish(crop(photos[rng.integers(len(photos))], (side, side), rng=rng, share=0.35), rng)


def labelled(
    sources: Sources, split: str, *, name: str, recipe: Recipe, rng: np.random.Generator
) -> np.ndarray:
    """Make an image of one cut-out of class `name` on a background, both from `split`, uint8 (S, S, 3)."""
    found, grounds = sources.cutouts[split][name], sources.grounds[split]
    ground = grounds[rng.integers(len(grounds))]
    return object_image(found[rng.integers(len(found))], ground, recipe=recipe, rng=rng)
