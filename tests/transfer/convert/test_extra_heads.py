"""FPN and box head of files that pre-train them: they arrive in a detectron2 detector bit for bit."""

from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from pretrain.common.errors import UserError
from tests.support.checkpoints import State
from tests.support.layouts import FILES, network, under
from transfer.convert.convert import convert
from transfer.convert.weights_file import read_weights

QUERY, KEY = network(1), network(2)


def norm(name: str, channels: int) -> State:
    parts = {part: torch.rand(channels) + 0.5 for part in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}


def fpn(prefix: str) -> State:
    """Return mmdetection's `neck` of ConvModules with batch norm, for the narrow network's 32 to 256 channels."""
    state: State = {}
    for level in range(4):
        for kind, size in (("lateral", 1), ("fpn", 3)):
            inputs = 32 * 2**level if kind == "lateral" else 16
            state[f"{kind}_convs.{level}.conv.weight"] = torch.randn(16, inputs, size, size)
            state |= norm(f"{kind}_convs.{level}.bn", 16)
    return under(prefix, state)


def detector() -> torch.nn.Module:
    """Return a Faster R-CNN FPN with a box head of four convolutions, at the narrow network's width."""
    cfg = get_cfg()
    package = Path(str(detectron2.__file__)).parent
    folders = (package / "model_zoo/configs", package.parent / "configs")  # installed release; checkout
    name = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
    cfg.merge_from_file(str(next(f / name for f in folders if (f / name).is_file())))
    pairs = {
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8, "MODEL.RESNETS.RES2_OUT_CHANNELS": 32, "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.STRIDE_IN_1X1": False, "MODEL.RESNETS.NORM": "BN", "MODEL.FPN.NORM": "BN",
        "MODEL.FPN.OUT_CHANNELS": 16, "MODEL.ROI_BOX_HEAD.NORM": "BN", "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 16, "MODEL.ROI_BOX_HEAD.NUM_FC": 1, "MODEL.ROI_BOX_HEAD.FC_DIM": 24,
        "MODEL.DEVICE": "cpu",
    }  # fmt: skip
    for key, value in pairs.items():
        cfg.merge_from_list([key, value])
    return build_model(cfg)


def test_instancelocs_fpn_and_head_arrive_in_detectron2(tmp_path: Path) -> None:
    state = under("backbone.", QUERY) | under("backbone_k.", KEY) | fpn("neck.") | fpn("neck_k.")
    head: State = {}
    for index in range(4):
        head[f"shared_convs.{index}.conv.weight"] = torch.randn(16, 16, 3, 3)
        head |= norm(f"shared_convs.{index}.bn", 16)
    head |= {"shared_fcs.0.weight": torch.randn(24, 16 * 49), "shared_fcs.0.bias": torch.randn(24)}
    state |= under("roi_head.bbox_head.", head) | under(
        "roi_head_k.bbox_head.", {n: t + 1 for n, t in head.items()}
    )
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    written = convert(tmp_path / "a.pth", tmp_path / "a.pkl", keep=("fpn", "box_head"))
    assert written["preprocessing"]["MODEL.FPN.OUT_CHANNELS"] == 16
    assert written["preprocessing"]["MODEL.ROI_BOX_HEAD.NUM_CONV"] == 4
    assert written["preprocessing"]["MODEL.ROI_BOX_HEAD.FC_DIM"] == 24
    model = detector()
    DetectionCheckpointer(model).load(str(tmp_path / "a.pkl"))
    loaded = model.state_dict()
    assert torch.equal(loaded["backbone.fpn_lateral2.weight"], state["neck.lateral_convs.0.conv.weight"])
    assert torch.equal(
        loaded["backbone.fpn_output5.norm.running_var"], state["neck.fpn_convs.3.bn.running_var"]
    )
    assert torch.equal(loaded["roi_heads.box_head.conv4.norm.bias"], head["shared_convs.3.bn.bias"])
    assert torch.equal(loaded["roi_heads.box_head.fc1.weight"], head["shared_fcs.0.weight"])
    assert len(written["record"]["kept"]) == 8 * 5 + 4 * 5 + 2


def test_socos_plain_names_and_three_levels(tmp_path: Path) -> None:
    laterals = {n: t for n, t in fpn("module.neck.").items() if ".3." not in n}
    model = (
        under("module.encoder.", QUERY) | laterals | {"module.head.conv1.weight": torch.ones(16, 16, 3, 3)}
    )
    model |= norm("module.head.bn1", 16) | {"module.head.fc1.weight": torch.ones(24, 784)}
    torch.save({"model": model, "model_ema": under("encoder.", KEY)}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a.pkl", keep=("fpn", "box_head"), verify=False)
    names = set(read_weights(tmp_path / "a.pkl")["model"])
    assert {"fpn_lateral3.weight", "fpn_lateral5.norm.bias", "fpn_output4.weight"} <= names
    assert not any(name.startswith(("fpn_lateral2", "fpn_output2")) for name in names)
    assert {"roi_heads.box_head.conv1.norm.running_mean", "roi_heads.box_head.fc1.weight"} <= names


def test_what_is_not_there_cannot_be_kept(tmp_path: Path) -> None:
    torch.save(FILES["moco v2, DDP"][1](QUERY, KEY), tmp_path / "a.pth")
    with pytest.raises(UserError, match="--keep fpn: the file has none"):
        convert(tmp_path / "a.pth", tmp_path / "a.pkl", keep=("fpn",))
    with pytest.raises(UserError, match="--keep rpn: choose fpn or box_head"):
        convert(tmp_path / "a.pth", tmp_path / "a.pkl", keep=("rpn",))
    assert not (tmp_path / "a.pkl").exists()
