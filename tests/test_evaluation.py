"""Metrics of a model whose answers are known: hand-computed AP."""

from pathlib import Path

import detection_data
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as coco_mask
from torch import nn

from transfer import config, datasets, evaluation


class Oracle(nn.Module):
    """Answers with the ground truth of the test set, without the objects that `skip` names."""

    def __init__(self, name: str, skip: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.truth = {record["image_id"]: record for record in DatasetCatalog.get(name)}
        self.skip = skip

    def forward(self, batch):
        return [{"instances": self._answer(self.truth[item["image_id"]])} for item in batch]

    def _answer(self, record) -> Instances:
        kept = [a for i, a in enumerate(record["annotations"]) if i not in self.skip]
        instances = Instances((record["height"], record["width"]))
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in kept]
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.full((len(kept),), 0.9)
        instances.pred_classes = torch.tensor([a["category_id"] for a in kept], dtype=torch.int64)
        if kept and "segmentation" in kept[0]:
            masks = [torch.from_numpy(coco_mask.decode(a["segmentation"]).astype(bool)) for a in kept]
            instances.pred_masks = torch.stack(masks)
        return instances


def _prepare(tmp_path: Path, *overrides: str):
    data = detection_data.write_coco(tmp_path / "data", images=6, classes=("thing",))
    cfg = config.load(
        "transfer/coco_R50_FPN.yaml",
        ["MODEL.INIT", "random", *detection_data.TINY, *detection_data.custom(data, data), *overrides],
    )
    datasets.prepare(cfg)
    return cfg


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


def test_table_leaves_classes_to_the_json() -> None:
    lines = evaluation.table({"x": {"bbox": {"AP": 12.345, "AP50": None, "AP-cup": 1.0}}})
    assert lines == ["x  bbox  AP 12.35  AP50 -"] or lines == ["x  bbox  AP 12.34  AP50 -"]
