"""Our ResNet against torchvision's, and against the arithmetic of its parameters."""

import pytest
import torch
import torchvision
from torch import nn

from pretrain.common.errors import UserError
from pretrain.model.encoders import ARCHITECTURES, Architecture, ResNet, architecture, projection_head


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x8d"])
def test_equals_torchvision_bit_for_bit(name: str) -> None:
    shape = architecture(name)
    ours = ResNet(shape, head=nn.Linear(shape.feature_channels, 1000))
    theirs = torchvision.models.get_model("resnext50_32x4d" if "resnext" in name else name)
    if "resnext" in name:  # torchvision has no model of this name, but its class can build it
        theirs = torchvision.models.resnet.ResNet(
            torchvision.models.resnet.Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=8
        )
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        shape = architecture(name)
        ours = ResNet(shape, head=nn.Linear(shape.feature_channels, 1000)).state_dict()
        block = (
            torchvision.models.resnet.Bottleneck if shape.bottleneck else torchvision.models.resnet.BasicBlock
        )
        theirs = torchvision.models.resnet.ResNet(
            block, list(shape.blocks), groups=shape.groups, width_per_group=shape.width_per_group
        ).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def count(shape: Architecture) -> int:
    """Count the backbone's parameters by hand: convolutions have no bias, batch norm has two numbers per channel."""
    stem, total = shape.stem_channels, 0

    def conv_bn(inputs: int, outputs: int, kernel: int, groups: int = 1) -> int:
        return inputs // groups * outputs * kernel**2 + 2 * outputs

    total += conv_bn(3, stem, 7)
    inputs = stem
    for stage, blocks in enumerate(shape.blocks):
        outputs = shape.out_channels * 2**stage
        middle = shape.width_per_group * shape.groups * 2**stage
        for block in range(blocks):
            if shape.bottleneck:
                total += conv_bn(inputs, middle, 1) + conv_bn(middle, middle, 3, shape.groups)
                total += conv_bn(middle, outputs, 1)
            else:
                total += conv_bn(inputs, outputs, 3) + conv_bn(outputs, outputs, 3)
            if block == 0 and (stage > 0 or shape.bottleneck):
                total += conv_bn(inputs, outputs, 1)
            inputs = outputs
    return total


@pytest.mark.parametrize("width", [0.125, 0.25, 1, 2, 4])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x8d"])
def test_parameters_at_any_width(name: str, width: float) -> None:
    shape = architecture(name, width)
    with torch.device("meta"):
        network = ResNet(shape)
    assert sum(p.numel() for p in network.parameters()) == count(shape)


def test_stem_of_its_own_width() -> None:
    shape = architecture("resnet50", 0.5, stem=64)
    assert (shape.stem_channels, shape.width_per_group, shape.out_channels) == (64, 32, 128)
    with torch.device("meta"):
        network = ResNet(shape)
    assert sum(p.numel() for p in network.parameters()) == count(shape)
    assert network.conv1.out_channels == network.layer1[0].conv1.in_channels == 64


def test_paper_sizes() -> None:
    """He et al. Table 1, backbones only (see test_recipes.py): R50 24, R50w2x 94, R50w4x 375, RX50 46 million."""
    for name, width, millions in [
        ("resnet50", 1, 24), ("resnet50", 2, 94), ("resnet50", 4, 375), ("resnext50_32x8d", 1, 46),
    ]:  # fmt: skip
        assert round(count(architecture(name, width)) / 1e6) == millions


def test_features_are_the_forward_pass() -> None:
    network = ResNet(architecture("resnet18", 0.25)).eval()
    images = torch.randn(2, 3, 64, 96)
    maps = network.features(images)
    assert [maps[f"res{n}"].shape[2:] for n in (2, 3, 4, 5)] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    torch.testing.assert_close(maps["res5"].mean((2, 3)), network(images))


def test_heads() -> None:
    assert [type(m).__name__ for m in projection_head("mlp", 8, 4)] == ["Linear", "ReLU", "Linear"]
    assert isinstance(projection_head("linear", 8, 4), nn.Linear)
    with pytest.raises(UserError, match=r"MODEL\.HEAD"):
        projection_head("none", 8, 4)


def test_unknown_architecture_lists_the_choices() -> None:
    with pytest.raises(UserError, match="resnet18, resnet34, resnet50"):
        architecture("vgg")
    with pytest.raises(UserError, match=r"MODEL\.WIDTH"):
        architecture("resnet50", 0)
