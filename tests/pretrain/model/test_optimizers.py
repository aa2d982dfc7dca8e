"""LARS against its formula written out, and the optimizers that a config gives."""

from typing import Any

import pytest
import torch
from torch import nn

from pretrain import config
from pretrain.model import optimizers
from pretrain.model.optimizers import LARS

SHAPES = [(4, 3), (2, 3, 2, 2), (5,), (), (3, 3)]


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in SHAPES]
    made[-1].data.zero_()  # a weight without a length is not scaled
    return made


def set_gradients(tensors: list[nn.Parameter], step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    gradients = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in tensors]
    for p, gradient in zip(tensors, gradients, strict=True):
        p.grad = gradient.clone()
    return gradients


def test_lars_by_hand() -> None:
    """Three steps at different rates: You et al. 2017 with MoCo v3's exceptions, entry by entry."""
    ours = parameters()
    weights = [p.detach().clone() for p in ours]
    velocities = [torch.zeros_like(w) for w in weights]
    optimizer = LARS(ours, lr=0.0, momentum=0.9, weight_decay=0.01)
    for step, rate in enumerate((0.3, 4.8, 1.0)):
        gradients = set_gradients(ours, step)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for n, gradient in enumerate(gradients):
            update = gradient
            if len(SHAPES[n]) > 1:
                update = gradient + 0.01 * weights[n]
                size = weights[n].square().sum().sqrt()
                if size > 0:
                    update = update * (0.001 * size / update.square().sum().sqrt())
            velocities[n] = 0.9 * velocities[n] + update
            weights[n] = weights[n] - rate * velocities[n]
            torch.testing.assert_close(ours[n].detach(), weights[n], rtol=1e-13, atol=1e-15)


def test_lars_leaves_out_what_has_no_gradient_and_what_does_not_move() -> None:
    ours = parameters()
    before = [p.detach().clone() for p in ours]
    optimizer = LARS(ours, lr=1.0, momentum=0.9, weight_decay=0.0)
    ours[0].grad, ours[1].grad = torch.ones_like(ours[0]), torch.zeros_like(ours[1])
    optimizer.step()
    assert not torch.equal(ours[0], before[0])
    assert all(torch.equal(p, old) for p, old in zip(ours[1:], before[1:], strict=True))


@pytest.mark.parametrize("name", ["lars", "adamw", "sgd"])
def test_a_step_after_infinite_gradients_is_skipped(name: str) -> None:
    """By `found_inf`, which is set without waiting for the device: weights and momenta stay, the next step is good."""
    cfg = config.defaults()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR = name, 0.1
    results = []
    for spoilt in (False, True):
        ours = parameters()[:3]
        optimizer: Any = optimizers.make(cfg, ours)
        for step in range(3):
            set_gradients(ours, step)
            if spoilt:
                good = [p.grad for p in ours]
                for p in ours:
                    p.grad = torch.full_like(p, torch.nan)
                optimizer.found_inf = torch.tensor(1.0)
                optimizer.step()
                for p, gradient in zip(ours, good, strict=True):
                    p.grad = gradient
                optimizer.found_inf = torch.tensor(0.0)
            optimizer.step()
        results.append(ours)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_a_scaler_leaves_the_step_to_the_optimizer(name: str) -> None:
    """So it does not look at its verdict, for which a GPU would have to be waited for: scaled gradients give the
    weights of plain ones, and a step whose gradients overflow changes nothing but the scale.
    """
    cfg = config.defaults()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR = name, 0.1
    ours, theirs = parameters(), parameters()
    optimizer, plain = optimizers.make(cfg, ours), optimizers.make(cfg, theirs)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler._maybe_opt_step = lambda *_, **__: pytest.fail("the verdict was read")
    for step in range(4):
        set_gradients(theirs, step)
        for p, gradient in zip(ours, set_gradients(ours, step), strict=True):
            p.grad = scaler.scale(gradient)
        if step == 2:
            ours[1].grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        if step != 2:
            plain.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert scaler.get_scale() == 32


def test_what_a_config_gives() -> None:
    cfg = config.load("pretrain/moco_v3_ViTB.yaml")
    (group,) = optimizers.make(cfg, parameters()).param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.0024, 0.1, (0.9, 0.999))
    cfg = config.load("pretrain/moco_v3_R50_1000ep.yaml")
    optimizer = optimizers.make(cfg, parameters())
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, LARS)
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (4.8, 1.5e-6, 0.9)
