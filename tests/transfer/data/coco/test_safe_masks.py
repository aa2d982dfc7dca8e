"""What reaches pycocotools: masks that it draws as before, and nothing that crashes it, hangs or fills the memory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import GenericMask
from PIL import Image
from pycocotools import mask as library

from pretrain.common.errors import UserError
from tests.support.scripts import ROOT
from transfer.config.load import default_config
from transfer.data import catalog
from transfer.data.coco.safe_masks import MAX_OUTLINE, BadMask, bad_rle, can_be_drawn, check_masks
from transfer.metrics.coco import Coco

W, H = 128, 96
SQUARE = [10.0, 10.0, 50.0, 10.0, 50.0, 50.0, 10.0, 50.0]
ZIGZAG = [v for i in range(100_000) for v in ((i % 2) * 100, i / 1250)]  # 10 million pixels, all in the image
WRONG: dict[str, Any] = {
    "far": [[0, 0, 1e9, 0, 1e9, 1e9]],
    "nan": [[0, 0, float("nan"), 0, 5, 5, 0, 7]],
    "zigzag": [ZIGZAG],
    "many": [[0, 0, W, 0, W, H] * 3000] * 4,
    "short": {"size": [H, W], "counts": "54"},
    "cut": {"size": [H, W], "counts": "o"},
    "list": {"size": [H, W], "counts": [50, 2**31]},
    "negative": {"size": [H, W], "counts": [H * W + 1, -1]},
    "size": {"size": [2**31, 2**31], "counts": "54"},
}


def _encoded(kind: str) -> dict[str, Any]:
    mask = np.zeros((H, W), np.uint8, order="F")
    mask[10:50, 10:50] = 1
    rle = library.encode(mask)
    return rle if kind == "bytes" else {**rle, "counts": rle["counts"].decode()}


@pytest.mark.parametrize("kind", ["bytes", "string"])
def test_good_masks_pass(kind: str) -> None:
    rle, other = _encoded(kind), library.frPyObjects([SQUARE], H, W)
    assert library.area(rle) == library.area(other)[0] == library.decode(rle).sum() == 1600
    assert library.toBbox(rle).tolist() == [10, 10, 40, 40]
    assert library.merge([rle, other[0]])["counts"] == other[0]["counts"]
    assert library.frPyObjects(np.array([[10.0, 10, 40, 40]]), H, W)[0]["counts"] == other[0]["counts"]
    assert library.frPyObjects({"size": [2, 3], "counts": [1, 4, 1]}, 2, 3)["size"] == [2, 3]


def test_the_length_of_outlines_is_the_limit() -> None:
    side = MAX_OUTLINE // 4
    assert can_be_drawn([[0, 0, side, 0, side, side, 0, side]])
    assert not can_be_drawn([[0, 0, side + 1, 0, side + 1, side, 0, side]])
    assert not can_be_drawn([[0, 0, side, 0, side, side, 0, side], SQUARE])
    assert can_be_drawn([[v / 1000 for v in ZIGZAG]])  # many points, but short
    assert can_be_drawn([]) and can_be_drawn([[]])
    assert not can_be_drawn([["x", 1]]) and not can_be_drawn([[10**400, 1]])


@pytest.mark.parametrize("fault", WRONG)
def test_each_way_to_pycocotools_is_watched(fault: str) -> None:
    mask = WRONG[fault]
    ways: list[Callable[[], Any]] = [
        lambda: library.frPyObjects(mask, H, W),
        lambda: GenericMask(mask, H, W).mask,
    ]
    if isinstance(mask, dict):
        assert bad_rle(mask, None)
        if isinstance(mask["counts"], str):
            del ways[0]  # it takes lists of counts
        ways += [lambda f=f: f(mask) for f in (library.decode, library.area, library.toBbox)]
        ways += [lambda: library.merge([mask, mask])]
    else:
        record = {"segmentation": mask, "bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        ways += [lambda: annotations_to_instances([record], (H, W), mask_format="bitmask")]
    for way in ways:
        with pytest.raises(
            BadMask, match=r"an annotation has .*; tools/prepare_data.py custom names the"
        ) as error:
            way()
        assert isinstance(error.value, UserError) and len(str(error.value)) < 400


@pytest.mark.parametrize("size", [(2**31, 10), (0, 5), (-1, 5), (2**16, 2**16), (None, 5)])
def test_images_of_wrong_sizes(size: tuple[Any, Any]) -> None:
    with pytest.raises(BadMask, match="has a mask in an image of"):
        library.frPyObjects([SQUARE], *size)


def _file(folder: Path, mask: Any) -> Path:
    Image.new("RGB", (W, H)).save(folder / "1.png")
    annotation = {
        "id": 7,
        "image_id": 1,
        "category_id": 1,
        "bbox": [10, 10, 40, 40],
        "area": 1600,
        "iscrowd": 0,
    }
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": W, "height": H}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [{**annotation, "segmentation": mask}],
    }
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("fault", WRONG)
def test_annotations_of_an_evaluation_are_checked(tmp_path: Path, fault: str) -> None:
    path, name = _file(tmp_path, WRONG[fault]), f"evaluated_{fault}"
    catalog.register_coco(name, path, tmp_path)
    with pytest.raises(
        UserError, match=f"^{name}: annotation 7 has .*names the annotation, and repairs the file"
    ):
        Coco(default_config(), name)
    _file(tmp_path, [SQUARE])
    Coco(default_config(), name)
    check_masks("", {"images": [], "annotations": []})


def test_a_set_whose_counts_are_wrong_is_refused_by_name(tmp_path: Path) -> None:
    """detectron2 gives them to pycocotools while it reads the file."""
    path = _file(tmp_path, WRONG["list"])
    with pytest.raises(BadMask):
        load_coco_json(str(path), str(tmp_path))
    catalog.register_coco("wrong_counts", path, tmp_path)
    catalog.count("wrong_counts")
    with pytest.raises(
        UserError, match=r"^wrong_counts: an annotation has an RLE mask whose counts do not add up"
    ):
        catalog.counts("wrong_counts")


def test_fuzzing() -> None:
    """In a process of its own, since a fault would crash it."""
    command = [sys.executable, "-m", "tests.support.fuzzing.fuzz_masks", "--inputs", "300", "--seed", "1"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stderr.splitlines()[-1].replace("'", '"'))
    assert (
        sum(outcomes.values()) == 300 and min(outcomes[kind] for kind in ("clean", "refused", "repaired")) > 5
    )
