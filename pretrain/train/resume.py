"""Resuming from a checkpoint. It is a user's file: whatever it holds, the run resumes exactly or refuses it.

Nothing in it is executed and nothing is taken on trust: names, types, shapes and values are compared with what this
run would have written.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.common import distributed
from pretrain.common.configs import get, read_dump
from pretrain.common.console import say
from pretrain.common.errors import UserError, printable
from pretrain.common.run_folder import changes, in_use, note_processes, other_settings
from pretrain.config import defaults
from pretrain.data.folders import Images
from pretrain.tensor_files import checkpoint
from pretrain.train.checkpoints import LAST, Progress, numbered

# Settings that give the stored weights, queue or iteration number their meaning.
_FIXED = ("MODEL", "MOCO", "INPUT", "DATA.ENDINGS", "SOLVER.IMS_PER_BATCH", "SEED")
# Settings that change the result. Resuming with other values is allowed: a longer run, a smaller learning rate.
_RESULT = ("SOLVER.BASE_LR", "SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY", "SOLVER.AMP", "SOLVER.SCHEDULE")
_KEPT = ("SOLVER.KEEP_LAST", "SOLVER.CHECKPOINT_PERIOD")
_RESULT_OF_SCHEDULE = {
    "cosine": ("SOLVER.MAX_EPOCH",),
    "step": ("SOLVER.STEPS",),
    "exponential": ("SOLVER.GAMMA", "SOLVER.GAMMA_PERIOD"),
}
_NUMBERS = ("iteration", "iterations_per_epoch", "images")
_LARGEST = 1 << 53  # no count in a checkpoint is larger


@dataclass(frozen=True)
class Stored:
    """A checkpoint to resume from. Its outline has been checked; `restore` checks what its entries hold."""

    path: Path
    contents: dict[str, Any]

    @property
    def iteration(self) -> int:
        return self.contents["iteration"]

    def damaged(self, what: str) -> UserError:
        """Return the error for contents that no run would have written."""
        return UserError(
            f"--resume: {self.path}: {what}: the file is damaged or was written by another version of "
            f"tools/pretrain.py; {_other_state(self.path)}"
        )


def find(folder: Path, *, resume: bool) -> Stored | None:
    """Return the checkpoint to resume from; None means that the run starts from scratch.

    Raises `UserError` if the folder holds a run and `resume` is not set, and if the file is damaged.
    """
    last = folder / LAST
    if not resume:
        # os.path: Path.exists raises for a name that is too long and for a folder without permission
        if os.path.exists(last) or numbered(folder):
            raise in_use(folder)
        return None
    if not os.path.exists(last):  # killed between writing its first numbered file and this one
        if not numbered(folder):
            return None
        last = numbered(folder)[-1]
    try:
        stored = Stored(last, checkpoint.load(last))
    except UserError as error:
        raise UserError(f"{error}; {_other_state(last)}") from error
    if not isinstance(stored.contents, dict):
        raise stored.damaged(f"it holds a {type(stored.contents).__name__}")
    for key in _NUMBERS:
        value = stored.contents.get(key)
        if type(value) is not int or not 0 <= value < _LARGEST:
            raise stored.damaged(f"its `{key}` is missing or not a number")
    return stored


def _other_state(path: Path) -> str:
    others = [other for other in numbered(path.parent) if other != path]
    if others:
        return f"copy {others[-1].name}, for example, to {LAST} to resume from there"
    return "name another OUTPUT_DIR to start from scratch"


def restore(
    stored: Stored,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    cfg: CfgNode,
    files: Images,
    other_processes: bool = False,
) -> Progress:
    """Load a checkpoint into model and optimizer. All settings of the optimizer come from `cfg`.

    A note is printed for each changed setting that the result, or the choice of files that are kept, depends on.

    Args:
        files: this run's training images.
        other_processes: resume in another number of processes, which is not exact.
    Raises:
        UserError: the checkpoint belongs to other settings, other training images or another number of processes,
            or holds anything that this run would not have written; nothing is loaded then.
    """
    contents = stored.contents
    before = _settings_before(stored)
    _compare_settings(before, cfg)
    _compare_images(stored, files)
    images = len(files)
    per_epoch = images // cfg.SOLVER.IMS_PER_BATCH
    if contents["iterations_per_epoch"] != per_epoch:
        raise stored.damaged(
            f"its epochs have {contents['iterations_per_epoch']} iterations, not {per_epoch}"
        )
    amp = contents.get("amp")
    if not isinstance(amp, str) or not amp.startswith(("bf16", "fp16", "off")) or not amp.isprintable():
        raise stored.damaged("its `amp` is missing or unknown")
    _compare_processes(stored, other_processes)
    state, buffers = _model_state(stored, model), _momentum_buffers(stored, optimizer)
    model.load_state_dict(state)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": buffers})
    _note_changes(before, cfg)
    return Progress(stored.iteration, per_epoch, images, amp[:200], files.digest)


def _compare_images(stored: Stored, files: Images) -> None:
    before, names = stored.contents["images"], stored.contents.get("images_digest", "")  # older files lack it
    if not isinstance(names, str):
        raise stored.damaged("its `images_digest` is not a string")
    if before != len(files):
        raise UserError(
            f"--resume: DATA.TRAIN holds {len(files)} images now and held {before} before; restore "
            "the images or name another OUTPUT_DIR"
        )
    if names and files.digest and names != files.digest:
        raise UserError(
            f"--resume: DATA.TRAIN holds {before} images as before, but under other names or in another order; restore "
            "the images or name another OUTPUT_DIR"
        )


def _compare_processes(stored: Stored, other_processes: bool) -> None:
    before, now = stored.contents.get("processes", distributed.world_size()), distributed.world_size()
    if type(before) is not int or not 0 < before < _LARGEST:
        raise stored.damaged("its `processes` is not a number")
    if before == now:
        return
    if not other_processes:
        raise UserError(
            f"--resume: the run had {before} process(es) and has {now} now: sums are added in another order, so the "
            f"result would not be bit-identical; start {before} process(es), or add --other-processes"
        )
    note_processes(before, "sums are added in another order")


def _settings_before(stored: Stored) -> dict[str, Any]:
    text = stored.contents.get("config")
    try:
        if not isinstance(text, str) or len(text) > 1_000_000:
            raise ValueError
        before = read_dump(text)
        if not isinstance(before, dict):
            raise ValueError
    except Exception:  # PyYAML raises many classes on hostile text, RecursionError among them
        raise stored.damaged("its `config` is not a YAML mapping") from None
    return before


def _compare_settings(before: dict[str, Any], cfg: CfgNode) -> None:
    now = dict(_settings(cfg))
    was = {
        key: get(before, key, get(defaults(), key)) for key in now
    }  # a key added since then has its default
    if changed := changes(was, now):
        raise other_settings(changed)


def _note_changes(before: dict[str, Any], cfg: CfgNode) -> None:
    for key in (*_RESULT, *_RESULT_OF_SCHEDULE[cfg.SOLVER.SCHEDULE], *_KEPT):
        was, now = get(before, key, get(defaults(), key)), get(cfg, key)
        if was != now:
            effect = (
                "which numbered files are kept changes from now on"
                if key in _KEPT
                else "the result will differ"
            )
            say(f"note: {key} was {printable(str(was)[:80])} and is {now}: {effect}")


def _settings(cfg: CfgNode) -> Iterator[tuple[str, Any]]:
    for key in _FIXED:
        value = get(cfg, key)
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", value[name]) for name in value)
        else:
            yield key, value


def _model_state(stored: Stored, model: nn.Module) -> dict[str, torch.Tensor]:
    before, own = stored.contents.get("state_dict"), model.state_dict()
    if not isinstance(before, dict) or not all(isinstance(name, str) for name in before):
        raise stored.damaged("its `state_dict` is not a dict of tensors")
    state = {name.removeprefix("module."): value for name, value in before.items()}
    for name in own:
        if name not in state:
            raise stored.damaged(f"its `state_dict` lacks {name}")
    for name, value in state.items():
        if name not in own:
            raise stored.damaged(f"its `state_dict` holds {name[:80]!r}, which this run does not have")
        _check_tensor(stored, name, value, own[name])
    if "queue_ptr" in state and not 0 <= int(state["queue_ptr"]) < state["queue"].shape[1]:
        raise stored.damaged("its queue's pointer is outside the queue")
    return state


def _momentum_buffers(stored: Stored, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, torch.Tensor]]:
    """Return SGD's state: all of it, or none before the first step and without momentum."""
    before = stored.contents.get("optimizer")
    state = before.get("state") if isinstance(before, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, dict) for value in state.values()):
        raise stored.damaged("its `optimizer` holds no state")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    buffers = {index: value.get("momentum_buffer") for index, value in state.items()}
    buffers = {index: value for index, value in buffers.items() if value is not None}
    if buffers and buffers.keys() != set(range(len(parameters))):
        raise stored.damaged(f"its `optimizer` has {len(buffers)} momenta for {len(parameters)} parameters")
    for index, value in buffers.items():
        _check_tensor(stored, f"momentum {index}", value, parameters[index])
    # The fused step reads weight and momentum in memory order, and a GPU's weights are channels-last.
    laid_out = {index: torch.empty_like(parameters[index]).copy_(value) for index, value in buffers.items()}
    return {index: {"momentum_buffer": value} for index, value in laid_out.items()}


