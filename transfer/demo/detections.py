"""The demo's picture for a README: a test image, chosen by a rule, with its annotations and what each init detects."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from pretrain.data.views_sheet import font
from transfer.demo.comparison import ROWS
from transfer.report.run_files import beside, jpeg, open_picture, read_json
from transfer.visualize.drawing import COLUMN_GAP

_LINE = 24  # pixels of height of a caption
_TEXT = 15  # pixels


def picture(folder: Path) -> bytes:
    """Return a JPEG file of two by two pictures, or of three in a row: annotations, and detections with their F1.

    The test image is the upper quartile by the F1 of the initialisation that is the best on average, of the detections
    with a score of at least 0.5: of those examined, a quarter are better or equal (`transfer.demo.pictures`).

    Args:
        folder: results of one demo run, with `demo.json` and `pictures/`.
    Raises:
        UserError: a file is missing or damaged.
    """
    rows = read_json(folder / "demo.json")["rows"]
    f1 = read_json(folder / "pictures/pictures.json")["quartile"]["f1"]
    names = {"truth": "annotated objects", **{row: f"{ROWS[row].short}: F1 {f1[row]:.2f}" for row in rows}}
    panels = [
        _captioned(open_picture(folder / f"pictures/quartile-{key}.jpg"), text) for key, text in names.items()
    ]
    wide = 2 if len(panels) % 2 == 0 else len(panels)
    return jpeg(_below([beside(panels[first : first + wide]) for first in range(0, len(panels), wide)]))


def _captioned(image: Image.Image, text: str) -> Image.Image:
    whole = Image.new("RGB", (image.width, image.height + _LINE), "white")
    whole.paste(image, (0, _LINE))
    ImageDraw.Draw(whole).text((1, 2), text, fill="black", font=font(_TEXT))
    return whole


def _below(images: Sequence[Image.Image]) -> Image.Image:
    """Return pictures of one width below each other."""
    height = sum(image.height + COLUMN_GAP for image in images) - COLUMN_GAP
    whole, top = Image.new("RGB", (max(image.width for image in images), height), "white"), 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height + COLUMN_GAP
    return whole
