"""A file with many different faults: one pass of the check finds each of them by its id, and nothing else."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pretrain.common.errors import UserError
from transfer.prepare.command import main

Content = dict[str, Any]
W, H = 128, 96
NAMES = ["left_end", "right_end"]


def _clean(folder: Path) -> tuple[Content, Path]:
    """Return a file of 60 images with 2 objects each, with masks and 2 keypoints, and its image folder."""
    images = folder / "images"
    images.mkdir(parents=True)
    content: Content = {"images": [], "annotations": []}
    content["categories"] = [
        {"id": i, "name": name, "keypoints": NAMES} for i, name in ((1, "cup"), (2, "key"))
    ]
    rng = np.random.default_rng(0)
    for number in range(1, 61):
        Image.new("RGB", (W, H)).save(images / f"{number:03}.png")
        content["images"].append({"id": number, "file_name": f"{number:03}.png", "width": W, "height": H})
        for k in (0, 1):
            x, y, w, h = (int(v) for v in (4 + 62 * k + rng.integers(9), 4 + rng.integers(30), 40, 50))
            content["annotations"].append(
                {
                    "id": 2 * number - 1 + k,
                    "image_id": number,
                    "category_id": 1 + k,
                    "iscrowd": 0,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    "keypoints": [x + 5, y + 9, 2, x + w - 5, y + 9, 2],
                    "num_keypoints": 2,
                }
            )  # fmt: skip
    return content, images


def _rle(counts: str | list[int], size: tuple[int, int] = (H, W)) -> dict[str, Any]:
    return {"segmentation": {"size": list(size), "counts": counts}}


def _string(height: int, width: int) -> str:
    """Return pycocotools' string of a mask with some pixels."""
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[3:9, 4:12] = 1
    counts: str = coco_mask.encode(mask)["counts"].decode()
    return counts


def _far(a: Content) -> dict[str, Any]:
    x, y, w, h = a["bbox"]
    return {"segmentation": [[x, y, x + 1e9, y, x + w, y + h]]}


def _moved(a: Content, by: float) -> dict[str, Any]:
    """Return keypoints that are moved, and as many as before."""
    points = list(a["keypoints"])
    points[0] += by
    return {"keypoints": points}


