"""A picture of what the encoders see: images, each with its two views and their random parameters below it."""

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from fvcore.common.config import CfgNode
from PIL import Image, ImageDraw, ImageFont

from pretrain.common import rng
from pretrain.common.errors import UserError
from pretrain.common.files import write_atomic
from pretrain.data import views
from pretrain.data.decode import ImageFile
from pretrain.data.folders import Images
from pretrain.data.loader import ViewPairs
from pretrain.data.views import View

NARROWEST = 216  # minimum column width in pixels, for the captions; smaller views are enlarged
# Pixels: gap between columns, height of a text line, width of the row labels
_GAP, _LINE, _LABEL = 10, 15, 46
_KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
_ACROSS = 8  # columns per row
_NAMES = ("query", "key")
_COLOURS = ((220, 50, 32), (0, 90, 181))  # of the query's and the key's crop in the image
_PAPER, _INK = (255, 255, 255), (30, 30, 30)


def write(path: Path, files: Images, cfg: CfgNode, *, count: int = _ACROSS) -> None:
    """Write the picture of the first `count` images of the first epoch, as JPEG or PNG depending on its extension.

    Raises `UserError` for another extension, or if the file cannot be written.
    """
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise UserError(
            f"{path}: the picture is written as JPEG or PNG: give a name that ends in .jpg or .png"
        )
    picture = Image.fromarray(draw(files, cfg, count=count))
    write_atomic(path, lambda file: picture.save(file, kind, quality=92))


def draw(files: Images, cfg: CfgNode, *, count: int = _ACROSS) -> np.ndarray:
    """Return (H, W, 3) uint8: images with both crops, query views, key views, all with captions; 8 images per row."""
    pairs = ViewPairs(files, cfg)
    pairs.geometry_only = False  # the same views with INPUT.VIEWS gpu, finished on the CPU
    chosen = files.order(cfg.SEED, 0)[:count]
    columns = [_column(pairs, files, int(index)) for index in chosen]
    rows = [columns[start : start + _ACROSS] for start in range(0, len(columns), _ACROSS)]
    width = min(len(columns), _ACROSS)
    return np.concatenate([_row(row, width) for row in rows])


def columns(picture: Image.Image) -> list[Image.Image]:
    """Cut a picture of one full row into its columns: one for each image, without the row's labels."""
    side = (picture.width - _LABEL) / _ACROSS
    edges = [round(_LABEL + number * side) for number in range(_ACROSS + 1)]
    return [picture.crop((left, 0, right - _GAP, picture.height)) for left, right in pairwise(edges)]


def _row(columns: list[np.ndarray], width: int) -> np.ndarray:
    blank = np.full_like(columns[0], 255)
    labels = _labels(columns[0].shape[0], columns[0].shape[1])
    return np.concatenate([labels, *columns, *[blank] * (width - len(columns))], axis=1)


def _column(pairs: ViewPairs, files: Images, wanted: int) -> np.ndarray:
    sample = pairs[0, wanted]
    enlarged = max(-(-NARROWEST // pairs.size), 1)
    side = pairs.size * enlarged
    try:
        image = ImageFile(files.read(sample.image))
        drawn = [
            views.draw(
                rng.quick("view", pairs.seed, 0, sample.image, number), recipe,
                width=image.width, height=image.height, min_scale=pairs.min_scale,
            )
            for number, recipe in enumerate(pairs.recipes)
        ]  # fmt: skip
        thumbnail, captions = _thumbnail(image, drawn, side), [_caption(view) for view in drawn]
        about = [f"image {sample.image}, {image.width} x {image.height}"]
    except Exception:  # as in `ViewPairs`: all images tried were unreadable
        thumbnail, captions, about = np.full((side, side, 3), 128, np.uint8), [[], []], ["unreadable"]
    blocks = [_captioned(thumbnail, about, lines=1)]
    for pixels, caption in zip((sample.query, sample.key), captions, strict=True):
        big = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_NEAREST)
        blocks.append(_captioned(big, caption, lines=3))
    return np.pad(np.concatenate(blocks), ((0, 0), (0, _GAP), (0, 0)), constant_values=255)


def _thumbnail(image: ImageFile, drawn: list[View], side: int) -> np.ndarray:
    """Return the image inside a white square, with the outlines of its two crops."""
    scale = side / max(image.width, image.height)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    pixels = cv2.resize(image.decode(), size, interpolation=method)
    for view, colour in zip(drawn, _COLOURS, strict=True):
        left, top, width, height = (scale * value for value in view.box)
        corners = (round(left), round(top)), (round(left + width) - 1, round(top + height) - 1)
        cv2.rectangle(pixels, *corners, (255, 255, 255), 3)
        cv2.rectangle(pixels, *corners, colour, 2)
    square = np.full((side, side, 3), 255, np.uint8)
    square[side - size[1] :, : size[0]] = pixels
    return square


def _caption(view: View) -> list[str]:
    """Return the parameters of a view as three short lines: geometry, colours in their order, the rest."""
    left, top, width, height = view.box
    colours = "  ".join(
        f"{name[:3]} {factor:{'+' if name == 'hue' else ''}.2f}" for name, factor in view.jitter
    )
    rest = [f"blur {view.sigma:.1f}"] if view.sigma else []
    rest = (["gray"] if view.gray else []) + rest + (["solarized"] if view.solarize else [])
    rest += ["flipped"] if view.flip else []
    return [
        f"{width} x {height} at ({left}, {top})",
        colours or "no jitter",
        ", ".join(rest) or "no blur, no flip",
    ]


def _captioned(pixels: np.ndarray, caption: list[str], *, lines: int) -> np.ndarray:
    picture = Image.new("RGB", (pixels.shape[1], pixels.shape[0] + lines * _LINE + _GAP), _PAPER)
    picture.paste(Image.fromarray(pixels))
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(caption):
        pen.text((0, pixels.shape[0] + 1 + number * _LINE), line, fill=_INK, font=font())
    return np.asarray(picture)


def _labels(height: int, width: int) -> np.ndarray:
    """Return the labels at the left of a row."""
    side = width - _GAP
    picture = Image.new("RGB", (_LABEL, height), _PAPER)
    pen = ImageDraw.Draw(picture)
    top = side + _LINE + _GAP
    pen.text((4, side // 2), "image", fill=_INK, font=font())
    for number, (name, colour) in enumerate(zip(_NAMES, _COLOURS, strict=True)):
        place = top + number * (side + 3 * _LINE + _GAP) + side // 2
        pen.text((4, place), name, fill=colour, font=font())
    return np.asarray(picture)


def font(size: int = 12) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return a font for captions, which needs no file; `size` is in pixels."""
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has only one size
        return ImageFont.load_default()
