"""The simple feature pyramid of a plain ViT (ViTDet, Li et al. 2022, arXiv 2203.16527, Sec. 3 and App. A.2)."""

import math

import torch
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

SCALES = (4.0, 2.0, 1.0, 0.5)


class SimpleFeaturePyramid(Backbone):
    """Maps of strides 4, 8, 16 and 32 from the last map of a ViT with stride 16, and a subsampled one of stride 64.

    Each map is scaled by transposed convolutions or a max pooling; a 1x1 and a 3x3 convolution follow, each with a
    norm. The parts are named as in detectron2's main branch: `net` and `simfp_2` to `simfp_5`, after the logarithm of
    the stride.

    Args:
        net: has one output.
        channels: of the maps.
        norm: a name for `detectron2.layers.get_norm`; "": a bias instead of a norm.
        square: side in pixels of the squares that images are padded to; a larger image is padded to a multiple of it.
    """

    def __init__(self, net: Backbone, channels: int, *, norm: str, square: int) -> None:
        super().__init__()
        self.net, self.square = net, square
        (self.input,) = net.output_shape()
        shape = net.output_shape()[self.input]
        self.stages = []  # not a ModuleList: the names are detectron2's
        self._out_feature_strides = {}
        for scale in SCALES:
            stride = int(shape.stride / scale)
            level = int(math.log2(stride))
            self.stages.append(_stage(shape.channels, channels, scale=scale, norm=norm))
            self.add_module(f"simfp_{level}", self.stages[-1])
            self._out_feature_strides[f"p{level}"] = stride
        self.last = LastLevelMaxPool()
        self._out_feature_strides[f"p{level + 1}"] = 2 * stride
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict.fromkeys(self._out_features, channels)

    @property
    def size_divisibility(self) -> int:
        """Side of the padded squares in pixels.

        detectron2 pads images to a common size, of which both sides are multiples of this number. So images up to that
        size become squares, in v0.6 too, which lacks main's `padding_constraints`.
        """
        return self.square

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images (N, 3, H, W) to `p2`, ... `p6`: (N, channels, H / 4, W / 4), ... (N, channels, H / 64, W / 64)."""
        features = self.net(images)[self.input]
        maps = [stage(features) for stage in self.stages]
        maps += self.last(maps[-1])
        return dict(zip(self._out_features, maps, strict=True))


def _stage(width: int, channels: int, *, scale: float, norm: str) -> nn.Sequential:
    """Return what scales a map of `width` channels and turns it into `channels`."""
    layers: list[nn.Module] = []
    if scale == 4:
        layers = [
            nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2),
            get_norm(norm, width // 2) or nn.Identity(),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, kernel_size=2, stride=2),
        ]
    elif scale == 2:
        layers = [nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)]
    elif scale == 0.5:
        layers = [nn.MaxPool2d(kernel_size=2, stride=2)]
    width //= {4.0: 4, 2.0: 2}.get(scale, 1)
    for inputs, kernel in ((width, 1), (channels, 3)):
        layers.append(
            Conv2d(
                inputs,
                channels,
                kernel,
                padding=kernel // 2,
                bias=not norm,
                norm=get_norm(norm, channels),
            )
        )
    return nn.Sequential(*layers)
