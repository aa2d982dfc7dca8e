"""Alarms about a run that learns nothing, or learns the wrong thing: functions of what it logs, nothing else."""

import math
from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode

EASY = 0.95  # accuracy; the paper's run without ShuffleBN is above it almost at once (Figure A.1)
COLLAPSED = 0.1  # feature_std; the cosine between two images is 0.99 in the mean then
FLAT = 0.01  # relative distance from the loss of chance
# A leak is early in the first epochs, or in the first tenth of the run if that is longer; the patience with a run that
# stands still is the same, or a tenth of the run if that is shorter.
_EPOCHS = 5
# That patience in iterations, at least and at most: a healthy run looked collapsed for the first 64, and an epoch
# of a billion images never ends; five epochs of ImageNet are 25,000.
_PATIENCE = 500, 25_000


class Alarms:
    """Looks at the log lines of a run in their order and names what looks wrong, each thing once.

    Lines before every key in the queue is an encoder's, and not the noise that it starts with, do not count.

    Args:
        per_epoch, total: iterations of an epoch and of the run.
        images: of the data set.
    """

    def __init__(self, cfg: CfgNode, *, per_epoch: int, total: int, images: int) -> None:
        self.cfg = cfg
        self.early = max(_EPOCHS * per_epoch, total // 10)
        least, most = _PATIENCE
        self.patience = max(least, min(_EPOCHS * per_epoch, total // 10, most))
        self.young = young_steps(cfg, per_epoch=per_epoch)
        self.chance = chance_loss(cfg, images=images)
        self.raised: set[str] = set()
        self.previous = 0  # iteration of the line before
        self.since: dict[str, int] = {}  # iteration of the first of the lines in a row that show a fault

    def see(self, line: dict[str, Any]) -> list[tuple[str, str]]:
        """Name and sentence of each alarm that this line raises; lines without a loss raise none."""
        if "loss" not in line:
            return []
        mature, self.previous = self.previous >= self.young, line["iteration"]
        if not mature:
            return []
        checks: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
            ("leak", self._leak), ("collapse", self._collapse), ("flat loss", self._flat_loss)
        ]  # fmt: skip
        found = [(name, check(line)) for name, check in checks]
        new = [(name, sentence) for name, sentence in found if sentence and name not in self.raised]
        self.raised.update(name for name, _ in new)
        return new

    def _leak(self, line: dict[str, Any]) -> str:
        if self.cfg.MOCO.MECHANISM == "memorybank":  # its keys come from other steps than the query
            return ""
        lasted = self._lasted("leak", line["accuracy"] > EASY, line["iteration"])
        if not lasted or line["iteration"] > self.young + self.early:
            return ""
        return (
            f"the key is found among the negatives in {100 * line['accuracy']:.1f} % of the cases, too early for "
            f"good features (inside the batch: {100 * line['in_batch_accuracy']:.1f} %). {_easy_advice(self.cfg)}"
        )

    def _collapse(self, line: dict[str, Any]) -> str:
        lasted = self._lasted("collapse", line["feature_std"] < COLLAPSED, line["iteration"])
        if lasted < self.patience:
            return ""
        return (
            f"all images have nearly the same feature (std {line['feature_std']:.3f}; 1 is evenly spread, 0 none) for "
            f"{lasted} iterations. "
            f"Try a lower SOLVER.BASE_LR than {self.cfg.SOLVER.BASE_LR:g}{_momentum_advice(self.cfg)}; look at "
            "views.jpg: are the images different?"
        )

    def _flat_loss(self, line: dict[str, Any]) -> str:
        flat = abs(line["loss"] / self.chance - 1) < FLAT
        lasted = self._lasted("flat loss", flat, line["iteration"])
        if lasted < self.patience:
            return ""
        return (
            f"the loss has stayed within {FLAT:.0%} of {self.chance:.2f}, which is chance, for {lasted} iterations: "
            f"nothing is learnt. Try another SOLVER.BASE_LR than {self.cfg.SOLVER.BASE_LR:g}"
            f"{_momentum_advice(self.cfg)}, a lower MOCO.T; are the objects still in the views (views.jpg)?"
        )

    def _lasted(self, name: str, shows: bool, iteration: int) -> int:
        """For how many iterations lines have shown this without a break; 0 at the first one."""
        if not shows:
            self.since.pop(name, None)
        return iteration - self.since.setdefault(name, iteration) if shows else 0


def young_steps(cfg: CfgNode, *, per_epoch: int) -> int:
    """Iterations until the negatives are all an encoder's: a queue is full then, a bank has seen every image."""
    if cfg.MOCO.MECHANISM == "moco":
        return -(-int(cfg.MOCO.K) // int(cfg.SOLVER.IMS_PER_BATCH))
    return per_epoch if cfg.MOCO.MECHANISM == "memorybank" else 0


def negatives(cfg: CfgNode, *, images: int) -> int:
    """How many negatives a query has, in the mean: a memory bank's draws may hit the query's own image."""
    if cfg.MOCO.MECHANISM == "endtoend":
        return int(cfg.SOLVER.IMS_PER_BATCH) - 1
    own = cfg.MOCO.K / images if cfg.MOCO.MECHANISM == "memorybank" else 0
    return round(cfg.MOCO.K - own)


def chance_loss(cfg: CfgNode, *, images: int) -> float:
    """InfoNCE of equal logits, ln(negatives + 1): a constant feature has it, and chance is near it."""
    return math.log(negatives(cfg, images=images) + 1)


def _easy_advice(cfg: CfgNode) -> str:
    if cfg.MODEL.NORM == "BN" or (cfg.MODEL.NORM == "ShuffleBN" and not cfg.MOCO.SHUFFLE):
        return (
            "Batch norm tells which key belongs to the query (Figure A.1): set MODEL.NORM ShuffleBN and "
            "MOCO.SHUFFLE True"
        )
    norm = (
        "a larger batch, or MODEL.NORM ShuffleBN" if cfg.MODEL.NORM == "SyncBN"
        else "another MODEL.BN_GROUP_SIZE"
    )  # fmt: skip
    if cfg.MOCO.MECHANISM == "endtoend":
        return f"The batch may be easy to tell apart: use more images a step; if features are poor, {norm}"
    return (
        f"Old keys may be easy to tell from new ones: try a higher MOCO.M than {cfg.MOCO.M:g}, or a lower "
        f"SOLVER.BASE_LR; negatives may be few: a larger MOCO.K than {cfg.MOCO.K}; if features are poor, {norm}"
    )


def _momentum_advice(cfg: CfgNode) -> str:
    return (
        f", a higher MOCO.M than {cfg.MOCO.M:g}"
        if cfg.MOCO.MECHANISM == "moco" and cfg.MOCO.M < 0.999
        else ""
    )
