"""What a run prints before its first step."""

import pytest

from transfer.config.load import load_config
from transfer.train.start import memory_note, network


@pytest.mark.parametrize(
    ("config", "device", "overrides", "noted"),
    [
        ("custom_R50_FPN", "cpu", [], True),  # 16 images of 800 pixels
        ("custom_R50_FPN", "cuda", [], False),
        ("custom_R50_FPN", "cpu", ["SOLVER.ACCUMULATE", "16"], False),
        ("laptop_custom", "cpu", [], False),
        ("demo_R50w50_FPN", "cpu", [], False),
    ],
)
def test_a_large_batch_on_a_processor_is_told_of_the_laptops_config(
    config: str, device: str, overrides: list[str], noted: bool
) -> None:
    cfg = load_config(f"transfer/{config}.yaml", ["MODEL.INIT", "random", "MODEL.DEVICE", device, *overrides])
    assert ("--config transfer/laptop_custom.yaml" in memory_note(cfg)) == noted


def test_the_network_of_a_vit_is_not_called_a_resnet() -> None:
    cfg = load_config("transfer/demo_ViT_SFP.yaml", ["MODEL.INIT", "random"])
    vit = "ViT of 6 blocks of width 192, simple feature pyramid"
    assert network(cfg) == f"Mask R-CNN, {vit}"
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    assert network(cfg) == f"PanopticFPN, {vit}"
