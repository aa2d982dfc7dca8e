"""Metrics of models whose answers are known: perfect ones, hand-computed wrong ones, one and two processes."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import coco_evaluation
from detectron2.structures import Boxes, BoxMode, Instances, polygons_to_bitmask
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn

from pretrain.common import distributed
from pretrain.common.errors import UserError
from tests.support import detection_data
from transfer import d2_compat
from transfer.config.load import load_config
from transfer.data import catalog, datasets, digests, on_disk
from transfer.metrics import coco
from transfer.train import evaluation, evaluators


class Oracle(nn.Module):
    """Answers with the ground truth of the test set, without the objects of each image that `skip` names."""

    def __init__(self, name: str, skip: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.truth = {record["file_name"]: record for record in DatasetCatalog.get(name)}
        self.classes = len(MetadataCatalog.get(name).get("stuff_classes", ()))
        self.skip = skip

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._answer(self.truth[item["file_name"]]) for item in batch]

    def _answer(self, record: dict[str, Any]) -> dict[str, Any]:
        if "sem_seg_file_name" in record:
            label = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"]), dtype=np.int64))
            label[label == 255] = 0
            for kind in self.skip:  # mistaken for class 0
                label[label == kind] = 0
            return {"sem_seg": nn.functional.one_hot(label, self.classes).permute(2, 0, 1)}
        kept = [a for i, a in enumerate(record["annotations"]) if i not in self.skip and not a.get("iscrowd")]
        size = (record["height"], record["width"])
        instances = Instances(size)
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in kept]
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.full((len(kept),), 0.9)
        instances.pred_classes = torch.tensor([a["category_id"] for a in kept], dtype=torch.int64)
        if kept and "segmentation" in kept[0]:
            masks = [torch.from_numpy(_bitmap(a["segmentation"], *size).astype(bool)) for a in kept]
            instances.pred_masks = torch.stack(masks)
        if kept and "keypoints" in kept[0]:
            points = torch.tensor([a["keypoints"] for a in kept], dtype=torch.float32).reshape(
                len(kept), -1, 3
            )
            instances.pred_keypoints = points
        return {"instances": instances}


def _bitmap(mask: Any, height: int, width: int) -> np.ndarray:
    if isinstance(mask, dict):
        return np.asarray(coco_mask.decode(mask))
    return np.asarray(polygons_to_bitmask([np.asarray(p) for p in mask], height, width))


def _prepare(tmp_path: Path, *overrides: str, **data: Any) -> CfgNode:
    made = detection_data.write_coco(tmp_path / "data", **({"images": 6, "classes": ("thing",)} | data))
    return _load(tmp_path, *detection_data.custom(made, made), *overrides)


def _load(
    root: Path, *overrides: str, test: str = "", name: str = "coco_R50_FPN", train: bool = False
) -> CfgNode:
    cfg = load_config(
        f"transfer/{name}.yaml",
        ["MODEL.INIT", "random", *detection_data.TINY, "DATASETS.ROOT", str(root),
         *(("DATASETS.TEST", f"('{test}',)") if test else ()), *overrides],
    )  # fmt: skip
    datasets.prepare(cfg, train=train)
    return cfg


def _semantic(root: Path, test: str, classes: int) -> CfgNode:
    return _load(
        root, "MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(classes),
        "MODEL.MASK_ON", "False", test=test,
    )  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the checks that refuse data sets of a few images."""
    for name in ("check_lvis", "check_cityscapes"):
        monkeypatch.setattr(on_disk, name, lambda *_, **__: "")


def test_the_truth_scores_100(tmp_path: Path) -> None:
    cfg = _prepare(tmp_path)
    metrics = evaluation.evaluate(cfg, Oracle("custom_test"))["custom_test"]
    for task in ("bbox", "segm"):
        assert metrics[task]["AP"] == metrics[task]["AP50"] == metrics[task]["AP75"] == pytest.approx(100)
    assert metrics["bbox"]["APl"] is None  # no object above 96 x 96 pixels: undefined, not 0


def test_half_of_the_objects_score_half(tmp_path: Path) -> None:
    # 6 of 12 objects found, no false one: precision 1 up to recall 1/2, so 51 of COCO's 101 points
    cfg = _prepare(tmp_path)
    metrics = evaluation.evaluate(cfg, Oracle("custom_test", skip=(0,)))["custom_test"]
    assert metrics["bbox"]["AP"] == metrics["segm"]["AP50"] == pytest.approx(100 * 51 / 101)


