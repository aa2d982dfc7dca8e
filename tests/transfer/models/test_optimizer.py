"""The optimizers' parameter groups, and the learning rates of the schedules in closed form."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler

from tests.support import detection_data
from transfer.config.load import load_config
from transfer.models import build


def _config(*more: str):
    return load_config("transfer/coco_R50_FPN.yaml", ["MODEL.INIT", "random", *detection_data.TINY, *more])


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_norm_layers_have_no_weight_decay(name: str) -> None:
    cfg = _config("SOLVER.OPTIMIZER", name)
    model = build_model(cfg)
    optimizer = build.build_optimizer(cfg, model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    norm = {id(p) for m in model.modules() if "BatchNorm" in type(m).__name__ for p in m.parameters()}
    assert {decay[i] for i in norm} == {0.0}
    assert {value for i, value in decay.items() if i not in norm} == {cfg.SOLVER.WEIGHT_DECAY}


def _rates(*more: str) -> list[float]:
    cfg = _config("SOLVER.BASE_LR", "0.02", "SOLVER.MAX_ITER", "20", "SOLVER.WARMUP_ITERS", "4", *more)
    optimizer = build.build_optimizer(cfg, torch.nn.Linear(1, 1))
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_steps_after_a_linear_warm_up() -> None:
    """The rate rises linearly from 1/1000 (detectron2's WARMUP_FACTOR) to 1, and drops to a tenth at each step."""
    warm_up = [0.02 * (0.001 + (1 - 0.001) * i / 4) for i in range(4)]
    expected = warm_up + [0.02] * 6 + [0.002] * 5 + [0.0002] * 5
    assert _rates("SOLVER.STEPS", "(10, 15)") == pytest.approx(expected)


def test_half_a_cosine() -> None:
    rates = _rates("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR")
    assert rates[4:] == pytest.approx([0.01 * (1 + math.cos(math.pi * i / 20)) for i in range(4, 20)])
