"""Resuming a pre-training run from a checkpoint: what it must agree on with the run, and what may change.

`pretrain.tensor_files.states` checks what the entries hold.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.common import distributed
from pretrain.common.configs import equal, flatten, get
from pretrain.common.console import say
from pretrain.common.errors import UserError, label
from pretrain.common.run_folder import changes, in_use, note_processes, other_settings
from pretrain.config import defaults
from pretrain.data.folders import Images
from pretrain.tensor_files import states
from pretrain.tensor_files.states import Stored
from pretrain.train.checkpoints import LAST, Progress, numbered
from pretrain.train.schedule import learning_rate

# Settings that give the stored weights, queue or iteration number their meaning.
_FIXED = ("MODEL", "MOCO", "INPUT", "DATA.ENDINGS", "SOLVER.IMS_PER_BATCH", "SOLVER.OPTIMIZER", "SEED")
# Settings that change the result. Resuming with other values is allowed: a longer run, a smaller learning rate.
_RESULT = (
    "SOLVER.BASE_LR", "SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY", "SOLVER.AMP", "SOLVER.SCHEDULE", "SOLVER.CHUNK",
)  # fmt: skip
_KEPT = ("SOLVER.KEEP_LAST", "SOLVER.CHECKPOINT_PERIOD")
_RESULT_OF_SCHEDULE = {
    "cosine": ("SOLVER.MAX_EPOCH",),
    "warmup_cosine": ("SOLVER.MAX_EPOCH", "SOLVER.WARMUP_EPOCHS"),
    "step": ("SOLVER.STEPS",),
    "exponential": ("SOLVER.GAMMA", "SOLVER.GAMMA_PERIOD"),
}


def find(folder: Path, *, resume: bool | Path) -> Stored | None:
    """Return the checkpoint to resume from; None means that the run starts from scratch.

    Args:
        resume: a checkpoint, or whether to resume from the last one in `folder`.
    Raises:
        UserError: the folder holds a run and `resume` is not set, or the file is damaged.
    """
    last = resume if isinstance(resume, Path) else folder / LAST
    if not resume:
        # os.path: Path.exists raises for a name that is too long and for a folder without permission
        if os.path.exists(last) or numbered(folder):
            raise in_use(folder)
        return None
    if not os.path.exists(last):  # killed between writing its first numbered file and this one
        if not numbered(folder):
            return None
        last = numbered(folder)[-1]
    stored = states.load(last, tool="tools/pretrain.py", advice=_other_state(last))
    for key in ("iteration", "iterations_per_epoch", "images"):
        stored.count(key)
    return stored


def _other_state(path: Path) -> str:
    others = [other for other in numbered(path.parent) if other != path]
    if others:
        return f"--resume {others[-1]} resumes from an older state"
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
    before = stored.settings()
    _compare_settings(before, cfg)
    _compare_images(stored, files)
    images = len(files)
    per_epoch = images // cfg.SOLVER.IMS_PER_BATCH
    if (was := stored.count("iterations_per_epoch")) != per_epoch:
        raise stored.damaged(f"its epochs have {was} iterations, not {per_epoch}")
    epochs = get(before, "SOLVER.MAX_EPOCH")  # a shorter run than before may be finished already
    longest = max(cfg.SOLVER.MAX_EPOCH, epochs if type(epochs) is int else 0)
    iteration = stored.count("iteration", high=longest * per_epoch)
    amp = stored.contents.get("amp")
    if not isinstance(amp, str) or not amp.startswith(("bf16", "fp16", "off")) or not amp.isprintable():
        raise stored.damaged("its `amp` is missing or unknown")
    _compare_processes(stored, other_processes)
    state = _model_state(stored, model)
    stored.restore_optimizer(optimizer, iteration=iteration)
    model.load_state_dict(state)
    if not _note_changes(before, cfg):
        done = max(iteration - 1, 0)  # the optimizer was saved with the rate of the last step
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(cfg.SOLVER, done, per_epoch)
        stored.note_settings(optimizer)
    return Progress(iteration, per_epoch, images, amp[:200], files.digest)


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
    now = distributed.world_size()
    # Older files lack it.
    before = stored.count("processes", low=1) if "processes" in stored.contents else now
    if before == now:
        return
    if not other_processes:
        raise UserError(
            f"--resume: the run had {before} process(es) and has {now} now: sums are added in another order, so the "
            f"result would not be bit-identical; start {before} process(es), or add --other-processes"
        )
    note_processes(before, "sums are added in another order")


def _compare_settings(before: dict[str, Any], cfg: CfgNode) -> None:
    now = dict(_settings(cfg))
    was = {
        key: get(before, key, get(defaults(), key)) for key in now
    }  # a key added since then has its default
    if changed := changes(was, now):
        raise other_settings(changed)


def _note_changes(before: dict[str, Any], cfg: CfgNode) -> bool:
    """Print a note for each change, and return whether there is one that the result depends on."""
    result = (*_RESULT, *_RESULT_OF_SCHEDULE[cfg.SOLVER.SCHEDULE])
    if cfg.MOCO.MECHANISM == "mocov3" and "SOLVER.MAX_EPOCH" not in result:  # its momentum rises until then
        result += ("SOLVER.MAX_EPOCH",)
    different = [
        (key, was, now)
        for key in (*result, *_KEPT)
        if not equal(was := get(before, key, get(defaults(), key)), now := get(cfg, key))
    ]
    for key, was, now in different:
        effect = (
            "which numbered files are kept changes from now on"
            if key in _KEPT
            else f"the result will differ{' by rounding' if key == 'SOLVER.CHUNK' else ''}"
        )
        say(f"note: {key} was {label(was, 80)} and is {now}: {effect}")
    return any(key in result for key, _, _ in different)


def _settings(cfg: CfgNode) -> Iterator[tuple[str, Any]]:
    for key in _FIXED:
        value = get(cfg, key)
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in flatten(value).items())
        else:
            yield key, value


def _model_state(stored: Stored, model: nn.Module) -> dict[str, torch.Tensor]:
    before = stored.contents.get("state_dict")
    if isinstance(before, dict) and all(isinstance(name, str) for name in before):
        before = {name.removeprefix("module."): value for name, value in before.items()}
    state = stored.tensors("state_dict", before, model.state_dict())
    if "queue_ptr" in state and not 0 <= int(state["queue_ptr"]) < state["queue"].shape[1]:
        raise stored.damaged("its queue's pointer is outside the queue")
    return state