def test_no_answer_at_all_is_an_ap_of_0(tmp_path: Path) -> None:
    """A run that finds nothing is a bad run, not a missing one, or the mean of the others would be too high."""
    keys = ("MODEL.KEYPOINT_ON", "True", "TEST.KEYPOINT_OKS_SIGMAS", "[0.05, 0.05]")
    cfg = _prepare(tmp_path, *keys, keypoints=2, classes=("a", "b"))
    file = Path(cfg.DATASETS.TEST_JSON)
    content = json.loads(file.read_text())
    content["categories"].append({**content["categories"][0], "id": 9, "name": "never there"})
    file.write_text(json.dumps(content))
    cfg = _load(tmp_path, *detection_data.custom(*[(file, Path(cfg.DATASETS.TEST_IMAGES))] * 2), *keys)
    metrics = evaluation.evaluate(cfg, Oracle("custom_test", skip=tuple(range(9))))["custom_test"]
    for task in ("bbox", "segm", "keypoints"):
        assert metrics[task]["AP"] == metrics[task]["AP50"] == metrics[task]["AP-a"] == 0
        assert metrics[task]["APl"] is None and metrics[task]["AP-never there"] is None  # no such object


def test_keypoints_with_their_own_sigmas(tmp_path: Path) -> None:
    keys = ("MODEL.KEYPOINT_ON", "True", "MODEL.MASK_ON", "False", "TEST.KEYPOINT_OKS_SIGMAS", "[0.05, 0.05]")
    cfg = _prepare(tmp_path, *keys, keypoints=2)
    oracle = Oracle("custom_test")
    for record in oracle.truth.values():
        for annotation in record["annotations"]:  # the loader and the evaluator both shift by half a pixel
            assert len(annotation["keypoints"]) == 6
    metrics = evaluation.evaluate(cfg, oracle)["custom_test"]
    assert metrics["keypoints"]["AP"] == pytest.approx(100)
    # One of two keypoints off by d: OKS = (1 + exp(-d^2 / (2 area (2 sigma)^2))) / 2, above .5 and, far off, no more:
    # a match at the first of the ten thresholds only.
    for record in oracle.truth.values():
        for annotation in record["annotations"]:
            annotation["keypoints"][0] += 1000
    metrics = evaluation.evaluate(cfg, oracle)["custom_test"]
    assert metrics["keypoints"]["AP"] == pytest.approx(10)
    assert metrics["keypoints"]["AP75"] == 0


def _random_case(tmp_path: Path) -> tuple[Any, list[dict[str, Any]]]:
    """A set with crowds, and random detections near and off its objects, of the classes 0 to 2, with masks."""
    rng = np.random.default_rng(7)
    file, _ = detection_data.write_coco(
        tmp_path / "data", images=20, classes=("a", "b", "c"), keypoints=17, seed=3
    )
    content = json.loads(file.read_text())
    for annotation in content["annotations"][::7]:
        annotation["iscrowd"] = 1
    for i, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = 3 * (i % 3 + 1)
    file.write_text(json.dumps(content))
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    found = []
    for annotation in content["annotations"]:
        height, width = sizes[annotation["image_id"]]
        for _ in range(4):
            x, y, w, h = (np.array(annotation["bbox"]) + rng.normal(0, 4, 4)).clip(1, None).tolist()
            w, h = max(2.0, min(w, width - x)), max(2.0, min(h, height - y))
            bitmap = np.zeros((height, width), np.uint8, order="F")
            bitmap[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1] = 1
            rle = coco_mask.encode(bitmap)
            points = np.array(annotation["keypoints"], dtype=float) + rng.normal(0, 3, 51)
            found.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": int(annotation["category_id"] / 3 - 1) if rng.random() < 0.8 else 0,
                    "bbox": [x, y, w, h],
                    "score": round(float(rng.random()), 1),  # ties
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "keypoints": points.tolist(),
                }
            )
    return file, found


