"""The images to predict: files, folders, or the list in a COCO json."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.common.errors import UserError, brief, label
from pretrain.data.folders import images_below
from transfer.data.coco.read import read
from transfer.data.coco.values import is_id


class Source(NamedTuple):
    """An image file, and its entry in COCO's `images`, with `id` and `file_name`."""

    path: str
    entry: dict[str, Any]


def find(inputs: Sequence[str]) -> list[Source]:
    """Return the images in files and folders, each path once, with the ids 1, 2, ... in the order of `inputs`.

    Files below a folder are sorted. If one folder is given, `file_name` is relative to it, as in COCO; otherwise it is
    the path as given.

    Raises:
        UserError: a path does not exist, or a folder holds no image.
    """
    paths: dict[str, None] = {}
    for name in inputs:
        if os.path.isdir(name):
            paths |= dict.fromkeys(images_below(name, key="IMAGES"))
        elif os.path.lexists(name):
            paths[name] = None
        else:
            raise UserError(f"{name}: no such file or folder")
    root = inputs[0] if len(inputs) == 1 and os.path.isdir(inputs[0]) else None
    return [
        Source(path, {"id": number, "file_name": _posix(os.path.relpath(path, root) if root else path)})
        for number, path in enumerate(paths, start=1)
    ]


def listed(file: Path, folder: str) -> tuple[list[Source], dict[str, Any]]:
    """Return the images of a COCO json, with their own entries, and name -> id of its categories, if it has any.

    `file_name` is relative to `folder`. The json needs no annotations and no categories.

    Raises:
        UserError: the json has no list of images, an image has no name or id, or none of the files exists.
    """
    content = read(file).content
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        raise UserError(
            f"--images-json {file}: it has no list 'images' with the ids and file names of images"
        )
    seen: set[Any] = set()
    sources = []
    for position, entry in enumerate(images):
        key = entry.get("id") if isinstance(entry, dict) else None
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not is_id(key) or not isinstance(name, str) or not name:
            raise UserError(f"--images-json {file}: image {position} of its list has no id or no file_name")
        if key in seen:
            raise UserError(f"--images-json {file}: two images have the id {brief(key)}")
        seen.add(key)
        sources.append(Source(os.path.join(folder, name), entry))
    if not any(_exists(source.path) for source in sources):
        raise UserError(
            f"--images-json {file}: none of its {len(sources)} images is in {folder}, the first being "
            f"{brief(sources[0].entry['file_name'])}; give the folder that these names start from"
        )
    categories = content.get("categories")
    named = [c for c in categories if isinstance(c, dict)] if isinstance(categories, list) else []
    return sources, {str(category.get("name")): category.get("id") for category in named}


def size_note(sources: Sequence[Source], sizes: Sequence[tuple[int, int]]) -> str:
    """Return a note if entries of a json have other sizes than their images, (height, width) upright; else ""."""
    wrong = [
        f"{source.entry['file_name']} is {width} x {height}"
        for source, (height, width) in zip(sources, sizes, strict=True)
        if (source.entry.get("width", width), source.entry.get("height", height)) != (width, height)
    ]
    if not wrong:
        return ""
    return (
        f"note: {len(wrong)} of {len(sizes)} images have another size than the json says, the first: "
        f"{label(wrong[0])}; boxes and masks are in pixels of the upright image"
    )


def id_note(theirs: dict[str, Any], ours: Sequence[dict[str, Any]]) -> str:
    """Return a note if a class has another id in the json than in the run; else ""."""
    for category in ours:
        name, key = category["name"], category["id"]
        if theirs.get(name, key) != key:
            return (
                f"note: {name} has the id {brief(theirs[name])} in the json and {brief(key)} in the run, whose ids "
                "are written"
            )
    return ""


def _exists(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # a name with a zero byte
        return False


def _posix(path: str) -> str:
    return path.replace(os.sep, "/")
