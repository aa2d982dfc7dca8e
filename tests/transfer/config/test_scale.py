"""Scaling a recipe to another number of GPUs: detectron2's rule, values by hand, and the printed sentence."""

from pathlib import Path

import pytest
from detectron2.engine import DefaultTrainer

from pretrain.common.configs import CONFIG_ROOT
from pretrain.common.errors import UserError
from transfer.config import scale
from transfer.config.explain import explain
from transfer.config.load import load_config, read_config

KEYS = (
    "IMS_PER_BATCH",
    "BASE_LR",
    "STEPS",
    "MAX_ITER",
    "WARMUP_ITERS",
    "CHECKPOINT_PERIOD",
    "REFERENCE_WORLD_SIZE",
)


def _voc(*overrides: str):
    return load_config("transfer/voc_R50_C4_24k.yaml", ["MODEL.INIT", "random", *overrides])


def test_two_gpus_by_hand() -> None:
    cfg, sentence = scale.rescale(_voc("TEST.EVAL_PERIOD", "3000", "SOLVER.CHECKPOINT_PERIOD", "500"), 2)
    assert [cfg.SOLVER[key] for key in KEYS] == [4, 0.005, (72000, 88000), 96000, 400, 2000, 2]
    assert cfg.TEST.EVAL_PERIOD == 12000
    for part in (
        "batch 16 -> 4",
        "lr 0.02 -> 0.005",
        "24000 -> 96000 iterations",
        "100 -> 400",
        "(72000, 88000)",
    ):
        assert part in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(("reference", "gpus"), [(8, 1), (8, 3), (8, 16), (4, 2), (16, 8)])
def test_equals_detectron2s_auto_scaling(reference: int, gpus: int) -> None:
    cfg = _voc("SOLVER.REFERENCE_WORLD_SIZE", str(reference), "TEST.EVAL_PERIOD", "700")
    ours, _ = scale.rescale(cfg, gpus)
    theirs = DefaultTrainer.auto_scale_workers(cfg, gpus)
    for key in KEYS:
        assert ours.SOLVER[key] == pytest.approx(theirs.SOLVER[key])
    assert ours.TEST.EVAL_PERIOD == theirs.TEST.EVAL_PERIOD


@pytest.mark.parametrize(
    ("gpus", "overrides", "message"),
    [
        (0, (), "--scale 0"),
        (
            2,
            ("SOLVER.IMS_PER_BATCH", "12"),
            r"IMS_PER_BATCH 12 is not a multiple of the 8 GPUs.*REFERENCE_WORLD_SIZE",
        ),
    ],
)
def test_what_cannot_be_scaled(gpus: int, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scale.rescale(_voc(*overrides), gpus)


@pytest.mark.parametrize(
    "path", sorted((CONFIG_ROOT / "transfer").glob("*.yaml")), ids=lambda path: path.stem
)
def test_no_shipped_config_warns_about_itself(path: Path) -> None:
    cfg = load_config(str(path), ["MODEL.INIT", "random"])
    assert scale.lr_warning(cfg, read_config(str(path))) is None
    assert not any(line.startswith(("note:", "warning:")) for line in explain(cfg, str(path)))


def test_warns_of_a_rate_out_of_proportion() -> None:
    recipe = read_config("transfer/voc_R50_C4_24k.yaml")
    line = scale.lr_warning(_voc("SOLVER.IMS_PER_BATCH", "4"), recipe)
    assert line is not None
    for part in ("SOLVER.BASE_LR 0.02", "batch of 4", "0.005", "--scale"):
        assert part in line
    assert scale.lr_warning(_voc(), recipe) is None
    assert scale.lr_warning(scale.rescale(_voc(), 2)[0], recipe) is None
    assert scale.lr_warning(_voc("SOLVER.BASE_LR", "0.2"), recipe) is not None
    assert scale.lr_warning(_voc("SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", "0.2"), recipe) is None
