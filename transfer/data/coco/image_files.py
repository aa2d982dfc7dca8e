"""The image files of a COCO file: which are missing, which was probably meant, and whether their sizes are right."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from pretrain.common.errors import UserError, label
from pretrain.data.decode import shown_size
from pretrain.data.folders import is_image
from transfer.data.coco.values import Entry, is_size

_THREADS = 8  # they mostly wait for the disk
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # Label Studio puts this before the name of an uploaded file


class ImageFolder:
    """A folder in which the files of a COCO json are looked up. Each folder is listed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[Path, set[str]] = {}

    def has(self, name: str) -> bool:
        """Return whether the folder has this file. Upper and lower case count on every system."""
        path = self.root / name
        if path.parent not in self._names:
            listed = os.scandir(path.parent) if os.path.isdir(path.parent) else ()
            self._names[path.parent] = {entry.name for entry in listed if not entry.is_dir()}
        return path.name in self._names[path.parent]

    def meant(self, name: str) -> str | None:
        """Return the file that a name without a file probably means, relative to the folder; None if it is unclear.

        Tried are: slashes for backslashes, names without leading folders, other upper and lower case, another form of
        the same accents (NFC, NFD), another ending of an image, and the same name in another folder.
        """
        plain = unquote(name.replace("\\", "/").rpartition("?d=")[2])
        parts = [part for part in PurePosixPath(plain).parts if part not in ("/", "..", ".")]
        for start in range(len(parts)):
            tail = "/".join(parts[start:])
            if self.has(tail):
                return tail
        if not parts:
            return None
        for key, found in (
            (_folded(parts[-1]), self._by_name),
            (_folded(_UPLOAD.sub("", parts[-1])), self._by_name),
            (_folded(PurePosixPath(parts[-1]).stem), self._by_stem),
        ):
            files = found.get(key, [])
            if len(files) == 1:
                return files[0]
            same = [
                file for file in files if len(parts) > 1 and _folded("/".join(parts)).endswith(_folded(file))
            ]
            if len(same) == 1:
                return same[0]
        return None

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        files: dict[str, list[str]] = defaultdict(list)
        for folder, _, names in os.walk(self.root):
            for name in names:
                files[_folded(name)].append((Path(folder) / name).relative_to(self.root).as_posix())
        return dict(files)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        files: dict[str, list[str]] = defaultdict(list)
        for paths in self._by_name.values():
            for path in filter(is_image, paths):
                files[_folded(PurePosixPath(path).stem)].append(path)
        return dict(files)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def meant_files(images: list[Entry], folder: ImageFolder) -> dict[int, str | None]:
    """Return index of an image without a file -> the file that was probably meant, or None.

    A file that another image has, or that is meant by several, is not proposed.
    """
    names = [image.get("file_name") for image in images]
    missing = {i: name for i, name in enumerate(names) if isinstance(name, str) and not folder.has(name)}
    if not missing:
        return {}
    proposed = {i: folder.meant(name) for i, name in missing.items()}
    taken = {name for i, name in enumerate(names) if i not in missing}
    counts = Counter(proposed.values())
    return {
        i: name if name is not None and name not in taken and counts[name] == 1 else None
        for i, name in proposed.items()
    }


def measure(path: Path) -> Callable[[Entry], Entry]:
    """Return a repair that sets an image's size to that of its file."""

    def repair(image: Entry) -> Entry:
        try:
            width, height = shown_size(path)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        return {**image, "width": width, "height": height}

    return repair


def size_differences(images: Sequence[dict[str, Any]], folder: Path) -> Iterator[tuple[int, str]]:
    """Yield (index, what is wrong) for each image of a COCO file that is broken or has a different size.

    Entries without a name, a size or a file are skipped: `problems` reports them.
    """

    def difference(image: dict[str, Any]) -> str:
        name, size = image.get("file_name"), (image.get("width"), image.get("height"))
        if not isinstance(name, str) or not is_size(image):
            return ""
        path = folder / name
        if not os.path.isfile(path):
            return ""
        try:
            found = shown_size(path)
        except ValueError as error:
            return f"its file {folder / label(name)} is {error}"
        if found == size:
            return ""
        return f"its file {folder / label(name)} is {found[0]} x {found[1]}, but the json says {size[0]} x {size[1]}"

    with ThreadPoolExecutor(_THREADS) as threads:
        for index, text in enumerate(threads.map(difference, images)):
            if text:
                yield index, text