def test_faster_coco_eval_gives_the_numbers_of_pycocotools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faster_coco_eval")
    file, found = _random_case(tmp_path)
    cfg = _load(
        tmp_path, *detection_data.custom((file, file.parent / "images"), (file, file.parent / "images")),
        "MODEL.KEYPOINT_ON", "True",
    )  # fmt: skip
    assert "faster-coco-eval" in evaluation.methods(cfg)["custom_test"]
    results = []
    original = coco_evaluation.COCOeval
    for faster in (True, False):
        if not faster:
            monkeypatch.setattr(coco, "faster_class", lambda: None)
        evaluator = evaluators.build(cfg, "custom_test")
        evaluator.reset()
        evaluator._predictions = [{"image_id": 0, "instances": json.loads(json.dumps(found))}]
        results.append(evaluator.evaluate())
        assert coco_evaluation.COCOeval is original
    assert list(results[0]) == ["bbox", "keypoints", "segm"]
    for task, values in results[1].items():
        assert 5 < values["AP"] < 95
        assert list(results[0][task]) == list(values)
        for key, value in values.items():
            assert results[0][task][key] == pytest.approx(value, rel=0, abs=1e-12, nan_ok=True), (task, key)
    assert "pycocotools" in evaluation.methods(cfg)["custom_test"]


def test_text_ids_of_images_are_counted_by_pycocotools(tmp_path: Path) -> None:
    file, images = detection_data.write_coco(tmp_path / "data")
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["id"] = f"no{image['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"no{annotation['image_id']}"
    file.write_text(json.dumps(content))
    cfg = _load(tmp_path, *detection_data.custom((file, images), (file, images)))
    metrics = evaluation.evaluate(cfg, Oracle("custom_test"))["custom_test"]
    assert metrics["bbox"]["AP"] == metrics["segm"]["AP"] == pytest.approx(100)


class Fixed(nn.Module):
    """Answers with given boxes of one class: image -> [(x1, y1, x2, y2, score)]."""

    def __init__(self, answers: dict[str, list[tuple[float, ...]]], kind: int) -> None:
        super().__init__()
        self.answers, self.kind = answers, kind

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        outputs = []
        for item in batch:
            rows = torch.tensor(self.answers.get(item["image_id"], []), dtype=torch.float32).reshape(-1, 5)
            found = Instances((item["height"], item["width"]))
            found.pred_boxes, found.scores = Boxes(rows[:, :4]), rows[:, 4]
            found.pred_classes = torch.full((len(rows),), self.kind)
            outputs.append({"instances": found})
        return outputs


VOC_DOGS = {"2007_test_0": [(10, 10, 50, 50), (60, 20, 100, 60)], "2007_test_1": [(20, 20, 60, 60)]}


