"""What a linear probe leaves behind: `results.json`, and a table on the screen."""

import hashlib
import json
import math
import platform
from pathlib import Path
from typing import Any

import cv2
import numpy
import torch
import torchvision
import yaml
from fvcore.common.config import CfgNode

from pretrain import __version__
from pretrain.common import distributed
from pretrain.common.configs import flatten
from pretrain.common.console import say
from pretrain.common.files import write_text
from pretrain.model.encoders import Architecture, architecture
from transfer.linear.config import IRRELEVANT, defaults

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
    "INPUT.SIZE", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_EPOCH", "SOLVER.STEPS", "SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY",
    "CACHE",
)  # fmt: skip

Accuracy = tuple[float, float]  # top-1 and top-5, percent
Published = list[dict[str, str | float]]  # method, top1, source


def write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically, indented, on the main process."""
    if distributed.is_main():
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_text(path, text)
    say(f"written: {path}")


def circumstances(cfg: CfgNode, device: torch.device, *, seconds: float) -> dict[str, Any]:
    """Config, versions and hardware: what the numbers depend on."""
    settings = {key: value for key, value in flatten(cfg).items() if key not in IRRELEVANT}
    return {
        "seed": cfg.SEED,
        "seconds": round(seconds, 1),
        "config": yaml.safe_load(cfg.dump()),
        "config_sha256": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "versions": {
            "moco-detection-transfer": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "numpy": numpy.__version__,
            "opencv": cv2.__version__,
        },
        "hardware": {
            "machine": platform.machine(),
            "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
            "processes": distributed.world_size(),
            "threads": torch.get_num_threads(),
        },
    }


def table(rates: list[float], losses: list[float], accuracies: list[Accuracy], *, classes: int) -> list[dict]:
    """Print a line for each learning rate, the best one marked; returns the same as data.

    A classifier whose loss is not finite counts as diverged.
    """
    rows = [
        {"lr": rate, "loss": loss if math.isfinite(loss) else None, "top1": top1, "top5": top5}
        for rate, loss, (top1, top5) in zip(rates, losses, accuracies, strict=True)
    ]
    first = best(rows)
    say(f"{'learning rate':>13}  {'train loss':>10}  {'top-1 %':>8}  {'top-5 %':>8}")
    for row in rows:
        loss = "diverged" if row["loss"] is None else f"{row['loss']:.4f}"
        mark = "  <- best" if row is first and len(rows) > 1 else ""
        say(f"{row['lr']:>13g}  {loss:>10}  {row['top1']:>8.2f}  {row['top5']:>8.2f}{mark}")
    if len(rows) > 1:
        say("the best rate was chosen on DATA.VAL, the images that the accuracy is of: a little too high")
    if first["loss"] is None or first["loss"] > math.log(classes):
        say(
            f"note: the training loss is above ln({classes}) = {math.log(classes):.2f}, that of guessing: the rate is "
            f"too high for features of this size; {_advice(first['lr'], rates)}"
        )
    return rows


def _advice(best_rate: float, rates: list[float]) -> str:
    tried = {f"{rate:g}" for rate in rates}
    smaller = [text for factor in (0.001, 0.01, 0.1) if (text := f"{best_rate * factor:g}") not in tried]
    return f"try --sweep {','.join(smaller)}" if smaller else "smaller ones did no better"


def best(rows: list[dict]) -> dict:
    """The row of the highest top-1 accuracy among those that did not diverge, or else among all."""
    return max([row for row in rows if row["loss"] is not None] or rows, key=lambda row: row["top1"])


def comparable(published: Published, differences: list[str]) -> Published:
    """Print the papers' numbers, or why none can stand beside this run; returns those that were printed.

    Args:
        published: those for this network and data.
        differences: the settings in which this run is not the papers'.
    """
    if not published:
        say("published: none for this network and data (the papers': ImageNet-1k, R50, RX50, R50w2x, R50w4x)")
    elif differences:
        say(f"published: not comparable with {', '.join(differences)}; in brackets, the papers' setting")
        return []
    for row in published:
        say(f"published: {row['method']}: {row['top1']} ({row['source']})")
    return published


def differences(cfg: CfgNode) -> list[str]:
    """`KEY value (the papers' value)` of each setting that makes a run's figure no match for the published ones.

    A sweep is none: the papers' rate of 30 was found by one.
    """
    keys = _PROTOCOL if cfg.SWEEP else ("SOLVER.BASE_LR", *_PROTOCOL)
    own, papers = flatten(cfg), flatten(defaults())
    return [f"{key} {_text(own[key])} ({_text(papers[key])})" for key in keys if own[key] != papers[key]]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def published(shape: Architecture, *, classes: int, train: int, val: int) -> list[dict[str, str | float]]:
    """Method, top-1 in percent and source of each number for this network; none where data or network differ."""
    if (classes, train, val) != (CLASSES, TRAIN_IMAGES, VAL_IMAGES):
        return []
    return [
        {"method": method, "top1": top1, "source": source}
        for name, width, method, top1, source in _PUBLISHED
        if architecture(name, width) == shape
    ]
