"""The paper's detectors against stock detectron2: the same weights and images give the same numbers.

Stock is the model zoo's own config, set to the same norm and input format and to nothing else of ours. What the
paper adds (a norm behind res5, a convolution behind a dilated res5) is added to the stock model here, by hand.
"""

from pathlib import Path
from typing import Any

import detectron2
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import (
    Backbone,
    GeneralizedRCNN,
    build_backbone,
    build_model,
    build_proposal_generator,
    build_roi_heads,
)
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from pretrain.common.configs import flatten
from transfer.config.load import load_config
from transfer.models import paper_heads  # noqa: F401 (registers)

# Applied to both sides: the format of the weights, and fewer proposals to save time.
FORMAT = [
    "MODEL.DEVICE", "cpu", "INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]",
    "MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]", "MODEL.RESNETS.STRIDE_IN_1X1", "False", "MODEL.BACKBONE.FREEZE_AT",
    "0", "MODEL.RESNETS.NORM", "SyncBN",
]  # fmt: skip
FEWER = [
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "40", "MODEL.RPN.POST_NMS_TOPK_TEST", "12", "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "0.0", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "TEST.DETECTIONS_PER_IMAGE", "10",
]  # fmt: skip
# A quarter of the width of both, to save time too.
NARROW = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16, "MODEL.RESNETS.WIDTH_PER_GROUP": 16, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.FPN.OUT_CHANNELS": 64, "MODEL.ROI_BOX_HEAD.FC_DIM": 256, "MODEL.ROI_MASK_HEAD.CONV_DIM": 64,
}  # fmt: skip


def _ours(name: str, *overrides: str) -> CfgNode:
    own = ["MODEL.INIT", "random", "MODEL.DEVICE", "cpu"]
    return load_config(f"transfer/{name}.yaml", [*own, *FEWER, *overrides])


def _stock(name: str, *overrides: str) -> CfgNode:
    package = Path(detectron2.__file__).parent
    folders = (package / "model_zoo/configs", package.parent / "configs")  # a release; a checkout
    cfg = get_cfg()
    cfg.merge_from_file(str(next(f / f"{name}.yaml" for f in folders if (f / f"{name}.yaml").is_file())))
    cfg.merge_from_list([*FORMAT, *FEWER, *overrides])
    return cfg


def _narrowed(ours: CfgNode, stock: CfgNode) -> tuple[CfgNode, CfgNode]:
    """Both with `NARROW`, after a check that they have the same width without it."""
    flat = [flatten(cfg) for cfg in (ours, stock)]
    assert all(flat[0][key] == flat[1][key] for key in NARROW)
    for cfg in (ours, stock):
        cfg.defrost()
        cfg.merge_from_list([part for pair in NARROW.items() for part in pair])
    return ours, stock


def _images(cfg: CfgNode) -> list[dict[str, Any]]:
    """Return two noise images of different sizes, with two objects each, in the form of detectron2's mapper."""
    generator = torch.Generator().manual_seed(0)
    images: list[dict[str, Any]] = []
    for height, width in ((96, 128), (112, 80)):
        instances = Instances((height, width))
        corners = [[8.0, 8.0, 60.0, 70.0], [30.0, 20.0, 78.0, 90.0]]
        instances.gt_boxes = Boxes(torch.tensor(corners))
        instances.gt_classes = torch.tensor([0, cfg.MODEL.ROI_HEADS.NUM_CLASSES - 1])
        if cfg.MODEL.MASK_ON:
            instances.gt_masks = PolygonMasks([[[x, y, u, y, u, v, x, v]] for x, y, u, v in corners])
        image = torch.randint(0, 256, (3, height, width), generator=generator).to(torch.uint8)
        images.append({"image": image, "instances": instances, "height": 2 * height, "width": 2 * width})
    return images


