"""Find what is wrong with a COCO-format annotation file before a training run does, and make a repaired copy.

With most of these problems, detectron2 stops at an assertion, silently drops objects, or fails in the middle of an
epoch.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.common.errors import UserError, brief, has_control, label
from pretrain.data.decode import MAX_PIXELS
from transfer.data.coco import whole_file
from transfer.data.coco.boxes import box
from transfer.data.coco.image_files import ImageFolder, meant_files, measure
from transfer.data.coco.keypoints import keypoint_counts
from transfer.data.coco.keypoints import keypoints as keypoint_problems
from transfer.data.coco.masks import extent
from transfer.data.coco.masks import masks as mask_problems
from transfer.data.coco.references import ids, references
from transfer.data.coco.values import Entry, drop, hashable, image_sizes, is_id, is_int, is_size

# The largest share of the images or annotations that a repair leaves out. Beyond it, the file is not what it seems to
# be, and it is not repaired.
MOST_LEFT_OUT = 1 / 3


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        text: one line, with the id of the image or annotation.
        part: `images`, `annotations` or `categories`, the list that holds the entry; "" if the problem concerns the
            whole file.
        index: of the entry in that list.
        remedy: what `repair` does, for the report; "" if the problem cannot be repaired.
        repair: the entry -> the repaired entry, or None to leave it out.
        advice: what the user can do about a problem that cannot be repaired; "" if the file must be edited.
    """

    text: str
    part: str = ""
    index: int = -1
    remedy: str = ""
    repair: Callable[[Entry], Entry | None] | None = None
    advice: str = ""


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
    found += _category_problems(content["categories"], content["annotations"])
    wrong_boxes, shift = whole_file.wrong_boxes(content), whole_file.category_shift(content)
    wrong_categories = whole_file.shift_report(content, shift) if shift else whole_file.positions(content)
    bare = whole_file.few_masks(content, MOST_LEFT_OUT) if masks else None
    different = whole_file.different_keypoints(content) if keypoints else None
    whole = (wrong_categories, wrong_boxes, whole_file.only_crowds(content), bare, different)
    found += [_whole(said) for said in whole if said]
    sizes = image_sizes(content["images"])
    known = {image["id"] for image in content["images"] if is_id(image.get("id"))}
    points = keypoint_counts(content) if keypoints else {}
    categories = {c["id"]: points.get(c["id"], 0) for c in content["categories"] if is_id(c.get("id"))}
    lowest_free = 1 + max((a["id"] for a in content["annotations"] if is_int(a.get("id"))), default=0)
    seen: set[Any] = set()
    for index, annotation in enumerate(content["annotations"]):
        name = f"annotation {label(annotation.get('id', f'at position {index}'))}"
        size = sizes.get(hashable(annotation.get("image_id")))
        mask, area = extent(annotation, size)
        for text, remedy, repair in (
            *ids(annotation, seen, max(lowest_free, 1) + index),
            *references(annotation, known, categories, reported=bool(wrong_categories)),
            *(() if wrong_boxes else box(annotation, size, mask, area)),
            *mask_problems(annotation, size, wanted=masks and not bare),
            *(keypoint_problems(annotation, categories, size) if keypoints else ()),
        ):
            done, advice = (remedy, "") if repair else ("", remedy)
            found.append(Problem(f"{name} {text}", "annotations", index, done, repair, advice))
    return found


def repaired(content: Entry, problems: list[Problem]) -> Entry:
    """Return a copy in which each problem is repaired. Annotations of images that are left out are left out too.

    Raises `UserError` if a problem cannot be repaired, or if too much would be lost for single mistakes.
    """
    changed: dict[tuple[str, int], Entry | None] = {}
    for problem in problems:
        if problem.repair is None:
            raise UserError(f"{problem.text}; {problem.advice or 'this must be fixed by hand'}")
        entry = changed.get((problem.part, problem.index), content[problem.part][problem.index])
        changed[problem.part, problem.index] = None if entry is None else problem.repair(entry)
    copy = dict(content)
    for part in ("images", "annotations", "categories"):
        entries = (changed.get((part, index), entry) for index, entry in enumerate(content[part]))
        copy[part] = [entry for entry in entries if entry is not None]
    left = {image["id"] for image in copy["images"]}
    copy["annotations"] = [a for a in copy["annotations"] if a["image_id"] in left]
    without = sum(
        _has_keypoints(content["annotations"][index]) and not _has_keypoints(entry)
        for (part, index), entry in changed.items()
        if part == "annotations" and entry is not None
    )
    total = len(content["annotations"])
    for what, lost, before in (
        ("images", len(content["images"]) - len(copy["images"]), len(content["images"])),
        ("annotations", total - len(copy["annotations"]), total),
        ("annotations' keypoints", without, total),
    ):
        if lost > MOST_LEFT_OUT * before:
            raise UserError(
                f"a repair would leave out {lost} of {before} {what}, too many for single mistakes: check what the "
                "file is"
            )
    return copy


