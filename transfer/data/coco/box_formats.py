"""Boxes that are not x, y, width and height in pixels: recognise how a file has them, and convert them."""

from collections.abc import Callable
from typing import Any

from transfer.data.coco.boxes import Corners, inside
from transfer.data.coco.masks import extent
from transfer.data.coco.values import SLACK, Entry, image_sizes, is_box, is_number

Box = tuple[float, float, float, float]  # as COCO has it: left, top, width, height
# Name of --box-format -> what turns the four numbers into COCO's, in the unit that they have.
ORDERS: dict[str, Callable[[float, float, float, float], Box]] = {
    "xywh": lambda x, y, w, h: (x, y, w, h),
    "xyxy": lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1),
    "cxcywh": lambda cx, cy, w, h: (cx - w / 2, cy - h / 2, w, h),
}
NORMALISED = "-normalised"  # in fractions of the image's width and height
MASK = "mask"  # take the boxes from the masks
FORMATS = (*ORDERS, *(name + NORMALISED for name in ORDERS), MASK)
MEANING = {
    "xyxy": "x1, y1, x2, y2",
    "cxcywh": "the centre's x and y, width, height",
    "xywh-normalised": "fractions of the image's width and height",
    "xyxy-normalised": "x1, y1, x2, y2 in fractions of the image's width and height",
    "cxcywh-normalised": "the centre's x and y, width, height in fractions of the image's size",
}
OUTSIDE = (
    0.25  # when this share of the boxes reaches outside their images, they are probably in another format
)
MOST, FEW = (
    0.9,
    0.5,
)  # shares of the boxes that agree with their masks or areas in the right and in a wrong format
CLOSE = 0.02  # of the image's longer side, or 2 pixels: how far a box may be from its mask and agree
SAME_AREA = 0.02  # relative difference of areas that agree
SAMPLED = 5000  # about this many boxes of a large file are compared
# Below this number, boxes that happen to fit another format are not evidence.
ENOUGH = 3


class _Sample:
    """One annotation's numbers, and what they can be compared with."""

    def __init__(self, annotation: Entry, size: tuple[int, int]) -> None:
        self.numbers, self.size = annotation["bbox"], size
        self.mask: Corners | None = extent(annotation, size)[0]
        self.area = annotation.get("area")

    def fits(self, name: str) -> bool:
        """Return whether the box has a size and lies in its image."""
        x, y, w, h = _coco_box(self.numbers, name, self.size)
        right, bottom = self.size[0] + SLACK, self.size[1] + SLACK
        return min(w, h) > 0 and min(x, y) >= -SLACK and x + w <= right and y + h <= bottom

    def has_mask_at(self, name: str) -> bool | None:
        """Return whether the box is around its mask; None without a mask."""
        if self.mask is None:
            return None
        x, y, w, h = _coco_box(self.numbers, name, self.size)
        near = max(2.0, CLOSE * max(self.size))
        edges = inside((x, y, x + w, y + h), self.size)
        return max(abs(a - b) for a, b in zip(edges, self.mask, strict=True)) <= near

    def has_area_of(self, name: str) -> bool | None:
        """Return whether the box has the annotation's area; None without an area."""
        if not is_number(self.area) or self.area <= 0:
            return None
        _, _, w, h = _coco_box(self.numbers, name, self.size)
        return w > 0 and h > 0 and abs(w * h - self.area) <= SAME_AREA * self.area


def suspected(content: Entry) -> tuple[str, ...]:
    """Return the formats that the boxes of a file are probably in instead of COCO's; empty if COCO's is plausible.

    Boxes count whose image has a known size and whose 4 numbers are finite and not all 0. Another format is suspected
    if all boxes lie inside one pixel, or if it explains boxes that are not around their masks; without masks, boxes a
    quarter of which reach outside their images, or that do not have the annotations' areas.
    """
    sizes = image_sizes(content["images"])
    usable = [
        annotation
        for annotation in content["annotations"]
        if is_box(annotation.get("bbox"))
        and any(annotation["bbox"])
        and _known(annotation.get("image_id"), sizes)
    ]
    if not usable:
        return ()
    samples = [_Sample(a, sizes[a["image_id"]]) for a in usable[:: max(1, len(usable) // SAMPLED)]]
    if all(0 <= v <= 1 for sample in samples for v in sample.numbers):
        names = [name + NORMALISED for name in ORDERS] if min(samples[0].size) > 2 else []
        return _around_masks(samples, names) or _fitting(samples, names) or tuple(names)
    if len(samples) < ENOUGH:
        return ()
    masks, areas = (
        _share([s.has_mask_at("xywh") for s in samples]),
        _share([s.has_area_of("xywh") for s in samples]),
    )
    if masks is not None:
        return _around_masks(samples, ["xyxy", "cxcywh"]) if masks < FEW else ()
    outside = sum(not sample.fits("xywh") for sample in samples) / len(samples)
    if outside >= OUTSIDE:
        return _fitting(samples, ["xyxy", "cxcywh"])
    if areas is not None and areas < FEW and (_share([s.has_area_of("xyxy") for s in samples]) or 0) >= MOST:
        return ("xyxy",)
    return ()


def converted(content: Entry, name: str) -> tuple[Entry, int]:
    """Return a copy of a file whose boxes are COCO's, and the number of boxes that were converted.

    Boxes that cannot be read, or whose image has no known size, are left as they are; the check reports them. The
    area of an annotation without a mask becomes that of its new box.
    """
    sizes = image_sizes(content["images"])
    annotations, count = [], 0
    for annotation in content["annotations"]:
        size = sizes[annotation["image_id"]] if _known(annotation.get("image_id"), sizes) else None
        mask, _ = extent(annotation, size)
        box = None
        if name == MASK and mask is not None:
            box = [mask[0], mask[1], mask[2] - mask[0], mask[3] - mask[1]]
        elif name != MASK and size is not None and is_box(annotation.get("bbox")):
            box = list(_coco_box(annotation["bbox"], name, size))
        if box is not None:
            count += 1
            annotation = {**annotation, "bbox": box}
            if mask is None:
                annotation["area"] = box[2] * box[3]
        annotations.append(annotation)
    return {**content, "annotations": annotations}, count


def _coco_box(numbers: list[float], name: str, size: tuple[int, int]) -> Box:
    box = ORDERS[name.removesuffix(NORMALISED)](*numbers)
    if not name.endswith(NORMALISED):
        return box
    return box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1]


def _around_masks(samples: list[_Sample], names: list[str]) -> tuple[str, ...]:
    """Return the first format in which nearly all boxes are around their masks."""
    shares = {name: _share([sample.has_mask_at(name) for sample in samples]) or 0 for name in names}
    return next(((name,) for name, share in shares.items() if share >= MOST), ())


def _fitting(samples: list[_Sample], names: list[str]) -> tuple[str, ...]:
    """Return the formats in which all boxes lie inside their images and, if that is so in any, have their areas."""
    fitting = [name for name in names if all(sample.fits(name) for sample in samples)]
    shares = {name: _share([sample.has_area_of(name) for sample in samples]) or 0 for name in fitting}
    return tuple(name for name in fitting if shares[name] >= MOST) or tuple(fitting)


def _share(votes: list[bool | None]) -> float | None:
    """Return the share of yes among the votes that were given; None without any."""
    given = [vote for vote in votes if vote is not None]
    return sum(given) / len(given) if given else None


def _known(key: Any, sizes: dict[Any, Any]) -> bool:
    return isinstance(key, (int, str)) and key in sizes
