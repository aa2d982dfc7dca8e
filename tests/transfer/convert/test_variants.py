"""Networks other than R50 in the paper's detectors: converted, loaded completely, and equal to torchvision."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torchvision.models import ResNet, resnet
from torchvision.models.feature_extraction import create_feature_extractor

from pretrain.common.errors import UserError
from pretrain.model import encoders
from tests.support.checkpoints import plain_file, randomise, torchvision_network
from transfer.config.load import load_config
from transfer.convert import architecture as convert_architecture
from transfer.convert import convert
from transfer.models import init_weights

SMALL_HEADS = [
    "MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", "8", "MODEL.FPN.OUT_CHANNELS", "8", "MODEL.DC5.CHANNELS", "8",
]  # fmt: skip
LAYERS = {f"layer{stage - 1}": f"res{stage}" for stage in range(2, 6)}
IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))

# The networks at full size, and their settings that differ from those of a ResNet-50.
NETWORKS = {
    "R101": (resnet.resnet101, {"DEPTH": 101}),
    "RX50-32x8d": (
        lambda: ResNet(resnet.Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=8),
        {"NUM_GROUPS": 32, "WIDTH_PER_GROUP": 8},
    ),
    "wide-R50-2": (resnet.wide_resnet50_2, {"WIDTH_PER_GROUP": 128}),
    "R50w2": (  # in the paper's Table 1 and in SwAV: all widths doubled, including the stem
        lambda: encoders.ResNet(encoders.architecture("resnet50", 2.0)),
        {"WIDTH_PER_GROUP": 128, "STEM_OUT_CHANNELS": 128, "RES2_OUT_CHANNELS": 512},
    ),
    "thin-R50": (  # half the width, except for the stem
        lambda: encoders.ResNet(
            encoders.Architecture(50, (3, 4, 6, 3), width_per_group=32, out_channels=128)
        ),
        {"WIDTH_PER_GROUP": 32, "RES2_OUT_CHANNELS": 128},
    ),
}
R50 = {
    "DEPTH": 50, "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64, "STEM_OUT_CHANNELS": 64, "RES2_OUT_CHANNELS": 256,
    "STRIDE_IN_1X1": False,
}  # fmt: skip


def _architecture(name: str) -> encoders.Architecture:
    with torch.device("meta"):
        return convert_architecture.read_architecture(Path(name), NETWORKS[name][0]().state_dict())


def _settings(architecture: encoders.Architecture) -> dict[str, Any]:
    """Return the MODEL.RESNETS settings that the converter records."""
    recorded = convert.preprocessing(architecture)
    prefix = "MODEL.RESNETS."
    return {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}


def _converted(network: nn.Module, folder: Path) -> Path:
    convert.convert(plain_file(folder / "source.pth", network.state_dict()), folder / "w.pkl", verify=False)
    return folder / "w.pkl"


def _loaded(network: nn.Module, file: Path, name: str, *overrides: str) -> nn.Module:
    """Return a config's detector filled from the file, and check that it received every tensor of the source."""
    cfg = load_config(f"transfer/{name}.yaml", [*SMALL_HEADS, "MODEL.WEIGHTS", str(file), *overrides])
    model = build_model(cfg)
    loaded = init_weights.load_into(model, cfg)
    source = [n for n in network.state_dict() if not n.startswith("fc.") and "num_batches" not in n]
    assert loaded["matched"] == len(source)
    return model.eval()


def _overrides(settings: dict[str, Any]) -> list[str]:
    return [part for key, value in settings.items() for part in (f"MODEL.RESNETS.{key}", str(value))]


def _torchvision_features(network: nn.Module) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return create_feature_extractor(network.eval(), LAYERS)(IMAGES)


