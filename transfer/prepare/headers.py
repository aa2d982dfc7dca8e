"""What the files of images say about themselves, against what an annotation file says."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

ORIENTATION = 0x0112  # EXIF tag
TURNED = (5, 6, 7, 8)  # its values that exchange width and height
THREADS = 8  # they wait for the disk


def shown_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image as detectron2 shows it to the model, that is, turned as its EXIF data say.

    Only the header is read. Raises ValueError, with the reason, if it is no image that Pillow can read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(ORIENTATION) in TURNED else (width, height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"no readable image: {error}") from None


def differences(images: Sequence[dict[str, Any]], folder: Path) -> Iterator[tuple[int, str]]:
    """(index, what is wrong) of each image of a COCO file whose file is broken or of another size.

    Entries without a name, a size or a file are passed over: `transfer.annotations` tells of those.
    """

    def difference(image: dict[str, Any]) -> str:
        name, size = image.get("file_name"), (image.get("width"), image.get("height"))
        if not isinstance(name, str) or not all(isinstance(v, int) for v in size):
            return ""
        path = folder / name
        if not os.path.isfile(path):
            return ""
        try:
            found = shown_size(path)
        except ValueError as error:
            return f"its file {path} is {error}"
        if found == size:
            return ""
        return f"its file {path} is {found[0]} x {found[1]}, but the json says {size[0]} x {size[1]}"

    with ThreadPoolExecutor(THREADS) as threads:
        for index, text in enumerate(threads.map(difference, images)):
            if text:
                yield index, text
