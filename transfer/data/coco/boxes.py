"""Checks of an annotation's box: alone, in its image, against its area and against its mask."""

from collections.abc import Callable, Iterator

from pretrain.common.errors import brief
from transfer.data.coco.values import SLACK, Entry, Found, drop, is_box, is_number

Corners = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
# A box contradicts its mask if their IoU is below SAME and an edge differs by more than ROUNDED pixels. Exporters round
# both, and a mask may be smaller than a box that was drawn by hand.
SAME, ROUNDED = 0.5, 3.0
# Pixels by which width and height are enlarged before their product is compared with the area: masks are counted in
# whole pixels, so that the area of a tiny object may be above that of its box.
PIXEL = 2.0


def box(
    annotation: Entry, size: tuple[int, int] | None, mask: Corners | None, mask_area: float
) -> Iterator[Found]:
    """Check the box and the area.

    Args:
        size: (width, height) of the image; None if it is unknown.
        mask: the edges of the annotation's mask; None if it has none that can be used.
        mask_area: in square pixels; 0 without a mask.
    """
    box = annotation.get("bbox")

    def from_mask(entry: Entry) -> Entry:
        assert mask is not None
        return {**entry, "bbox": [mask[0], mask[1], mask[2] - mask[0], mask[3] - mask[1]]}

    remedy, repair = ("box set to that of its mask", from_mask) if mask else ("left out", drop)
    if box in (None, []):
        yield "has no bbox", remedy, repair
        return
    if not is_box(box):
        yield f"has bbox {brief(box)}, which is not 4 finite numbers", remedy, repair
        return
    x, y, w, h = box
    if w <= 0 or h <= 0:
        yield f"has bbox {brief(box)} without a positive size", remedy, repair
        return
    if mask is not None and _contradict(inside((x, y, x + w, y + h), size), mask):
        left, top, right, bottom = (round(v, 1) for v in mask)
        text = f"has bbox {brief(box)}, but its mask reaches from ({left}, {top}) to ({right}, {bottom})"
        yield text, "fix one of them, or take all boxes from the masks with --box-format mask", None
        return
    if size and (x < -SLACK or y < -SLACK or x + w > size[0] + SLACK or y + h > size[1] + SLACK):
        clipped = _clip(box, size)
        text = f"has bbox {brief(box)} outside its image of {size[0]} x {size[1]}"
        if clipped is None:
            yield text, "left out", drop
        else:
            yield text, "clipped", _set_box(clipped)
    yield from _area(annotation, w, h, mask_area)


def _area(annotation: Entry, w: float, h: float, mask_area: float) -> Iterator[Found]:
    area, right = annotation.get("area"), mask_area or w * h

    def repair(entry: Entry) -> Entry:
        return {**entry, "area": right}

    remedy = f"area set to that of the {'mask' if mask_area else 'box'}"
    if not is_number(area):
        wrong = "no area" if area is None else f"area {brief(area)}, which is not a finite number"
        yield f"has {wrong}", remedy, repair
    elif area <= 0 and (area < 0 or w * h > PIXEL**2):  # some exporters round areas down
        yield f"has area {area}, which is not above 0", remedy, repair
    elif area > (w + PIXEL) * (h + PIXEL):
        yield f"has area {area:g}, more than its box of {w:g} x {h:g} pixels", remedy, repair


def inside(box: Corners, size: tuple[int, int] | None) -> Corners:
    """Return the part of a box within its image, without a positive size if there is none."""
    if size is None:
        return box
    return max(box[0], 0), max(box[1], 0), min(box[2], size[0]), min(box[3], size[1])


def _contradict(box: Corners, mask: Corners) -> bool:
    edges = max(abs(a - b) for a, b in zip(box, mask, strict=True))
    return edges > ROUNDED and _iou(box, mask) < SAME


def _iou(a: Corners, b: Corners) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def _set_box(box: list[float]) -> Callable[[Entry], Entry]:
    """Return a repair that sets the box, and reduces the area to the box's if it is larger."""

    def repair(entry: Entry) -> Entry:
        area = entry.get("area")
        smaller = {"area": min(area, box[2] * box[3])} if is_number(area) else {}
        return {**entry, "bbox": box, **smaller}

    return repair


def _clip(box: list[float], size: tuple[int, int]) -> list[float] | None:
    left, top, right, bottom = inside((box[0], box[1], box[0] + box[2], box[1] + box[3]), size)
    if right - left < 1 or bottom - top < 1:
        return None
    return [left, top, right - left, bottom - top]
