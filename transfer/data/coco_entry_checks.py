"""Checks of one COCO-format annotation: its ids, its box, its keypoints. Each yields (text, remedy, mend)."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from pycocotools import mask as coco_mask

Entry = dict[str, Any]
Found = tuple[str, str, Callable[[Entry], Entry | None] | None]
SLACK = 1.0  # pixels that a box may stand out: exporters round outwards, and detectron2 clips


def drop(_: Entry) -> None:
    """The mend of what cannot be used: leave it out."""
    return None


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def ids(annotation: Entry, seen: set[Any], free: int) -> Iterator[Found]:
    key = annotation.get("id")

    def renumber(entry: Entry) -> Entry:
        return {**entry, "id": free}

    if not is_int(key):
        yield "has no id that is a whole number", "numbered anew", renumber
    elif key == 0:  # its match would be stored as 0, which pycocotools reads as no match
        yield "has an id that counts as a miss when testing", "numbered anew", renumber
    elif key in seen:
        yield "has the id of another annotation", "numbered anew", renumber
    seen.add(hashable(key))


def references(annotation: Entry, images: set[Any], categories: dict[Any, int]) -> Iterator[Found]:
    for field, known in (("image_id", images), ("category_id", categories)):
        if annotation.get(field) is None:
            yield f"has no {field}", "left out", drop
        elif hashable(annotation[field]) not in known:
            yield f"has {field} {annotation[field]}, which is not in the file", "left out", drop
    if annotation.get("ignore"):
        yield "has 'ignore', which detectron2 does not support", "left out", drop
    if annotation.get("iscrowd") not in (0, 1):
        yield "has no iscrowd (0 or 1)", "set to 0", lambda entry: {**entry, "iscrowd": 0}


def box(annotation: Entry, size: tuple[float, float] | None) -> Iterator[Found]:
    """`size` is (width, height) of the image, None where it is unknown."""
    box = annotation.get("bbox")
    if box in (None, []):
        yield "has no bbox", "left out", drop
        return
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        yield f"has bbox {box}, which is not 4 finite numbers", "left out", drop
        return
    x, y, w, h = box
    if w <= 0 or h <= 0:
        yield f"has bbox {box} of no size", "left out", drop
        return
    if size and (x < -SLACK or y < -SLACK or x + w > size[0] + SLACK or y + h > size[1] + SLACK):
        clipped = _clip(box, size)
        text = f"has bbox {box} outside its image of {size[0]} x {size[1]}"
        if clipped is None:
            yield text, "left out", drop
        else:
            yield text, "clipped", lambda entry: {**entry, "bbox": clipped}
    if not is_number(annotation.get("area")):
        yield "has no area", "set to that of the box", lambda entry: {**entry, "area": w * h}


def _clip(box: list[float], size: tuple[float, float]) -> list[float] | None:
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], size[0]), min(box[1] + box[3], size[1])
    if right - left < 1 or bottom - top < 1:
        return None
    return [left, top, right - left, bottom - top]


def keypoint_counts(content: Entry) -> dict[Any, int]:
    """Keypoints of each category: as many as it names, else as many as its first annotation has."""
    counts: dict[Any, int] = {}
    for category in content["categories"]:
        if isinstance(category.get("keypoints"), list) and is_id(category.get("id")):
            counts[category["id"]] = len(category["keypoints"])
    for annotation in content["annotations"]:
        points, key = annotation.get("keypoints"), hashable(annotation.get("category_id"))
        if isinstance(points, list) and points and key not in counts:
            counts[key] = len(points) // 3
    return counts


def keypoints(annotation: Entry, counts: dict[Any, int]) -> Iterator[Found]:
    wanted = counts.get(hashable(annotation.get("category_id")), 0)
    points = annotation.get("keypoints")

    def blank(entry: Entry) -> Entry:
        return {**entry, "keypoints": [0] * (3 * wanted), "num_keypoints": 0}

    if not wanted:
        yield "is of a category without keypoints: add MODEL.KEYPOINT_ON False", "", None
    elif not points:
        yield "has no keypoints", "all set to unseen", blank
    elif not isinstance(points, list) or len(points) != 3 * wanted or not all(map(is_number, points)):
        length = len(points) if isinstance(points, list) else "no list of"
        yield (
            f"has {length} keypoint numbers, not {3 * wanted} (x, y, visibility each)",
            "set to unseen",
            blank,
        )
    elif not is_int(annotation.get("num_keypoints")):
        visible = sum(v > 0 for v in points[2::3])
        yield "has no num_keypoints", "counted", lambda entry: {**entry, "num_keypoints": visible}


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_id(value: Any) -> bool:
    return is_int(value) or isinstance(value, str)


def hashable(value: Any) -> Any:
    return value if value is None or is_id(value) else repr(value)


def masks(annotation: Entry, size: tuple[int, int] | None, *, wanted: bool) -> Iterator[Found]:
    """(text, remedy, mend) of each problem. detectron2 leaves out objects without a valid polygon, in silence.

    Args:
        size: (width, height) of the image; None where it is unknown.
        wanted: whether masks are to be learnt; else a mask may be missing, and a bad one costs only the mask.
    """
    mask = annotation.get("segmentation")
    remedy, mend = ("left out", drop) if wanted else ("its mask left out", _without_mask)
    if mask in (None, [], "", {}):
        if wanted and annotation.get("iscrowd") == 1 and size and _has_box(annotation):
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


def _has_box(annotation: Entry) -> bool:
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
