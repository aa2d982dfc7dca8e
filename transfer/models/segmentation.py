"""Semantic segmentation as in the paper (He et al. App. A.5): a small FCN head on a dilated ResNet.

The head runs in detectron2's `SemanticSegmentor`, which normalises images, pads batches, and resizes the output to
the original image size. Importing this module registers the head by name.
"""

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn.weight_init import c2_msra_fill
from torch import nn
from torch.nn import functional as F

from pretrain.common.errors import UserError
from transfer.models.registering import register

STRIDE = 16


@register(SEM_SEG_HEADS_REGISTRY)
class FCN16sHead(nn.Module):
    """Two dilated 3x3 convolutions with norm and ReLU, a 1x1 classifier, and bilinear interpolation by 16.

    It reads these keys of SEM_SEG_HEAD: IN_FEATURES (one), CONVS_DIM, NORM, DILATION, NUM_CLASSES, IGNORE_VALUE and
    LOSS_WEIGHT. The paper leaves these points open; the choices here are:

    - Initialisation: the 3x3 convolutions as in detectron2's own head (He et al.'s normal, fan out); the classifier
      with N(0, 0.01) and zero bias, so that all classes are about equally likely at the start. No dropout.
    - The loss is the mean over the labelled pixels of a process's share of the batch, as elsewhere in detectron2. It
      is zero if no pixel is labelled.
    - Interpolation: see `upsample`.

    Raises:
        UserError: the backbone's stride is not 16.
    """

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__()
        head = cfg.MODEL.SEM_SEG_HEAD
        self.feature = _single_feature(head.IN_FEATURES, input_shape)
        self.ignore_value: int = head.IGNORE_VALUE  # SemanticSegmentor pads labels with it
        self.loss_weight: float = head.LOSS_WEIGHT
        channels, convs = input_shape[self.feature].channels, []
        for _ in range(2):
            conv = Conv2d(
                channels,
                head.CONVS_DIM,
                kernel_size=3,
                padding=head.DILATION,
                dilation=head.DILATION,
                bias=not head.NORM,
                norm=get_norm(head.NORM, head.CONVS_DIM),
                activation=F.relu,
            )
            c2_msra_fill(conv)
            convs.append(conv)
            channels = head.CONVS_DIM
        self.convs = nn.Sequential(*convs)
        self.classifier = nn.Conv2d(channels, head.NUM_CLASSES, kernel_size=1)
        assert self.classifier.bias is not None
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, features: dict[str, torch.Tensor], targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """Compute losses or logits, in the form that `SemanticSegmentor` expects.

        Args:
            features: of the backbone; (N, C, h, w).
            targets: (N, H, W) class numbers or IGNORE_VALUE; used only in training.
        Returns:
            (None, losses) in training, (logits, {}) otherwise. Logits are (N, classes, 16 h + 1, 16 w + 1), a few
            rows and columns more than the image has: `SemanticSegmentor` crops them.
        """
        logits = upsample(self.classifier(self.convs(features[self.feature])))
        if not self.training:
            return logits, {}
        assert targets is not None
        logits = logits[:, :, : targets.shape[1], : targets.shape[2]]
        total = F.cross_entropy(logits, targets, ignore_index=self.ignore_value, reduction="sum")
        labelled = (targets != self.ignore_value).sum().clamp(min=1)
        return None, {"loss_sem_seg": total / labelled * self.loss_weight}


def upsample(logits: torch.Tensor) -> torch.Tensor:
    """Interpolate logits bilinearly by 16 in float32, with the geometry of the backbone.

    Cell i of a ResNet with stride 16 is centred at pixel 16 i of the image, because its strided convolutions and its
    pooling have odd kernels, padded by half of them. So pixel p is interpolated at p / 16, and the last cell is
    repeated beyond the end. For 513 = 16 * 32 + 1 and 769 = 16 * 48 + 1, the paper's crop sizes, the corners are
    centres of cells, and this equals `align_corners=True`. For other sizes that would stretch the map by up to 15
    pixels, and `align_corners=False` would shift all of it by 7.5.

    Args:
        logits: (N, C, h, w)
    Returns:
        (N, C, 16 h + 1, 16 w + 1)
    """
    height, width = logits.shape[-2:]
    extended = F.pad(logits.float(), (0, 1, 0, 1), mode="replicate")
    size = (STRIDE * height + 1, STRIDE * width + 1)
    return F.interpolate(extended, size, mode="bilinear", align_corners=True)


def _single_feature(names: list[str], shapes: dict[str, ShapeSpec]) -> str:
    if len(names) != 1 or names[0] not in shapes:
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES {list(names)}: FCN16sHead needs one of the backbone's {list(shapes)}"
        )
    stride = shapes[names[0]].stride
    if stride != STRIDE:
        raise UserError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES {list(names)} has stride {stride}: FCN16sHead needs {STRIDE}, as of "
            "res5 in a ResNet with MODEL.RESNETS.RES5_DILATION 2"
        )
    return names[0]
