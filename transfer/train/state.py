"""The state of a fine-tuning run between two steps, saved completely so that a resumed run is the same run."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from torch import nn

from pretrain.common import distributed
from pretrain.common.configs import equal, flatten, read_yaml
from pretrain.common.console import say
from pretrain.common.errors import UserError, label
from pretrain.common.run_folder import changes, note_processes, other_settings, set_aside, take_up
from pretrain.tensor_files import checkpoint, states
from pretrain.tensor_files.states import Stored, is_finite
from transfer import results
from transfer.train.evaluation import Metrics

LAST = "model_last.pth"
BEST = "model_best.pth"
_ADVICE = "name a copy of it by --resume FROM, or another OUTPUT_DIR"


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
    data: dict[str, str | None] = field(default_factory=dict)
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
        write(cfg, LAST, contents)


def write(cfg: CfgNode, name: str, contents: dict[str, Any]) -> None:
    """Write a file of the run. Raises `UserError` that also says what is saved, as on a full disk."""
    last = Path(cfg.OUTPUT_DIR) / LAST
    try:
        checkpoint.save(last.with_name(name), contents)
    except UserError as error:
        kept = f"the last saved state is {last}" if os.path.exists(last) else "no state was saved yet"
        go_on = "continue with --resume" if os.path.exists(last) else "start again"
        raise UserError(f"{error}; {kept}: free some space, then {go_on}") from None


def restore(state: State, cfg: CfgNode, start: bool | Path = True) -> None:
    """Load `model_last.pth` if there is one, or the file `start`. Learning rates and schedule come from `cfg`.

    A copy of `start` becomes `model_last.pth`; a former one, and a `model_best.pth`, are kept under other names.

    Raises:
        UserError: the file is of other settings or data, or holds anything that this run would not have written.
    """
    last = Path(cfg.OUTPUT_DIR) / LAST
    path = start if isinstance(start, Path) else last
    if not os.path.exists(path):  # Path.exists raises for a name that is too long and without permission
        say(f"--resume: no {path}; starting from scratch")
        return
    stored = states.load(path, tool="tools/train_net.py", advice=_ADVICE)
    _compare(stored, state, cfg)
    iteration, earlier = stored.count("iteration", high=cfg.SOLVER.MAX_ITER), stored.seconds()
    best, processes = _best(stored, iteration), stored.count("processes", low=1)
    weights = stored.tensors("model", stored.contents.get("model"), state.model.state_dict())
    rates = _base_rates(stored, state, iteration)
    if state.scaler is not None:
        if stored.contents.get("scaler") is None:
            raise stored.damaged("it lacks `scaler`")
        stored.restore_scaler(state.scaler)
    stored.restore_optimizer(state.optimizer, iteration=iteration)
    state.model.load_state_dict(weights)
    state.iteration, state.earlier, state.best = iteration, earlier, best
    _set_schedule(state)
    say(f"resuming from {path}, iteration {iteration}")
    if not equal(rates, state.scheduler.base_lrs, tolerance=1e-9):
        own = label(state.scheduler.base_lrs)
        say(
            f"note: --resume: {path} was saved with initial rates {label(rates)} instead of {own}: these are used"
        )
    stored.note_settings(state.optimizer)
    note_processes(processes, "each process samples proposals independently")
    if isinstance(start, Path):
        _take_up(start, state, cfg)


def _compare(stored: Stored, state: State, cfg: CfgNode) -> None:
    """Raise `UserError` if the state is of other settings or data."""
    digest = stored.contents.get("config_sha256")
    if not isinstance(digest, str):
        raise stored.damaged("its `config_sha256` is missing or not a string")
    if digest != results.config_digest(cfg):
        raise other_settings(_changes(stored.path, cfg))
    if stored.digests("data") != state.data:
        raise UserError(
            f"--resume: {stored.path} was trained on other data: the images or annotations of DATASETS.TRAIN or "
            "DATASETS.TEST have changed since; restore them, or name another OUTPUT_DIR"
        )


def _best(stored: Stored, iteration: int) -> dict[str, Any] | None:
    """Return the checked record of `TEST.KEEP_BEST`."""
    best = stored.contents.get("best")
    if best is None:
        return None
    values = best if isinstance(best, dict) else {}
    when = values.get("iteration")
    if (
        values.keys() != {"metric", "value", "iteration", "weights"}
        or not isinstance(values["metric"], str)
        or not is_finite(values["value"])
        or values["weights"] != BEST
        or type(when) is not int
        or not 0 <= when <= iteration
    ):
        raise stored.damaged("its `best` is not a record of a metric")
    return {**values, "metric": label(values["metric"])}


def _base_rates(stored: Stored, state: State, iteration: int) -> list[float]:
    """Return the initial learning rates of the parameter groups with which the state was saved."""
    schedule = stored.contents.get("scheduler")
    done = schedule.get("last_epoch") if isinstance(schedule, dict) else None
    if not isinstance(schedule, dict) or type(done) is not int or done != iteration:
        raise stored.damaged(f"its `scheduler` is not one of iteration {iteration}")
    rates = schedule.get("base_lrs")
    if (
        not isinstance(rates, list)
        or len(rates) != len(state.scheduler.base_lrs)
        or not all(map(is_finite, rates))
    ):
        raise stored.damaged("its `scheduler` has no initial learning rates")
    return rates


def _set_schedule(state: State) -> None:
    """Set the learning rates of the optimizer to those of `state.iteration`."""
    state.scheduler.last_epoch = state.iteration  # of detectron2's schedules, functions of the iteration
    for group, rate in zip(state.optimizer.param_groups, state.scheduler.get_lr(), strict=True):
        group["lr"] = rate


def _take_up(start: Path, state: State, cfg: CfgNode) -> None:
    """Make `start` the folder's last state. Best weights are not taken over: they may be of a later iteration."""
    last, best = (Path(cfg.OUTPUT_DIR) / name for name in (LAST, BEST))
    if os.path.exists(last) and os.path.samefile(start, last):
        return
    kept = ""
    if distributed.is_main():
        take_up(start, last, iteration=state.iteration)
        if os.path.exists(best):
            kept = f"; {BEST} is kept as {set_aside(best).name}"
            best.unlink()
    if kept or state.best is not None:
        say(f"note: TEST.KEEP_BEST chooses among the tests from iteration {state.iteration} on{kept}")
    if state.best is not None:
        state.best = None
        save(state, cfg)  # or the next --resume would find a record without its weights


def _changes(path: Path, cfg: CfgNode) -> list[str]:
    """Return the changed settings that the numbers depend on; none if those of before cannot be read."""
    file = path.with_name("config.yaml")
    if not file.is_file():
        return []
    try:
        before = flatten(read_yaml(file))
    except UserError:
        return []
    now = flatten(yaml.safe_load(cfg.dump()))
    ignored = (*results.IRRELEVANT, *results.YOUNGER, *(f"{section}." for section in results.unused(cfg)))
    return changes(before, {key: now[key] for key in now if not key.startswith(ignored)})


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
    write(cfg, BEST, {"model": state.model.state_dict()})
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
