"""One optimizer step: forward and backward passes in parts, a check of the losses, and the update."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pretrain.common import distributed
from transfer.train.state import not_finite

Batch = list[dict[str, Any]]
Losses = dict[str, torch.Tensor]


def step(
    cfg: CfgNode,
    model: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    iteration: int,
    *,
    scaler: torch.amp.GradScaler | None = None,
) -> Losses:
    """Run one optimizer step on this process's share of a batch, in `SOLVER.ACCUMULATE` parts.

    Args:
        batch: this process's images; their number is a multiple of `SOLVER.ACCUMULATE`.
        iteration: counted from 0.
        scaler: for float16.
    Returns:
        The losses by name, detached and averaged over parts and processes.
    Raises:
        UserError: a loss is infinite or NaN in any process. Every process raises, and no weight has changed.
    """
    seed(cfg.SEED, iteration)
    parts = cfg.SOLVER.ACCUMULATE
    size = len(batch) // parts
    names: list[str] = []
    means = torch.zeros((), device=cfg.MODEL.DEVICE)
    optimizer.zero_grad()
    for number in range(parts):
        last = number == parts - 1
        with nullcontext() if last else _unsynchronised(model):
            with autocast(cfg):
                losses: Losses = _forward(cfg, model, batch[number * size : (number + 1) * size], iteration)
                total = sum(losses.values(), torch.zeros((), device=cfg.MODEL.DEVICE)) / parts
            names = list(losses)
            means = means + torch.stack([loss.detach().float() for loss in losses.values()]) / parts
            if last:
                verdict = _Verdict(means)
            (total if scaler is None else scaler.scale(total)).backward()
    if not verdict.is_finite():
        values = zip(names, verdict.means.tolist(), strict=True)
        raise not_finite(cfg, iteration + 1, ", ".join(f"{name} {value:g}" for name, value in values))
    if scaler is None:
        optimizer.step()
    else:
        scaler.unscale_(optimizer)  # before clipping, which is part of the step of detectron2's optimizers
        scaler.step(optimizer)  # skips a step with an infinite gradient; update() then lowers the scale
        scaler.update()
    return dict(zip(names, verdict.means, strict=True))


def _forward(cfg: CfgNode, model: nn.Module, batch: Batch, iteration: int) -> Losses:
    try:
        losses: Losses = model(batch)
        return losses
    except FloatingPointError as error:  # from detectron2, if proposals are infinite or NaN
        raise not_finite(cfg, iteration + 1, str(error).rstrip(".")) from None


def autocast(cfg: CfgNode) -> AbstractContextManager:
    """Return the context of the forward pass for `SOLVER.AMP`."""
    if not cfg.SOLVER.AMP.ENABLED:
        return nullcontext()
    return torch.autocast(cfg.MODEL.DEVICE, dtype=getattr(torch, cfg.SOLVER.AMP.DTYPE))


def grad_scaler(cfg: CfgNode) -> torch.amp.GradScaler | None:
    """Return a scaler for float16, whose smallest number is 6e-8; bfloat16 has float32's range and needs none."""
    wanted = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16"
    # The first scale is often too high; the first steps are then skipped, as intended.
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    return torch.amp.GradScaler(cfg.MODEL.DEVICE) if wanted else None


def seed(seed: int, iteration: int) -> None:
    """Seed the random sampling of proposals from the iteration, so that a resumed run is exact."""
    torch.manual_seed((seed * 1_000_003 + iteration) * 1024 + distributed.rank())


def _unsynchronised(model: nn.Module) -> AbstractContextManager:
    """Return a context without gradient synchronisation, which is needed only once per step, in the last part."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


class _Verdict:
    """Means of the losses over the processes, and whether all are finite.

    On a GPU the answer is copied while the backward pass is being queued, and read afterwards. So the step waits only
    for the forward pass; detectron2, which reads its losses after the backward pass, waits for both. No time is lost
    between backward pass and update.
    """

    def __init__(self, losses: torch.Tensor) -> None:
        self.means = losses.clone()
        distributed.mean_over_processes([self.means])
        answer = torch.isfinite(self.means).all()
        self.ready = None
        if answer.is_cuda:
            self.answer = torch.empty((), dtype=torch.bool, pin_memory=True)
            self.answer.copy_(answer, non_blocking=True)
            self.ready = torch.cuda.Event()
            self.ready.record()
        else:
            self.answer = answer

    def is_finite(self) -> bool:
        if self.ready is not None:
            self.ready.synchronize()
        return bool(self.answer)
