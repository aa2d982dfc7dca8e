"""Metrics of a model on the test sets of a config, as numbers and as short tables."""

import contextlib
import io
import math

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from tabulate import tabulate
from torch import nn

from pretrain.common.console import Counted
from pretrain.common.errors import UserError
from pretrain.common.signals import INTERRUPTED, STOPPED
from transfer.data.mapper import build_mapper
from transfer.data.train_stream import start_worker
from transfer.train import evaluators

Metrics = dict[str, dict[str, float | None]]
BY_CLASS = ("AP-", "IoU-")  # metrics of one class
MOST_CLASSES = 40  # in a printed table; results.json has them all


def evaluate(cfg: CfgNode, model: nn.Module) -> dict[str, Metrics]:
    """Test a model on each set of `DATASETS.TEST`. Collective: every process calls it.

    Returns:
        data set -> task (`bbox`, `segm`, `keypoints`, `sem_seg`) -> metric (`AP`, `AP50`, ..., `AP-person`; `mIoU`,
        ...) in percent; None where the metric is undefined. The numbers do not depend on the number of
        processes. Only the main process gets them; the result is empty on the others.
    """
    results = {}
    for name in cfg.DATASETS.TEST:
        loader = build_detection_test_loader(cfg, name, mapper=build_mapper(cfg, is_train=False))
        loader.worker_init_fn = start_worker  # detectron2's function has no argument for it
        counted = Counted(loader, name)
        printed = io.StringIO()  # hides what evaluators print: the numbers are in the result
        try:
            with contextlib.redirect_stdout(printed):
                metrics = inference_on_dataset(model, counted, evaluators.build(cfg, name))
        except SystemExit as request:
            if request.code in (STOPPED, INTERRUPTED):
                raise
            # cityscapesscripts exits if a file is missing
            lines = [line for line in printed.getvalue().splitlines() if line.strip()] or ["no reason given"]
            raise UserError(f"{name}: the evaluation stopped: {lines[-1]}") from None
        if metrics:
            results[name] = {task: _plain(values) for task, values in metrics.items()}
    return results


def methods(cfg: CfgNode) -> dict[str, str]:
    """Return data set -> the evaluator that measures it, with its version, for `results.json`."""
    return {name: evaluators.describe(name) for name in cfg.DATASETS.TEST}


def table(results: dict[str, Metrics]) -> list[str]:
    """Return the results as aligned lines, for each data set a table of tasks and, if short enough, one of classes."""
    lines = []
    for name, metrics in results.items():
        lines += _task_table(name, metrics)
        lines += _class_table(name, metrics)
    return lines


def _task_table(name: str, metrics: Metrics) -> list[str]:
    """Return a table with a row for each task and a column for each metric over all classes."""
    keys = dict.fromkeys(key for values in metrics.values() for key in values if "-" not in key)
    rows = []
    for task, values in metrics.items():
        cells = [_cell(values[key]) if key in values else "" for key in keys]
        undefined = values.get("AP", 0) is None
        rows.append([task, *cells, "(no objects to detect)" if undefined else ""])
    return _aligned([name, *keys, ""], rows)


def _class_table(name: str, metrics: Metrics) -> list[str]:
    """Return a table with a row for each class and a column for each task; nothing for one class or very many."""
    columns = {
        task: {key.partition("-")[2]: value for key, value in values.items() if key.startswith(BY_CLASS)}
        for task, values in metrics.items()
    }
    columns = {task: values for task, values in columns.items() if values}
    classes = list(dict.fromkeys(kind for values in columns.values() for kind in values))
    if not 1 < len(classes) <= MOST_CLASSES:
        return []
    rows = [[kind, *(_cell(values.get(kind)) for values in columns.values())] for kind in classes]
    return _aligned([name, *columns], rows)


def _aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table: the first column to the left, numbers to the right."""
    sides = ("left", *["right"] * (len(header) - 1))
    return tabulate(rows, header, tablefmt="plain", disable_numparse=True, colalign=sides).splitlines()


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    return {key: float(value) if math.isfinite(value) else None for key, value in values.items()}


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
