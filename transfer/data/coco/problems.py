"""Find what is wrong with a COCO-format annotation file before a training run does, and make a repaired copy.

With most of these problems, detectron2 stops at an assertion, silently drops objects, or fails in the middle of an
epoch.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pretrain.common.errors import UserError
from transfer.data.coco import entries as checks

_ORIENTATION = 0x0112  # EXIF tag
_TURNED = (5, 6, 7, 8)  # its values that swap width and height
_THREADS = 8  # they mostly wait for the disk

Entry = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        text: one line, with the id of the image or annotation.
        part: `images` or `annotations`, the list that holds the entry; "" if the problem concerns the whole file.
        index: of the entry in that list.
        remedy: what `repair` does, for the report; "" if the problem cannot be repaired.
        repair: the entry -> the repaired entry, or None to leave it out.
    """

    text: str
    part: str = ""
    index: int = -1
    remedy: str = ""
    repair: Callable[[Entry], Entry | None] | None = None


def problems(content: Any, images: Path | None, *, masks: bool, keypoints: bool) -> list[Problem]:
    """Return everything that detectron2 cannot use in a COCO-format file.

    Args:
        content: the parsed json.
        images: the folder with the image files, which must exist but are not opened; None to skip this check.
        masks: whether masks are trained.
        keypoints: whether keypoints are trained.
    """
    if broken := _structure(content):
        return broken
    found = list(_image_problems(content["images"], images))
    found += _category_problems(content["categories"])
    sizes = {
        image["id"]: (image["width"], image["height"])
        for image in content["images"]
        if checks.is_id(image.get("id")) and _is_size(image)
    }
    known = {image["id"] for image in content["images"] if checks.is_id(image.get("id"))}
    points = checks.keypoint_counts(content) if keypoints else {}
    categories = {c["id"]: points.get(c["id"], 0) for c in content["categories"] if checks.is_id(c.get("id"))}
    lowest_free = 1 + max((a["id"] for a in content["annotations"] if checks.is_int(a.get("id"))), default=0)
    seen: set[Any] = set()
    for index, annotation in enumerate(content["annotations"]):
        name = f"annotation {annotation.get('id', f'at position {index}')}"
        for text, remedy, repair in (
            *checks.ids(annotation, seen, max(lowest_free, 1) + index),
            *checks.references(annotation, known, categories),
            *checks.box(annotation, sizes.get(checks.hashable(annotation.get("image_id")))),
            *checks.masks(annotation, sizes.get(checks.hashable(annotation.get("image_id"))), wanted=masks),
            *(checks.keypoints(annotation, categories) if keypoints else ()),
        ):
            found.append(Problem(f"{name} {text}", "annotations", index, remedy, repair))
    return found


def remarks(content: Entry) -> list[str]:
    """Return a line for each thing worth knowing about a file without problems."""
    ids = sorted(category["id"] for category in content["categories"])
    lines = []
    if ids != list(range(1, len(ids) + 1)):
        shown = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
        lines.append(
            f"category ids {shown} are not 1 to {len(ids)}: classes are numbered in the order of their ids"
        )
    used = Counter(annotation["category_id"] for annotation in content["annotations"])
    unused = [str(c["name"]) for c in content["categories"] if not used[c["id"]]]
    if unused:
        shown = ", ".join(unused[:5]) + (", ..." if len(unused) > 5 else "")
        lines.append(f"{len(unused)} of {len(ids)} categories have no annotation: {shown}")
    return lines


def repaired(content: Entry, problems: list[Problem]) -> Entry:
    """Return a copy in which each problem is repaired. Annotations of images that are left out are left out too.

    Raises `UserError` if a problem cannot be repaired.
    """
    changed: dict[tuple[str, int], Entry | None] = {}
    for problem in problems:
        if problem.repair is None:
            raise UserError(f"{problem.text}: DATASETS.REPAIR cannot repair this")
        entry = changed.get((problem.part, problem.index), content[problem.part][problem.index])
        changed[problem.part, problem.index] = None if entry is None else problem.repair(entry)
    copy = dict(content)
    for part in ("images", "annotations"):
        entries = (changed.get((part, index), entry) for index, entry in enumerate(content[part]))
        copy[part] = [entry for entry in entries if entry is not None]
    left = {image["id"] for image in copy["images"]}
    copy["annotations"] = [a for a in copy["annotations"] if a["image_id"] in left]
    return copy


