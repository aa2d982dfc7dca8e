"""Checks of one COCO-format annotation: ids, references, box, mask and keypoints.

Each check yields (text, remedy, repair) for every problem it finds: what is wrong, what a repair does, and the
function that repairs the annotation. The function returns None to leave the annotation out; it is None if the
problem cannot be repaired.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from pycocotools import mask as coco_mask

Entry = dict[str, Any]
Found = tuple[str, str, Callable[[Entry], Entry | None] | None]
# A box may extend this many pixels beyond the image: exporters round outwards, and detectron2 clips.
SLACK = 1.0


def drop(_: Entry) -> None:
    """Leave out an entry that cannot be used."""
    return None


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def ids(annotation: Entry, seen: set[Any], free: int) -> Iterator[Found]:
    """Check the annotation's own id.

    Args:
        seen: the ids of the annotations before this one; its id is added.
        free: an id that a repair may use.
    """
    key = annotation.get("id")

    def renumber(entry: Entry) -> Entry:
        return {**entry, "id": free}

    if not is_int(key):
        yield "has no id, or one that is not an integer", "renumbered", renumber
    elif key == 0:  # pycocotools stores the id of the match, and reads 0 as no match
        yield "has the id 0, which counts as no match in tests", "renumbered", renumber
    elif key in seen:
        yield "has the id of another annotation", "renumbered", renumber
    seen.add(hashable(key))


def references(annotation: Entry, images: set[Any], categories: dict[Any, int]) -> Iterator[Found]:
    """Check the ids of image and category, and the flags `ignore` and `iscrowd`."""
    for field, known in (("image_id", images), ("category_id", categories)):
        if annotation.get(field) is None:
            yield f"has no {field}", "left out", drop
        elif hashable(annotation[field]) not in known:
            yield f"has {field} {annotation[field]}, which is not in the file", "left out", drop
    if annotation.get("ignore"):
        yield "has 'ignore', which detectron2 does not support", "left out", drop
    if annotation.get("iscrowd") not in (0, 1):
        yield "has no iscrowd (0 or 1)", "iscrowd set to 0", lambda entry: {**entry, "iscrowd": 0}


def box(annotation: Entry, size: tuple[float, float] | None) -> Iterator[Found]:
    """Check the box and the area. `size` is (width, height) of the image; None if it is unknown."""
    box = annotation.get("bbox")
    if box in (None, []):
        yield "has no bbox", "left out", drop
        return
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        yield f"has bbox {box}, which is not 4 finite numbers", "left out", drop
        return
    x, y, w, h = box
    if w <= 0 or h <= 0:
        yield f"has bbox {box} without a positive size", "left out", drop
        return
    if size and (x < -SLACK or y < -SLACK or x + w > size[0] + SLACK or y + h > size[1] + SLACK):
        clipped = _clip(box, size)
        text = f"has bbox {box} outside its image of {size[0]} x {size[1]}"
        if clipped is None:
            yield text, "left out", drop
        else:
            yield text, "clipped", lambda entry: {**entry, "bbox": clipped}
    if not is_number(annotation.get("area")):
        yield "has no area", "area set to that of the box", lambda entry: {**entry, "area": w * h}


def _clip(box: list[float], size: tuple[float, float]) -> list[float] | None:
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], size[0]), min(box[1] + box[3], size[1])
    if right - left < 1 or bottom - top < 1:
        return None
    return [left, top, right - left, bottom - top]


def keypoint_counts(content: Entry) -> dict[Any, int]:
    """Return category id -> number of keypoints: of names in the category, or else in its first annotation."""
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
    """Check the keypoints. `counts`: category id -> number of keypoints."""
    wanted = counts.get(hashable(annotation.get("category_id")), 0)
    points = annotation.get("keypoints")

    def blank(entry: Entry) -> Entry:
        return {**entry, "keypoints": [0] * (3 * wanted), "num_keypoints": 0}

    if not wanted:
        yield "belongs to a category without keypoints: set MODEL.KEYPOINT_ON False", "", None
    elif not points:
        yield "has no keypoints", "keypoints set to not visible", blank
    elif not isinstance(points, list) or len(points) != 3 * wanted or not all(map(is_number, points)):
        found = (
            f"{len(points)} keypoint values" if isinstance(points, list) else "keypoints that are not a list"
        )
        text = f"has {found}, not {3 * wanted} finite numbers (x, y and visibility of each)"
        yield text, "keypoints set to not visible", blank
    elif not is_int(annotation.get("num_keypoints")):
        visible = sum(v > 0 for v in points[2::3])
        yield "has no num_keypoints", "keypoints counted", lambda entry: {**entry, "num_keypoints": visible}


def is_int(value: Any) -> bool:
    """Return whether a value is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_id(value: Any) -> bool:
    """Return whether a value can be an id: an integer or a string."""
    return is_int(value) or isinstance(value, str)


def hashable(value: Any) -> Any:
    """Return an id or None as it is, and anything else as a string that can be looked up in a set."""
    return value if value is None or is_id(value) else repr(value)


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
        if wanted and annotation.get("iscrowd") == 1 and size and _has_box(annotation):
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
        good = [polygon for polygon in mask if _is_polygon(polygon)]
        if not good:
            yield "has no polygon of at least 3 points (an even number of values, 6 or more)", remedy, repair
        elif len(good) < len(mask):
            text = f"has {len(mask) - len(good)} of {len(mask)} polygons with an odd length or fewer than 3 points"
            yield text, "bad polygons left out", lambda entry: {**entry, "segmentation": good}
        if good and wanted and annotation.get("iscrowd") == 1 and size:
            yield "is a crowd whose mask is not an RLE", "mask converted to an RLE", _crowd_to_rle(size)


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
    """Return why an RLE cannot be used; "" if it can. `size` in an RLE is [height, width]."""
    counts, shape = mask.get("counts"), mask.get("size")
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(v, int) for v in shape)):
        return f"with size {shape!r}, not [height, width]"
    if size and shape != [size[1], size[0]]:
        return f"of size {shape[0]} x {shape[1]}, but its image is {size[1]} x {size[0]} (height x width)"
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
    def repair(entry: Entry) -> Entry:
        x, y, w, h = entry["bbox"]
        return _crowd_to_rle(size)({**entry, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]})

    return repair


def _crowd_to_rle(size: tuple[int, int]) -> Callable[[Entry], Entry]:
    def repair(entry: Entry) -> Entry:
        rle = coco_mask.merge(coco_mask.frPyObjects(entry["segmentation"], size[1], size[0]))
        return {**entry, "segmentation": {"size": [size[1], size[0]], "counts": rle["counts"].decode()}}

    return repair
