"""AP does not depend on the ids of a file: pycocotools, faster-coco-eval and lvis, with every kind of id."""

import contextlib
import copy
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.support import detection_data
from transfer import d2_compat
from transfer.config.load import load_config
from transfer.data import datasets
from transfer.metrics import coco, lvis
from transfer.train import evaluators

Content = dict[str, Any]


def _hash(bits: int, *, signed: bool = False) -> Callable[[int], int]:
    """Return a function from small numbers to integers of so many bits without any order."""
    below = 2 ** (bits - 1) if signed else 0
    return lambda key: int(hashlib.sha256(str(key).encode()).hexdigest(), 16) % 2**bits - below


KINDS: dict[str, Callable[[int], int | str]] = {
    "negative": lambda key: -key,
    "signed 64-bit hashes": _hash(64, signed=True),
    "unsigned 64-bit hashes": _hash(64),
    "uuids": _hash(128),
    "near 7.7e18": lambda key: 7706992903151817196 + key,
    "from 0": lambda key: key - 1,
    "strings": lambda key: hashlib.sha256(str(key).encode()).hexdigest(),
}


def _case(folder: Path) -> tuple[Content, Path, list[Content]]:
    """Return a file of 8 images, its image folder, and detections with errors and equal scores."""
    file, images = detection_data.write_coco(folder, images=8, masks=True)
    content = json.loads(file.read_text())
    for category in content["categories"]:
        category["id"] //= 3
    rng, found = np.random.default_rng(0), []
    for annotation in content["annotations"]:
        annotation["category_id"] //= 3
        annotation["iscrowd"] = int(annotation["id"] % 7 == 0)
        for _ in range(int(rng.integers(0, 4))):
            box = np.array(annotation["bbox"]) + rng.normal(0, 3, 4)
            kind = annotation["category_id"] if rng.random() < 0.8 else 1
            found.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": kind,
                    "bbox": box.tolist(),
                    "score": round(float(rng.random()), 1),  # equal in many images
                    "segmentation": annotation["segmentation"],
                }
            )
    return content, images, found


def _renumbered(
    content: Content, found: list[Content], part: str, kind: str
) -> tuple[Content, list[Content]]:
    content, found, new = copy.deepcopy(content), copy.deepcopy(found), KINDS[kind]
    for entry in content[part]:
        entry["id"] = new(entry["id"])
    field = {"images": "image_id", "categories": "category_id"}.get(part)
    for entry in (*content["annotations"], *found) if field else ():
        entry[field] = new(entry[field])
    return content, found


def _metrics(folder: Path, content: Content, images: Path, found: list[Content]) -> Any:
    """Return the metrics of detections that have the ids of the file."""
    folder.mkdir(exist_ok=True)
    file = folder / "annotations.json"
    file.write_text(json.dumps(content))
    cfg = load_config(
        Path("configs/transfer/custom_R50_FPN.yaml"),
        [*detection_data.custom((file, images), (file, images)), *detection_data.TINY, "MODEL.INIT", "random",
         "OUTPUT_DIR", str(folder)],
    )  # fmt: skip
    datasets.prepare(cfg)
    classes = MetadataCatalog.get("custom_test").thing_dataset_id_to_contiguous_id
    names = MetadataCatalog.get("custom_test").thing_classes
    assert [record["image_id"] for record in DatasetCatalog.get("custom_test")]
    evaluator: Any = evaluators.build(cfg, "custom_test")
    evaluator.reset()
    instances = [{**entry, "category_id": classes[entry["category_id"]]} for entry in found]
    evaluator._predictions = [{"image_id": 0, "instances": copy.deepcopy(instances)}]
    with contextlib.redirect_stdout(io.StringIO()):
        results = evaluator.evaluate()
    assert sorted(names) == ["cup", "key"]
    return results


