"""What the values of a COCO file may be: ids, finite numbers, boxes."""

import math
from collections.abc import Callable
from typing import Any, TypeGuard

from pretrain.common.errors import label
from pretrain.data.decode import MAX_PIXELS

Entry = dict[str, Any]
# What is wrong with an annotation, what a repair does, and the function that repairs it, which returns None to leave
# the annotation out. If the problem cannot be repaired, the function is None, and the second text says what the user
# can do ("" if the file must be edited).
Found = tuple[str, str, Callable[[Entry], Entry | None] | None]
# A box may extend this many pixels beyond the image: exporters round outwards, and detectron2 clips.
SLACK = 1.0


def drop(_: Entry) -> None:
    """Leave out an entry that cannot be used."""
    return None


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a finite number; True, False and integers of more than 64 bits are not."""
    if isinstance(value, float):
        return math.isfinite(value)
    return is_int(value) and value.bit_length() <= 64


def is_int(value: Any) -> TypeGuard[int]:
    """Return whether a value is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_id(value: Any) -> bool:
    """Return whether a value can be an id: an integer or a string."""
    return is_int(value) or isinstance(value, str)


def hashable(value: Any) -> Any:
    """Return an id or None as it is, and anything else as a string that can be looked up in a set."""
    return value if value is None or is_id(value) else label(value)


def is_size(image: Entry) -> bool:
    """Return whether an image's width and height are positive integers, of a picture that can be decoded."""
    width, height = image.get("width"), image.get("height")
    return is_int(width) and is_int(height) and min(width, height) > 0 and width * height <= MAX_PIXELS


def image_sizes(images: list[Entry]) -> dict[Any, tuple[int, int]]:
    """Return image id -> (width, height) for the images with an id and a size."""
    return {i["id"]: (i["width"], i["height"]) for i in images if is_id(i.get("id")) and is_size(i)}


def is_box(box: Any) -> bool:
    """Return whether a value is a list of 4 finite numbers."""
    return isinstance(box, list) and len(box) == 4 and all(map(is_number, box))


def shown(values: Any, *, most: int = 5) -> str:
    """Return the first few values, separated by commas."""
    values = list(values)
    return ", ".join(map(label, values[:most])) + (", ..." if len(values) > most else "")
