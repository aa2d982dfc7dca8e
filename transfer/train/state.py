"""The state of a fine-tuning run between two steps, saved completely so that a resumed run is the same run."""

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
from pretrain.common.run_folder import changes, note_processes, other_settings
from pretrain.tensor_files import checkpoint
from transfer import results
from transfer.train.evaluation import Metrics

LAST = "model_last.pth"
BEST = "model_best.pth"


@dataclass
class State:
    """Everything that training changes.

    Data order, augmentation and the sampling of proposals are functions of the iteration, so there is no state of
    a random generator or loader.

    Attributes:
        scaler: scales float16 losses; None for other types.
        data: `digests.data_digests` of the run; a resumed run must train on the same data.
        iteration: number of steps done.
        earlier: seconds that earlier sessions of this run took.
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
        """Return everything that has a `state_dict`, by name."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return parts if self.scaler is None else {**parts, "scaler": self.scaler}


def save(state: State, cfg: CfgNode) -> None:
    """Write `model_last.pth`. Every process calls this; all hold the same weights, and the main one writes.

    Raises `UserError` in every process if a weight is infinite or NaN; the last good file is kept.
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
    """Load `model_last.pth` if there is one. Raises `UserError` for a file of other settings or data."""
    path = Path(cfg.OUTPUT_DIR) / LAST
    if not os.path.exists(path):  # Path.exists raises for a name that is too long and without permission
        say(f"--resume: no {path}; starting from scratch")
        return
    stored = checkpoint.load(path)
    if not isinstance(stored, dict) or not {"config_sha256", "data", "iteration"} <= stored.keys():
        raise UserError(f"--resume: {path} was not written by tools/train_net.py; name another OUTPUT_DIR")
    if stored.get("config_sha256") != results.config_digest(cfg):
        raise other_settings(_changes(path, cfg))
    if stored["data"] != state.data:
        raise UserError(
            f"--resume: {path} was trained on other data: the images or annotations of DATASETS.TRAIN or "
            "DATASETS.TEST have changed since; restore them, or name another OUTPUT_DIR"
        )
    try:
        for name, part in state.parts().items():
            part.load_state_dict(stored[name])
        state.iteration, state.earlier = int(stored["iteration"]), float(stored["seconds"])
        state.best, processes = stored["best"], int(stored["processes"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--resume: {path} is damaged ({reason}); name another OUTPUT_DIR") from error
    say(f"resuming from {path}, iteration {state.iteration}")
    note_processes(processes, "each process samples proposals independently")


def _changes(path: Path, cfg: CfgNode) -> list[str]:
    """Return the changed settings that the numbers depend on; none if those of before cannot be read."""
    try:
        before = flatten(yaml.safe_load(path.with_name("config.yaml").read_text()))
    except (OSError, yaml.YAMLError):
        return []
    now = flatten(yaml.safe_load(cfg.dump()))
    return changes(before, {key: now[key] for key in now if not key.startswith(results.IRRELEVANT)})


def check_finite(state: State, cfg: CfgNode) -> None:
    """Raise `UserError` if a weight or statistic is infinite or NaN."""
    tensors = [t.detach() for t in state.model.state_dict().values() if t.is_floating_point()]
    if not torch.stack([torch.isfinite(t).all() for t in tensors]).all():
        raise not_finite(cfg, state.iteration, "a weight")


def is_ours(name: str) -> bool:
    """Whether a fine-tuning run saves weights or states under this name."""
    return name.startswith("model_") and name.endswith(".pth")


def keep_best(cfg: CfgNode, state: State, metrics: dict[str, Metrics]) -> None:
    """Write `model_best.pth` if the metric `TEST.KEEP_BEST` (`bbox/AP`) on the first test set is the highest so far.

    Call it in the main process after each test.
    """
    if not cfg.TEST.KEEP_BEST or not metrics:
        return
    task, name = cfg.TEST.KEEP_BEST.split("/")
    tasks = next(iter(metrics.values()))
    if name not in tasks.get(task, {}):
        # Not an error: training continues, and the metric may exist at the end.
        known = ", ".join(f"{t}/{n}" for t, values in tasks.items() for n in values if "-" not in n)
        say(f"note: TEST.KEEP_BEST {cfg.TEST.KEEP_BEST}: the test gives {known}; {BEST} is not written")
        return
    value = tasks[task][name]
    if value is None or (state.best is not None and value <= state.best["value"]):
        return
    checkpoint.save(Path(cfg.OUTPUT_DIR) / BEST, {"model": state.model.state_dict()})
    state.best = {
        "metric": cfg.TEST.KEEP_BEST, "value": value, "iteration": state.iteration, "weights": BEST,
    }  # fmt: skip


def not_finite(cfg: CfgNode, iteration: int, what: str) -> UserError:
    """Return the error for a loss or weight that is infinite or NaN; `iteration` counts from 1."""
    last = Path(cfg.OUTPUT_DIR) / LAST
    kept = f"the last good state is {last}" if os.path.exists(last) else "no state was saved yet"
    return UserError(
        f"the loss is not finite at iteration {iteration} ({what}); {kept}: lower SOLVER.BASE_LR, lengthen "
        "SOLVER.WARMUP_ITERS, or clip with SOLVER.CLIP_GRADIENTS.ENABLED True"
    )
