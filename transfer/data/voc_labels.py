"""Read the masks of one image of PASCAL VOC, or of SBD, which labels VOC's images, and find the box of each mask."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pretrain.common.errors import UserError
from pretrain.data.decode import image_at
from transfer.data.voc_boxes import Box

VOID = 255  # "unknown": a band of about 5 pixels around each of VOC's objects, and difficult objects
HALF_BAND = 2  # pixels of an object that the band hides on each side
SAME_BOX = 0.5  # minimum IoU of a mask's box with the box of the same object in the XML file


class Mask(NamedTuple):
    category: int  # 1..20
    pixels: np.ndarray  # bool (H, W)


def read_palette(file: Path) -> np.ndarray:
    """Return the palette indices of a PNG, which are VOC's labels: uint8 (H, W)."""
    try:
        with image_at(file) as image:
            if image.mode not in ("P", "L"):
                raise UserError(f"{file}: mode {image.mode}, not a palette image as in VOC's archive")
            return np.asarray(image)
    except ValueError as error:
        raise UserError(f"{file}: {error}: remove it, then unpack VOC's archive again") from None


def voc_masks(objects: np.ndarray, classes: np.ndarray) -> list[Mask]:
    """Return the masks in `SegmentationObject` and `SegmentationClass`, both (H, W); void belongs to no mask."""
    found = []
    for number in np.unique(objects[(objects > 0) & (objects < VOID)]):
        pixels = objects == number
        inside = classes[pixels & (classes > 0) & (classes < VOID)]
        if len(inside):
            found.append(Mask(int(np.bincount(inside).argmax()), pixels))
    return found


def read_sbd(file: Path, part: str) -> Any:
    """Return the record `part` (`GTinst` or `GTcls`) of one of SBD's .mat files.

    Its `Segmentation` is uint8 (H, W). `GTinst` also has `Categories`, the class (1..20) of each instance.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError("reading SBD's masks needs scipy: pip install 'scipy>=1.9'") from None
    try:
        return loadmat(file, squeeze_me=True, struct_as_record=False)[part]
    except Exception as error:  # scipy raises many kinds of errors for damaged files
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}): remove it, then unpack benchmark.tgz again"
        ) from None


def sbd_masks(record: Any) -> list[Mask]:
    """Return the masks in `GTinst`: value i of `Segmentation` is the instance with class `Categories[i - 1]`."""
    categories = np.atleast_1d(record.Categories)  # a single number if there is one instance
    numbers = np.unique(record.Segmentation)
    return [
        Mask(int(categories[i - 1]), record.Segmentation == i)
        for i in numbers.tolist()
        if 0 < i <= len(categories)
    ]


def tight_box(pixels: np.ndarray, *, grow: int = 0) -> tuple[float, float, float, float]:
    """Return the pixel edges (left, top, right, bottom) around a mask, `grow` further out but inside the image."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    height, width = pixels.shape
    return (
        float(max(columns[0] - grow, 0)),
        float(max(rows[0] - grow, 0)),
        float(min(columns[-1] + 1 + grow, width)),
        float(min(rows[-1] + 1 + grow, height)),
    )


def match(masks: list[Mask], boxes: list[Box], *, grow: int) -> list[Box]:
    """Return a box for each mask: one of `boxes` with the same class, each used at most once, or the mask's own.

    The assignment maximises the sum of the IoUs between the masks' tight boxes, enlarged by `grow` pixels on each
    side, and the given boxes; pairs below SAME_BOX do not count. A mask without a partner keeps its enlarged tight
    box.
    """
    from scipy.optimize import linear_sum_assignment

    own = [Box(mask.category, tight_box(mask.pixels, grow=grow), False) for mask in masks]
    overlap = np.array([[_iou(mine, given) for given in boxes] for mine in own]).reshape(len(own), len(boxes))
    overlap[overlap < SAME_BOX] = 0
    for row, column in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
        if overlap[row, column] > 0:
            own[row] = boxes[column]
    return own


def _iou(a: Box, b: Box) -> float:
    if a.category != b.category:
        return 0.0
    width = min(a.xyxy[2], b.xyxy[2]) - max(a.xyxy[0], b.xyxy[0])
    height = min(a.xyxy[3], b.xyxy[3]) - max(a.xyxy[1], b.xyxy[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (a.xyxy, b.xyxy)]
    return width * height / (areas[0] + areas[1] - width * height)