def restore_scaler(stored: Stored, scaler: torch.amp.GradScaler) -> None:
    """Restore the scale of float16 losses and its count of good steps; do nothing if there was none.

    Raises `UserError` for values that no run would have written.
    """
    before = stored.contents.get("scaler")
    if before is None:  # SOLVER.AMP was different
        return
    scale, steps = (
        (before.get(key) for key in ("scale", "_growth_tracker")) if isinstance(before, dict) else (0, 0)
    )
    if not isinstance(scale, float) or not 0 < scale < float("inf"):
        raise stored.damaged("its `scaler` has no positive scale")
    if type(steps) is not int or not 0 <= steps < 1 << 31:
        raise stored.damaged("its `scaler` has no count of steps")
    scaler.load_state_dict({**scaler.state_dict(), "scale": scale, "_growth_tracker": steps})


def _check_tensor(stored: Stored, name: str, value: Any, own: torch.Tensor) -> None:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        raise stored.damaged(f"its {name} is not a plain tensor")
    if value.shape != own.shape or value.dtype != own.dtype:
        raise stored.damaged(
            f"its {name} is {tuple(value.shape)} {value.dtype}; this run needs {tuple(own.shape)} {own.dtype}"
        )
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise stored.damaged(f"its {name} holds infinite values or NaN")
