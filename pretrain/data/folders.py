"""Training images: the interface of every image source, and the simplest source, files in folders."""

import functools
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from pretrain.common import rng
from pretrain.common.errors import UserError
from pretrain.common.files import missing_folder, open_regular

EXTENSIONS = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
# Of an image file: as many as `pretrain.data.decode.MAX_PIXELS` have with 16 bits and 4 channels
MAX_BYTES = 1 << 30
# Words in the names of folders and files of label maps, depth maps and the like
_LABEL = (
    r"(?:masks?|label(?:s|_?maps?|_?ids)?|annotations?|ann_dir|seg|segm|semseg|segmaps?|segmentations?|"
    r"segmentation(?:class|object)\w*|semantic|panoptic|instance(?:s|_?ids)?|trimaps?|matte|depths?|disparity|gt|gt(?:fine|coarse)\w*|stuffthingmaps)"
)
_LABEL_FOLDER = re.compile(rf"(?:^|[_ .-]){_LABEL}(?:[_ .-]|$)")
_LABEL_FILE = re.compile(rf"[_.-]{_LABEL}(?:[_.-](?:colou?r|ids?))?$")
_PHOTO_FILE = re.compile(r"[_.-](?:leftimg8bit|rgb|images?|img)$")


class Order(Protocol):
    """The indices of all images in some order; it can be sliced."""

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class Images(Protocol):
    """A source of images, numbered from 0.

    Attributes:
        digest: digest of the names of all images, in order, relative to their folder, list or shard. It does not depend
            on where that is, so a run may move to another disk. Empty if it was not computed.
    """

    digest: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> str:
        """Return a name for messages."""
        ...

    def read(self, index: int) -> bytes:
        """Return the contents of the image's file. Raises `OSError`, or `UserError` if the whole source is damaged."""
        ...

    def order(self, seed: int, epoch: int) -> Order:
        """Return the order in which an epoch visits the images, a pure function of the arguments."""
        ...


class ImageFiles(Sequence[str]):
    """Paths in one byte buffer, so that a million of them take little memory, which forked workers share."""

    digest: str = ""

    def __init__(self, paths: Iterable[str]) -> None:
        names, ends = bytearray(), array("q")
        for path in paths:  # an iterator keeps only one path in memory
            names += os.fsencode(path)
            ends.append(len(names))
        self._bytes, self._ends = np.frombuffer(names, np.uint8), np.frombuffer(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[start : int(self._ends[index])].tobytes())

    def read(self, index: int) -> bytes:
        """Return the file's contents. Raises `OSError`, also for a pipe or a device."""
        with open_regular(self[index], most=MAX_BYTES, buffered=False) as file:
            return file.read()

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """Return a permutation of all indices."""
        return permutation(len(self), seed, epoch)


