"""Checks of an annotation's mask: polygons, or an RLE as a list of counts or as pycocotools' string."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from transfer.data.coco.boxes import Corners
from transfer.data.coco.safe_masks import MAX_OUTLINE, bad_rle, can_be_drawn, run_lengths
from transfer.data.coco.values import SLACK, Entry, Found, drop, is_box, is_number

# Polygons may not reach further out of the image than this many times its longer side.
FAR = 10


def masks(annotation: Entry, size: tuple[int, int] | None, *, wanted: bool) -> Iterator[Found]:
    """Check the mask. detectron2 silently leaves out objects without a valid polygon.

    Args:
        size: (width, height) of the image; None if it is unknown.
        wanted: whether masks are trained. If not, a mask may be missing, and a repair removes only a bad mask, not
            its annotation.
    """
    mask = annotation.get("segmentation")
    remedy, repair = ("left out", drop) if wanted else ("mask left out", _without_mask)
    if mask in (None, [], "", {}):
        if wanted and annotation.get("iscrowd") == 1 and size and is_box(annotation.get("bbox")):
            yield "is a crowd without a mask", "box used as the mask", _crowd_from_box(size)
        elif wanted:
            yield "has no segmentation: set MODEL.MASK_ON False to train without masks", remedy, repair
    elif isinstance(mask, dict):
        if reason := _bad_rle(mask, size):
            yield f"has an RLE mask {reason}", remedy, repair
    elif not isinstance(mask, list):
        text = f"has a segmentation of type {type(mask).__name__}, not a list of polygons or an RLE"
        yield text, remedy, repair
    else:
        yield from _polygons(annotation, mask, size, wanted=wanted, remedy=remedy, repair=repair)


def extent(annotation: Entry, size: tuple[int, int] | None) -> tuple[Corners | None, float]:
    """Return the edges of a mask within its image, in pixels, and its area in square pixels.

    The area of polygons is exact if they neither cross themselves nor overlap. The result is (None, 0) without a mask
    that can be used.
    """
    mask = annotation.get("segmentation")
    if isinstance(mask, dict) and mask and not _bad_rle(mask, size):
        return _rle_extent(mask)
    parts = [points for _, points in _drawn(mask, size)] if isinstance(mask, list) else []
    if parts:
        low = np.min([part.min(axis=0) for part in parts], axis=0)
        high = np.max([part.max(axis=0) for part in parts], axis=0)
        area = sum(_shoelace(part) for part in parts)
        if size and (low.min() < 0 or (high > size).any()):
            low, high = np.maximum(low, 0), np.minimum(high, size)
            drawn = coco_mask.frPyObjects([part.ravel().tolist() for part in parts], size[1], size[0])
            area = coco_mask.area(drawn).sum()
        return (float(low[0]), float(low[1]), float(high[0]), float(high[1])), float(area)
    return None, 0.0


def _polygons(
    annotation: Entry,
    mask: list[Any],
    size: tuple[int, int] | None,
    *,
    wanted: bool,
    remedy: str,
    repair: Callable[[Entry], Entry | None],
) -> Iterator[Found]:
    shaped = _polygons_of(mask)
    good = [polygon for polygon, _ in _drawn(mask, size)]
    corners = [_rectangle(polygon) for polygon in mask]
    if not shaped and all(corners):
        text = "has polygons of two points, which labelme writes for the corners of rectangles"
        yield text, "corners made rectangles", lambda entry: {**entry, "segmentation": corners}
    elif not shaped:
        yield "has no polygon of at least 3 points (an even number of values, 6 or more)", remedy, repair
    elif not good:
        yield (
            "has only polygons without pixels: lines, points, outside of the image, or far too large",
            remedy,
            repair,
        )
    elif len(good) < len(mask):
        what = "with an odd length or fewer than 3 points" if len(shaped) < len(mask) else "without pixels"
        text = f"has {len(mask) - len(good)} of {len(mask)} polygons {what}"
        yield text, "bad polygons left out", lambda entry: {**entry, "segmentation": good}
    if good and wanted and annotation.get("iscrowd") == 1 and size:
        yield "is a crowd whose mask is not an RLE", "mask converted to an RLE", _crowd_to_rle(size)


def _without_mask(entry: Entry) -> Entry:
    return {key: value for key, value in entry.items() if key != "segmentation"}


def _polygons_of(mask: list[Any]) -> list[tuple[list[float], np.ndarray]]:
    """Return the polygons of a mask, each with its points (N, 2); anything else in the list is left out."""
    pairs = ((polygon, _points(polygon)) for polygon in mask)
    return [(polygon, points) for polygon, points in pairs if points is not None]


def _drawn(mask: list[Any], size: tuple[int, int] | None) -> list[tuple[list[float], np.ndarray]]:
    """Return the polygons that cover part of the image, with their points; none if they are too long to be drawn."""
    good = [pair for pair in _polygons_of(mask) if _has_pixels(pair[1], size)]
    sides = sum(len(points) for _, points in good)
    # No side is longer than that: see `_has_pixels`.
    short = size is not None and sides * 2 * FAR * max(size) <= MAX_OUTLINE
    return good if short or can_be_drawn(points for _, points in good) else []


def _points(polygon: Any) -> np.ndarray | None:
    """Return the points (N, 2) of a polygon; None if it is not a list of finite numbers, 6 or more and even in number.

    Files have tens of millions of these numbers, so they are not looked at one by one.
    """
    if not (isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0):
        return None
    if not set(map(type, polygon)) <= {int, float}:
        return None
    try:
        points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return points if np.isfinite(points).all() else None


def _rectangle(polygon: Any) -> list[float] | None:
    """Return the polygon around two corners (x1, y1, x2, y2); None if that is not what is given."""
    if not (isinstance(polygon, list) and len(polygon) == 4 and all(map(is_number, polygon))):
        return None
    x1, y1, x2, y2 = polygon
    return [x1, y1, x2, y1, x2, y2, x1, y2] if x1 != x2 and y1 != y2 else None


def _has_pixels(points: np.ndarray, size: tuple[int, int] | None) -> bool:
    """Return whether a polygon (N, 2) covers part of its image and can be drawn."""
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    if size is None:
        return can_be_drawn([points]) and _shoelace(points) > 0
    width, height = size
    reach = FAR * max(size)
    outside = left >= width or top >= height or right <= 0 or bottom <= 0
    if outside or min(left, top) < -reach or max(right, bottom) > reach:
        return False
    within = left >= -SLACK and top >= -SLACK and right <= width + SLACK and bottom <= height + SLACK
    if within and _shoelace(points) >= 1:
        return True  # without drawing it
    if not can_be_drawn([points]):
        return False
    return bool(coco_mask.area(coco_mask.frPyObjects([points.ravel().tolist()], height, width)).sum() > 0)


def _shoelace(points: np.ndarray) -> float:
    """Return the area of a polygon (N, 2) that does not cross itself."""
    x, y = (points - points[0]).T  # small numbers: less is lost in their products
    return abs(float(x[:-1] @ y[1:] - y[:-1] @ x[1:])) / 2


def _bad_rle(mask: Entry, size: tuple[int, int] | None) -> str:
    """Return why an RLE is not the mask of an object; "" if it is."""
    if reason := bad_rle(mask, size):
        return reason
    runs = run_lengths(mask["counts"])
    assert not isinstance(runs, str)
    return "" if runs[1::2].any() else "without pixels"


def _rle_extent(mask: Entry) -> tuple[Corners, float]:
    """Return edges and area of a valid RLE, whose pixels run down the columns."""
    height = mask["size"][0]
    runs = run_lengths(mask["counts"])
    assert not isinstance(runs, str)
    ends = np.cumsum(runs)
    starts = (ends - runs)[1::2]
    ends, lengths = ends[1::2], runs[1::2]
    starts, ends = starts[lengths > 0], ends[lengths > 0] - 1  # of the pixels inside, both inclusive
    columns = starts // height, ends // height
    wraps = bool(
        (columns[0] != columns[1]).any()
    )  # such a run reaches the bottom, and begins at the top again
    top = 0 if wraps else int((starts % height).min())
    bottom = height if wraps else int((ends % height).max()) + 1
    box = (float(columns[0].min()), float(top), float(columns[1].max() + 1), float(bottom))
    return box, float(lengths.sum())


def _crowd_from_box(size: tuple[int, int]) -> Callable[[Entry], Entry]:
    def repair(entry: Entry) -> Entry:
        x, y, w, h = entry["bbox"]
        return _crowd_to_rle(size)({**entry, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]})

    return repair


def _crowd_to_rle(size: tuple[int, int]) -> Callable[[Entry], Entry]:
    def repair(entry: Entry) -> Entry:
        good = [polygon for polygon, _ in _drawn(entry["segmentation"], size)]
        rle = coco_mask.merge(coco_mask.frPyObjects(good, size[1], size[0]))
        return {**entry, "segmentation": {"size": [size[1], size[0]], "counts": rle["counts"].decode()}}

    return repair