def refused(content: Entry, problems: list[Problem]) -> str:
    """Return why `repaired` would raise `UserError` although each problem can be repaired; "" if it would not."""
    if any(problem.repair is None for problem in problems):
        return ""
    try:
        repaired(content, problems)
    except UserError as error:
        return str(error)
    return ""


def _has_keypoints(annotation: Entry) -> bool:
    points = annotation.get("keypoints")
    return isinstance(points, list) and any(points)


def _whole(said: whole_file.Said) -> Problem:
    return Problem(said[0], advice=said[1])


def _structure(content: Any) -> list[Problem]:
    if not isinstance(content, dict):
        return [Problem("not a COCO json: its top level is not an object")]
    found = []
    for part in ("images", "annotations", "categories"):
        entries = content.get(part)
        if not isinstance(entries, list):
            found.append(Problem(f"not a COCO json: it has no list {part!r}"))
        elif not all(isinstance(entry, dict) for entry in entries):
            found.append(Problem(f"not a COCO json: its list {part!r} holds entries that are not objects"))
        elif not entries:
            found.append(Problem(f"its list {part!r} is empty"))
    return found


def _image_problems(images: list[Entry], folder: Path | None) -> Iterator[Problem]:
    files = ImageFolder(folder) if folder else None
    meant = meant_files(images, files) if files else {}
    if len(meant) == len(images) and not any(meant.values()):
        first = label(images[0]["file_name"])
        yield Problem(
            f"none of the {len(images)} images is in the folder {folder}, the first being {first}",
            advice="give the folder that these names start from",
        )
        meant = {}
    advice = "merge the two entries and their annotations"
    for index, text in whole_file.shared_files(images):
        yield Problem(text, "images", index, advice=advice)
    yield from _mixed_ids("image", [image["id"] for image in images if is_id(image.get("id"))])
    by_id: dict[Any, Entry] = {}
    for index, image in enumerate(images):
        which = f"image {label(image.get('id', f'at position {index}'))}"
        if not is_id(image.get("id")):
            text = f"{which} has no id, or one that is not an integer or a string"
            yield Problem(text, "images", index, "left out", drop)
            continue
        if image["id"] in by_id:
            text, other = f"{which}: the id is used twice", by_id[image["id"]].get("file_name")
            if other == image.get("file_name"):
                yield Problem(text, "images", index, "second one left out", drop)
            else:
                yield Problem(
                    f"{text}, for {label(other)} and {label(image.get('file_name'))}", "images", index
                )
        by_id.setdefault(image["id"], image)
        yield from _file_problems(index, which, image, files, meant)


def _file_problems(
    index: int, which: str, image: Entry, files: ImageFolder | None, meant: dict[int, str | None]
) -> Iterator[Problem]:
    """Check the name, the file and the size of an image."""
    path, name = None, image.get("file_name")
    if not isinstance(name, str) or not name:
        yield Problem(f"{which} has no file_name", "images", index, "left out", drop)
    elif files is not None:
        path, text = files.root / name, f"{which}: its file {files.root / label(name)} is missing"
        if (other := meant.get(index)) is not None:
            path = files.root / other
            yield Problem(
                f"{text}; {files.root / label(other)} was probably meant", "images", index, "file_name changed to that",
                lambda entry: {**entry, "file_name": other},
            )  # fmt: skip
        elif index in meant:
            yield Problem(text, "images", index, "left out", drop)
            path = None
    if not is_size(image):
        text = (
            f"{which}: its width and height are {brief(image.get('width'))} and {brief(image.get('height'))}"
        )
        text += f", not two positive integers with a product of at most {MAX_PIXELS}"
        if path is None or not os.path.isfile(path):
            yield Problem(text, "images", index, "left out", drop)
        else:
            yield Problem(text, "images", index, "size read from the file", measure(path))


def _category_problems(categories: list[Entry], annotations: list[Entry]) -> Iterator[Problem]:
    for index, category in enumerate(categories):
        if not is_id(category.get("id")) or not isinstance(category.get("name"), str):
            yield Problem(f"category at position {index} needs an 'id' and a 'name' that is a string")
        elif has_control(category["name"]):
            text = f"category {label(category['id'])}: its name {brief(category['name'])} holds a control character"
            yield Problem(text)
    ids = [category["id"] for category in categories if is_id(category.get("id"))]
    yield from _mixed_ids("category", ids)
    for key, count in Counter(ids).items():
        if count > 1:
            yield Problem(f"category id {label(key)}: used {count} times")
    for index, text, unused in whole_file.shared_names(categories, annotations):
        if unused:
            remedy = "the one without annotations left out"
            yield Problem(text, "categories", index, remedy, drop)
        else:
            yield Problem(text, advice="rename them, or give their annotations one category_id")


def _mixed_ids(kind: str, ids: list[Any]) -> Iterator[Problem]:
    """Check that ids are all integers or all strings: they are sorted."""
    strings = [key for key in ids if isinstance(key, str)]
    if strings and len(strings) < len(ids):
        other = next(key for key in ids if not isinstance(key, str))
        yield Problem(
            f"{len(strings)} of {len(ids)} {kind} ids are strings, such as {brief(strings[0])}, but others are "
            f"integers, such as {label(other)}",
            advice="make all of them one type",
        )
