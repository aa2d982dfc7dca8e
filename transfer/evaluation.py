"""Detection metrics by detectron2's evaluators, without the pages that they print."""

import contextlib
import io
import math
from functools import partial
from typing import Any

from torch import nn

from transfer import d2_compat  # noqa: F401 (first)

# isort: split
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
    inference_on_dataset,
)

from transfer.stream import map_record

Metrics = dict[str, dict[str, float | None]]


def evaluate(cfg: CfgNode, model: nn.Module) -> dict[str, Metrics]:
    """Test a model on each set of `DATASETS.TEST`. Collective: every process calls it.

    Returns:
        data set -> task (`bbox`, `segm`) -> metric (`AP`, `AP50`, ..., `AP-person`) in percent; None where
        the metric is undefined. COCO metrics for COCO-format sets; 11-point VOC AP at IoU .50:.95 for VOC2007.
        Empty on every process but the main one.
    """
    results = {}
    for name in cfg.DATASETS.TEST:
        mapper = partial(map_record, DatasetMapper(cfg, is_train=False))
        loader = build_detection_test_loader(cfg, name, mapper=mapper)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints; the numbers are in the result
            metrics = inference_on_dataset(model, loader, _evaluator(name))
        if metrics:
            results[name] = {
                task: {key: float(value) if math.isfinite(value) else None for key, value in values.items()}
                for task, values in metrics.items()
            }
    return results


def table(results: dict[str, Metrics]) -> list[str]:
    """The results as aligned lines, one row a task."""
    lines = []
    for name, metrics in results.items():
        for task, values in metrics.items():
            cells = "  ".join(
                f"{key} {'-' if value is None else f'{value:.2f}'}"
                for key, value in values.items()
                if "-" not in key
            )
            lines.append(f"{name}  {task:5} {cells}")
    return lines


def _evaluator(name: str) -> DatasetEvaluator:
    if MetadataCatalog.get(name).evaluator_type == "pascal_voc":
        return PascalVOCDetectionEvaluator(name)
    evaluator: Any = COCOEvaluator(name, use_fast_impl=False)  # the fast one needs detectron2._C
    return evaluator
