"""What pycocotools may be given: its C code checks nothing, and crashes, hangs or invents pixels.

`transfer.data.coco.masks` checks a file before a run with the functions here. `watch` puts them in front of pycocotools
itself, so that nothing from a file of any data set reaches it unchecked, whichever library calls it.
"""

import importlib
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from numbers import Integral
from typing import Any

import numpy as np

from pretrain.common.errors import UserError, brief
from pretrain.data.decode import MAX_PIXELS
from transfer.data.coco.values import Entry, is_int

# The length of a mask's outlines, in pixels, that is drawn at once: pycocotools takes 50 bytes for each. A mask in an
# aerial photograph has 100 000; with 100 million, pycocotools runs out of memory and crashes.
MAX_OUTLINE = 1 << 22
REMEDY = "tools/prepare_data.py custom names the annotation, and repairs the file with --repair"


class BadMask(UserError, ValueError):
    """A mask that pycocotools must not be given."""


def can_be_drawn(polygons: Iterable[Any]) -> bool:
    """Return whether pycocotools can draw polygons, each a list or array of x and y in turn, or (N, 2)."""
    arrays, longest = [], 0.0
    for polygon in polygons:
        try:
            numbers = np.asarray(polygon, dtype=np.float64).reshape(-1)
        except (TypeError, ValueError, OverflowError):
            return False
        if len(numbers) > 1:
            low, high = float(numbers.min()), float(numbers.max())
            if not (low >= -MAX_OUTLINE and high <= MAX_OUTLINE):  # also for NaN
                return False
            arrays.append(numbers)
            longest += (high - low) * len(numbers) / 2
    # The exact length takes ten times as long, and hardly any polygon needs it.
    return longest <= MAX_OUTLINE or sum(map(_outline, arrays)) <= MAX_OUTLINE


def _outline(numbers: np.ndarray) -> float:
    """Return the length of a closed outline; a side counts as many pixels as its longer projection has."""
    points = numbers[: len(numbers) // 2 * 2].reshape(-1, 2)
    return float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())


def bad_rle(mask: Any, size: tuple[int, int] | None) -> str:
    """Return why an RLE cannot be used; "" if it can.

    Args:
        mask: its `size` is [height, width], and `counts` are a list, or pycocotools' string.
        size: (width, height) of the image; None if it is unknown.
    """
    shape = mask.get("size") if isinstance(mask, dict) else None
    if not (isinstance(shape, list) and len(shape) == 2 and all(map(is_int, shape)) and _is_drawable(*shape)):
        return f"with size {brief(shape)}, not [height, width]"
    if size and shape != [size[1], size[0]]:
        return f"of size {shape[0]} x {shape[1]}, but its image is {size[1]} x {size[0]} (height x width)"
    runs = run_lengths(mask.get("counts"))
    if isinstance(runs, str):
        return runs
    total, pixels = int(runs.sum()), shape[0] * shape[1]
    if total != pixels or (runs < 0).any():
        return f"whose counts do not add up to {shape[0]} x {shape[1]}: {total} pixels, not {pixels}"
    return ""


def run_lengths(counts: Any) -> np.ndarray | str:
    """Return the run lengths of an RLE, which alternate between outside and inside, or why they cannot be read."""
    if isinstance(counts, list) and counts:
        if not all(is_int(v) and 0 <= v < 2**40 for v in counts):
            return "whose counts are not all integers from 0"
        return np.asarray(counts, dtype=np.int64)
    if not isinstance(counts, str) or not counts:
        return "without counts"
    return _decoded(counts)


@lru_cache(maxsize=1)  # a mask is measured and checked one after the other
def _decoded(counts: str) -> np.ndarray | str:
    """Return the run lengths in pycocotools' string, or why it cannot be read.

    A character holds 5 bits of a number, lowest first; the sixth bit says whether another follows. From the fourth
    number on, the difference to the number two places before is stored.
    """
    codes = np.frombuffer(counts.encode(errors="replace"), np.uint8).astype(np.int64) - 48
    if ((codes < 0) | (codes > 63)).any():
        return "whose counts are not pycocotools' string"
    last = (codes & 32) == 0  # the last character of each number
    if not last[-1]:
        return "whose counts end in the middle of a number"
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 7:
        return "with a count above any image's size"
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * (place[ends] + 1)), 0)  # negative differences
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values


def check_masks(where: str, content: Entry) -> None:
    """Raise `UserError` for the first annotation of a COCO or LVIS file with a mask that must not be drawn or compared.

    For libraries that evaluate: they do not call pycocotools for each mask, and compare masks of wrong sizes for ever.
    """
    sizes = {image["id"]: (image.get("width"), image.get("height")) for image in content["images"]}
    for annotation in content.get("annotations", ()):
        mask = annotation.get("segmentation")
        if not mask:
            continue
        width, height = sizes.get(annotation["image_id"], (None, None))
        try:
            if isinstance(mask, list) and all(isinstance(polygon, list) for polygon in mask):
                _check_objects(mask, height, width)
            elif reason := bad_rle(mask, (width, height)):
                raise BadMask(f"has an RLE mask {reason}")
        except BadMask as error:
            raise UserError(f"{where}: annotation {brief(annotation.get('id'))} {error}; {REMEDY}") from None


def watch() -> None:
    """Check whatever is given to pycocotools from now on, in this process. `BadMask` is raised instead of a crash."""
    library = importlib.import_module("pycocotools.mask")
    for name in ("decode", "area", "toBbox", "merge"):
        setattr(library, name, _watched(getattr(library, name), _check_rles))
    library.frPyObjects = _watched(library.frPyObjects, _check_objects)  # type: ignore[attr-defined]


def _watched(function: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    @wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        try:
            check(*arguments, **options)
        except BadMask as error:
            raise BadMask(f"an annotation {error}; {REMEDY}") from None
        return function(*arguments, **options)

    return checked


def _check_rles(masks: Any, *_: Any, **__: Any) -> None:
    """Check one or several RLEs. Those with bytes instead of a string are not from a file, but made by pycocotools."""
    for mask in masks if isinstance(masks, list) else [masks]:
        made = isinstance(mask, dict) and isinstance(mask.get("counts"), bytes)
        if not made and (reason := bad_rle(mask, None)):
            raise BadMask(f"has an RLE mask {reason}")


def _check_objects(objects: Any, height: Any, width: Any) -> None:
    """Check polygons, boxes or RLEs that are drawn in an image."""
    if not _is_drawable(height, width):
        raise BadMask(f"has a mask in an image of {brief(width)} x {brief(height)} pixels")
    if isinstance(objects, dict):
        objects = [objects]
    if not isinstance(objects, list | np.ndarray) or not len(objects):
        raise BadMask("has a segmentation that is neither polygons nor an RLE")
    if isinstance(objects[0], dict):
        _check_rles(objects)
    else:
        flat = not isinstance(objects[0], list | np.ndarray)
        if not can_be_drawn([objects] if flat else objects):
            raise BadMask(
                f"has polygons that are not drawn: their outlines have more than {MAX_OUTLINE} pixels, or a coordinate "
                "is not a finite number"
            )


def _is_drawable(height: Any, width: Any) -> bool:
    whole = isinstance(height, Integral) and isinstance(width, Integral)
    return whole and height > 0 and width > 0 and height * width <= MAX_PIXELS
