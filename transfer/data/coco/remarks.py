"""What is worth knowing about a COCO file without problems."""

from collections import Counter

from pretrain.common.errors import brief
from transfer.data.coco import whole_file
from transfer.data.coco.values import Entry, is_number, shown

MANY_CROWDS = 0.1  # in COCO, about 1 % of the annotations are crowds


def remarks(content: Entry) -> list[str]:
    """Return a line for each thing worth knowing about a file without problems."""
    ids = sorted(category["id"] for category in content["categories"])
    lines = []
    if ids != list(range(1, len(ids) + 1)):
        lines.append(
            f"category ids {shown(ids)} are not 1 to {len(ids)}: classes are numbered in the order of their ids"
        )
    used = Counter(annotation["category_id"] for annotation in content["annotations"])
    unused = [c["name"] for c in content["categories"] if not used[c["id"]]]
    if unused:
        lines.append(f"{len(unused)} of {len(ids)} categories have no annotation: {shown(unused)}")
    names = Counter(" ".join(c["name"].split()).casefold() for c in content["categories"])
    alike = [c["name"] for c in content["categories"] if names[" ".join(c["name"].split()).casefold()] > 1]
    if alike:
        lines.append(f"category names that differ only in case or spaces: {shown(map(brief, alike))}")
    crowds = sum(annotation.get("iscrowd") == 1 for annotation in content["annotations"])
    if crowds > MANY_CROWDS * len(content["annotations"]):
        lines.append(
            f"{crowds} of {len(content['annotations'])} annotations are crowds (iscrowd 1), which are neither trained "
            "nor counted; CVAT writes all brush masks so"
        )
    if count := whole_file.repeated(content):
        lines.append(f"{count} annotations have the image, category and box of another one")
    if count := sum(_is_rotated(annotation) for annotation in content["annotations"]):
        lines.append(
            f"{count} annotations have attributes.rotation (CVAT's rotated boxes): the upright bbox is used, "
            "which does not enclose the rotated object"
        )
    return lines


def _is_rotated(annotation: Entry) -> bool:
    attributes = annotation.get("attributes")
    rotation = attributes.get("rotation") if isinstance(attributes, dict) else None
    return is_number(rotation) and rotation % 360 != 0
