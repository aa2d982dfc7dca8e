"""The state of a fine-tuning run between two steps: saved whole, and restored so that nothing differs."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from torch import nn

from pretrain.common import distributed
from pretrain.common.configs import flatten
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import found
from pretrain.tensor_files import checkpoint
from transfer import results
from transfer.train.evaluation import Metrics

LAST = "model_last.pth"

BEST = "model_best.pth"


@dataclass
class State:
    """What training changes.

    Data order, augmentation and the sampling of proposals are functions of the iteration, so that no state
    of a random generator or loader belongs to it.

    Attributes:
        scaler: of float16 losses, else None.
        data: `data_record.data_digests` of the run: a resumed run must train on the same.
        iteration: steps done.
        earlier: seconds that the sessions took which this one goes on from.
        best: what `TEST.KEEP_BEST` has kept so far.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler | None
    data: Any = None
    iteration: int = 0
    earlier: float = 0.0
    best: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.began = time.perf_counter()

    def parts(self) -> dict[str, Any]:
        """What has a `state_dict`, by name."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return parts if self.scaler is None else {**parts, "scaler": self.scaler}


def save(state: State, cfg: CfgNode) -> None:
    """Write `model_last.pth`. Every process calls it; all have the same weights, and one writes.

    Raises `UserError`, on every process, when a weight is infinite or NaN: the last good file stays.
    """
    check_finite(state, cfg)
    if distributed.is_main():
        contents = {name: part.state_dict() for name, part in state.parts().items()}
        contents |= {
            "iteration": state.iteration,
            "seconds": state.earlier + time.perf_counter() - state.began,
            "best": state.best,
            "data": state.data,
            "processes": distributed.world_size(),
            "config_sha256": results.config_digest(cfg),
        }
        checkpoint.save(Path(cfg.OUTPUT_DIR) / LAST, contents)


def restore(state: State, cfg: CfgNode) -> None:
    """Go on from `model_last.pth`, where there is one. Raises `UserError` for other settings or data."""
    path = Path(cfg.OUTPUT_DIR) / LAST
    if not os.path.exists(path):  # Path.exists raises for a name too long, or a folder closed to us
        say(f"--resume: no {path}; starting from iteration 0")
        return
    stored = checkpoint.load(path)
    if not isinstance(stored, dict) or not {"config_sha256", "data", "iteration"} <= stored.keys():
        raise UserError(f"--resume: {path} was not written by tools/train_net.py; choose another OUTPUT_DIR")
    if stored.get("config_sha256") != results.config_digest(cfg):
        raise UserError(
            f"--resume: {path} was written under other settings than these{_differences(path, cfg)}: give those of "
            f"{path.with_name('config.yaml')}, or another OUTPUT_DIR"
        )
    if stored["data"] != state.data:
        raise UserError(
            f"--resume: {path} was trained on other data: the images or annotations of DATASETS.TRAIN or "
            "DATASETS.TEST have changed since; put them back, or choose another OUTPUT_DIR"
        )
    try:
        for name, part in state.parts().items():
            part.load_state_dict(stored[name])
        state.iteration, state.earlier = int(stored["iteration"]), float(stored["seconds"])
        state.best, processes = stored["best"], int(stored["processes"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--resume: {path} is damaged ({reason}); choose another OUTPUT_DIR") from error
    say(f"resumed {path} at iteration {state.iteration}")
    if processes != distributed.world_size():
        say(
            f"note: it ran in {processes} process(es) and goes on in {distributed.world_size()}: on the same "
            "images, but each process samples proposals of its own, so the end will not be equal to the bit"
        )


def _differences(path: Path, cfg: CfgNode) -> str:
    """` (KEY was 1 and is 2)` for the settings that the numbers depend on, at most three; empty if unknown."""
    try:
        before = flatten(yaml.safe_load(path.with_name("config.yaml").read_text()))
    except (OSError, yaml.YAMLError):
        return ""
    after = flatten(yaml.safe_load(cfg.dump()))
    keys = [key for key in after if before.get(key) != after[key] and not key.startswith(results.IRRELEVANT)]
    shown = [f"{key} was {before.get(key)} and is {after[key]}" for key in keys[:3]]
    return f" ({', '.join(shown)}{', ...' if len(keys) > 3 else ''})" if keys else ""


def check_finite(state: State, cfg: CfgNode) -> None:
    """Raise `UserError` if a weight or statistic is infinite or NaN."""
    tensors = [t.detach() for t in state.model.state_dict().values() if t.is_floating_point()]
    if not torch.stack([torch.isfinite(t).all() for t in tensors]).all():
        raise not_finite(cfg, state.iteration, "a weight")


def remove_leftovers(output: Path) -> None:
    """Remove the half-written files of a process that was killed while it saved."""
    for path in found(output, ".model_*.pth.*"):
        path.unlink(missing_ok=True)


def keep_best(cfg: CfgNode, state: State, metrics: dict[str, Metrics]) -> None:
    """Write `model_best.pth` if `TEST.KEEP_BEST` (`bbox/AP`) is higher than ever on the first test set.

    Call it on the main process, after each test.
    """
    if not cfg.TEST.KEEP_BEST or not metrics:
        return
    task, name = cfg.TEST.KEEP_BEST.split("/")
    tasks = next(iter(metrics.values()))
    if name not in tasks.get(task, {}):
        # No error: training goes on, and the metric may exist in the end
        known = ", ".join(f"{t}/{n}" for t, values in tasks.items() for n in values if "-" not in n)
        say(f"note: TEST.KEEP_BEST {cfg.TEST.KEEP_BEST}: the test gives {known}; no {BEST} is kept")
        return
    value = tasks[task][name]
    if value is None or (state.best is not None and value <= state.best["value"]):
        return
    checkpoint.save(Path(cfg.OUTPUT_DIR) / BEST, {"model": state.model.state_dict()})
    state.best = {
        "metric": cfg.TEST.KEEP_BEST, "value": value, "iteration": state.iteration, "weights": BEST,
    }  # fmt: skip


def not_finite(cfg: CfgNode, iteration: int, what: str) -> UserError:
    """What to do about a loss or weight that is infinite or NaN; `iteration` counts from 1."""
    last = Path(cfg.OUTPUT_DIR) / LAST
    kept = f"the last good state is {last}" if os.path.exists(last) else "no state was saved yet"
    return UserError(
        f"the loss is not finite at iteration {iteration} ({what}); {kept}: lower SOLVER.BASE_LR, lengthen "
        "SOLVER.WARMUP_ITERS, or clip with SOLVER.CLIP_GRADIENTS.ENABLED True"
    )
