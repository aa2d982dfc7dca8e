"""The decision about bf16 comes from timed steps of the real encoder, whatever its batch-norm groups."""

import pytest
import torch

from pretrain import amp, config, run

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", ["2", "6", "32", "128"])  # fewer images than the probe takes, and more
def test_probe_takes_any_group_size(size: str) -> None:
    tiny = ["MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "MODEL.BN_GROUP_SIZE", size]
    tiny += ["SOLVER.IMS_PER_BATCH", "768"]  # all of them divide it
    cfg = config.load("pretrain/moco_v2_R50.yaml", tiny)
    decision = amp.decide(
        "auto", run.encoder_maker(cfg, CPU), size=32, group_size=cfg.MODEL.BN_GROUP_SIZE, device=CPU
    )
    assert decision.startswith(("bf16 (", "off ("))


@pytest.mark.parametrize(("half", "choice"), [(0.5, "bf16"), (0.9, "off"), (13.0, "off")])
def test_bf16_must_be_clearly_faster(monkeypatch: pytest.MonkeyPatch, half: float, choice: str) -> None:
    monkeypatch.setattr(amp, "_seconds", lambda encoder, images: (1.0, half))
    assert amp.decide("auto", torch.nn.Identity, size=8, group_size=4, device=CPU).startswith(choice)


def test_fixed_settings_are_not_timed() -> None:
    for setting in ("bf16", "off"):
        decision = amp.decide(setting, lambda: pytest.fail("timed"), size=8, group_size=4, device=CPU)
        assert decision.startswith(setting)