def permutation(images: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of the numbers below `images` that depends on (seed, epoch) only."""
    return rng.generator("order", seed, epoch).permutation(images)


class Endings:
    """The ends of file names that make a file an image (DATA.ENDINGS).

    Args:
        chosen: such as `jpg`, `rgb.png` or `_left.png`, in upper or lower case; after `!`, an ending of files that are
            not used. Without any of the first kind, every file with one of EXTENSIONS is used.
    Raises:
        UserError: no image has such an ending.

    Attributes:
        used: the endings to use, in order, with a dot before those that begin with a letter or digit.
        unused: those after `!`.
    """

    def __init__(self, chosen: Sequence[str] = ()) -> None:
        for name in chosen:
            if not isinstance(name, str) or not _can_end(name.removeprefix("!")):
                raise UserError(
                    f"DATA.ENDINGS {name}: the name of an image cannot end like this; write endings with their "
                    "extension and without patterns or folders, as in DATA.ENDINGS "
                    '\'["jpg", "rgb.png"]\' or \'["!_mask.png"]\''
                )
        self.used, self.unused = (
            tuple(
                _dotted(name.removeprefix("!").lower()) for name in chosen if name.startswith("!") is wanted
            )
            for wanted in (False, True)
        )

    def __bool__(self) -> bool:
        return bool(self.used or self.unused)

    def __str__(self) -> str:
        return " ".join([*self.used, *(f"!{name}" for name in self.unused)])

    def match(self, name: str) -> bool:
        """Return whether the file of that name is an image to use."""
        lower = name.lower()
        wanted = not self.used or lower.endswith(self.used)
        return is_image(lower) and wanted and not lower.endswith(self.unused)


def _can_end(ending: str) -> bool:
    return is_image(f"x.{ending}") and not set("*?/") & set(ending)


def _dotted(ending: str) -> str:
    return f".{ending}" if ending[:1].isalnum() else ending


ALL = Endings()


def find_images(folders: Sequence[str], *, key: str, endings: Endings = ALL) -> ImageFiles:
    """Return every image file below `folders`, sorted. Raises `UserError` naming the config `key` and the folder."""
    if not folders:
        raise UserError(f"{key}: names no folder; give one, as in {key} '[\"my/photos\"]'")
    return ImageFiles(path for folder in folders for path in images_below(folder, key=key, endings=endings))


def images_below(folder: str, *, key: str, endings: Endings = ALL) -> Iterator[str]:
    """Yield the paths of all image files below a folder, sorted.

    Raises `UserError` naming `key` and the folder if it does not exist, cannot be read, or holds no image.
    """
    if not os.path.isdir(folder):
        raise UserError(missing_folder(key, folder))
    found = False
    try:
        for path in _walk(folder, set(), endings):
            found = True
            yield path
    except OSError as error:
        raise UserError(
            f"{key}: cannot read {error.filename or folder}: {error.strerror or error}"
        ) from error
    if not found:
        wanted = f"DATA.ENDINGS {endings}" if endings else " ".join(EXTENSIONS)
        raise UserError(f"{key}: no image below {folder} (looked for {wanted})")


def _walk(folder: str, seen: set[str], endings: Endings) -> Iterator[str]:
    """Yield paths in the order of the full paths as strings, with the names of only the open folders in memory."""
    real = os.path.realpath(folder)
    if real in seen:  # a symbolic link that leads back up
        return
    seen.add(real)
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                names.append(entry.name + os.sep)
            elif endings.match(entry.name):
                names.append(entry.name)
    names.sort()
    for name in names:
        if name.endswith(os.sep):
            yield from _walk(os.path.join(folder, name[:-1]), seen, endings)
        else:
            yield os.path.join(folder, name)


def is_image(name: str) -> bool:
    """Return whether a file name has the extension of an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


class LabelMaps(NamedTuple):
    """Images whose names say that they are label maps of other images.

    Attributes:
        kind: the name of their folder and `/`, or the end of their names.
        number: how many there are.
        first: index of the first one.
    """

    kind: str
    number: int
    first: int


def label_maps(suspects: Sequence[tuple[int, str]], names: Iterable[str]) -> list[LabelMaps]:
    """Return the images that are named after another one, as `masks/1.png` or `1_mask.png` after `1.jpg`, by kind.

    Args:
        suspects: index and name of every image that has a `label_kind`.
        names: of all images, relative to a common folder.
    """
    if not suspects:
        return []
    subjects = {_subject(name) for _, name in suspects}
    pictured = {subject for n in names if (subject := _subject(n)) in subjects and not label_kind(n)}
    found: dict[str, LabelMaps] = {}
    for index, name in suspects:
        if _subject(name) in pictured:
            before = found.setdefault(label_kind(name), LabelMaps(label_kind(name), 0, index))
            found[before.kind] = before._replace(number=before.number + 1)
    return list(found.values())


def label_kind(name: str) -> str:
    """Return what makes a file's name that of a label map: `masks/`, `_mask.png`; empty if nothing does."""
    folder, _, base = name.rpartition("/")
    if folder and (kind := _label_folder(folder)):
        return kind
    stem, _, extension = base.rpartition(".")
    if not stem[-1:].isalpha():  # most names end in a number, and this is called for every image
        return ""
    stem = stem.lower()
    match = _LABEL_FILE.search(stem)
    return f"{stem[match.start() :]}.{extension.lower()}" if match and match.start() else ""


@functools.lru_cache(maxsize=1024)
def _label_folder(folder: str) -> str:
    names = folder.split("/")
    return next((f"{name}/" for name in names if _LABEL_FOLDER.search(name.lower())), "")


def _subject(name: str) -> str:
    """Return what an image and its label map have in common: the base name without extension and such words."""
    stem = os.path.splitext(name.rpartition("/")[2].lower())[0]
    return _PHOTO_FILE.sub("", _LABEL_FILE.sub("", stem))


def class_folders(folder: str, endings: Endings = ALL) -> list[str]:
    """Return the names of the direct subfolders that hold images, sorted.

    Returns none if there is an image next to them, or if `folder` is not a folder.
    """
    if not os.path.isdir(folder):
        return []
    top = {os.path.realpath(folder)}
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    if any(not e.is_dir() and endings.match(e.name) for e in visible):
        return []
    return sorted(e.name for e in visible if e.is_dir() and any(_walk(e.path, set(top), endings)))
