"""ResNet encoders: torchvision's network at any width, and the projection heads of MoCo v1 and v2."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet

from pretrain.common.errors import UserError
from pretrain.model.norm import GroupBatchNorm2d, in_groups


@dataclass(frozen=True)
class Architecture:
    """The shape of a ResNet, in detectron2's terms. Each stage has twice the channels of the one before.

    Attributes:
        depth: the number in the name (50 for ResNet-50).
        blocks: number of residual blocks in each of the four stages.
        bottleneck: whether blocks are bottlenecks (ResNet-50 and deeper) or basic ones (18, 34).
        groups: groups of the 3x3 convolutions (32 in ResNeXt-50 32x8d).
        width_per_group: channels of one such group in the first stage; not used by basic blocks.
        stem_channels: of the stem's convolution.
        out_channels: of the first stage's output.
    """

    depth: int
    blocks: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    width_per_group: int = 64
    stem_channels: int = 64
    out_channels: int = 256

    @property
    def width(self) -> float:
        """The stages' width in multiples of the paper's (4 for R50w4x)."""
        return self.out_channels / (256 if self.bottleneck else 64)

    @property
    def feature_channels(self) -> int:
        """Number of channels of the last stage, the size of the pooled feature."""
        return self.out_channels * 8


ARCHITECTURES = {
    "resnet18": Architecture(18, (2, 2, 2, 2), bottleneck=False, out_channels=64),
    "resnet34": Architecture(34, (3, 4, 6, 3), bottleneck=False, out_channels=64),
    "resnet50": Architecture(50, (3, 4, 6, 3)),
    "resnet101": Architecture(101, (3, 4, 23, 3)),
    "resnet152": Architecture(152, (3, 8, 36, 3)),
    "resnext50_32x8d": Architecture(50, (3, 4, 6, 3), groups=32, width_per_group=8),
    "resnext101_32x8d": Architecture(101, (3, 4, 23, 3), groups=32, width_per_group=8),
}


class Bottleneck(resnet.Bottleneck):
    """torchvision's bottleneck block with any number of inner and output channels."""

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        *,
        stride: int,
        downsample: nn.Module | None,
        groups: int,
        norm_layer: Callable[[int], nn.Module],
    ) -> None:
        nn.Module.__init__(self)
        self.conv1 = resnet.conv1x1(inputs, inner)
        self.bn1 = norm_layer(inner)
        self.conv2 = resnet.conv3x3(inner, inner, stride, groups)
        self.bn2 = norm_layer(inner)
        self.conv3 = resnet.conv1x1(inner, outputs)
        self.bn3 = norm_layer(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample, self.stride = downsample, stride


class ResNet(resnet.ResNet):
    """torchvision's ResNet with any number of channels in the stem, inside the blocks and at their outputs.

    With the paper's numbers, parameters, names, initialisation and forward pass are torchvision's. Only the constructor
    is rewritten, because torchvision's has 64 channels in the stem and derives the outputs from the blocks.

    Args:
        architecture: which ResNet.
        head: replaces the classifier `fc`: (N, feature_channels) -> (N, any size). None: the identity.
        norm_layer: makes a normalisation layer from its number of channels.
        zero_init_residual: whether each block starts as the identity, its last norm scaling by 0 (MoCo v3).
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        head: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        zero_init_residual: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        stem = architecture.stem_channels
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for stage in range(4):
            setattr(self, f"layer{stage + 1}", _stage(architecture, stage, norm_layer))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # nn.BatchNorm2d initialises itself
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules() if zero_init_residual else ():
            if isinstance(module, resnet.Bottleneck | resnet.BasicBlock):
                last = module.bn3 if isinstance(module, resnet.Bottleneck) else module.bn2
                nn.init.zeros_(last.weight)
        self.fc = nn.Identity() if head is None else head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the head's output for (N, 3, H, W). In training image j is in batch-norm group j mod (groups in N)."""
        if self.training and isinstance(self.bn1, GroupBatchNorm2d):
            return in_groups(self._forward_impl, images, self.bn1.group_size)
        return self._forward_impl(images)

    def features(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return feature maps under detectron2's names: (N, 3, H, W) -> `res2` ... `res5`, strides 4 ... 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = {}
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            maps[f"res{stage + 1}"] = x
        return maps

    def feature(self, images: torch.Tensor) -> torch.Tensor:
        """Return the pooled feature, (N, 3, H, W) -> (N, feature_channels), in float32."""
        return self.features(images)["res5"].float().mean((2, 3))


def _stage(architecture: Architecture, stage: int, norm_layer: Callable[[int], nn.Module]) -> nn.Sequential:
    """Return the blocks of one of the stages 0 to 3."""
    outputs = architecture.out_channels * 2**stage
    inner = architecture.groups * architecture.width_per_group * 2**stage
    inputs, stride = (outputs // 2, 2) if stage else (architecture.stem_channels, 1)
    blocks: list[nn.Module] = []
    for _ in range(architecture.blocks[stage]):
        downsample = None
        if stride != 1 or inputs != outputs:
            downsample = nn.Sequential(resnet.conv1x1(inputs, outputs, stride), norm_layer(outputs))
        options: dict[str, Any] = {"stride": stride, "downsample": downsample, "norm_layer": norm_layer}
        if architecture.bottleneck:
            blocks.append(Bottleneck(inputs, inner, outputs, groups=architecture.groups, **options))
        else:
            blocks.append(resnet.BasicBlock(inputs, outputs, **options))
        inputs, stride = outputs, 1
    return nn.Sequential(*blocks)


def architecture(name: str, width: float = 1.0, *, stem: int = 0) -> Architecture:
    """Return an architecture by name, with every number of channels multiplied by `width`.

    Args:
        stem: the stem's number of channels; 0: 64 x `width`, like the others.

    Raises `UserError` for an unknown name or a width that leaves no channel.
    """
    if name not in ARCHITECTURES:
        raise UserError(f"MODEL.ARCH {name}: unknown architecture; choose one of {', '.join(ARCHITECTURES)}")
    if round(64 * width) < 1:
        raise UserError(f"MODEL.WIDTH {width}: must be positive")
    full, base = ARCHITECTURES[name], round(64 * width)
    return replace(
        full,
        stem_channels=stem or base,
        width_per_group=base * full.width_per_group // 64 if full.bottleneck else full.width_per_group,
        out_channels=base * full.out_channels // 64,
    )


def projection_head(kind: str, features: int, dim: int) -> nn.Module:
    """Return the projection head that replaces `fc`: (N, features) -> (N, dim). Raises `UserError` for another `kind`.

    `linear` is MoCo v1's single layer (He et al. Sec. 3.3); `mlp` is v2's two-layer MLP, whose hidden layer
    is as wide as the feature (2048 for ResNet-50; Chen et al. Sec. 3).
    """
    if kind == "linear":
        return nn.Linear(features, dim)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, dim))
    raise UserError(f"MODEL.HEAD {kind}: choose linear (MoCo v1) or mlp (MoCo v2)")
