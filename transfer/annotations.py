"""What is wrong with a COCO-format annotation file, with ids, before a training stumbles over it; and a mended copy.

detectron2 asserts, drops objects silently or fails in the middle of an epoch on most of what is found here.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import UserError
from transfer import masks_check
from transfer.prepare.headers import shown_size

Entry = dict[str, Any]
SLACK = 1.0  # pixels that a box may stand out: exporters round outwards, and detectron2 clips


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        text: one line, with the id of the image or annotation.
        part: `images` or `annotations`, the list that holds the entry; empty where the whole file is meant.
        index: of the entry in that list.
        remedy: what `mend` does, for the report; empty where nothing can be done.
        mend: the entry -> a mended one, or None to leave it out.
    """

    text: str
    part: str = ""
    index: int = -1
    remedy: str = ""
    mend: Callable[[Entry], Entry | None] | None = None


def problems(content: Any, images: Path | None, *, masks: bool, keypoints: bool) -> list[Problem]:
    """Everything that detectron2 cannot use in a COCO-format file.

    Args:
        content: the parsed json.
        images: the folder whose files are looked for (not opened); None to leave that out.
        masks: whether masks are to be learnt.
        keypoints: whether keypoints are to be learnt.
    """
    if broken := _structure(content):
        return broken
    found = list(_image_problems(content["images"], images))
    found += _category_problems(content["categories"])
    sizes = {
        image["id"]: (image["width"], image["height"])
        for image in content["images"]
        if _is_id(image.get("id")) and _is_size(image)
    }
    known = {image["id"] for image in content["images"] if _is_id(image.get("id"))}
    points = _keypoint_counts(content) if keypoints else {}
    categories = {c["id"]: points.get(c["id"], 0) for c in content["categories"] if _is_id(c.get("id"))}
    lowest_free = 1 + max((a["id"] for a in content["annotations"] if _is_int(a.get("id"))), default=0)
    seen: set[Any] = set()
    for index, annotation in enumerate(content["annotations"]):
        name = f"annotation {annotation.get('id', f'at position {index}')}"
        for text, remedy, mend in (
            *_id_problems(annotation, seen, max(lowest_free, 1) + index),
            *_reference_problems(annotation, known, categories),
            *_box_problems(annotation, sizes.get(_hashable(annotation.get("image_id")))),
            *masks_check.problems(annotation, sizes.get(_hashable(annotation.get("image_id"))), wanted=masks),
            *(_keypoint_problems(annotation, categories) if keypoints else ()),
        ):
            found.append(Problem(f"{name} {text}", "annotations", index, remedy, mend))
    return found


def remarks(content: Entry) -> list[str]:
    """What is worth a line about a file without problems, but no error."""
    ids = sorted(category["id"] for category in content["categories"])
    lines = []
    if ids != list(range(1, len(ids) + 1)):
        shown = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
        lines.append(
            f"category ids {shown} are not 1 to {len(ids)}: classes are numbered in the order of the ids"
        )
    used = Counter(annotation["category_id"] for annotation in content["annotations"])
    unused = [str(c["name"]) for c in content["categories"] if not used[c["id"]]]
    if unused:
        shown = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
        lines.append(f"{len(unused)} of {len(ids)} categories have no annotation: {shown}")
    return lines


def repaired(content: Entry, problems: list[Problem]) -> Entry:
    """A copy in which each problem is mended; annotations of images that had to go have gone with them.

    Raises `UserError` on a problem that cannot be mended.
    """
    changed: dict[tuple[str, int], Entry | None] = {}
    for problem in problems:
        if problem.mend is None:
            raise UserError(f"{problem.text}: DATASETS.REPAIR cannot mend this")
        entry = changed.get((problem.part, problem.index), content[problem.part][problem.index])
        changed[problem.part, problem.index] = None if entry is None else problem.mend(entry)
    copy = dict(content)
    for part in ("images", "annotations"):
        entries = (changed.get((part, index), entry) for index, entry in enumerate(content[part]))
        copy[part] = [entry for entry in entries if entry is not None]
    left = {image["id"] for image in copy["images"]}
    copy["annotations"] = [a for a in copy["annotations"] if a["image_id"] in left]
    return copy


def drop(_: Entry) -> None:
    """The mend of what cannot be used: leave it out."""
    return None


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _structure(content: Any) -> list[Problem]:
    if not isinstance(content, dict):
        return [Problem("not a COCO json: it holds no object at its top level")]
    found = []
    for part in ("images", "annotations", "categories"):
        entries = content.get(part)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            found.append(Problem(f"not a COCO json: it has no list {part!r}"))
        elif not entries:
            found.append(
                Problem({"annotations": "holds no annotation"}.get(part, f"its list {part!r} is empty"))
            )
    return found


