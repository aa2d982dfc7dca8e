"""Checks of an annotation's id, of the ids it refers to, and of its flags."""

from collections.abc import Iterator
from typing import Any

from pretrain.common.errors import brief
from transfer.data.coco.values import Entry, Found, drop, hashable, is_id


def ids(annotation: Entry, seen: set[Any], free: int) -> Iterator[Found]:
    """Check the annotation's own id.

    Args:
        seen: the ids of the annotations before this one; its id is added.
        free: an id that a repair may use.
    """
    key = annotation.get("id")

    def renumber(entry: Entry) -> Entry:
        return {**entry, "id": free}

    if not is_id(key):
        yield "has no id, or one that is not an integer or a string", "renumbered", renumber
    elif key in seen:
        yield "has the id of another annotation", "renumbered", renumber
    seen.add(hashable(key))


def references(
    annotation: Entry, images: set[Any], categories: dict[Any, int], *, reported: bool
) -> Iterator[Found]:
    """Check the ids of image and category, and the flags `ignore` and `iscrowd`.

    `reported`: whether wrong category ids are reported once for the whole file.
    """
    for field, known in (("image_id", images), ("category_id", categories)):
        if annotation.get(field) is None:
            yield f"has no {field}", "left out", drop
        elif hashable(annotation[field]) not in known and not (reported and field == "category_id"):
            yield f"has {field} {brief(annotation[field])}, which is not in the file", "left out", drop
    if annotation.get("ignore"):
        yield "has 'ignore', which detectron2 does not support", "left out", drop
    crowd = annotation.get("iscrowd")
    if crowd is None:
        yield "has no iscrowd (0 or 1)", "iscrowd set to 0", lambda entry: {**entry, "iscrowd": 0}
    elif hashable(crowd) not in (0, 1):
        yield f"has iscrowd {brief(crowd)}, not 0 or 1", "", None