def _check(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error < 1e-5, f"{error:.1e}"


def _dilate_whole_res5(network: ResNet) -> None:
    """Set stride 1 and dilation 2 in the whole last stage; torchvision's own option spares the first block."""
    for block in network.layer4:
        block.conv2.stride, block.conv2.dilation, block.conv2.padding = (1, 1), (2, 2), (2, 2)
    network.layer4[0].downsample[0].stride = (1, 1)


@pytest.mark.parametrize("depth", [18, 34])
def test_basic_blocks_in_fpn_models_only(depth: int, tmp_path: Path) -> None:
    network = torchvision_network(f"resnet{depth}")
    file = _converted(network, tmp_path)
    overrides = _overrides({"DEPTH": depth, "RES2_OUT_CHANNELS": 64})
    model = _loaded(network, file, "coco_R50_FPN", *overrides)
    with torch.no_grad():
        actual = model.backbone.bottom_up(IMAGES)
    for level, expected in _torchvision_features(network).items():
        _check(actual[level], expected)
    for other in ("voc_R50_C4_24k", "voc_R50_DC5_24k"):
        with pytest.raises(UserError, match=f"DEPTH {depth}: detectron2 has ResNet-18 and 34 only in FPN"):
            _loaded(network, file, other, *overrides)


@pytest.mark.parametrize("name", NETWORKS)
def test_settings_at_full_size(name: str) -> None:
    assert _settings(_architecture(name)) == R50 | NETWORKS[name][1]


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_in_each_detector(name: str, tmp_path: Path) -> None:
    """At a quarter of the width, because the files would otherwise take up to 380 MB."""
    full = _architecture(name)
    sizes = ("stem_channels", "width_per_group", "out_channels")
    narrow = dataclasses.replace(full, **{size: getattr(full, size) // 4 for size in sizes})
    torch.manual_seed(0)
    network = randomise(encoders.ResNet(narrow))
    file, overrides = _converted(network, tmp_path), _overrides(_settings(narrow))
    expected = _torchvision_features(network)

    fpn = _loaded(network, file, "coco_R50_FPN", *overrides)
    with torch.no_grad():
        actual = fpn.backbone.bottom_up(IMAGES)
    for level in LAYERS.values():
        _check(actual[level], expected[level])

    c4 = _loaded(network, file, "voc_R50_C4_24k", *overrides)
    with torch.no_grad():
        res4 = c4.backbone(IMAGES)["res4"]
        res5 = c4.roi_heads.res5[:3](res4)  # without the paper's norm
    _check(res4, expected["res4"])
    _check(res5, expected["res5"])

    dc5 = _loaded(network, file, "voc_R50_DC5_24k", *overrides)
    _dilate_whole_res5(network)
    with torch.no_grad():
        res5 = dc5.backbone.bottom_up(IMAGES)["res5"]
        assert dc5.backbone(IMAGES)["dc5"].shape == (1, 8, 4, 6)
    assert res5.shape == (1, network.layer4[2].conv3.out_channels, 4, 6)
    _check(res5, _torchvision_features(network)["res5"])


def test_torchvisions_own_dilation_spares_the_first_block(tmp_path: Path) -> None:
    """As the docstring of DilatedC5 describes, detectron2, and so the paper, dilate all three blocks."""
    network = torchvision_network("resnet50")
    model = _loaded(network, _converted(network, tmp_path), "voc_R50_DC5_24k")
    dilated = ResNet(resnet.Bottleneck, [3, 4, 6, 3], replace_stride_with_dilation=[False, False, True])
    dilated.load_state_dict(network.state_dict())
    with torch.no_grad():
        actual = model.backbone.bottom_up(IMAGES)["res5"]
    expected = _torchvision_features(dilated)["res5"]
    assert (actual - expected).abs().max() / expected.abs().max() > 0.1
    assert [block.conv2.dilation for block in dilated.layer4] == [(1, 1), (2, 2), (2, 2)]
    dilated.layer4[0].conv2.dilation = dilated.layer4[0].conv2.padding = (2, 2)
    _check(actual, _torchvision_features(dilated)["res5"])
