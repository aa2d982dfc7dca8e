"""Checks of one COCO-format annotation: its ids, its box, its keypoints. Each yields (text, remedy, mend)."""

import math
from collections.abc import Callable, Iterator
from typing import Any

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
