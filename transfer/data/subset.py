"""Choose reproducible subsets of a training set: a fraction of its images, or a number of objects of each class."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from pretrain.common.errors import UserError


def choose(classes_of_image: Sequence[Iterable[int]], *, fraction: float, shots: int, seed: int) -> list[int]:
    """Return the indices of the images to train on. This is a pure function of its arguments.

    The images are visited in the order of one permutation, which depends only on the seed and their number. So a
    smaller fraction is a subset of a larger one, and fewer shots are a subset of more.

    Args:
        classes_of_image: for each image, the class of each annotated object (repeated for each object).
        fraction: in (0, 1]; round(fraction * images) images are chosen, at least one.
        shots: 0 for all these images. Otherwise only those needed for each class to have `shots` objects: an image
            is chosen if it shows a class that still has fewer. A class with fewer objects in total keeps every image
            that shows it.
        seed: 0 or more.
    Returns:
        Sorted indices into `classes_of_image`.
    Raises:
        UserError: there is no image, a value is out of range, or a class has no object in the chosen fraction.
    """
    if not classes_of_image:
        raise UserError("DATASETS.FRACTION, DATASETS.SHOTS: the training set has no image to choose from")
    if not (math.isfinite(fraction) and 0 < fraction <= 1):
        raise UserError(f"DATASETS.FRACTION {fraction}: give a number above 0 and up to 1")
    if shots < 0:
        raise UserError(f"DATASETS.SHOTS {shots}: give 0 (all objects) or more")
    if seed < 0:
        raise UserError(f"DATASETS.SUBSET_SEED {seed}: give 0 or more")
    counts = [Counter(classes) for classes in classes_of_image]
    order = np.random.default_rng(seed).permutation(len(counts)).tolist()
    order = order[: max(1, round(fraction * len(counts)))]
    return sorted(_with_shots(counts, order, shots) if shots else order)


def _with_shots(counts: list[Counter[int]], order: list[int], shots: int) -> list[int]:
    """Return the images of `order` that show a class which still has fewer than `shots` objects."""
    classes = set().union(*counts)
    absent = sorted(classes.difference(*(counts[index] for index in order)))
    if absent:
        raise UserError(
            f"DATASETS.SHOTS {shots}: no image of the chosen fraction shows class "
            f"{', '.join(map(str, absent))} (counted from 0); raise DATASETS.FRACTION"
        )
    if not classes:
        raise UserError(f"DATASETS.SHOTS {shots}: the training set has no annotated object")
    found: Counter[int] = Counter()
    chosen = []
    for index in order:
        if any(found[kind] < shots for kind in counts[index]):
            chosen.append(index)
            found.update(counts[index])
    return chosen
