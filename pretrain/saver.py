"""When a run saves its state, and what happens when that fails."""

import time
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import nn

from pretrain import snapshot
from pretrain.common import distributed
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.snapshot import Progress


class Saver:
    """Saves the state of a run every SOLVER.SAVE_MINUTES and whenever it is told to.

    Args:
        saved: the iteration whose state is in OUTPUT_DIR; None: there is none yet.
    """

    def __init__(self, cfg: CfgNode, *, saved: int | None) -> None:
        self.cfg, self.folder, self.saved = cfg, Path(cfg.OUTPUT_DIR), saved
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time, by the main process's clock; the others never say so."""
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
        """Save, and with SOLVER.SAVE_ERRORS `continue` only warn where that fails, unless it `must` not.

        Raises `UserError` in every process.
        """
        try:
            snapshot.save(self.folder, model, optimizer, progress, cfg=self.cfg, scaler=scaler)
            self.saved = progress.iteration
        except snapshot.CannotWrite as error:
            kept = "no state" if self.saved is None else f"iteration {self.saved}"
            if must or self.cfg.SOLVER.SAVE_ERRORS == "stop":
                raise UserError(
                    f"{error}; saved is {kept}; make room, and --resume goes on from there"
                ) from None
            say(f"warning: {error}; saved is {kept}; training goes on (SOLVER.SAVE_ERRORS continue)")
        self.last = time.monotonic()
