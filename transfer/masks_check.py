"""Masks of a COCO-format annotation: polygons and RLE that cannot be used, and what can be made of them."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from pycocotools import mask as coco_mask

Entry = dict[str, Any]
Found = tuple[str, str, Callable[[Entry], Entry | None] | None]


def problems(annotation: Entry, size: tuple[int, int] | None, *, wanted: bool) -> Iterator[Found]:
    """(text, remedy, mend) of each problem. detectron2 leaves out objects without a valid polygon, in silence.

    Args:
        size: (width, height) of the image; None where it is unknown.
        wanted: whether masks are to be learnt; else a mask may be missing, and a bad one costs only the mask.
    """
    mask = annotation.get("segmentation")
    remedy, mend = ("left out", _drop) if wanted else ("its mask left out", _without_mask)
    if mask in (None, [], "", {}):
        if wanted and annotation.get("iscrowd") == 1 and size and _box(annotation):
            yield "is a crowd without a mask", "its box taken as the mask", _crowd_from_box(size)
        elif wanted:
            yield "has no segmentation: add MODEL.MASK_ON False", remedy, mend
    elif isinstance(mask, dict):
        if reason := _bad_rle(mask, size):
            yield f"has an RLE mask {reason}", remedy, mend
    elif not isinstance(mask, list):
        yield f"has a segmentation that is a {type(mask).__name__}", remedy, mend
    else:
        good = [polygon for polygon in mask if _is_polygon(polygon)]
        if not good:
            yield "has no polygon of at least 3 points (an even number of numbers, 6 or more)", remedy, mend
        elif len(good) < len(mask):
            text = f"has {len(mask) - len(good)} of {len(mask)} polygons of an odd length or below 3 points"
            yield text, "these polygons left out", lambda entry: {**entry, "segmentation": good}
        if good and wanted and annotation.get("iscrowd") == 1 and size:
            yield "is a crowd whose mask is no RLE", "converted", _crowd_to_rle(size)


def _drop(_: Entry) -> None:
    return None


def _without_mask(entry: Entry) -> Entry:
    return {key: value for key, value in entry.items() if key != "segmentation"}


def _is_polygon(polygon: Any) -> bool:
    return (
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in polygon)
    )


def _bad_rle(mask: Entry, size: tuple[int, int] | None) -> str:
    """Why an RLE cannot be used, or an empty text. `size` in an RLE is [height, width]."""
    counts, shape = mask.get("counts"), mask.get("size")
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(v, int) for v in shape)):
        return f"whose size is {shape!r}"
    if size and shape != [size[1], size[0]]:
        return f"of size {shape[0]} x {shape[1]} where its image is {size[1]} x {size[0]} (height x width)"
    if isinstance(counts, list):
        if not all(isinstance(v, int) and v >= 0 for v in counts) or sum(counts) != shape[0] * shape[1]:
            return f"whose counts do not add up to {shape[0]} x {shape[1]}"
    elif not isinstance(counts, str) or not counts:
        return "without counts"
    return ""


def _box(annotation: Entry) -> bool:
    box = annotation.get("bbox")
    return isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)


def _crowd_from_box(size: tuple[int, int]) -> Callable[[Entry], Entry]:
    def mend(entry: Entry) -> Entry:
        x, y, w, h = entry["bbox"]
        return _crowd_to_rle(size)({**entry, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]})

    return mend


def _crowd_to_rle(size: tuple[int, int]) -> Callable[[Entry], Entry]:
    def mend(entry: Entry) -> Entry:
        rle = coco_mask.merge(coco_mask.frPyObjects(entry["segmentation"], size[1], size[0]))
        return {**entry, "segmentation": {"size": [size[1], size[0]], "counts": rle["counts"].decode()}}

    return mend
