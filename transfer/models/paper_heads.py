"""The parts that the paper adds to detectron2's detectors. Importing this module registers them by name."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY, Backbone, build_resnet_backbone
from detectron2.modeling.roi_heads import Res5ROIHeads
from fvcore.nn.weight_init import c2_xavier_fill
from torch import nn

from pretrain.common.errors import UserError
from transfer.models.registering import register


@register(ROI_HEADS_REGISTRY)
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """The C4 box head of the paper: the res5 stage followed by one more BN layer (He et al. App. A.1).

    The norm ends the res5 block, before the pooling, so a mask head gets normalised features too. Published configs
    use this class name.
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        res5, channels = super()._build_res5_block(cfg)
        res5.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return res5, channels


class DilatedC5(Backbone):
    """A ResNet whose res5 is dilated and keeps the stride of res4, then a 3x3 convolution with a norm.

    The paper describes "a 3x3 convolution (with BN)" with 512 output channels (He et al. App. A.1; no code was ever
    released). The paper leaves these points open; the choices here are:

    - There is no ReLU after the norm. The same appendix says "with BN and ReLU" for the convolutions of its
      segmentation head, but only BN here, as after res5 in C4. FPN's outputs have no ReLU either.
    - The convolution itself is not dilated, and is initialised like FPN's.
    - Both RPN and box head read its output, the only one: the paper counts the convolution as part of the backbone.

    The ResNet is detectron2's, with dilation in all three 3x3 convolutions of res5. torchvision's
    `replace_stride_with_dilation` gives the first of them dilation 1.

    Args:
        bottom_up: the ResNet; must output `res5`.
        channels: of the output.
        norm: a name for `detectron2.layers.get_norm`; "": a bias instead of a norm.
    """

    def __init__(self, bottom_up: Backbone, channels: int, *, norm: str) -> None:
        super().__init__()
        res5 = bottom_up.output_shape()["res5"]
        self.bottom_up = bottom_up
        self.output = Conv2d(
            res5.channels, channels, 3, padding=1, bias=not norm, norm=get_norm(norm, channels)
        )
        c2_xavier_fill(self.output)
        self._out_features = ["dc5"]
        self._out_feature_channels = {"dc5": channels}
        self._out_feature_strides = {"dc5": res5.stride}

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images (N, 3, H, W) to `dc5`: (N, channels, H / 16, W / 16), rounded up."""
        return {"dc5": self.output(self.bottom_up(images)["res5"])}


@register(BACKBONE_REGISTRY)
def build_resnet_dc5_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DilatedC5:
    """Build the R50-dilated-C5 backbone of the paper; MODEL.BACKBONE.NAME selects it.

    MODEL.DC5.CHANNELS and MODEL.RESNETS.NORM define the added convolution.

    Raises:
        UserError: MODEL.RESNETS keys describe another network.
    """
    for key, needed in (("RES5_DILATION", 2), ("OUT_FEATURES", ["res5"])):
        if cfg.MODEL.RESNETS[key] != needed:
            raise UserError(
                f"MODEL.RESNETS.{key} {cfg.MODEL.RESNETS[key]}: build_resnet_dc5_backbone needs {needed}"
            )
    resnet = build_resnet_backbone(cfg, input_shape)
    return DilatedC5(resnet, cfg.MODEL.DC5.CHANNELS, norm=cfg.MODEL.RESNETS.NORM)
