"""Read the boxes of a VOC folder, VOC's own or one made by a labelling tool: the only reader of lists and XML files.

Training, testing, pictures and the check before a run use it, so what one accepts, the others accept as well.
Other than the name, the box and `difficult` of each object and the size of the image, nothing in an XML file counts:
paths in it may be wrong, and the image is the one that has the list's name.
"""

import difflib
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pretrain.common.errors import UserError, brief
from pretrain.data.decode import shown_size
from pretrain.data.folders import is_image

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
SIDES = ("xmin", "ymin", "xmax", "ymax")
SLACK = 1.0  # pixels a box may reach over the edge of its image: some tools count pixels from 0, VOC counts from 1
_THREADS = 8  # they wait for the disk, if it is slow
_CHUNK = (
    256  # images that a thread reads at a time: handing over each of them would take longer than to read it
)
# the second column of VOC's lists for one class: whether the image shows it
_COLUMN = re.compile(r"\s+(-1|0|1)$")


class Box(NamedTuple):
    category: int  # 1..20
    xyxy: tuple[float, float, float, float]  # pixel edges, counted from 0; right and bottom are exclusive
    difficult: bool


class Picture(NamedTuple):
    """An image of a list, with its boxes.

    Attributes:
        name: as in the list.
        file: the image.
        size: (width, height) of the image as it is shown.
        boxes: of its objects, in the order of the file.
    """

    name: str
    file: Path
    size: tuple[int, int]
    boxes: tuple[Box, ...]


def names(folder: Path, listing: str) -> list[str]:
    """Return the names of images in `ImageSets/LISTING`, such as `Main/test.txt`.

    A second column, blank lines, Windows line ends and byte-order marks are taken.

    Raises:
        UserError: the list is missing, is empty or names an image twice.
    """
    file = folder / "ImageSets" / listing
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    lines = content.decode("utf-16" if wide else "utf-8-sig", "surrogateescape").splitlines()
    labelled = {os.path.splitext(name)[0] for name in _files_in(folder / "Annotations")}
    found = [_name(line.strip(), labelled) for line in lines if line.strip()]
    if not found:
        raise UserError(f"{file} names no image: write one name per line, without its ending")
    if len(set(found)) < len(found):
        twice, times = Counter(found).most_common(1)[0]
        raise UserError(f"{file} names {twice} {times} times: leave only one of these lines")
    return found


def _name(line: str, labelled: set[str]) -> str:
    return line if line in labelled else _COLUMN.sub("", line)


def image_files(folder: Path, wanted: Iterable[str]) -> dict[str, Path]:
    """Return name -> the file in `JPEGImages` of that name, with any ending of images, in any case.

    Names without a file are left out. Of two files, `.jpg` is chosen, VOC's own ending.

    Raises:
        UserError: two files have the same name, and neither ends in `.jpg`.
    """
    place = folder / "JPEGImages"
    by_stem: dict[str, list[str]] = {}
    for file in _files_in(place):
        if is_image(file):
            by_stem.setdefault(os.path.splitext(file)[0], []).append(file)
    found = {}
    for name in wanted:
        choices = by_stem.get(name, [])
        if len(choices) > 1 and f"{name}.jpg" not in choices:
            raise UserError(
                f"{place}: {' and '.join(sorted(choices))} have the same name: remove one of them"
            )
        if choices:
            found[name] = place / (f"{name}.jpg" if f"{name}.jpg" in choices else choices[0])
    return found


