"""The choice of bf16 is based on timed steps of the real encoder, for any size of its batch-norm groups."""

import pytest
import torch

from pretrain import config
from pretrain.common.errors import UserError
from pretrain.model import build, norm, precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", ["2", "6", "32", "128"])  # below and above the number of timed images
def test_probe_takes_any_group_size(size: str) -> None:
    tiny = ["MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "MODEL.BN_GROUP_SIZE", size]
    tiny += ["SOLVER.IMS_PER_BATCH", "768"]  # divisible by every size
    cfg = config.load("pretrain/moco_v2_R50.yaml", tiny)
    decision = precision.decide(
        "auto",
        build.encoder_maker(cfg, norm.norm_layer(cfg, CPU)),
        size=32,
        group_size=cfg.MODEL.BN_GROUP_SIZE,
        device=CPU,
    )
    assert decision.startswith(("bf16 (", "off ("))


@pytest.mark.parametrize(("half", "choice"), [(0.5, "bf16"), (0.9, "off"), (13.0, "off")])
def test_bf16_must_be_clearly_faster(monkeypatch: pytest.MonkeyPatch, half: float, choice: str) -> None:
    monkeypatch.setattr(precision, "_seconds", lambda encoder, images: (1.0, half))
    assert precision.decide("auto", torch.nn.Identity, size=8, group_size=4, device=CPU).startswith(choice)


def test_fixed_settings_are_not_timed() -> None:
    for setting in ("bf16", "off"):
        decision = precision.decide(setting, lambda: pytest.fail("timed"), size=8, group_size=4, device=CPU)
        assert decision.startswith(setting)


@pytest.mark.parametrize(("native", "choice"), [(True, "bf16 ("), (False, "off (")])
def test_a_gpu_is_asked_not_timed(monkeypatch: pytest.MonkeyPatch, native: bool, choice: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: native)
    gpu = torch.device("cuda")
    assert precision.decide(
        "auto", lambda: pytest.fail("timed"), size=8, group_size=4, device=gpu
    ).startswith(choice)


def test_float16_is_for_gpus() -> None:
    """It is refused on a CPU and accepted for a GPU; the decision itself does not use the GPU."""
    never = torch.nn.Identity
    with pytest.raises(UserError, match=r"SOLVER\.AMP fp16: float16 needs a GPU; use SOLVER\.AMP auto"):
        precision.decide("fp16", never, size=8, group_size=4, device=CPU)
    gpu = precision.decide("fp16", never, size=8, group_size=4, device=torch.device("cuda"))
    assert gpu == "fp16 (SOLVER.AMP)"


def test_float32_is_not_tf32() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    precision.forbid_tf32()
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_channels_last_where_it_was_measured_to_help() -> None:
    paper, demo = (config.load(f"pretrain/{name}.yaml") for name in ("moco_v2_R50", "demo_R18"))
    assert precision.channels_last(paper, CPU) and not precision.channels_last(demo, CPU)
    assert precision.channels_last(demo, torch.device("cuda"))
