"""Checks of an annotation's keypoints."""

from collections.abc import Iterator
from typing import Any

from pretrain.common.errors import brief
from transfer.data.coco.values import SLACK, Entry, Found, hashable, is_box, is_id, is_int, is_number


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


def keypoints(annotation: Entry, counts: dict[Any, int], size: tuple[int, int] | None) -> Iterator[Found]:
    """Check the keypoints and their number against each other, the image and the box.

    Args:
        counts: category id -> number of keypoints; 0 for a category without any.
        size: (width, height) of the image; None if it is unknown.
    """
    category = hashable(annotation.get("category_id"))
    if category not in counts:  # reported with the ids
        return
    wanted = counts[category]
    points = annotation.get("keypoints")

    def blank(entry: Entry) -> Entry:
        return {**entry, "keypoints": [0] * (3 * wanted), "num_keypoints": 0}

    if not wanted:
        yield "belongs to a category without keypoints", "set MODEL.KEYPOINT_ON False", None
    elif not points:
        yield "has no keypoints", "keypoints set to not visible", blank
    elif not isinstance(points, list) or len(points) != 3 * wanted or not all(map(is_number, points)):
        found = (
            f"{len(points)} keypoint values" if isinstance(points, list) else "keypoints that are not a list"
        )
        text = f"has {found}, not {3 * wanted} finite numbers (x, y and visibility of each)"
        yield text, "keypoints set to not visible", blank
    else:
        yield from _points(annotation, points, size)


def _points(annotation: Entry, points: list[float], size: tuple[int, int] | None) -> Iterator[Found]:
    triples = [points[i : i + 3] for i in range(0, len(points), 3)]
    wrong = [v for _, _, v in triples if v not in (0, 1, 2)]
    if wrong:
        yield f"has a keypoint with visibility {wrong[0]}, not 0, 1 or 2", "", None
        return
    visible = [(x, y) for x, y, v in triples if v > 0]
    outside = [p for p in visible if size and not _inside(p, (0, 0, *size), SLACK)]
    if outside:
        text = f"has {len(outside)} labelled keypoint(s) outside its image, the first at {outside[0]}"
        assert size is not None
        yield text, "such keypoints set to not labelled", _without_outside(size)
    elif visible and is_box(annotation.get("bbox")):
        x, y, w, h = annotation["bbox"]
        reach = (x, y, x + w, y + h)
        if min(w, h) > 0 and not any(_inside(p, reach, max(w, h) / 2) for p in visible):
            yield f"has all its keypoints far outside its bbox {annotation['bbox']}", "", None
    number = annotation.get("num_keypoints")
    if not is_int(number):
        what = "no num_keypoints" if number is None else f"num_keypoints {brief(number)}, not an integer"
        yield f"has {what}", "keypoints counted", _counted
    elif number != len(visible):
        yield (
            f"has num_keypoints {number}, but {len(visible)} labelled keypoints",
            "keypoints counted",
            _counted,
        )


def _inside(point: tuple[float, float], box: tuple[float, ...], slack: float) -> bool:
    x, y = point
    return box[0] - slack <= x <= box[2] + slack and box[1] - slack <= y <= box[3] + slack


def _counted(entry: Entry) -> Entry:
    return {**entry, "num_keypoints": sum(v > 0 for v in entry["keypoints"][2::3])}


def _without_outside(size: tuple[int, int]) -> Any:
    def repair(entry: Entry) -> Entry:
        points = list(entry["keypoints"])
        for i in range(0, len(points), 3):
            if points[i + 2] > 0 and not _inside((points[i], points[i + 1]), (0, 0, *size), SLACK):
                points[i : i + 3] = [0, 0, 0]
        return _counted({**entry, "keypoints": points})

    return repair