def read_split(folder: Path, split: str) -> list[Picture]:
    """Return the images of `ImageSets/Main/SPLIT.txt` with their boxes, in the order of the list.

    The files are read once in a process, unless they change. For the 16 551 images of both trainval sets of VOC, this
    takes 5 to 9 seconds, and less than a second the next time.

    Raises:
        UserError: a file is missing or broken, has a class that VOC does not have, a box that is not in its image, or
            another size than its image. The message names the first file, and says in how many others something is
            wrong.
    """
    listed = names(folder, f"Main/{split}.txt")
    images = image_files(folder, listed)

    def read(name: str) -> Picture | UserError:
        xml = folder / "Annotations" / f"{name}.xml"
        try:
            if name not in images:
                raise UserError(f"{folder / 'JPEGImages'}: there is no image {name}.jpg; {xml.name} needs it")
            size, boxes = _read(xml, _stamp(xml), images[name], _stamp(images[name]))
        except UserError as error:
            return error
        return Picture(name, images[name], size, boxes)

    chunks = [listed[i : i + _CHUNK] for i in range(0, len(listed), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as threads:
        results = [found for part in threads.map(lambda chunk: [*map(read, chunk)], chunks) for found in part]
    pictures = [result for result in results if isinstance(result, Picture)]
    if len(pictures) < len(results):
        first = next(result for result in results if isinstance(result, UserError))
        others = len(results) - len(pictures) - 1
        more = f" ({others} more of the files for {split}.txt cannot be used)" if others else ""
        raise UserError(f"{first}{more}")
    return pictures


def read_boxes(file: Path) -> list[Box]:
    """Return the objects of one XML file. VOC counts pixels from 1 and includes the last one.

    An object may have no `difficult`, or an empty one: 0. Fractions of pixels are taken as they are.

    Raises:
        UserError: the file is missing, is not XML, or an object has no box or no class of VOC.
    """
    return [_box(file, place, element) for place, element in _objects(_root(file))]


def _stamp(file: Path) -> tuple[int, int]:
    """Return the size and the time of the last change of a file; zeros if it is missing."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


@cache
def _read(
    xml: Path, _: tuple[int, int], image: Path, __: tuple[int, int]
) -> tuple[tuple[int, int], tuple[Box, ...]]:
    """Return the size of an image and its boxes, which are inside it. The stamps are only for the cache."""
    root = _root(xml)
    try:
        size = shown_size(image)
    except ValueError as error:
        raise UserError(f"{image}: {error}") from None
    stated = tuple(
        _number(xml, f"size/{side}", root.findtext(f"size/{side}")) for side in ("width", "height")
    )
    if all(stated) and stated != size:  # 0, or no size at all, is what some tools write
        turned = " as its EXIF data turn it" if stated == size[::-1] else ""
        raise UserError(
            f"{xml}: its size is {stated[0]:g}x{stated[1]:g}, but {image.name} is {size[0]}x{size[1]}{turned}: "
            "label this image again, or correct <size> if the boxes are right"
        )
    boxes = []
    for place, element in _objects(root):
        box = _box(xml, place, element)
        left, top, right, bottom = box.xyxy
        if min(left, top) < -SLACK or right > size[0] + SLACK or bottom > size[1] + SLACK:
            corners = ", ".join(f"{v:g}" for v in (left + 1, top + 1, right, bottom))
            raise UserError(
                f"{xml}: object {place} has the box {corners}, which is not inside its image, {size[0]}x{size[1]}"
            )
        boxes.append(box)
    return size, tuple(boxes)


def _root(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: of encodings
        raise UserError(f"{file}: not an XML file of VOC: {error}") from None


def _objects(root: ElementTree.Element) -> Iterable[tuple[int, ElementTree.Element]]:
    """Return each object with its number, from 1. Parts of a person (head, hand) are inside objects."""
    return enumerate(root.findall("object"), 1)


def _box(file: Path, place: int, element: ElementTree.Element) -> Box:
    name = (element.findtext("name") or "").strip()
    if name not in CLASSES:
        near = difflib.get_close_matches(name.lower(), CLASSES, n=1, cutoff=0.75)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"{file}: object {place} has the class {brief(name)}{hint}, but VOC has only {', '.join(CLASSES)}; for "
            "other classes, convert your data to COCO's format (docs/own_data.md)"
        )
    corners = [(element.findtext(f"bndbox/{side}") or "").strip() for side in SIDES]
    if not all(corners):
        raise UserError(f"{file}: object {place} ({name}) has no bndbox/{SIDES[corners.index('')]}")
    left, top, right, bottom = (
        _number(file, f"object {place}, {side}", text) for side, text in zip(SIDES, corners, strict=True)
    )
    if left > right or top > bottom:
        raise UserError(
            f"{file}: object {place} ({name}) has its corners in the wrong order: xmin {left:g}, ymin {top:g}, xmax "
            f"{right:g}, ymax {bottom:g}"
        )
    difficult = _number(file, f"object {place}, difficult", element.findtext("difficult"))
    return Box(CLASSES.index(name) + 1, (left - 1, top - 1, right, bottom), difficult != 0)


def _number(file: Path, what: str, text: str | None) -> float:
    """Return the number in an element; 0 if it is missing or empty."""
    text = (text or "").strip()
    try:
        value = float(text or 0)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise UserError(f"{file}: {what} is {brief(text)}, not a number")
    return value


def _files_in(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []
