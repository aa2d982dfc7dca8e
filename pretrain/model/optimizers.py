"""The optimizers of SOLVER.OPTIMIZER: SGD (MoCo v1, v2), LARS (v3 with a ResNet) and AdamW (v3 with a ViT)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

TRUST = 0.001  # LARS's trust coefficient; in the papers it is the same everywhere


def make(cfg: CfgNode, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of a config. A `found_inf` of 1 that is set on it makes its next step do nothing.

    Fused implementations give the same numbers in fewer passes over memory, and need not wait for a GradScaler.
    AdamW decays every parameter, as the authors' script does; its betas are torch's defaults.
    """
    solver = cfg.SOLVER
    options: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    if solver.OPTIMIZER == "lars":
        return LARS(parameters, momentum=solver.MOMENTUM, **options)
    optimizer = torch.optim.SGD(parameters, momentum=solver.MOMENTUM, fused=True, **options)
    # If the first step is skipped (found_inf), the fused optimizer would leave momentum buffers uninitialised.
    for parameter in parameters:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class LARS(torch.optim.Optimizer):
    """SGD with a rate for each layer (You, Gitman and Ginsburg 2017).

    For each tensor w with gradient g:  u = g + weight_decay w;  u = trust |w| / |u| u, if neither norm is 0;
    v = momentum v + u;  w = w - lr v. Tensors with at most one dimension, such as biases and the scale and shift of
    normalisation, are neither decayed nor scaled: u = g.
    """

    found_inf: torch.Tensor | None = None
    # Makes a GradScaler set `found_inf` and `grad_scale` for `step`; it would wait for the device's verdict otherwise.
    _step_supports_amp_scaling = True

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            updates = [p.grad for p in parameters]
            if (scale := getattr(self, "grad_scale", None)) is not None:  # of a GradScaler
                torch._foreach_mul_(updates, scale.reciprocal())
            layers = [n for n, p in enumerate(parameters) if p.ndim > 1]
            scaled = _scaled([parameters[n] for n in layers], [updates[n] for n in layers], group)
            for n, update in zip(layers, scaled, strict=True):
                updates[n] = update
            velocities = [self.state[p]["momentum_buffer"] for p in parameters]
            rate, momentum = group["lr"], group["momentum"]
            if self.found_inf is not None:  # decided on the device, which the CPU need not wait for
                good = self.found_inf == 0
                updates = [torch.where(good, update, 0.0) for update in updates]
                rate, momentum = rate * good.double(), momentum ** good.double()  # or 0 and 1
            torch._foreach_mul_(velocities, momentum)
            torch._foreach_add_(velocities, updates)
            torch._foreach_sub_(parameters, torch._foreach_mul(velocities, rate))


def _scaled(
    weights: list[torch.Tensor], gradients: list[torch.Tensor], group: dict[str, Any]
) -> Iterable[torch.Tensor]:
    """Return the gradients with weight decay, scaled by the trust ratio of each tensor."""
    if not weights:
        return []
    updates = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
    sizes, lengths = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, updates))
    ratios = torch.where((sizes > 0) & (lengths > 0), TRUST * sizes / lengths, 1.0)
    return torch._foreach_mul(updates, list(ratios.unbind()))
