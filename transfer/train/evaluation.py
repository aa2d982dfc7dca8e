"""Metrics of a model on the test sets of a config, without the pages that evaluators print."""

import contextlib
import io
import math

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from torch import nn

from pretrain.common.errors import UserError
from transfer.data.mapper import build_mapper
from transfer.train import evaluators

Metrics = dict[str, dict[str, float | None]]
BY_CLASS = ("AP-", "IoU-")  # metrics of one class
MOST_CLASSES = 40  # of a printed table; results.json has them all


def evaluate(cfg: CfgNode, model: nn.Module) -> dict[str, Metrics]:
    """Test a model on each set of `DATASETS.TEST`. Collective: every process calls it.

    Returns:
        data set -> task (`bbox`, `segm`, `keypoints`, `sem_seg`) -> metric (`AP`, `AP50`, ..., `AP-person`; `mIoU`,
        ...) in percent; None where the metric is undefined. The same on any number of processes.
        Empty on every process but the main one.
    """
    results = {}
    for name in cfg.DATASETS.TEST:
        loader = build_detection_test_loader(cfg, name, mapper=build_mapper(cfg, is_train=False))
        printed = io.StringIO()  # the numbers are in the result
        try:
            with contextlib.redirect_stdout(printed):
                metrics = inference_on_dataset(model, loader, evaluators.build(cfg, name))
        except SystemExit:  # cityscapesscripts' answer to a missing file
            lines = [line for line in printed.getvalue().splitlines() if line.strip()] or ["no reason given"]
            raise UserError(f"{name}: the evaluation stopped: {lines[-1]}") from None
        if metrics:
            results[name] = {task: _plain(values) for task, values in metrics.items()}
    return results


def methods(cfg: CfgNode) -> dict[str, str]:
    """Data set -> which evaluator of which version measures it: for `results.json`."""
    return {name: evaluators.describe(name) for name in cfg.DATASETS.TEST}


def table(results: dict[str, Metrics]) -> list[str]:
    """The results as aligned lines: one row a task, then one row a class where there are not too many."""
    lines = []
    for name, metrics in results.items():
        for task, values in metrics.items():
            cells = "  ".join(f"{key} {_cell(value)}" for key, value in values.items() if "-" not in key)
            empty = "  (nothing detected, or nothing there)" if values.get("AP", 0) is None else ""
            lines.append(f"{name}  {task:5} {cells}{empty}")
        lines += _class_table(name, metrics)
    return lines


def _class_table(name: str, metrics: Metrics) -> list[str]:
    """Rows are classes, columns tasks."""
    columns = {
        task: {key.partition("-")[2]: value for key, value in values.items() if key.startswith(BY_CLASS)}
        for task, values in metrics.items()
    }
    columns = {task: values for task, values in columns.items() if values}
    classes = list(dict.fromkeys(kind for values in columns.values() for kind in values))
    if not 1 < len(classes) <= MOST_CLASSES:
        return []
    width = max(len(name), *map(len, classes))
    lines = [f"{name:{width}}  " + "  ".join(f"{task:>9}" for task in columns)]
    for kind in classes:
        cells = "  ".join(f"{_cell(values.get(kind)):>9}" for values in columns.values())
        lines.append(f"{kind:{width}}  {cells}")
    return lines


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    return {key: float(value) if math.isfinite(value) else None for key, value in values.items()}


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
