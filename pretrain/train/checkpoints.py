"""The checkpoints that a run writes to its output folder. `pretrain.train.resume` reads them."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from fvcore.common.config import CfgNode
from torch import nn

from pretrain import __version__
from pretrain.common import distributed
from pretrain.common.configs import digest_text
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import copy, found
from pretrain.tensor_files import checkpoint

LAST = "checkpoint_last.pth.tar"
_OTHERS = ("broken_images.txt", "config.yaml", "metrics.json", "views.jpg")
_NUMBERED = re.compile(r"checkpoint_(\d{4,})\.pth\.tar")


class CannotWrite(UserError):
    """A checkpoint cannot be written."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        iteration: training steps done.
        per_epoch: steps in an epoch.
        images: number of training images.
        amp: the text by which `pretrain.model.precision.decide` decided about bf16; a resumed run keeps it
            unless SOLVER.AMP says otherwise.
        names: `Images.digest` of the training images.
    """

    iteration: int
    per_epoch: int
    images: int
    amp: str
    names: str = ""

    @property
    def epoch(self) -> int:
        """Number of complete epochs."""
        return self.iteration // self.per_epoch


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    cfg: CfgNode,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Write `checkpoint_last`; at the end of an epoch write its numbered file first and copy it.

    The last SOLVER.KEEP_LAST numbered files are kept; every SOLVER.CHECKPOINT_PERIOD-th and the run's last one are
    never removed. Every process calls this; all hold the same state, and the main one writes.

    Raises:
        CannotWrite: in every process; `checkpoint_last` is unchanged.
        UserError: in every process; a value of the state is not finite.
    """
    _check_finite(folder, model, optimizer, iteration=progress.iteration)
    error = None
    if distributed.is_main():
        try:
            _write(folder, _contents(model, optimizer, progress, cfg=cfg, scaler=scaler), progress, cfg)
        except UserError as problem:
            error = problem
    # Every process waits here: one that left would end the others while the main process writes.
    (failed,) = distributed.any_process(error is not None)
    if failed:
        raise CannotWrite(str(error or "the main process cannot write a checkpoint and reports why"))


def _contents(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    cfg: CfgNode,
    scaler: torch.amp.GradScaler | None,
) -> dict[str, object]:
    return {
        "epoch": progress.epoch,
        "arch": cfg.MODEL.ARCH,
        "state_dict": {f"module.{name}": value for name, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else None,
        "iteration": progress.iteration,
        "iterations_per_epoch": progress.per_epoch,
        "images": progress.images,
        "images_digest": progress.names,
        "processes": distributed.world_size(),
        "amp": progress.amp,
        "config": digest_text(cfg),
        "versions": {"pretrain": __version__, "torch": str(torch.__version__),
                     "torchvision": str(torchvision.__version__)},
    }  # fmt: skip


def _write(folder: Path, contents: dict[str, object], progress: Progress, cfg: CfgNode) -> None:
    if progress.iteration % progress.per_epoch:
        checkpoint.save(folder / LAST, contents)
        return
    path = folder / f"checkpoint_{progress.epoch - 1:04d}.pth.tar"
    checkpoint.save(path, contents)
    _remove_old(folder, progress, cfg)  # before the copy: a run that ended here has nothing left to do
    copy(path, folder / LAST)


def _remove_old(folder: Path, progress: Progress, cfg: CfgNode) -> None:
    for old in numbered(folder):
        epoch = number(old) + 1
        for_good = epoch % cfg.SOLVER.CHECKPOINT_PERIOD == 0 or epoch == cfg.SOLVER.MAX_EPOCH
        if cfg.SOLVER.KEEP_LAST and not for_good and epoch <= progress.epoch - cfg.SOLVER.KEEP_LAST:
            old.unlink(missing_ok=True)


def _check_finite(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, iteration: int
) -> None:
    """Raise `UserError` in every process if the state holds an infinite value or NaN, which makes it useless."""
    momenta = {f"momentum {i}.{j}": v for i, s in enumerate(optimizer.state.values()) for j, v in s.items()}
    floats = {
        name: value
        for name, value in {**model.state_dict(), **momenta}.items()
        if torch.is_tensor(value) and value.is_floating_point()
    }
    finite = torch.stack([torch.isfinite(value).all() for value in floats.values()])
    (bad,) = distributed.any_process(not bool(finite.all()))
    if bad:
        name = [*floats, "another process's"][int((~finite).nonzero()[0]) if not finite.all() else -1]
        raise not_finite(folder, f"{name} became infinite or NaN by iteration {iteration}")


def not_finite(folder: Path, what: str) -> UserError:
    """Return the error for values that are not finite: what they were, what is saved, what to try."""
    last = folder / LAST
    kept = f"the last saved state is {last}" if os.path.exists(last) else "no checkpoint was written yet"
    return UserError(f"{what}; {kept}; try a smaller SOLVER.BASE_LR or SOLVER.AMP off")


def numbered(folder: Path) -> list[Path]:
    """Return the numbered checkpoints of a folder, oldest first."""
    return sorted(
        (path for path in found(folder, "checkpoint_*") if _NUMBERED.fullmatch(path.name)),
        key=number,
    )


def number(path: Path) -> int:
    """Return the zero-based epoch at whose end a numbered checkpoint was written."""
    match = _NUMBERED.fullmatch(path.name)
    assert match
    return int(match[1])


def is_ours(name: str) -> bool:
    """Whether a pre-training run writes files of this name."""
    return name in _OTHERS or name == LAST or _NUMBERED.fullmatch(name) is not None


class Saver:
    """Saves the state of a run every SOLVER.SAVE_MINUTES and on request.

    Args:
        saved: the iteration whose state is in OUTPUT_DIR; None if there is none yet.
    """

    def __init__(self, cfg: CfgNode, *, saved: int | None) -> None:
        self.cfg, self.folder, self.saved = cfg, Path(cfg.OUTPUT_DIR), saved
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether SOLVER.SAVE_MINUTES have passed by the main process's clock; always False in the others."""
        minutes = self.cfg.SOLVER.SAVE_MINUTES
        return distributed.is_main() and minutes > 0 and time.monotonic() - self.last >= 60 * minutes

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        *,
        scaler: torch.amp.GradScaler | None,
        must: bool,
    ) -> None:
        """Save the state. If that fails, raise `UserError` in every process.

        With SOLVER.SAVE_ERRORS `continue` a failure is only a warning, unless the state `must` be saved.
        """
        try:
            save(self.folder, model, optimizer, progress, cfg=self.cfg, scaler=scaler)
            self.saved = progress.iteration
        except CannotWrite as error:
            kept = "nothing is saved" if self.saved is None else f"iteration {self.saved} is saved"
            if must or self.cfg.SOLVER.SAVE_ERRORS == "stop":
                raise UserError(f"{error}; {kept}; free some space, then continue with --resume") from None
            say(f"warning: {error}; {kept}; training continues (SOLVER.SAVE_ERRORS continue)")
        self.last = time.monotonic()