def _structure(content: Any) -> list[Problem]:
    if not isinstance(content, dict):
        return [Problem("not a COCO json: its top level is not an object")]
    found = []
    for part in ("images", "annotations", "categories"):
        entries = content.get(part)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            found.append(Problem(f"not a COCO json: it has no list {part!r}"))
        elif not entries:
            found.append(Problem(f"its list {part!r} is empty"))
    return found


def _image_problems(images: list[Entry], folder: Path | None) -> Iterator[Problem]:
    seen: set[Any] = set()
    names: dict[Path, set[str]] = {}
    for index, image in enumerate(images):
        label = f"image {image.get('id', f'at position {index}')}"
        if not checks.is_id(image.get("id")):
            text = f"{label} has no id, or one that is not an integer or a string"
            yield Problem(text, "images", index, "left out", checks.drop)
            continue
        if image["id"] in seen:
            yield Problem(
                f"{label}: the id is used twice", "images", index, "second one left out", checks.drop
            )
        seen.add(image["id"])
        path = None
        if not isinstance(image.get("file_name"), str):
            yield Problem(f"{label} has no file_name", "images", index, "left out", checks.drop)
        elif folder is not None:
            path = folder / image["file_name"]
            if path.parent not in names:
                names[path.parent] = (
                    {p.name for p in path.parent.iterdir()} if path.parent.is_dir() else set()
                )
            if path.name not in names[path.parent]:
                yield Problem(
                    f"{label}: its file {path} is missing", "images", index, "left out", checks.drop
                )
                path = None
        if not _is_size(image):
            text = f"{label}: its width and height are {image.get('width')!r} and {image.get('height')!r}"
            if path is None:
                yield Problem(text, "images", index, "left out", checks.drop)
            else:
                yield Problem(text, "images", index, "size read from the file", _measure(path))


def _measure(path: Path) -> Callable[[Entry], Entry]:
    def repair(image: Entry) -> Entry:
        try:
            width, height = shown_size(path)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        return {**image, "width": width, "height": height}

    return repair


def _category_problems(categories: list[Entry]) -> list[Problem]:
    found = []
    for index, category in enumerate(categories):
        if not checks.is_int(category.get("id")) or not isinstance(category.get("name"), str):
            found.append(Problem(f"category at position {index} needs an integer 'id' and a string 'name'"))
    counts = Counter(category["id"] for category in categories if checks.is_int(category.get("id")))
    found += [Problem(f"category id {key}: used {n} times") for key, n in counts.items() if n > 1]
    return found


def _is_size(image: Entry) -> bool:
    return all(checks.is_int(image.get(side)) and image[side] > 0 for side in ("width", "height"))


def shown_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an image as detectron2 shows it to the model: rotated as its EXIF data say.

    Only the header is read. Raises ValueError, with the reason, if Pillow cannot read the image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(_ORIENTATION) in _TURNED else (width, height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image: {error}") from None


def size_differences(images: Sequence[dict[str, Any]], folder: Path) -> Iterator[tuple[int, str]]:
    """Yield (index, what is wrong) for each image of a COCO file that is broken or has a different size.

    Entries without a name, a size or a file are skipped: `problems` reports them.
    """

    def difference(image: dict[str, Any]) -> str:
        name, size = image.get("file_name"), (image.get("width"), image.get("height"))
        if not isinstance(name, str) or not all(isinstance(v, int) for v in size):
            return ""
        path = folder / name
        if not os.path.isfile(path):
            return ""
        try:
            found = shown_size(path)
        except ValueError as error:
            return f"its file {path} is {error}"
        if found == size:
            return ""
        return f"its file {path} is {found[0]} x {found[1]}, but the json says {size[0]} x {size[1]}"

    with ThreadPoolExecutor(_THREADS) as threads:
        for index, text in enumerate(threads.map(difference, images)):
            if text:
                yield index, text
