"""Boxes in other formats are recognised and converted; COCO's own boxes are never suspected."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from transfer.data.coco import box_formats, whole_file

Content = dict[str, Any]
W, H = 200, 150
WRITTEN: dict[str, Callable[[float, float, float, float], list[float]]] = {
    "xyxy": lambda x, y, w, h: [x, y, x + w, y + h],
    "cxcywh": lambda x, y, w, h: [x + w / 2, y + h / 2, w, h],
    "xywh-normalised": lambda x, y, w, h: [x / W, y / H, w / W, h / H],
    "xyxy-normalised": lambda x, y, w, h: [x / W, y / H, (x + w) / W, (y + h) / H],
    "cxcywh-normalised": lambda x, y, w, h: [(x + w / 2) / W, (y + h / 2) / H, w / W, h / H],
}


def _file(rng: np.random.Generator, *, count: int = 40, masks: bool, area: bool = True) -> Content:
    """Return a file with `count` boxes of all sizes and places, and optionally their rectangles as masks."""
    annotations = []
    for number in range(1, count + 1):
        w, h = rng.uniform(0.1, 0.9, 2) * (W, H)
        x, y = rng.uniform(0, 1, 2) * (W - w, H - h)
        entry = {"id": number, "image_id": 1 + number % 5, "category_id": 1, "iscrowd": 0}
        entry |= {"bbox": [float(v) for v in (x, y, w, h)], "area": float(w * h) if area else None}
        if masks:
            entry["segmentation"] = [[float(v) for v in (x, y, x + w, y, x + w, y + h, x, y + h)]]
        annotations.append(entry)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": W, "height": H} for i in range(1, 6)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cup"}]}


@pytest.mark.parametrize("evidence", ["masks", "areas", "none"])
@pytest.mark.parametrize("name", WRITTEN)
def test_formats_are_recognised_and_converted(name: str, evidence: str) -> None:
    right = _file(np.random.default_rng(1), masks=evidence == "masks", area=evidence == "areas")
    wrong = copy.deepcopy(right)
    for annotation in wrong["annotations"]:
        annotation["bbox"] = WRITTEN[name](*annotation["bbox"])
    suspected = box_formats.suspected(wrong)
    assert name in suspected
    if evidence != "none":
        assert suspected == (name,)
    said = whole_file.wrong_boxes(wrong)
    assert said is not None and f"--box-format {name}" in said[1]
    converted, count = box_formats.converted(wrong, name)
    assert count == 40 and box_formats.suspected(converted) == ()
    for one, other in zip(converted["annotations"], right["annotations"], strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-9)
        if evidence != "masks":  # the area is that of the box again
            assert one["area"] == pytest.approx(other["bbox"][2] * other["bbox"][3])


def test_boxes_from_masks() -> None:
    right = _file(np.random.default_rng(2), masks=True)
    wrong = copy.deepcopy(right)
    for annotation in wrong["annotations"]:
        annotation["bbox"] = [1, 2, 3, 4]
    converted, _ = box_formats.converted(wrong, "mask")
    for one, other in zip(converted["annotations"], right["annotations"], strict=True):
        assert one["bbox"] == pytest.approx(other["bbox"])


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("area", [True, False])
def test_cocos_boxes_are_not_suspected(masks: bool, area: bool) -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        content = _file(rng, count=int(rng.integers(1, 30)), masks=masks, area=area)
        assert box_formats.suspected(content) == ()
        for annotation in content["annotations"][::5]:  # objects that reach out of the image
            annotation["bbox"][2] += 30
        assert box_formats.suspected(content) == ()


def test_areas_that_are_not_of_the_boxes_are_no_evidence() -> None:
    content = _file(np.random.default_rng(3), masks=False)
    for annotation in content["annotations"]:  # areas of masks that were not exported
        annotation["area"] *= 0.6
    assert box_formats.suspected(content) == ()


@pytest.mark.parametrize("shift", [1, -1])
def test_category_ids_that_are_off_by_one(shift: int) -> None:
    content = _file(np.random.default_rng(4), masks=False)
    content["categories"] = [{"id": i, "name": f"c{i}"} for i in (3, 4, 5)]
    for number, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = 3 + number % 3
    assert whole_file.category_shift(content) == 0
    wrong = whole_file.shifted(content, -shift)
    assert whole_file.category_shift(wrong) == shift
    said = whole_file.shift_report(wrong, shift)
    assert f"--category-shift {shift} " in said[1] and f"too {'low' if shift > 0 else 'high'} by 1" in said[0]
    assert whole_file.shifted(wrong, shift) == content
    wrong["annotations"][0]["category_id"] = 77  # then it is not a shift of all of them
    assert whole_file.category_shift(wrong) == 0
