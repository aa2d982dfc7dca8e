"""The small square images: unlabelled ones for pre-training, and labelled ones for the kNN monitor."""

import numpy as np

from transfer.prepare.compose import crop, finish, object_image
from transfer.prepare.cutouts import Sources
from transfer.prepare.recipe import Recipe


def object_centred(sources: Sources, *, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """One train cut-out of any kind on a train background, uint8 (S, S, 3)."""
    pool = [cutout for found in sources.cutouts["train"].values() for cutout in found] + sources.extra
    grounds = sources.grounds["train"]
    ground = grounds[rng.integers(len(grounds))]
    return object_image(pool[rng.integers(len(pool))], ground, recipe=recipe, rng=rng)


def photo_crop(sources: Sources, *, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """A square crop, 35 to 100 % of the short side, of a photograph that is not of val, uint8 (S, S, 3)."""
    photos = sources.scenes + sources.grounds["train"]
    side = recipe.small_side
    return finish(crop(photos[rng.integers(len(photos))], (side, side), rng=rng, share=0.35), rng)


def labelled(
    sources: Sources, split: str, *, name: str, recipe: Recipe, rng: np.random.Generator
) -> np.ndarray:
    """One cut-out of class `name` on a background, both of `split`, uint8 (S, S, 3)."""
    found, grounds = sources.cutouts[split][name], sources.grounds[split]
    ground = grounds[rng.integers(len(grounds))]
    return object_image(found[rng.integers(len(found))], ground, recipe=recipe, rng=rng)
