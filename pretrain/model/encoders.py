"""ResNet encoders: torchvision's network at any width, and the projection heads of MoCo v1 and v2."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.models import resnet

from pretrain.common.errors import UserError
from pretrain.model.norm import GroupBatchNorm2d, in_groups


@dataclass(frozen=True)
class Architecture:
    """The shape of a ResNet.

    Attributes:
        depth: the number in the name (50 for ResNet-50).
        blocks: number of residual blocks in each of the four stages.
        bottleneck: whether blocks are bottlenecks (ResNet-50 and deeper) or basic ones (18, 34).
        groups: groups of the 3x3 convolutions (32 in ResNeXt-50 32x8d).
        width_per_group: channels of one such group in the first stage, before `width` is applied.
        width: multiplies every channel count, stem included (4 in the paper's R50w4x).
    """

    depth: int
    blocks: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    width_per_group: int = 64
    width: float = 1.0

    @property
    def stem_channels(self) -> int:
        return round(64 * self.width)

    @property
    def feature_channels(self) -> int:
        """Number of channels of the last stage, the size of the pooled feature."""
        return self.stem_channels * 8 * (4 if self.bottleneck else 1)


ARCHITECTURES = {
    "resnet18": Architecture(18, (2, 2, 2, 2), bottleneck=False),
    "resnet34": Architecture(34, (3, 4, 6, 3), bottleneck=False),
    "resnet50": Architecture(50, (3, 4, 6, 3)),
    "resnet101": Architecture(101, (3, 4, 23, 3)),
    "resnet152": Architecture(152, (3, 8, 36, 3)),
    "resnext50_32x8d": Architecture(50, (3, 4, 6, 3), groups=32, width_per_group=8),
    "resnext101_32x8d": Architecture(101, (3, 4, 23, 3), groups=32, width_per_group=8),
}


class ResNet(resnet.ResNet):
    """torchvision's ResNet with every channel count multiplied by `architecture.width`.

    At width 1, parameters, names, initialisation and forward pass are torchvision's. Only the constructor is
    rewritten, because torchvision's has a fixed number of 64 channels in the stem and in the first stage.

    Args:
        architecture: which ResNet.
        head: replaces the classifier `fc`: (N, feature_channels) -> (N, any size). None: the identity.
        norm_layer: makes a normalisation layer from its number of channels.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        head: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        nn.Module.__init__(self)
        stem = architecture.stem_channels
        block = resnet.Bottleneck if architecture.bottleneck else resnet.BasicBlock
        self._norm_layer = norm_layer
        self.inplanes, self.dilation = stem, 1
        self.groups, self.base_width = architecture.groups, architecture.width_per_group
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for stage, blocks in enumerate(architecture.blocks):
            layer = self._make_layer(block, stem * 2**stage, blocks, stride=1 if stage == 0 else 2)
            setattr(self, f"layer{stage + 1}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # nn.BatchNorm2d initialises itself
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
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


def architecture(name: str, width: float = 1.0) -> Architecture:
    """Return an architecture by name. Raises `UserError` for an unknown name or a width that leaves no channel."""
    if name not in ARCHITECTURES:
        raise UserError(f"MODEL.ARCH {name}: unknown architecture; choose one of {', '.join(ARCHITECTURES)}")
    if round(64 * width) < 1:
        raise UserError(f"MODEL.WIDTH {width}: must be positive")
    return Architecture(**{**ARCHITECTURES[name].__dict__, "width": width})


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
