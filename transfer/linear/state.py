"""The state of a linear probe between two steps, saved completely so that a resumed run is the same run."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from pretrain.common import distributed, run_folder
from pretrain.common.configs import digest_text, flatten
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import write_text
from pretrain.common.run_folder import changes, in_use, note_processes, other_settings
from pretrain.tensor_files import checkpoint, states
from pretrain.tensor_files.states import Stored, is_finite
from transfer.linear.classifiers import Classifiers
from transfer.linear.config import IRRELEVANT, of_numbers

LAST = "linear_last.pth"
LINE = {"iteration", "epoch", "base_lr", "lr", "loss", "top1", "top5"}  # what a line of `metrics.json` holds
_ADVICE = "name a copy of it by --resume FROM, or another OUTPUT_DIR"
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


def find(cfg: CfgNode, *, resume: bool | Path) -> Stored | None:
    """Return the state to resume from: the file `resume` or the one in OUTPUT_DIR; None for a new run.

    Raises `UserError` for a used folder without `--resume`, and for a damaged file.
    """
    path = resume if isinstance(resume, Path) else Path(cfg.OUTPUT_DIR) / LAST
    if not os.path.exists(path):  # Path.exists raises for a name that is too long and without permission
        if resume:
            say(f"--resume: no {path}; starting from scratch")
        return None
    if not resume:
        raise in_use(Path(cfg.OUTPUT_DIR))
    return states.load(path, tool="tools/linear_eval.py", advice=_ADVICE)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written: features of ImageNet take 10 GB."""
    run_folder.remove_leftovers(folder, lambda name: name == LAST or name in _OTHERS)
    run_folder.remove_leftovers(folder / "features", lambda name: name.endswith((".npy", ".json")))


def compare(stored: Stored, origin: dict[str, str], cfg: CfgNode) -> None:
    """Raise `UserError` if a run would be resumed with other settings, weights or images."""
    before, now, counted = flatten(stored.settings()), flatten(cfg), of_numbers(cfg)
    # A key that the stored state has counts even at its default.
    compared = {key: now[key] for key in now if key in counted or (key in before and key not in IRRELEVANT)}
    if changed := changes(before, compared):
        raise other_settings(changed)
    digests = stored.digests("origin")
    for what, digest in origin.items():
        if digests.get(what) != digest:
            raise UserError(
                f"--resume: {what} is not what {stored.path} was trained with; restore it, or name another OUTPUT_DIR"
            )


def restore(state: State, stored: Stored, *, per_epoch: int, epochs: int) -> None:
    """Load what `find` returned, after `compare`. Learning rates and other settings stay those of the run.

    Args:
        per_epoch: iterations in an epoch.
        epochs: SOLVER.MAX_EPOCH.
    Raises:
        UserError: the state holds anything that this run would not have written, or all classifiers have diverged.
    """
    classifiers = state.classifiers
    iteration, seconds = stored.count("iteration", high=epochs * per_epoch), stored.seconds()
    processes, history = stored.count("processes", low=1), _history(stored, state, iteration // per_epoch)
    layers = stored.contents.get("layers")
    if not isinstance(layers, list) or len(layers) != len(classifiers.layers):
        raise stored.damaged(f"its `layers` are not a list of {len(classifiers.layers)} classifiers")
    # A classifier of a sweep whose rate is too high diverges, while the others train on.
    weights = [
        stored.tensors(f"layers, {n}", values, layer.state_dict(), finite=False)
        for n, (layer, values) in enumerate(zip(classifiers.layers, layers, strict=True))
    ]
    diverged = [not all(bool(value.isfinite().all()) for value in values.values()) for values in weights]
    if all(diverged):
        raise UserError(
            f"--resume: {stored.path}: the weights of all classifiers became infinite or NaN: use a smaller "
            "SOLVER.BASE_LR, and a new OUTPUT_DIR"
        )
    losses = stored.tensor("losses", stored.contents.get("losses"), state.losses, finite=False)
    stored.restore_optimizer(classifiers.optimizer, iteration=iteration, finite=not any(diverged))
    for layer, values in zip(classifiers.layers, weights, strict=True):
        layer.load_state_dict(values)
    state.losses.copy_(losses)
    state.iteration, state.seconds, state.history = iteration, seconds, history
    say(f"resuming from {stored.path}, iteration {iteration}")
    # The optimizer was saved with the rates of the last step.
    classifiers.set_rates(max(iteration - 1, 0) // per_epoch)
    stored.note_settings(classifiers.optimizer)
    for rate in (rate for rate, bad in zip(classifiers.rates, diverged, strict=True) if bad):
        say(f"note: the classifier with learning rate {rate:g} has diverged")
    note_processes(processes, "sums are added in another order")


def _history(stored: Stored, state: State, epochs: int) -> list[dict[str, Any]]:
    """Return the checked lines of `metrics.json`: one for each classifier in each of the `epochs` that are complete."""
    lines = stored.contents.get("history")
    if not isinstance(lines, list) or len(lines) != epochs * len(state.classifiers.rates):
        raise stored.damaged(f"its `history` is not a list of {epochs * len(state.classifiers.rates)} lines")
    for line in lines:
        if (
            not isinstance(line, dict)
            or line.keys() != LINE
            or not all(is_finite(value) or (name == "loss" and value is None) for name, value in line.items())
        ):
            raise stored.damaged("its `history` holds a line that is not one of metrics.json")
    return lines