@pytest.mark.parametrize("library", ["pycocotools", "faster-coco-eval"])
def test_ap_of_coco_does_not_depend_on_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    if library == "pycocotools":
        monkeypatch.setattr(coco, "faster_class", lambda: None)
    else:
        pytest.importorskip("faster_coco_eval")
    content, images, found = _case(tmp_path / "data")
    expected = _metrics(tmp_path / "small", content, images, found)
    assert 5 < expected["bbox"]["AP"] < 95 and 5 < expected["segm"]["AP"] < 95
    for part in ("images", "annotations", "categories"):
        for kind in KINDS:
            results = _metrics(tmp_path / "large", *_in(content, images, found, part, kind))
            for task, values in expected.items():
                for key, value in values.items():
                    same = pytest.approx(value, rel=1e-12, nan_ok=True)
                    assert results[task][key] == same, (part, kind, task, key)


def _in(
    content: Content, images: Path, found: list[Content], part: str, kind: str
) -> tuple[Content, Path, list[Content]]:
    content, found = _renumbered(content, found, part, kind)
    return content, images, found


def test_ap_of_small_ids_is_that_of_pycocotools(tmp_path: Path) -> None:
    content, images, found = _case(tmp_path / "data")
    results = _metrics(tmp_path / "small", content, images, found)
    for task in ("bbox", "segm"):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(tmp_path / "small/annotations.json"))
            entries = copy.deepcopy(found)
            for entry in entries if task == "segm" else ():
                del entry["bbox"]
            reference = COCOeval(truth, truth.loadRes(entries), task)
            reference.evaluate()
            reference.accumulate()
            reference.summarize()
        for place, key in enumerate(("AP", "AP50", "AP75")):
            assert results[task][key] == pytest.approx(100 * reference.stats[place], rel=1e-12), (task, key)


def test_ap_of_lvis_does_not_depend_on_ids(tmp_path: Path) -> None:
    pytest.importorskip("lvis")
    d2_compat.fix_lvis()
    content, _, found = _case(tmp_path / "data")
    for category in content["categories"]:
        category |= {"frequency": "frc"[category["id"] % 3], "image_count": 3, "instance_count": 5}
    for image in content["images"]:
        image |= {"neg_category_ids": [1], "not_exhaustive_category_ids": [2] if image["id"] % 2 else []}
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0

    def metrics(content: Content, found: list[Content]) -> Any:
        (tmp_path / "lvis.json").write_text(json.dumps(content))
        for name in ("lvis_made_up",):
            MetadataCatalog.pop(name, None)
            MetadataCatalog.get(name).set(json_file=str(tmp_path / "lvis.json"), evaluator_type="lvis")
        ids = {key: i for i, key in enumerate(sorted(c["id"] for c in content["categories"]))}
        MetadataCatalog.get("lvis_made_up").set(thing_dataset_id_to_contiguous_id=ids)
        cfg = load_config(
            Path("configs/transfer/coco_R50_FPN.yaml"), [*detection_data.TINY, "MODEL.INIT", "random"]
        )
        evaluator: Any = lvis.Lvis(cfg, "lvis_made_up")
        evaluator.reset()
        instances = [{**entry, "category_id": ids[entry["category_id"]]} for entry in copy.deepcopy(found)]
        evaluator._predictions = [{"image_id": 0, "instances": instances}]
        with contextlib.redirect_stdout(io.StringIO()):
            return evaluator.evaluate()

    expected = metrics(content, found)
    assert 5 < expected["bbox"]["AP"] < 95
    for part in ("images", "annotations", "categories"):
        for kind in KINDS:
            changed, detections = _renumbered(content, found, part, kind)
            if part == "categories":
                new = KINDS[kind]
                for image in changed["images"]:
                    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
                        image[key] = [new(value) for value in image[key]]
            results = metrics(changed, detections)
            for task, values in expected.items():
                assert results[task] == pytest.approx(values, rel=1e-12, nan_ok=True), (part, kind, task)