def _image_problems(images: list[Entry], folder: Path | None) -> Iterator[Problem]:
    seen: set[Any] = set()
    names: dict[Path, set[str]] = {}
    for index, image in enumerate(images):
        label = f"image {image.get('id', f'at position {index}')}"
        if not _is_id(image.get("id")):
            yield Problem(f"{label} has no id that is a number or a text", "images", index, "left out", drop)
            continue
        if image["id"] in seen:
            yield Problem(f"{label}: the id is used twice", "images", index, "second one left out", drop)
        seen.add(image["id"])
        path = None
        if not isinstance(image.get("file_name"), str):
            yield Problem(f"{label} has no file_name", "images", index, "left out", drop)
        elif folder is not None:
            path = folder / image["file_name"]
            if path.parent not in names:
                names[path.parent] = (
                    {p.name for p in path.parent.iterdir()} if path.parent.is_dir() else set()
                )
            if path.name not in names[path.parent]:
                yield Problem(f"{label}: its file {path} is missing", "images", index, "left out", drop)
                path = None
        if not _is_size(image):
            text = f"{label}: its width and height are {image.get('width')!r} and {image.get('height')!r}"
            if path is None:
                yield Problem(text, "images", index, "left out", drop)
            else:
                yield Problem(text, "images", index, "read from the file", _measure(path))


def _measure(path: Path) -> Callable[[Entry], Entry]:
    def mend(image: Entry) -> Entry:
        try:
            width, height = shown_size(path)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        return {**image, "width": width, "height": height}

    return mend


def _category_problems(categories: list[Entry]) -> list[Problem]:
    found = []
    for index, category in enumerate(categories):
        if not _is_int(category.get("id")) or not isinstance(category.get("name"), str):
            found.append(Problem(f"category at position {index} needs a whole number 'id' and a text 'name'"))
    counts = Counter(category["id"] for category in categories if _is_int(category.get("id")))
    found += [Problem(f"category id {key}: used {n} times") for key, n in counts.items() if n > 1]
    return found


Found = tuple[str, str, Callable[[Entry], Entry | None] | None]


def _id_problems(annotation: Entry, seen: set[Any], free: int) -> Iterator[Found]:
    key = annotation.get("id")

    def renumber(entry: Entry) -> Entry:
        return {**entry, "id": free}

    if not _is_int(key):
        yield "has no id that is a whole number", "numbered anew", renumber
    elif key == 0:  # its match would be stored as 0, which pycocotools reads as no match
        yield "has an id that counts as a miss when testing", "numbered anew", renumber
    elif key in seen:
        yield "has the id of another annotation", "numbered anew", renumber
    seen.add(_hashable(key))


def _reference_problems(annotation: Entry, images: set[Any], categories: dict[Any, int]) -> Iterator[Found]:
    for field, known in (("image_id", images), ("category_id", categories)):
        if annotation.get(field) is None:
            yield f"has no {field}", "left out", drop
        elif _hashable(annotation[field]) not in known:
            yield f"has {field} {annotation[field]}, which is not in the file", "left out", drop
    if annotation.get("ignore"):
        yield "has 'ignore', which detectron2 does not support", "left out", drop
    if annotation.get("iscrowd") not in (0, 1):
        yield "has no iscrowd (0 or 1)", "set to 0", lambda entry: {**entry, "iscrowd": 0}


def _box_problems(annotation: Entry, size: tuple[float, float] | None) -> Iterator[Found]:
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


def _keypoint_counts(content: Entry) -> dict[Any, int]:
    """Keypoints of each category: as many as it names, else as many as its first annotation has."""
    counts: dict[Any, int] = {}
    for category in content["categories"]:
        if isinstance(category.get("keypoints"), list) and _is_id(category.get("id")):
            counts[category["id"]] = len(category["keypoints"])
    for annotation in content["annotations"]:
        points, key = annotation.get("keypoints"), _hashable(annotation.get("category_id"))
        if isinstance(points, list) and points and key not in counts:
            counts[key] = len(points) // 3
    return counts


def _keypoint_problems(annotation: Entry, counts: dict[Any, int]) -> Iterator[Found]:
    wanted = counts.get(_hashable(annotation.get("category_id")), 0)
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
    elif not _is_int(annotation.get("num_keypoints")):
        visible = sum(v > 0 for v in points[2::3])
        yield "has no num_keypoints", "counted", lambda entry: {**entry, "num_keypoints": visible}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return _is_int(value) or isinstance(value, str)


def _hashable(value: Any) -> Any:
    return value if value is None or _is_id(value) else repr(value)


def _is_size(image: Entry) -> bool:
    return all(_is_int(image.get(side)) and image[side] > 0 for side in ("width", "height"))
