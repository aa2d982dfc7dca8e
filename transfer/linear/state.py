"""The state of a linear probe between two steps: saved whole, restored so that nothing differs."""

import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from fvcore.common.config import CfgNode

from pretrain.common import distributed
from pretrain.common.configs import digest_text, flatten
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import found, write_text
from pretrain.tensor_files import checkpoint
from transfer.linear.classifiers import Classifiers
from transfer.linear.config import IRRELEVANT

LAST = "linear_last.pth"
_OLD = 3600.0  # seconds
_OTHERS = ("broken_images.txt", "config.yaml", "knn.json", "metrics.json", "results.json")


@dataclass
class State:
    """What training changes. Order and crops are functions of the iteration.

    Attributes:
        origin: digests of weights and images.
        iteration: steps done.
        losses: (R,), sums over the steps of the epoch under way.
        seconds: that it took so far.
        history: the lines of `metrics.json`.
    """

    classifiers: Classifiers
    origin: dict[str, str]
    iteration: int
    losses: torch.Tensor
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def save(state: State, cfg: CfgNode) -> None:
    """Write `linear_last.pth` and `metrics.json`. Every process calls it; all hold the same, and one writes."""
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
        text = "".join(json.dumps(line) + "\n" for line in state.history)
        write_text(Path(cfg.OUTPUT_DIR) / "metrics.json", text)
    distributed.barrier()  # nobody is ended for leaving while one writes


def find(cfg: CfgNode, *, resume: bool) -> dict[str, Any] | None:
    """What OUTPUT_DIR holds; None for a new run. Raises `UserError` for a used folder without `--resume`."""
    path = Path(cfg.OUTPUT_DIR) / LAST
    if not os.path.exists(path):  # Path.exists raises for a name too long, or a folder closed to us
        if resume:
            say(f"--resume: no {path}; starting at the beginning")
        return None
    if not resume:
        raise UserError(f"OUTPUT_DIR {cfg.OUTPUT_DIR} holds a run: add --resume, or name another folder")
    contents = checkpoint.load(path)
    if not isinstance(contents, dict) or not {"layers", "config", "origin", "iteration"} <= contents.keys():
        raise UserError(f"{path}: not written by tools/linear_eval.py; name another OUTPUT_DIR")
    return contents


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written an hour ago; features of ImageNet are 10 GB.

    A younger file may be another process's, which writes it now.
    """
    for path in [*found(folder, ".*.*"), *found(folder / "features", ".*.*")]:
        name = path.name[1:].rpartition(".")[0]
        features = path.parent != folder and name.endswith((".npy", ".json"))
        if name == LAST or name in _OTHERS or features:
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _OLD:
                    path.unlink()


def compare(stored: dict[str, Any], origin: dict[str, str], cfg: CfgNode) -> None:
    """Raise `UserError` if a run would go on with other settings, weights or images."""
    try:
        before, now = flatten(yaml.safe_load(stored["config"])), flatten(cfg)
        digests = dict(stored["origin"])
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        raise _damaged(cfg) from None
    for key, value in now.items():
        if key not in IRRELEVANT and before.get(key) != value:
            raise UserError(
                f"--resume: {key} is {value} and was {before.get(key)}; set it back or name another OUTPUT_DIR"
            )
    for what, digest in origin.items():
        if digests.get(what) != digest:
            raise UserError(
                f"--resume: {what} is not what {Path(cfg.OUTPUT_DIR) / LAST} was trained with; put it back or "
                "name another OUTPUT_DIR"
            )


def restore(state: State, stored: dict[str, Any], cfg: CfgNode) -> None:
    """Go on from what `find` gave, after `compare`. Raises `UserError` if it is damaged."""
    try:
        state.classifiers.load(stored)
        state.iteration, state.seconds = int(stored["iteration"]), float(stored["seconds"])
        state.losses.copy_(stored["losses"])
        state.history, processes = list(stored["history"]), stored["processes"]
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise _damaged(cfg) from None
    say(f"going on from {Path(cfg.OUTPUT_DIR) / LAST}, iteration {state.iteration}")
    if processes != distributed.world_size():
        say(
            f"note: it ran in {processes} process(es) and goes on in {distributed.world_size()}: on the same images, "
            "but sums have another order, so the end will not be equal to the bit"
        )


def _damaged(cfg: CfgNode) -> UserError:
    return UserError(f"{Path(cfg.OUTPUT_DIR) / LAST}: damaged; name another OUTPUT_DIR")