def _randomise(model: nn.Module) -> None:
    """Give batch norms random parameters and statistics, so that all of them influence the output."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.8, 1.5, generator=generator)


def _numbers(model: nn.Module, images: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return everything that a model computes: detections, losses, gradients, and statistics after a step."""
    numbers: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for index, output in enumerate(model.eval()(images)):
            for field, value in output["instances"].get_fields().items():
                numbers[f"image {index} {field}"] = value.tensor if isinstance(value, Boxes) else value
    torch.manual_seed(2)  # proposals are sampled
    with EventStorage():
        losses = model.train()(images)
    sum(losses.values()).backward()
    numbers |= {name: loss.detach() for name, loss in losses.items()}
    numbers |= {f"gradient {name}": p.grad for name, p in model.named_parameters()}
    return numbers | {f"after {name}": tensor for name, tensor in model.state_dict().items()}


def _compare(ours: nn.Module, stock: nn.Module, cfg: CfgNode, renamed: dict[str, str] | None = None) -> None:
    """`renamed`: beginnings of the stock model's names -> of ours, where the test has added modules to it."""

    def our_name(name: str) -> str:
        for old, new in (renamed or {}).items():
            name = name.replace(old, new)
        return name

    _randomise(ours)
    state = ours.state_dict()
    names = {name: our_name(name) for name in stock.state_dict()}
    assert set(names.values()) == set(state)
    stock.load_state_dict({name: state[own] for name, own in names.items()})
    images = _images(cfg)
    actual, expected = _numbers(ours, images), _numbers(stock, images)
    expected = {our_name(name): value for name, value in expected.items()}
    assert set(actual) == set(expected)
    assert {"image 0 scores", "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} <= set(actual)
    assert ("loss_mask" in actual) == ("image 1 pred_masks" in actual) == cfg.MODEL.MASK_ON
    assert len(actual["image 0 scores"]) == len(actual["image 1 scores"]) == 10
    assert all(float(actual[name]) > 0 for name in actual if name.startswith("loss_"))
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_fpn_is_the_zoos_mask_rcnn() -> None:
    stock = _stock("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", "MODEL.FPN.NORM", "SyncBN")
    cfg, stock = _narrowed(_ours("coco_R50_FPN"), stock)
    _compare(build_model(cfg), build_model(stock), cfg)


@pytest.mark.parametrize("masks", [False, True])
def test_c4_is_the_zoos_with_a_norm_behind_res5(masks: bool) -> None:
    name = (
        "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x"
        if masks
        else "PascalVOC-Detection/faster_rcnn_R_50_C4"
    )
    ours, zoo = (
        _ours("voc_R50_C4_24k", "MODEL.MASK_ON", str(masks)),
        _stock(name, "MODEL.ROI_HEADS.NUM_CLASSES", "20"),
    )
    cfg, zoo = _narrowed(ours, zoo)
    stock = build_model(zoo)
    assert type(stock.roi_heads).__name__ == "Res5ROIHeads"
    stock.roi_heads.res5.add_module("norm", nn.SyncBatchNorm(512))
    _compare(build_model(cfg), stock, cfg)


class _ConvBehind(Backbone):
    def __init__(self, resnet: Backbone) -> None:
        super().__init__()
        self.resnet = resnet
        self.conv = nn.Conv2d(512, 512, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(512)
        self._out_features = ["res5"]
        self._out_feature_channels, self._out_feature_strides = {"res5": 512}, {"res5": 16}

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"res5": self.bn(self.conv(self.resnet(images)["res5"]))}


def test_dilated_c5_is_the_zoos_with_a_convolution_behind_it() -> None:
    zoo = _stock("COCO-Detection/faster_rcnn_R_50_DC5_1x", "MODEL.ROI_HEADS.NUM_CLASSES", "20")
    cfg, zoo = _narrowed(_ours("voc_R50_DC5_24k"), zoo)
    backbone = _ConvBehind(build_backbone(zoo))
    stock = GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=build_proposal_generator(zoo, backbone.output_shape()),
        roi_heads=build_roi_heads(zoo, backbone.output_shape()),
        pixel_mean=zoo.MODEL.PIXEL_MEAN,
        pixel_std=zoo.MODEL.PIXEL_STD,
    )
    renamed = {"backbone.resnet.": "backbone.bottom_up.", "backbone.conv.": "backbone.output."}
    _compare(build_model(cfg), stock, cfg, renamed | {"backbone.bn.": "backbone.output.norm."})
