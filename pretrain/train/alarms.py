"""Alarms about a run that learns nothing or the wrong thing. They depend on its log lines alone."""

import math
from collections.abc import Callable
from typing import Any

from fvcore.common.config import CfgNode

EASY = 0.95  # accuracy; the paper's run without ShuffleBN exceeds it almost at once (Figure A.1)
COLLAPSED = 0.1  # feature_std; the mean cosine between two images is then 0.99
FLAT = 0.01  # relative distance from the chance loss
# A leak counts as early within the first epochs, or the first tenth of the run if that is longer. The patience with a
# run that makes no progress is the same, or a tenth of the run if that is shorter.
_EPOCHS = 5
# Limits of that patience in iterations: a healthy run looked collapsed for its first 64 iterations, and an epoch of a
# billion images hardly ends; five epochs of ImageNet are 25,000.
_PATIENCE = 500, 25_000


class Alarms:
    """Reads the log lines of a run in order and reports what looks wrong, each problem once.

    Lines do not count while the queue still holds some of the noise that it starts with.

    Args:
        per_epoch, total: iterations of an epoch and of the run.
        images: number of images in the data set.
    """

    def __init__(self, cfg: CfgNode, *, per_epoch: int, total: int, images: int) -> None:
        self.cfg = cfg
        self.early = max(_EPOCHS * per_epoch, total // 10)
        least, most = _PATIENCE
        self.patience = max(least, min(_EPOCHS * per_epoch, total // 10, most))
        self.young = young_steps(cfg, per_epoch=per_epoch)
        self.chance = chance_loss(cfg, images=images)
        self.raised: set[str] = set()
        self.previous = 0  # iteration of the previous line
        self.since: dict[
            str, int
        ] = {}  # problem -> iteration of the first line of an unbroken series that shows it

    def see(self, line: dict[str, Any]) -> list[tuple[str, str]]:
        """Return name and text of each alarm that this line raises; a line without a loss raises none."""
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
        if self.cfg.MOCO.MECHANISM == "memorybank":  # its keys come from earlier steps than the query
            return ""
        lasted = self._lasted("leak", line["accuracy"] > EASY, line["iteration"])
        if not lasted or line["iteration"] > self.young + self.early:
            return ""
        return (
            f"queries pick the right key in {100 * line['accuracy']:.1f} % of cases, too early for good features "
            f"(within the batch: {100 * line['in_batch_accuracy']:.1f} %). {_easy_advice(self.cfg)}"
        )

    def _collapse(self, line: dict[str, Any]) -> str:
        lasted = self._lasted("collapse", line["feature_std"] < COLLAPSED, line["iteration"])
        if lasted < self.patience:
            return ""
        return (
            f"all images have had nearly the same feature for {lasted} iterations (std {line['feature_std']:.3f}; 1 is "
            f"evenly spread, 0 is constant). Try a SOLVER.BASE_LR below {self.cfg.SOLVER.BASE_LR:g}"
            f"{_momentum_advice(self.cfg)}, and check in views.jpg that the images differ"
        )

    def _flat_loss(self, line: dict[str, Any]) -> str:
        flat = abs(line["loss"] / self.chance - 1) < FLAT
        lasted = self._lasted("flat loss", flat, line["iteration"])
        if lasted < self.patience:
            return ""
        return (
            f"the loss has stayed within {FLAT:.0%} of {self.chance:.2f}, which is chance, for {lasted} iterations: "
            f"the model learns nothing. Try a SOLVER.BASE_LR other than {self.cfg.SOLVER.BASE_LR:g}"
            f"{_momentum_advice(self.cfg)} or a lower MOCO.T, and check in views.jpg that the views show the objects"
        )

    def _lasted(self, name: str, shows: bool, iteration: int) -> int:
        """Return for how many iterations all lines have shown a problem; 0 at the first one."""
        if not shows:
            self.since.pop(name, None)
        return iteration - self.since.setdefault(name, iteration) if shows else 0


def young_steps(cfg: CfgNode, *, per_epoch: int) -> int:
    """Return the iteration from which all negatives come from an encoder: the queue is full, or the bank has seen
    every image.
    """
    if cfg.MOCO.MECHANISM == "moco":
        return -(-int(cfg.MOCO.K) // int(cfg.SOLVER.IMS_PER_BATCH))
    return per_epoch if cfg.MOCO.MECHANISM == "memorybank" else 0


def negatives(cfg: CfgNode, *, images: int) -> int:
    """Return the mean number of negatives of a query: a memory bank may draw the query's own image."""
    if cfg.MOCO.MECHANISM in ("endtoend", "mocov3"):
        return int(cfg.SOLVER.IMS_PER_BATCH) - 1
    own = cfg.MOCO.K / images if cfg.MOCO.MECHANISM == "memorybank" else 0
    return round(cfg.MOCO.K - own)


def chance_loss(cfg: CfgNode, *, images: int) -> float:
    """Return the loss of equal logits: that of a constant feature, and close to chance.

    InfoNCE is ln(negatives + 1) then; MoCo v3 adds it up for both views and multiplies it by 2 T.
    """
    factor = 4 * cfg.MOCO.T if cfg.MOCO.MECHANISM == "mocov3" else 1.0
    return factor * math.log(negatives(cfg, images=images) + 1)


def _easy_advice(cfg: CfgNode) -> str:
    if cfg.MODEL.NORM == "BN" or (cfg.MODEL.NORM == "ShuffleBN" and not cfg.MOCO.SHUFFLE):
        return (
            "Batch norm gives away which key belongs to the query (Figure A.1): set MODEL.NORM ShuffleBN and "
            "MOCO.SHUFFLE True"
        )
    if cfg.MOCO.MECHANISM == "mocov3":
        return "The batch may be too easy to tell apart: use a larger batch"
    norm = (
        "a larger batch, or MODEL.NORM ShuffleBN" if cfg.MODEL.NORM == "SyncBN"
        else "another MODEL.BN_GROUP_SIZE"
    )  # fmt: skip
    if cfg.MOCO.MECHANISM == "endtoend":
        return (
            f"The batch may be too easy to tell apart: use a larger batch; if the features are poor, {norm}"
        )
    return (
        f"Old keys may be easy to tell from new ones: try a MOCO.M above {cfg.MOCO.M:g} or a lower SOLVER.BASE_LR; "
        f"negatives may be too few: try a MOCO.K above {cfg.MOCO.K}; if the features are poor, {norm}"
    )


def _momentum_advice(cfg: CfgNode) -> str:
    return f", a MOCO.M above {cfg.MOCO.M:g}" if cfg.MOCO.MECHANISM == "moco" and cfg.MOCO.M < 0.999 else ""
