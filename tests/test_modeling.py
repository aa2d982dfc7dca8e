"""Every model config builds at full width and trains; the paper's C4 head is detectron2's plus a norm."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from transfer import config, modeling

CONFIGS = sorted(p.name for p in (Path(config.__file__).parents[1] / "configs/transfer").glob("*.yaml"))
MODELS = [name for name in CONFIGS if not name.startswith("base_")]


def _load(name: str, *overrides: str):
    return config.load(f"transfer/{name}", ["MODEL.INIT", "random", "MODEL.DEVICE", "cpu", *overrides])


def _sample(cfg) -> dict[str, object]:
    """One 96 x 128 picture with two objects, as detectron2's mapper gives it."""
    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 60.0, 70.0], [50.0, 20.0, 120.0, 90.0]]))
    instances.gt_classes = torch.tensor([0, cfg.MODEL.ROI_HEADS.NUM_CLASSES - 1])
    if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "bitmask":
        bitmaps = torch.zeros(2, 96, 128, dtype=torch.bool)
        bitmaps[0, 8:70, 8:60] = bitmaps[1, 20:90, 50:120] = True
        instances.gt_masks = BitMasks(bitmaps)
    elif cfg.MODEL.MASK_ON:
        corners = [[8.0, 8, 60, 8, 60, 70, 8, 70], [50.0, 20, 120, 20, 120, 90, 50, 90]]
        instances.gt_masks = PolygonMasks([[c] for c in corners])
    image = torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(0))
    return {"image": image.to(torch.uint8), "instances": instances, "height": 96, "width": 128}


@pytest.mark.parametrize("name", MODELS)
def test_builds_at_full_width_and_trains_every_layer(name: str) -> None:
    cfg = _load(name)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    with EventStorage():
        losses = model([_sample(cfg), _sample(cfg)])
    expected = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} | (
        {"loss_mask"} if cfg.MODEL.MASK_ON else set()
    )
    assert set(losses) == expected
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    # FREEZE_AT 0: the paper fine-tunes all layers, the stem included
    untrained = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert untrained == []
    norms = {type(m).__name__ for m in model.backbone.modules() if "Norm" in type(m).__name__}
    assert norms == {"SyncBatchNorm"}


def test_fpn_heads_have_no_norm() -> None:
    model = build_model(_load("coco_R50_FPN.yaml"))
    norms = [m for m in model.roi_heads.modules() if "Norm" in type(m).__name__]
    assert norms == []  # "the architecture of heads are not different from standard baselines"
    assert len(model.roi_heads.mask_head.conv_norm_relus) == 4
    assert sum(isinstance(m, nn.Linear) for m in model.roi_heads.box_head.modules()) == 2


def test_c4_head_is_the_stock_head_followed_by_batch_norm() -> None:
    cfg = _load("voc_R50_C4_24k.yaml")
    ours, _ = modeling.Res5ROIHeadsExtraNorm._build_res5_block(cfg)
    stock, channels = Res5ROIHeads._build_res5_block(cfg)
    assert [name for name, _ in ours.named_children()] == ["0", "1", "2", "norm"]
    stock.load_state_dict({k: v for k, v in ours.state_dict().items() if not k.startswith("norm.")})
    norm = nn.BatchNorm2d(channels)
    torch.nn.init.normal_(norm.weight)
    ours.norm.load_state_dict(norm.state_dict())
    x = torch.randn(2, channels // 2, 14, 14)
    assert torch.equal(ours.train()(x), norm.train()(stock.train()(x)))
