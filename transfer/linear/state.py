"""The state of a linear probe between two steps, saved completely so that a resumed run is the same run."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from fvcore.common.config import CfgNode

from pretrain.common import distributed, run_folder
from pretrain.common.configs import digest_text, flatten
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import write_text
from pretrain.common.run_folder import changes, in_use, note_processes, other_settings
from pretrain.tensor_files import checkpoint
from transfer.linear.classifiers import Classifiers
from transfer.linear.config import IRRELEVANT

LAST = "linear_last.pth"
_OTHERS = ("broken_images.txt", "config.yaml", "knn.json", "metrics.json", "results.json")


@dataclass
class State:
    """Everything that training changes. Order and crops are functions of the iteration.

    Attributes:
        origin: digests of weights and images.
        iteration: number of steps done.
        losses: (R,), sums over the steps of the current epoch.
        seconds: time that the run has taken so far.
        history: the lines of `metrics.json`.
    """

    classifiers: Classifiers
    origin: dict[str, str]
    iteration: int
    losses: torch.Tensor
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def save(state: State, cfg: CfgNode) -> None:
    """Write `linear_last.pth` and `metrics.json`. Every process calls this; the main one writes."""
    losses = state.losses.clone()
    distributed.mean_over_processes([losses])
    if distributed.is_main():
        contents = {
            **state.classifiers.state(),
            "origin": state.origin,
            "iteration": state.iteration,
            "losses": losses,
            "seconds": state.seconds,
            "history": state.history,
            "processes": distributed.world_size(),
            "config": digest_text(cfg),
        }
        checkpoint.save(Path(cfg.OUTPUT_DIR) / LAST, contents)
        lines = "".join(json.dumps(line) + "\n" for line in state.history)
        write_text(Path(cfg.OUTPUT_DIR) / "metrics.json", lines)
    distributed.barrier()  # a process that left would end the others while the main one writes


def find(cfg: CfgNode, *, resume: bool) -> dict[str, Any] | None:
    """Return the state in OUTPUT_DIR; None for a new run. Raises `UserError` for a used folder without `--resume`."""
    path = Path(cfg.OUTPUT_DIR) / LAST
    if not os.path.exists(path):  # Path.exists raises for a name that is too long and without permission
        if resume:
            say(f"--resume: no {path}; starting from scratch")
        return None
    if not resume:
        raise in_use(Path(cfg.OUTPUT_DIR))
    contents = checkpoint.load(path)
    if not isinstance(contents, dict) or not {"layers", "config", "origin", "iteration"} <= contents.keys():
        raise UserError(f"--resume: {path} was not written by tools/linear_eval.py; name another OUTPUT_DIR")
    return contents


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written: features of ImageNet take 10 GB."""
    run_folder.remove_leftovers(folder, lambda name: name == LAST or name in _OTHERS)
    run_folder.remove_leftovers(folder / "features", lambda name: name.endswith((".npy", ".json")))


def compare(stored: dict[str, Any], origin: dict[str, str], cfg: CfgNode) -> None:
    """Raise `UserError` if a run would be resumed with other settings, weights or images."""
    try:
        before, now = flatten(yaml.safe_load(stored["config"])), flatten(cfg)
        digests = dict(stored["origin"])
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        raise _damaged(cfg) from None
    if changed := changes(before, {key: now[key] for key in now if key not in IRRELEVANT}):
        raise other_settings(changed)
    for what, digest in origin.items():
        if digests.get(what) != digest:
            raise UserError(
                f"--resume: {what} is not what {Path(cfg.OUTPUT_DIR) / LAST} was trained with; restore it, or "
                "name another OUTPUT_DIR"
            )


def restore(state: State, stored: dict[str, Any], cfg: CfgNode) -> None:
    """Load what `find` returned, after `compare`. Raises `UserError` if it is damaged."""
    try:
        state.classifiers.load(stored)
        state.iteration, state.seconds = int(stored["iteration"]), float(stored["seconds"])
        state.losses.copy_(stored["losses"])
        state.history, processes = list(stored["history"]), int(stored["processes"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise _damaged(cfg) from None
    say(f"resuming from {Path(cfg.OUTPUT_DIR) / LAST}, iteration {state.iteration}")
    note_processes(processes, "sums are added in another order")


def _damaged(cfg: CfgNode) -> UserError:
    return UserError(f"{Path(cfg.OUTPUT_DIR) / LAST}: the file is damaged; name another OUTPUT_DIR")
