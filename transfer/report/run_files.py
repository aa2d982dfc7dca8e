"""Reads the files of finished runs for the report pages: JSON, logs, pictures and credits."""

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pretrain.common.errors import UserError, label
from pretrain.common.files import parse_json
from pretrain.data.decode import image_at
from pretrain.yaml_text import parse_yaml
from transfer.visualize.drawing import COLUMN_GAP

PHOTO_WIDTH = 240  # pixels, of a photograph of the demo's data on the page


def read_text(path: Path) -> str:
    """Return the content of a text file that the report needs. Raises `UserError` if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: the report needs this file ({error.strerror}); run the demo again"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises `UserError` if it cannot be read."""
    try:
        content = parse_json(read_text(path))
    except ValueError as error:
        raise UserError(
            f"{path}: not valid JSON ({label(str(error))}); remove it and run the demo again"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; remove it and run the demo again")
    return content


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.json`, without the incomplete last line of an interrupted run.

    Raises `UserError` if no line can be read.
    """
    lines = []
    for line in read_text(path).splitlines():
        try:
            lines.append(parse_json(line))
        except ValueError:
            continue
    if not lines:
        raise UserError(f"{path}: it contains no valid log line; remove it and run the demo again")
    return lines


def read_config(path: Path) -> dict[str, Any]:
    """Return the config of a run as nested dicts. Raises `UserError` if it cannot be read."""
    try:
        return dict(parse_yaml(read_text(path)))
    except (TypeError, ValueError):
        raise UserError(f"{path}: not a YAML mapping; remove it and run the demo again") from None


def jpeg_uri(image: Image.Image, *, quality: int = 88) -> str:
    """Return an image as a `data:` URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image, quality=quality)).decode("ascii")


def jpeg(image: Image.Image, *, quality: int = 88) -> bytes:
    """Return the content of a JPEG file."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def beside(images: Sequence[Image.Image]) -> Image.Image:
    """Return pictures of one height side by side, with white gaps between them."""
    width = sum(image.width + COLUMN_GAP for image in images) - COLUMN_GAP
    whole, left = Image.new("RGB", (width, max(image.height for image in images)), "white"), 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width + COLUMN_GAP
    return whole


def open_picture(path: Path, *, width: int | None = None) -> Image.Image:
    """Return a picture, scaled down to `width` if it is wider. Raises `UserError` if it cannot be read."""
    try:
        with image_at(path) as image:
            image.load()
    except ValueError:
        raise UserError(f"{path}: this picture is missing or damaged; run the demo again") from None
    if width and image.width > width:
        return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    return image


def halves(path: Path) -> tuple[Image.Image, Image.Image]:
    """Split a picture of `transfer.visualize.drawing` into ground truth and predictions."""
    image = open_picture(path)
    width = (image.width - COLUMN_GAP) // 2
    left = image.crop((0, 0, width, image.height))
    return left, image.crop((image.width - width, 0, image.width, image.height))


def photographs(folder: Path, count: int) -> list[str]:
    """Return `count` JPEG files of a folder, spread evenly over the sorted names, as small `data:` URIs."""
    paths = sorted(folder.glob("*.jpg"))
    step = max(len(paths) / count, 1)
    chosen = [paths[int(i * step)] for i in range(min(count, len(paths)))]
    return [jpeg_uri(open_picture(path, width=PHOTO_WIDTH), quality=84) for path in chosen]


def credits_of(path: Path) -> dict[str, Any]:
    """Return what a page quotes from `CREDITS.txt`: the packages with their licences, or else the text itself.

    Returns:
        `packages`: name and version, licence and number of files of each; `text`: the list if it names no package.
    """
    listed = re.split(r"^={10,}$", read_text(path), maxsplit=1, flags=re.MULTILINE)[0]
    blocks = re.split(r"^Debian package ", listed, flags=re.MULTILINE)[1:]
    packages = []
    for block in blocks:
        head, *rest = block.splitlines()
        version = re.search(r"_([^_]+)_\w+\.deb", head)
        licence = next((line.partition(":")[2].strip() for line in rest if line.startswith("Licence:")), "–")
        files = sum(line.startswith("  ") for line in rest)
        name = head.split(" ")[0] + (f" {version[1]}" if version else "")
        packages.append({"name": name, "licence": licence, "files": files})
    return {"packages": packages, "text": "" if packages else listed.strip()}
