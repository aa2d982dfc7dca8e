"""Checks of a COCO file as a whole: what no single entry shows."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from pretrain.common.errors import brief, label
from transfer.data.coco import box_formats
from transfer.data.coco.keypoints import keypoint_counts
from transfer.data.coco.values import Entry, hashable, is_box, is_int, shown

TOOL = "tools/prepare_data.py custom"
Said = tuple[str, str]  # what is wrong with the file, and what to do about it


def wrong_boxes(content: Entry) -> Said | None:
    """Report boxes that are probably not COCO's."""
    names = box_formats.suspected(content)
    if not names:
        return None
    boxes = sum(is_box(a.get("bbox")) for a in content["annotations"])
    first = next(a["bbox"] for a in content["annotations"] if is_box(a.get("bbox")))
    options = " or ".join(f"--box-format {name}" for name in names)
    if names[0].endswith(box_formats.NORMALISED):
        what = f"all {boxes} boxes lie inside one pixel, such as {brief(first)}: they are probably normalised"
        if len(names) == 1:
            what = f"{what} ({box_formats.MEANING[names[0]]})"
    else:
        what = (
            f"the {boxes} boxes are probably {' or '.join(box_formats.MEANING[name] for name in names)} instead of "
            f"x, y, width, height, such as {brief(first)}"
        )
    return what, f"{TOOL} converts them with {options} --output FILE"


def category_shift(content: Entry) -> int:
    """Return what must be added to the annotations' category ids so that all of them exist; 0 if nothing is needed.

    Only +1 and -1 are considered, and only if exactly one of them explains ids that are not in the file.
    """
    known, used = _category_ids(content)
    if not used or not known or used <= known:
        return 0
    fitting = [shift for shift in (1, -1) if {key + shift for key in used} <= known]
    return fitting[0] if len(fitting) == 1 else 0


def positions(content: Entry) -> Said | None:
    """Report category ids that are probably positions, from 0, in the list of categories, whose ids have gaps."""
    known, used = _category_ids(content)
    if 0 not in used or 0 in known or not used <= set(range(len(known))):
        return None
    return (
        f"the annotations have the category ids {shown(sorted(used))}, but the categories have "
        f"{shown(sorted(known))}: they are probably positions in the list of categories, from 0",
        "replace each by the id of the category at that position",
    )


def _category_ids(content: Entry) -> tuple[set[int], set[int]]:
    """Return the integers that are ids of categories, and those that annotations have as category ids."""
    known = {c["id"] for c in content["categories"] if is_int(c.get("id"))}
    return known, {a["category_id"] for a in content["annotations"] if is_int(a.get("category_id"))}


def shifted(content: Entry, shift: int) -> Entry:
    """Return a copy of a file with `shift` added to the category id of each annotation."""
    annotations = [
        {**a, "category_id": a["category_id"] + shift} if is_int(a.get("category_id")) else a
        for a in content["annotations"]
    ]
    return {**content, "annotations": annotations}


def shift_report(content: Entry, shift: int) -> Said:
    """Report category ids that are all too high or too low by one."""
    known, used = map(sorted, _category_ids(content))
    side = "low" if shift > 0 else "high"
    return (
        f"the annotations have the category ids {shown(used)}, but the categories have {shown(known)}: all are "
        f"probably too {side} by 1",
        f"{TOOL} corrects them with --category-shift {shift} --output FILE",
    )


def only_crowds(content: Entry) -> Said | None:
    """Report a file without any object that counts."""
    if any(a.get("iscrowd") != 1 for a in content["annotations"]):
        return None
    return (
        f"all {len(content['annotations'])} annotations have iscrowd 1: crowd regions are neither trained nor counted "
        "in AP",
        "if they are single objects, set iscrowd to 0 in the tool that exported them",
    )


def few_masks(content: Entry, share: float) -> Said | None:
    """Report a file in which more than this share of the annotations has no mask."""
    annotations = content["annotations"]
    missing = sum(not a.get("segmentation") and a.get("iscrowd") != 1 for a in annotations)
    if missing <= share * len(annotations):
        return None
    return (
        f"{missing} of {len(annotations)} annotations have no segmentation",
        f"set MODEL.MASK_ON False to train without masks (--learn boxes in {TOOL})",
    )


def different_keypoints(content: Entry) -> Said | None:
    """Report categories that have keypoints of different names or numbers."""
    named = {
        tuple(map(label, c["keypoints"]))
        for c in content["categories"]
        if isinstance(c.get("keypoints"), list) and c["keypoints"]
    }
    if len(named) < 2 and len(set(filter(None, keypoint_counts(content).values()))) < 2:
        return None
    return (
        "its categories have different keypoints, but a model has only one set of them",
        "write one file for each set of keypoints",
    )


def shared_names(categories: list[Entry], annotations: list[Entry]) -> Iterator[tuple[int, str, bool]]:
    """Yield (index, what is wrong, whether it can be left out) for each category whose name an earlier one has.

    A category without annotations can be left out.
    """
    used = {hashable(a.get("category_id")) for a in annotations}
    by_name: dict[str, list[int]] = defaultdict(list)
    for index, category in enumerate(categories):
        if isinstance(category.get("name"), str):
            by_name[category["name"]].append(index)
    for name, indices in by_name.items():
        ids = shown(categories[i].get("id") for i in indices)
        in_use = [i for i in indices if hashable(categories[i].get("id")) in used]
        kept = in_use[0] if in_use else indices[0]
        for index in indices:
            if index != kept:
                which = f"category {label(categories[index].get('id'))}"
                text = f"{which}: categories {ids} all have the name {brief(name)}"
                yield index, text, index not in in_use


def shared_files(images: list[Entry]) -> Iterator[tuple[int, str]]:
    """Yield (index, what is wrong) for each image whose file an image with another id has."""
    first: dict[str, Any] = {}
    for index, image in enumerate(images):
        name = image.get("file_name")
        if not isinstance(name, str):
            continue
        if name in first and first[name] != image.get("id"):
            yield (
                index,
                f"image {label(image.get('id'))}: image {label(first[name])} has the same file {label(name)}",
            )
        first.setdefault(name, image.get("id"))


def repeated(content: Entry) -> int:
    """Return the number of annotations that equal an earlier one in image, category and box."""
    keys = Counter(
        (hashable(a.get("image_id")), hashable(a.get("category_id")), tuple(a["bbox"]))
        for a in content["annotations"]
        if is_box(a.get("bbox"))
    )
    return sum(count - 1 for count in keys.values())
