"""The results of a linear probe: `results.json`, a table on the screen, and the papers' numbers to compare with."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
import yaml
from fvcore.common.config import CfgNode
from tabulate import tabulate

from pretrain.common import distributed
from pretrain.common.configs import flatten
from pretrain.common.console import say
from pretrain.common.files import write_json
from pretrain.model.encoders import architecture
from transfer.linear.config import defaults, of_numbers
from transfer.results import environment

CLASSES, TRAIN_IMAGES, VAL_IMAGES = 1000, 1_281_167, 50_000  # ImageNet-1k
_V1 = "He et al. 2020, Table 1"
_V2 = "Chen et al. 2020, Table 1"
_PUBLISHED: tuple[tuple[str, float, str, float, str], ...] = (  # architecture, width, method, top-1, source
    ("resnet50", 1, "MoCo v1, 200 epochs", 60.6, _V1),
    ("resnet50", 1, "MoCo v2, 200 epochs", 67.5, _V2),
    ("resnet50", 1, "MoCo v2, 800 epochs", 71.1, _V2),
    ("resnet50", 1, "supervised", 76.5, f"{_V2} (not a linear probe: the whole network)"),
    ("resnext50_32x8d", 1, "MoCo v1, 200 epochs", 63.9, _V1),
    ("resnet50", 2, "MoCo v1, 200 epochs", 65.4, _V1),
    ("resnet50", 4, "MoCo v1, 200 epochs", 68.6, _V1),
)
_PROTOCOL = (
    "INPUT.SIZE", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_EPOCH", "SOLVER.SCHEDULE", "SOLVER.STEPS", "SOLVER.MOMENTUM",
    "SOLVER.WEIGHT_DECAY", "CACHE",
)  # fmt: skip
_HARDWARE = ("machine", "gpu", "processes", "threads")

Accuracy = tuple[float, float]  # top-1 and top-5, percent
Published = list[dict[str, str | float]]  # method, top1, source


def write(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON atomically, on the main process."""
    if distributed.is_main():
        write_json(path, content)
    say(f"wrote {path}")


def provenance(cfg: CfgNode, device: torch.device, *, seconds: float) -> dict[str, Any]:
    """Return what the numbers depend on: seed, config, versions and hardware."""
    found = environment(device.type, detector=False)
    return {
        "seed": cfg.SEED,
        "seconds": round(seconds, 1),
        "config": yaml.safe_load(cfg.dump()),
        "config_sha256": hashlib.sha256(json.dumps(of_numbers(cfg), sort_keys=True).encode()).hexdigest(),
        "versions": found["versions"],
        "hardware": {name: found["hardware"][name] for name in _HARDWARE},
    }


def table(rates: list[float], losses: list[float], accuracies: list[Accuracy], *, classes: int) -> list[dict]:
    """Print a table with a row for each learning rate, the best one marked, and return its rows as data.

    A classifier whose loss is not finite counts as diverged.
    """
    rows = [
        {"lr": rate, "loss": loss if math.isfinite(loss) else None, "top1": top1, "top5": top5}
        for rate, loss, (top1, top5) in zip(rates, losses, accuracies, strict=True)
    ]
    first = best(rows)
    for line in _lines(rows, first):
        say(line)
    if len(rows) > 1:
        say(
            "the best rate was chosen on DATA.VAL, where accuracy is measured too: that accuracy is slightly too high"
        )
    if first["loss"] is None or first["loss"] > math.log(classes):
        say(
            f"note: the training loss is above ln({classes}) = {math.log(classes):.2f}, the loss of guessing: the "
            f"learning rate is too high for features of this size; {_advice(first['lr'], rates)}"
        )
    return rows


def _lines(rows: list[dict], first: dict) -> list[str]:
    header = ["learning rate", "train loss", "top-1 %", "top-5 %", ""]
    cells = [
        [
            f"{row['lr']:g}",
            "diverged" if row["loss"] is None else f"{row['loss']:.4f}",
            f"{row['top1']:.2f}",
            f"{row['top5']:.2f}",
            "<- best" if row is first and len(rows) > 1 else "",
        ]
        for row in rows
    ]
    sides = (*["right"] * 4, "left")
    return tabulate(cells, header, tablefmt="plain", disable_numparse=True, colalign=sides).splitlines()


def _advice(best_rate: float, rates: list[float]) -> str:
    tried = {f"{rate:g}" for rate in rates}
    smaller = [text for factor in (0.001, 0.01, 0.1) if (text := f"{best_rate * factor:g}") not in tried]
    return f"try --sweep {','.join(smaller)}" if smaller else "smaller rates were tried and were not better"


def best(rows: list[dict]) -> dict:
    """Return the row with the highest top-1 accuracy among those that did not diverge, or among all if all did."""
    return max([row for row in rows if row["loss"] is not None] or rows, key=lambda row: row["top1"])


def comparable(published: Published, differences: list[str]) -> Published:
    """Print the papers' numbers, or why they cannot be compared with this run. Return those that were printed.

    Args:
        published: the numbers for this network and these data.
        differences: the settings that differ from the papers'.
    """
    if not published:
        say(
            "published: no numbers for this network and data (the papers: ImageNet-1k, R50, RX50, R50w2x, R50w4x)"
        )
    elif differences:
        say(
            f"published: not comparable because of {', '.join(differences)}; the papers' values are in brackets"
        )
        return []
    for row in published:
        say(f"published: {row['method']}: {row['top1']} ({row['source']})")
    return published


def differences(cfg: CfgNode) -> list[str]:
    """Return `KEY value (the papers' value)` for each setting that makes a run not comparable with the papers.

    A sweep does not count: the papers found their rate of 30 by a sweep, too.
    """
    keys = _PROTOCOL if cfg.SWEEP else ("SOLVER.BASE_LR", *_PROTOCOL)
    own, papers = flatten(cfg), flatten(defaults())
    return [f"{key} {_text(own[key])} ({_text(papers[key])})" for key in keys if own[key] != papers[key]]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def published(shape: Any, *, classes: int, train: int, val: int) -> Published:
    """Return method, top-1 in percent and source of each published number; none for another network or other data."""
    if (classes, train, val) != (CLASSES, TRAIN_IMAGES, VAL_IMAGES):
        return []
    return [
        {"method": method, "top1": top1, "source": source}
        for name, width, method, top1, source in _PUBLISHED
        if architecture(name, width) == shape
    ]
