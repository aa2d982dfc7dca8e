"""The optimizers' parameter groups, and the learning rates of the schedules in closed form."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer

from pretrain.common.errors import UserError
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


# Of one decay d and one factor f, written out: the stages of a ResNet are 1 to 5 steps below the heads.
STEPS = {"res5": 1, "res4": 2, "res3": 3, "res2": 4, "stem": 5}


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("name", ["coco_R50_FPN", "voc_R50_C4_24k", "voc_R50_DC5_24k"])
def test_every_parameter_has_the_rate_of_its_stage(name: str, optimizer: str) -> None:
    more = ["SOLVER.LR_DECAY", "0.5", "SOLVER.BACKBONE_LR_FACTOR", "0.8", "SOLVER.OPTIMIZER", optimizer]
    cfg = load_config(f"transfer/{name}.yaml", ["MODEL.INIT", "random", *detection_data.TINY, *more])
    model = build_model(cfg)
    groups = build.build_optimizer(cfg, model).param_groups
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    norm = {id(p) for m in model.modules() if "BatchNorm" in type(m).__name__ for p in m.parameters()}
    seen = set()
    for key, parameter in model.named_parameters():
        parts = key.split(".")
        # The pyramid's layers are called fpn_lateral2, ...; C4's last stage is roi_heads.res5.
        stage = next(
            (part for part in parts[:3] if part in STEPS and parts[0] in ("backbone", "roi_heads")), None
        )
        factor = 0.8 * 0.5 ** STEPS[stage] if stage else 1.0
        decay = 0.0 if id(parameter) in norm else cfg.SOLVER.WEIGHT_DECAY
        assert rate.pop(id(parameter)) == pytest.approx((cfg.SOLVER.BASE_LR * factor, decay)), key
        seen.add(stage)
    assert seen == {*STEPS, None} and not rate
    assert groups[0]["lr"] == cfg.SOLVER.BASE_LR


def test_the_log_shows_the_rate_of_the_heads_also_below_that_of_the_backbone() -> None:
    """It shows that of the first group."""
    cfg = _config("SOLVER.BACKBONE_LR_FACTOR", "2")
    groups = build.build_optimizer(cfg, build_model(cfg)).param_groups
    rates = {group["lr"] for group in groups}
    assert rates == {cfg.SOLVER.BASE_LR, 2 * cfg.SOLVER.BASE_LR} and groups[0]["lr"] == cfg.SOLVER.BASE_LR


def test_without_the_keys_the_groups_are_detectron2s() -> None:
    cfg = _config()
    model = build_model(cfg)
    ours, theirs = (make(cfg, model).param_groups for make in (build.build_optimizer, build_optimizer))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        a["foreach"] = b["foreach"] = None  # how the sums are grouped, which main sets: no other numbers
        assert list(map(id, a.pop("params"))) == list(map(id, b.pop("params"))) and a == b


def test_a_backbone_without_stages_is_named() -> None:
    with pytest.raises(UserError, match=r"SOLVER\.LR_DECAY are for ResNets and ViTs"):
        build.build_optimizer(_config("SOLVER.LR_DECAY", "0.9"), torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("key", "value"),
    [("LR_DECAY", "0"), ("LR_DECAY", "1.1"), ("BACKBONE_LR_FACTOR", "0"), ("BACKBONE_LR_FACTOR", "1e999")],
)
def test_impossible_rates_are_refused(key: str, value: str) -> None:
    with pytest.raises(UserError, match=f"SOLVER.{key} "):
        _config(f"SOLVER.{key}", value)


def test_rates_of_a_frozen_backbone_are_refused_except_with_res5_in_the_head() -> None:
    frozen = ["MODEL.BACKBONE.FREEZE_AT", "5", "SOLVER.LR_DECAY", "0.9", "MODEL.INIT", "random"]
    with pytest.raises(UserError, match="would have no effect"):
        load_config("transfer/coco_R50_FPN.yaml", frozen)
    load_config("transfer/coco_R50_C4_1x.yaml", frozen)
