"""Read a COCO json as tools and editors really write it: its encoding, ids as strings, flags as strings.

Only what can be read in one way is changed, and each change is reported. `transfer.data.coco.problems` reports the
rest.
"""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.common.errors import UserError, brief, label
from pretrain.common.files import MAX_JSON, parse_json, read_regular
from transfer.data.coco.values import Entry, hashable, is_int, is_number

PARTS = ("images", "annotations", "categories")
FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1}
NUMBERS = ("bbox", "area", "keypoints")  # fields of annotations


class Read(NamedTuple):
    """A parsed file.

    Attributes:
        content: of the json; a COCO file's ids, flags and numbers have their usual types if that is possible.
        notes: one line for each kind of change.
        plain: whether other programs read the same content from the file itself.
    """

    content: Any
    notes: list[str]
    plain: bool


def read(path: Path) -> Read:
    """Read a json file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises `UserError` if the file cannot be parsed.
    """
    try:
        data = read_regular(path, most=MAX_JSON)
        encoding = json.detect_encoding(data)
        content = parse_json(data.decode(encoding))
        notes = _usual_types(content) if is_coco(content) else []
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not text in {error.encoding.upper()}: save the file as UTF-8"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not a complete JSON file: {label(str(error))}") from None
    return Read(content, notes, encoding == "utf-8" and not notes)


def is_coco(content: Any) -> bool:
    """Return whether a json has the three lists of a COCO file, with objects in them."""
    return isinstance(content, dict) and all(
        isinstance(content.get(part), list) and all(isinstance(entry, dict) for entry in content[part])
        for part in PARTS
    )


def _usual_types(content: Entry) -> list[str]:
    """Change values in place to their usual types. Return a line for each kind of change."""
    images, annotations, categories = (content[part] for part in PARTS)
    notes: list[str] = []

    unique = list({json.dumps(category, sort_keys=True): category for category in categories}.values())
    if len(unique) < len(categories):
        notes.append(
            f"{len(categories) - len(unique)} of {len(categories)} categories are repeated: left out"
        )
        content["categories"] = categories = unique
    parts = {"image": images, "category": categories, "annotation": annotations}

    def note(kind: str, field: str, changed: list[tuple[Entry, Any]], what: str = "") -> None:
        if changed:
            entry, old = changed[0]
            where = f"{kind} {label(entry.get('id', 'without an id'))}"
            read = what or brief(entry[field])
            notes.append(
                f"{len(changed)} of {len(parts[kind])} {field}s: {brief(old)} of {where} is read as {read}"
            )

    for kind, entries in parts.items():
        note(kind, "id", _integer_ids(entries, strings=kind == "category"))
    for field, known in (("image_id", images), ("category_id", categories)):
        ids = {str(entry["id"]): entry["id"] for entry in known if "id" in entry}
        note("annotation", field, _replace(annotations, field, partial(_reference, ids=ids)))
    note("annotation", "iscrowd", _replace(annotations, "iscrowd", _flag))
    note(
        "annotation",
        "segmentation",
        _replace(annotations, "segmentation", _nested),
        "a list with one polygon",
    )
    for field in NUMBERS:
        note("annotation", field, _replace(annotations, field, _number), "numbers")
    note("annotation", "num_keypoints", _replace(annotations, "num_keypoints", _integer))
    for field in ("width", "height"):
        note("image", field, _replace(images, field, _integer))
    return notes


def _replace(entries: Iterable[Entry], field: str, change: Callable[[Any], Any]) -> list[tuple[Entry, Any]]:
    """Replace the values of a field in place. Return the changed entries with their old values."""
    changed = []
    for entry in entries:
        if field in entry:
            old = entry[field]
            new = change(old)
            if new is not old:
                entry[field] = new
                changed.append((entry, old))
    return changed


def _integer_ids(entries: list[Entry], *, strings: bool) -> list[tuple[Entry, Any]]:
    """Turn whole floats into integers, and strings of digits if `strings`, or if the ids are of both types.

    Nothing changes if two ids would become equal.
    """
    values = [entry["id"] for entry in entries if "id" in entry]
    if all(map(is_int, values)):
        return []
    mixed = strings or any(is_int(value) or isinstance(value, float) for value in values)

    def change(value: Any) -> Any:
        return value if isinstance(value, str) and not mixed else _integer(value)

    if len({hashable(value) for value in values}) != len({hashable(change(value)) for value in values}):
        return []
    if strings and not all(is_int(change(value)) for value in values):
        return []
    return _replace(entries, "id", change)


def _integer(value: Any) -> Any:
    """Return a whole float or a string of digits as an integer, and anything else as it is."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) < 40 and value.isascii() and value.lstrip("-").isdigit():
        return int(value) if value.count("-") <= value.startswith("-") else value
    return value


def _reference(value: Any, ids: dict[str, Any]) -> Any:
    if isinstance(value, (float, str)):
        found = ids.get(str(_integer(value)), ids.get(str(value), value))
        return value if type(found) is type(value) else found
    if is_int(value) and isinstance(ids.get(str(value)), str):
        return ids[str(value)]
    return value


def _flag(value: Any) -> Any:
    if isinstance(value, str):
        return FLAGS.get(value.strip().lower(), value)
    return int(value) if isinstance(value, bool) else _integer(value)


def _nested(value: Any) -> Any:
    """Return a flat list of coordinates as a list of one polygon."""
    flat = isinstance(value, list) and len(value) >= 6 and all(map(is_number, value))
    return [value] if flat else value


def _number(value: Any) -> Any:
    """Return numbers that are written as strings as numbers, also within a list."""
    if isinstance(value, list):
        changed = [_number(item) for item in value]
        return changed if any(new is not old for new, old in zip(changed, value, strict=True)) else value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return _integer(number) if is_number(number) else value
    return value