def _write_dogs(root: Path) -> None:
    detection_data.write_voc(root, images=2)
    for year, split in (("2007", "test"), ("2012", "val")):
        folder = root / f"VOC{year}"
        (folder / "ImageSets/Main/val.txt").write_text("2007_test_0\n2007_test_1\n")
        for name, boxes in VOC_DOGS.items():
            objects = "".join(
                f"<object><name>dog</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
                f"<xmin>{a + 1}</xmin><ymin>{b + 1}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
                for a, b, c, d in boxes
            )
            size = "<size><width>128</width><height>96</height><depth>3</depth></size>"
            (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
            image = root / "VOC2007/JPEGImages" / f"{name}.jpg"
            (folder / "JPEGImages" / f"{name}.jpg").write_bytes(image.read_bytes())
        assert split


def test_voc_11_points_and_all_points_by_hand(tmp_path: Path) -> None:
    _write_dogs(tmp_path)
    # By score: a hit, a miss, a hit; the third dog is not found. Precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3.
    answers = {
        "2007_test_0": [(10, 10, 50, 50, 0.9), (0, 70, 30, 96, 0.8)],
        "2007_test_1": [(20, 20, 60, 60, 0.7)],
    }
    model = Fixed({**answers}, kind=11)
    points = 4 * 1.0 + 3 * (2 / 3)  # recall 0 to .3: 1; .4 to .6: 2/3; above: 0
    area = 1 / 3 * 1.0 + 1 / 3 * (2 / 3)
    for name, expected in (("voc_2007_test", points / 11), ("voc_2012_val", area)):
        cfg = _load(tmp_path, test=name, name="voc_R50_C4_24k")
        bbox = evaluation.evaluate(cfg, model)[name]["bbox"]
        for key in ("AP", "AP50", "AP75", "AP-dog"):
            assert bbox[key] == pytest.approx(100 * expected)
        assert bbox["AP-cat"] is None  # there is none, so its AP is undefined and not in the mean
    assert "11-point" in evaluators.describe("voc_2007_test")
    assert "all points" in evaluators.describe("voc_2012_val")
    # IoU .6 of one answer: counts at 2 of the 10 thresholds (.5, .55)
    shifted = {
        "2007_test_0": [(10, 10, 50, 50, 0.9), (70, 20, 110, 60, 0.8)],
        "2007_test_1": [(20, 20, 60, 60, 0.7)],
    }
    cfg = _load(tmp_path, test="voc_2007_test", name="voc_R50_C4_24k")
    bbox = evaluation.evaluate(cfg, Fixed(shifted, kind=11))["voc_2007_test"]["bbox"]
    assert bbox["AP50"] == pytest.approx(100)
    assert bbox["AP75"] == pytest.approx(100 * points / 11)
    assert bbox["AP"] == pytest.approx((2 * 100 + 8 * 100 * points / 11) / 10)


def test_one_image_of_voc(tmp_path: Path) -> None:
    detection_data.write_voc(tmp_path, images=1)
    cfg = _load(tmp_path, test="voc_2007_test", name="voc_R50_C4_24k")
    assert len(DatasetCatalog.get("voc_2007_test")) == 1
    assert evaluation.evaluate(cfg, Oracle("voc_2007_test"))["voc_2007_test"]["bbox"]["AP"] == pytest.approx(
        100
    )


@pytest.mark.parametrize("name", ["lvis_v0.5_val", "lvis_v1_val"])
def test_lvis(tmp_path: Path, tiny: None, name: str) -> None:
    pytest.importorskip("lvis")
    detection_data.write_lvis(tmp_path, name)
    classes = 1230 if "v0.5" in name else 1203
    cfg = _load(tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", str(classes), test=name)
    metrics = evaluation.evaluate(cfg, Oracle(name))[name]
    for task in ("bbox", "segm"):
        assert [metrics[task][key] for key in ("AP", "AP50", "AP75", "APr", "APc", "APf")] == pytest.approx(
            [100] * 6
        )
        assert metrics[task]["APl"] is None
    # without the first object of each image, which is of the frequent category: 0, 100 and 100
    metrics = evaluation.evaluate(cfg, Oracle(name, skip=(0,)))[name]
    assert [metrics["bbox"][key] for key in ("APf", "APc", "APr")] == pytest.approx([0, 100, 100])
    assert metrics["segm"]["AP"] == pytest.approx(200 / 3)
    assert "lvis" in evaluation.methods(cfg)[name]
    record = digests.data_record(cfg, train=False)
    assert record["sets"][name]["images"] == 3 and record["sets"][name]["annotations"] == 9


def test_cityscapes_instances(tmp_path: Path, tiny: None) -> None:
    pytest.importorskip("cityscapesscripts")
    detection_data.write_cityscapes(tmp_path)
    name = "cityscapes_fine_instance_seg_val"
    cfg = _load(tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", "8", test=name)
    segm = evaluation.evaluate(cfg, Oracle(name))[name]["segm"]
    assert segm["AP50"] == pytest.approx(100)
    assert segm["AP"] > 90  # detectron2's polygons are half a pixel wider than the label images
    assert segm["AP-car"] > 90 and segm["AP-train"] is None
    # without the objects that come first in detectron2's order (reversed drawing order): the person
    segm = evaluation.evaluate(cfg, Oracle(name, skip=(0,)))[name]["segm"]
    assert segm["AP50"] == pytest.approx(50)
    assert segm["AP-person"] == 0
    assert "cityscapesScripts" in evaluation.methods(cfg)[name]


def test_cityscapes_labels(tmp_path: Path, tiny: None) -> None:
    pytest.importorskip("cityscapesscripts")
    detection_data.write_cityscapes(tmp_path)
    name = "cityscapes_fine_sem_seg_val"
    cfg = _semantic(tmp_path, name, 19)
    labels = evaluation.evaluate(cfg, Oracle(name))[name]["sem_seg"]
    assert labels["mIoU"] == labels["IoU"] == pytest.approx(100)
    assert labels["IoU-car"] == pytest.approx(100) and labels["IoU-bus"] is None
    # persons (12 x 30 pixels an image) are taken for road: IoU 0 of persons, road / (road + person) of the road
    labels = evaluation.evaluate(cfg, Oracle(name, skip=(11,)))[name]["sem_seg"]
    truth = [np.array(Image.open(record["sem_seg_file_name"])) for record in DatasetCatalog.get(name)]
    road, person = (sum(int((label == kind).sum()) for label in truth) for kind in (0, 11))
    assert labels["IoU-person"] == 0
    assert labels["IoU-road"] == pytest.approx(100 * road / (road + person))
    assert labels["mIoU"] == pytest.approx((100 + labels["IoU-road"]) / 3)


def test_labels_of_voc(tmp_path: Path) -> None:
    detection_data.write_voc_labels(tmp_path, "val")
    name = "voc_2012_semseg_val"
    cfg = _semantic(tmp_path, name, 21)
    labels = evaluation.evaluate(cfg, Oracle(name))[name]["sem_seg"]
    assert labels["mIoU"] == pytest.approx(100)
    labels = evaluation.evaluate(cfg, Oracle(name, skip=(9,)))[name]["sem_seg"]
    assert labels["IoU-chair"] == 0 and labels["IoU-dog"] == pytest.approx(100)
    assert datasets.class_names(name, "stuff_classes")[9] == "chair"


def _measure(folder: str, root: str) -> None:
    torch.set_num_threads(1)
    distributed.init_from_env(torch.device("cpu"))
    d2_compat.set_local_process_group()
    results = {}
    with pytest.MonkeyPatch.context() as tiny:  # one process of the two cases is pytest's own
        for name in ("check_lvis", "check_cityscapes"):
            tiny.setattr(on_disk, name, lambda *_, **__: "")
        cases = [
            ("voc_2007_test", partial(_load, name="voc_R50_C4_24k")),
            (
                "lvis_v0.5_val",
                lambda root, test: _load(root, "MODEL.ROI_HEADS.NUM_CLASSES", "1230", test=test),
            ),
            (
                "cityscapes_fine_instance_seg_val",
                lambda r, test: _load(r, "MODEL.ROI_HEADS.NUM_CLASSES", "8", test=test),
            ),
            ("cityscapes_fine_sem_seg_val", lambda root, test: _semantic(root, test, 19)),
            ("voc_2012_semseg_val", lambda root, test: _semantic(root, test, 21)),
        ]
        for name, load in cases:
            cfg = load(Path(root), test=name)
            skip = (13, 9) if "sem" in name else (0,)
            results |= evaluation.evaluate(cfg, Oracle(name, skip=skip))
        data = (Path(root) / "own/instances.json", Path(root) / "own/images")
        cfg = _load(Path(root), *detection_data.custom(data, data))
        results |= evaluation.evaluate(cfg, Oracle("custom_test", skip=(1,)))
    assert bool(results) is distributed.is_main()
    if distributed.is_main():
        (Path(folder) / f"{distributed.world_size()}.json").write_text(json.dumps(results))


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    pytest.importorskip("lvis")
    pytest.importorskip("cityscapesscripts")
    root = tmp_path / "data"
    detection_data.write_voc(root, images=3)
    detection_data.write_lvis(root, "lvis_v0.5_val")
    detection_data.write_cityscapes(root)
    detection_data.write_voc_labels(root, "val")
    detection_data.write_coco(root / "own", images=5)
    for processes in (1, 2):
        distributed.spawn(_measure, processes, (str(tmp_path), str(root)))
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert len(one) == 6 and one == two


def test_what_no_evaluator_knows(tmp_path: Path) -> None:
    cfg = _prepare(tmp_path)
    oracle = Oracle("custom_test")
    MetadataCatalog.remove("custom_test")
    MetadataCatalog.get("custom_test").set(evaluator_type="panorama")
    with pytest.raises(UserError, match="custom_test needs an evaluator 'panorama'"):
        evaluation.evaluate(cfg, oracle)
    with pytest.raises(UserError, match="pip install no_such_package"):
        catalog.need("no_such_package", "x")


def test_table_has_a_row_a_task_and_a_row_a_class() -> None:
    lines = evaluation.table({"x": {"bbox": {"AP": 12.346, "AP50": None, "AP-cup": 1.0}}})
    assert lines == ["x        AP    AP50", "bbox  12.35       -"]
    box = {"AP": 2.0, "AP-cup": 1.0, "AP-fire-hose": None}
    labels = {"mIoU": 7.0}
    assert evaluation.table({"x": {"bbox": box, "segm": {"AP": None, "AP-cup": 2.5}, "sem_seg": labels}}) == [
        "x          AP    mIoU",
        "bbox     2.00",
        "segm        -          (no objects to detect)",
        "sem_seg          7.00",
        "x            bbox    segm",
        "cup          1.00    2.50",
        "fire-hose       -       -",
    ]
    many = {f"AP-{i}": 1.0 for i in range(41)}
    assert len(evaluation.table({"x": {"bbox": {"AP": 1.0, **many}}})) == 2