# What changes an annotation, and what the report then says about it
ANNOTATIONS: list[tuple[Callable[[Content], dict[str, Any]], str]] = [
    (lambda a: {"image_id": 999}, "image_id 999, which is not in the file"),
    (lambda a: {"image_id": None}, "no image_id"),
    (lambda a: {"category_id": 7}, "category_id 7, which is not in the file"),
    (lambda a: {"category_id": "cup"}, "category_id 'cup', which is not in the file"),
    (lambda a: {"ignore": 1}, "'ignore'"),
    (lambda a: {"iscrowd": None}, "no iscrowd"),
    (lambda a: {"iscrowd": "maybe"}, "iscrowd 'maybe', not 0 or 1"),
    (lambda a: {"bbox": None}, "no bbox"),
    (lambda a: {"bbox": [1, 2, 3]}, "not 4 finite numbers"),
    (lambda a: {"bbox": [1, 2, 10**400, 3]}, "not 4 finite numbers"),
    (lambda a: {"bbox": [*a["bbox"][:2], 0, 5]}, "without a positive size"),
    (lambda a: {"bbox": [*a["bbox"][:2], -9, 5]}, "without a positive size"),
    (lambda a: {"bbox": [0, 0, 500, 400]}, "but its mask reaches from"),
    (lambda a: {"bbox": [a["bbox"][0] - 30, *a["bbox"][1:]]}, "but its mask reaches from"),
    (lambda a: {"area": None}, "no area"),
    (lambda a: {"area": 0}, "area 0, which is not above 0"),
    (lambda a: {"area": -12.5}, "area -12.5, which is not above 0"),
    (lambda a: {"area": W * H}, "area 12288, more than its box of 40 x 50 pixels"),
    (lambda a: {"segmentation": []}, "no segmentation"),
    (lambda a: {"segmentation": [[1, 2, 3, 4, 5]]}, "no polygon of at least 3 points"),
    (lambda a: {"segmentation": [[5, 5, 9, 9, 20, 20, 30, 30]]}, "only polygons without pixels"),
    (lambda a: {"segmentation": [[200, 5, 240, 5, 240, 90]]}, "only polygons without pixels"),
    (lambda a: {"segmentation": [[-90, -9, -50, -9, -50, -60]]}, "only polygons without pixels"),
    (_far, "only polygons without pixels"),
    (lambda a: {"segmentation": [*a["segmentation"], [1, 1, 1, 1, 1, 1]]}, "1 of 2 polygons without pixels"),
    (lambda a: _rle(_string(H, W) + "Z1"), "counts do not add up to 96 x 128"),
    (lambda a: _rle("1"), "counts do not add up to 96 x 128: 1 pixels, not 12288"),
    (lambda a: _rle([9, 9]), "counts do not add up to 96 x 128: 18 pixels, not 12288"),
    (lambda a: _rle([W * H]), "an RLE mask without pixels"),
    (lambda a: _rle("\x05"), "counts are not pycocotools' string"),
    (lambda a: _rle("oSUd"), "counts end in the middle of a number"),
    (lambda a: _rle(_string(W, H), (W, H)), "of size 128 x 96, but its image is 96 x 128"),
    (lambda a: {"num_keypoints": 0}, "num_keypoints 0, but 2 labelled keypoints"),
    (lambda a: {"keypoints": a["keypoints"][:3]}, "3 keypoint values, not 6"),
    (lambda a: {"keypoints": [*a["keypoints"][:5], 7]}, "visibility 7, not 0, 1 or 2"),
    (lambda a: _moved(a, 500), "1 labelled keypoint(s) outside its image"),
    (lambda a: {"keypoints": [127, 95, 2, 127, 94, 2]}, "far outside its bbox"),
]  # fmt: skip
IMAGES: list[tuple[Callable[[Content], dict[str, Any]], str]] = [
    (lambda i: {"file_name": "gone.png"}, "gone.png is missing"),
    (lambda i: {"file_name": "images\\" + i["file_name"]}, "is missing; "),
    (lambda i: {"file_name": "data/train/" + i["file_name"]}, "is missing; "),
    (lambda i: {"file_name": i["file_name"].replace("png", "PNG")}, "is missing; "),
    (lambda i: {"file_name": i["file_name"].replace("png", "jpeg")}, "is missing; "),
    (lambda i: {"file_name": None}, "has no file_name"),
    (lambda i: {"file_name": "001.png"}, "image 1 has the same file 001.png"),
    (lambda i: {"height": None}, "width and height are 128 and None"),
    (lambda i: {"width": H, "height": W}, "is 128 x 96, but the json says 96 x 128"),
    (lambda i: {"width": 2 * W, "height": 2 * H}, "is 128 x 96, but the json says 256 x 192"),
]


def test_each_fault_is_found_in_one_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, images = _clean(tmp_path)
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(content))
    command = ["custom", "--json", str(file), "--images", str(images), "--check"]
    main("", command)
    assert "no problem was found" in capsys.readouterr().out

    expected = []
    for number, (change, text) in enumerate(ANNOTATIONS):
        annotation = content["annotations"][2 * number]
        annotation.update(change(copy.deepcopy(annotation)))
        expected.append((f"annotation {annotation['id']} ", text))
    for number, (change, text) in enumerate(IMAGES):
        image = content["images"][-1 - number]
        small = {"bbox": [9, 9, 20, 20], "area": 400, "segmentation": [[9, 9, 29, 9, 29, 29, 9, 29]]}
        for annotation in content["annotations"][-2 - 2 * number : len(content["annotations"]) - 2 * number]:
            annotation.update(small, keypoints=[9, 9, 2, 29, 29, 2])  # fits into the turned image as well
        image.update(change(image))
        expected.append((f"image {image['id']}", text))
    content["annotations"][80]["id"] = 76
    expected.append(("annotation 76 ", "has the id of another annotation"))
    content["categories"].append({"id": 3, "name": "cup", "keypoints": NAMES})
    content["annotations"][83]["category_id"] = 3
    expected.append(("category 3", "categories 1, 3 all have the name 'cup'"))
    file.write_text(json.dumps(content))

    with pytest.raises(UserError, match=f"and {len(expected) - 1} more problem"):
        main("", command)
    printed = capsys.readouterr().out
    assert f"{len(expected)} problem(s):" in printed
    lines = [line.strip() for line in printed.partition("problem(s):\n")[2].splitlines()]
    assert len(lines) == len(expected)
    for start, text in expected:
        assert any(line.startswith(start) and text in line for line in lines), (start, text)
