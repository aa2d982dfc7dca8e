"""The paper's models: built from every config, all layers trained, with any norm, in one process and in two."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from pretrain.common import configs, distributed
from pretrain.common.errors import UserError
from pretrain.model.norm import convert_sync_batchnorm
from tests.support.checkpoints import moco_file, small_network
from transfer import d2_compat
from transfer.config.load import load_config
from transfer.convert import convert
from transfer.convert.convert import read_weights
from transfer.models import build, init_weights, paper_heads
from transfer.train import precise_bn

CONFIGS = sorted(p.stem for p in (configs.CONFIG_ROOT / "transfer").glob("*.yaml"))
# One of each kind of detector; the other configs differ in schedule, data and class count.
MODELS = [
    "coco_R50_FPN", "demo_R18_FPN", "demo_R50w50_FPN", "demo_R50w50_FPN_frozen", "keypoint_R50_FPN_2x",
    "laptop_custom", "lvis_R50_FPN_2x_frozen",
    "voc_R50_C4_24k", "voc_R50_DC5_24k", "voc_mask_R50_C4",
]  # fmt: skip
VITS = [name for name in CONFIGS if "_ViT" in name]
C4 = ["voc_R50_C4_24k", "voc_mask_R50_C4"]
SHAPES = ["coco_R50_FPN", "voc_mask_R50_C4", "voc_R50_DC5_24k"]
FEWER = [
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "20",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8",
]  # fmt: skip
NARROW = [
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "32", "MODEL.RESNETS.WIDTH_PER_GROUP", "32", "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "128", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.DC5.CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "8",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "8", *FEWER,
]  # fmt: skip


def _load(name: str, *overrides: str) -> CfgNode:
    return load_config(f"transfer/{name}.yaml", ["MODEL.INIT", "random", "MODEL.DEVICE", "cpu", *overrides])


def _sample(cfg: CfgNode) -> dict[str, object]:
    """Return one 96 x 128 image with two objects, in the form of detectron2's mapper."""
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
    if cfg.MODEL.KEYPOINT_ON:
        places = torch.stack([torch.linspace(52, 58, 17), torch.linspace(22, 68, 17)], 1)  # inside both boxes
        instances.gt_keypoints = Keypoints(torch.cat([places, torch.full((17, 1), 2.0)], 1).repeat(2, 1, 1))
    image = torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(0))
    return {"image": image.to(torch.uint8), "instances": instances, "height": 96, "width": 128}


def _losses(model: nn.Module, cfg: CfgNode) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)  # proposals are sampled
    with EventStorage():
        return model.train()([_sample(cfg), _sample(cfg)])


def _kind(name: str) -> str:
    """Return a config's MODEL section without the keys that do not change the network."""
    node = _load(name).MODEL
    for key in ("NUM_CLASSES", "SCORE_THRESH_TEST"):
        node.ROI_HEADS.pop(key)
    return node.dump()


@pytest.mark.parametrize("name", MODELS)
def test_builds_at_full_width_and_trains_every_layer(name: str) -> None:
    cfg = _load(name, *FEWER)
    torch.manual_seed(0)
    model = build_model(cfg)
    losses = _losses(model, cfg)
    expected = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    expected |= {"loss_mask"} if cfg.MODEL.MASK_ON else set()
    expected |= {"loss_keypoint"} if cfg.MODEL.KEYPOINT_ON else set()
    assert set(losses) == expected
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    untrained = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    norms = {type(m).__name__ for m in model.backbone.modules() if "Norm" in type(m).__name__}
    if cfg.MODEL.BACKBONE.FREEZE_AT == 5:
        assert norms == {"FrozenBatchNorm2d", "SyncBatchNorm"}  # of the ResNet, of the pyramid
        assert untrained == [
            f"backbone.bottom_up.{key}" for key, _ in model.backbone.bottom_up.named_parameters()
        ]
        return
    assert untrained == []  # FREEZE_AT 0: the paper fine-tunes all layers, the stem included
    other = {"lvis_R50_FPN_2x_frozen": "FrozenBatchNorm2d"} | dict.fromkeys(C4, "NaiveSyncBatchNorm")
    assert norms == {other.get(name, "SyncBatchNorm")}


@pytest.mark.parametrize("name", [name for name in VITS if "100ep" not in name])  # the same network as 25ep
def test_vits_of_full_width_train_every_weight(name: str) -> None:
    cfg = _load(name, *FEWER)
    cfg.defrost()
    # Pads less than the configs do. The data's sizes, which are checked with it, take no part here.
    cfg.MODEL.VIT.IMAGE_SIZE = 128
    torch.manual_seed(0)
    model = build_model(cfg)
    losses = _losses(model, cfg)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_every_config_is_of_a_kind_that_was_built() -> None:
    built = {_kind(name) for name in MODELS}
    other = [
        name for name in CONFIGS if not name.startswith(("base_", "semseg_")) and _kind(name) not in built
    ]
    assert other == VITS


def test_fpn_heads_have_no_norm() -> None:
    model = build_model(_load("coco_R50_FPN"))
    norms = [m for m in model.roi_heads.modules() if "Norm" in type(m).__name__]
    assert norms == []  # "the architecture of heads are not different from standard baselines"
    assert len(model.roi_heads.mask_head.conv_norm_relus) == 4
    assert sum(isinstance(m, nn.Linear) for m in model.roi_heads.box_head.modules()) == 2


def test_c4_norm_feeds_both_heads() -> None:
    cfg = _load("voc_mask_R50_C4", *NARROW)
    heads = build_model(cfg).roi_heads
    assert [name for name, _ in heads.res5.named_children()] == ["0", "1", "2", "norm"]
    seen: dict[str, torch.Tensor] = {}
    heads.res5.norm.register_forward_hook(lambda module, x, y: seen.update(norm=y.detach()))
    for name in ("box_predictor", "mask_head"):
        part = getattr(heads, name)
        part.register_forward_pre_hook(lambda module, x, n=name: seen.update({n: x[0].detach()}))
    _losses(build_model(cfg), cfg)  # another model is not recorded
    assert not seen
    model = build_model(cfg)
    model.roi_heads = heads
    _losses(model, cfg)
    assert torch.equal(seen["box_predictor"], seen["norm"].mean((2, 3)))
    assert len(seen["mask_head"]) > 0
    assert all(any(torch.equal(roi, row) for row in seen["norm"]) for roi in seen["mask_head"])


def test_dilated_c5_keeps_the_stride_and_adds_a_linear_convolution() -> None:
    cfg = _load("voc_R50_DC5_24k", *NARROW)
    backbone = build_backbone(cfg)
    assert [name for name, _ in backbone.named_children()] == ["bottom_up", "output"]
    assert {n: (s.channels, s.stride) for n, s in backbone.output_shape().items()} == {"dc5": (32, 16)}
    assert backbone.output.bias is None and backbone.output.activation is None
    output = backbone(torch.randn(2, 3, 65, 96))["dc5"]
    assert output.shape == (2, 32, 5, 6)
    assert (output < 0).any()
    plain = build_backbone(_load("voc_R50_DC5_24k", *NARROW, "MODEL.RESNETS.NORM", ""))
    assert plain.output.bias is not None  # as in FPN


@pytest.mark.parametrize(("key", "value"), [("RES5_DILATION", "1"), ("OUT_FEATURES", "['res4']")])
def test_dilated_c5_of_another_network_is_refused(key: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"MODEL\.RESNETS\.{key} .* needs"):
        build_backbone(_load("voc_R50_DC5_24k", f"MODEL.RESNETS.{key}", value))


PUBLIC_BASE = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  RPN: {PRE_NMS_TOPK_TEST: 6000, POST_NMS_TOPK_TEST: 1000}
  ROI_HEADS: {NAME: "Res5ROIHeadsExtraNorm"}
  BACKBONE: {FREEZE_AT: 0}
  RESNETS: {NORM: "naiveSyncBN"}
TEST: {PRECISE_BN: {ENABLED: True}}
SOLVER: {IMS_PER_BATCH: 16, BASE_LR: 0.02}
"""
PUBLIC_SUPERVISED = """
_BASE_: "Base.yaml"
MODEL:
  MASK_ON: True
  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
INPUT: {MIN_SIZE_TRAIN: (640, 672, 704, 736, 768, 800), MIN_SIZE_TEST: 800}
DATASETS: {TRAIN: ("coco_2017_train",), TEST: ("coco_2017_val",)}
SOLVER: {STEPS: (120000, 160000), MAX_ITER: 180000}
"""
PUBLIC_MOCO = """
_BASE_: "supervised.yaml"
MODEL:
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  WEIGHTS: "See Instructions"
  RESNETS: {STRIDE_IN_1X1: False}
INPUT: {FORMAT: "RGB"}
"""


@pytest.mark.parametrize(("name", "stride_in_1x1"), [("supervised", True), ("moco", False)])
def test_yaml_in_the_authors_style(name: str, stride_in_1x1: bool, tmp_path: Path) -> None:
    texts = {"Base": PUBLIC_BASE, "supervised": PUBLIC_SUPERVISED, "moco": PUBLIC_MOCO}
    for file, text in texts.items():
        # tuples as the authors write them: YAML reads strings, yacs turns them into tuples
        text = text.replace("(640, 672, 704, 736, 768, 800)", '"(640, 672, 704, 736, 768, 800)"')
        for value in ('("coco_2017_train",)', '("coco_2017_val",)', "(120000, 160000)"):
            text = text.replace(value, f"'{value}'")
        (tmp_path / f"{file}.yaml").write_text(text)
    cfg = load_config(str(tmp_path / f"{name}.yaml"), ["MODEL.DEVICE", "cpu", *NARROW])
    assert cfg.SOLVER.STEPS == (120000, 160000) and cfg.DATASETS.TEST == ("coco_2017_val",)
    model = build_model(cfg)
    assert type(model.roi_heads) is paper_heads.Res5ROIHeadsExtraNorm
    assert isinstance(model.roi_heads.res5.norm, NaiveSyncBatchNorm)
    first = model.backbone.res3[0]
    assert (first.conv1.stride, first.conv2.stride) == (((2, 2), (1, 1))[:: 1 if stride_in_1x1 else -1])
    assert torch.isfinite(sum(_losses(model, cfg).values()))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN"])
def test_every_norm_trains(name: str, norm: str) -> None:
    cfg = _load(name, *NARROW, "MODEL.RESNETS.NORM", norm, "MODEL.FPN.NORM", norm)
    model = build_model(cfg)
    total = sum(_losses(model, cfg).values())
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.no_grad():
        assert len(model.eval()([_sample(cfg)])) == 1


@pytest.mark.parametrize("name", SHAPES)
def test_sync_norm_on_one_process_is_plain_batch_norm(name: str) -> None:
    results = []
    for norm in ("SyncBN", "naiveSyncBN", "BN"):
        cfg = _load(name, *NARROW, "MODEL.RESNETS.NORM", norm, "MODEL.FPN.NORM", norm)
        torch.manual_seed(0)
        model = build_model(cfg)
        losses = _losses(model, cfg)
        sum(losses.values()).backward()
        gradients = {f"gradient {key}": p.grad for key, p in model.named_parameters()}
        results.append({**losses, **gradients, **model.state_dict()})
    *synced, plain = results
    for one in synced:
        assert one.keys() == plain.keys()
        assert all(torch.equal(value, plain[key]) for key, value in one.items())


# Images of the two steps below. naiveSyncBN weights the processes equally, so these need the same number of images.
SYNCED = {"coco_R50_FPN": 5, "voc_R50_DC5_24k": 5, "voc_R50_C4_24k": 6}


def _two_steps(name: str) -> dict[str, torch.Tensor]:
    """Train a backbone for two steps on the same images, split between the processes; five into three and two.

    This uses float64: in float32 a rounding error, which differs between processors, may switch a ReLU at its edge.
    """
    torch.manual_seed(0)
    backbone = build_backbone(_load(name, *NARROW)).double().train()
    for module in backbone.modules():
        if isinstance(module, nn.SyncBatchNorm | NaiveSyncBatchNorm):
            # these values hardly ever put a ReLU at its edge, where rounding would matter
            nn.init.uniform_(module.weight, 0.2, 0.4)
            nn.init.ones_(module.bias)
    if distributed.world_size() > 1:
        convert_sync_batchnorm(backbone)
    model = d2_compat.distribute(backbone, broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(2)
    numbers = {}
    count = SYNCED[name]
    for step in range(2):
        images = torch.randn(count, 3, 64, 96, generator=generator, dtype=torch.float64)
        images *= torch.arange(1, count + 1).view(-1, 1, 1, 1)  # the two processes see very different images
        images = distributed.local_part(images)
        wanted = {
            key: nn.functional.interpolate(images[:, :1], scale_factor=1 / shape.stride)
            for key, shape in backbone.output_shape().items()
        }
        errors = [(value - wanted[key]).square().mean((1, 2, 3)) for key, value in model(images).items()]
        # averaged over the processes by DDP, this is the mean over all images
        loss = sum(error.sum() for error in errors) * distributed.world_size() / count
        optimizer.zero_grad()
        loss.backward()
        numbers |= {f"step {step} gradient {key}": p.grad.clone() for key, p in backbone.named_parameters()}
        optimizer.step()
    return numbers | dict(backbone.state_dict())


def _sync_worker(folder: str) -> None:
    distributed.init_from_env(torch.device("cpu"))
    for name in SYNCED:
        torch.save(_two_steps(name), f"{folder}/{name}.{distributed.rank()}.pt")
    torch.save(_naive_layer(_share(distributed.rank())), f"{folder}/layer.{distributed.rank()}.pt")


def _share(rank: int) -> torch.Tensor:
    """Return the images of one of two processes, of different sizes. bfloat16 represents all values exactly."""
    height, width = ((8, 12), (4, 8))[rank]
    noise = torch.randint(-4, 5, (2, 3, height, width), generator=torch.Generator().manual_seed(rank))
    return noise.float() + 40 * (rank + 1)  # with 8 bits, the square of this mean hides the variance


def _naive_layer(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return naiveSyncBN's outputs in bfloat16 as in a run with AMP, and its running statistics."""
    layer = NaiveSyncBatchNorm(3, momentum=1.0).train()
    build.normalise_in_float32(nn.Sequential(layer))
    output = layer(images.bfloat16())
    assert output.dtype == torch.bfloat16
    return {"output": output.float(), "mean": layer.running_mean, "var": layer.running_var}


@pytest.mark.slow
def test_sync_norm_on_two_processes_is_one_with_the_whole_batch(tmp_path: Path) -> None:
    distributed.spawn(_sync_worker, 2, (str(tmp_path),))
    for name in SYNCED:
        whole = _two_steps(name)
        first, second = (torch.load(tmp_path / f"{name}.{rank}.pt") for rank in range(2))
        assert first.keys() == second.keys() == whole.keys()
        for key, expected in whole.items():
            assert torch.equal(first[key], second[key]), key
            if name == "voc_R50_C4_24k" and key.endswith(("running_var", "num_batches_tracked")):
                continue  # naiveSyncBN keeps the biased variance, see below, and does not count
            scale = expected.double().abs().max().clamp(min=1e-3)
            error = float((first[key].double() - expected.double()).abs().max() / scale)
            assert error < 1e-6, f"{name} {key} {error:.1e}"

    # naiveSyncBN is the average of the mean and of the mean square, with equal weights for both processes
    shares = [_share(rank).double() for rank in range(2)]
    mean = sum(x.mean((0, 2, 3)) for x in shares) / 2
    var = sum(x.square().mean((0, 2, 3)) for x in shares) / 2 - mean.square()
    for rank, share in enumerate(shares):
        found = torch.load(tmp_path / f"layer.{rank}.pt")
        torch.testing.assert_close(found["mean"], mean.float())
        torch.testing.assert_close(found["var"], var.float())
        normalised = (share - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
        assert (found["output"] - normalised).abs().max() < 1e-2  # bfloat16 near 2


def test_frozen_norm_holds_the_weights_statistics_and_fpn_alone_is_measured(tmp_path: Path) -> None:
    """LVIS's supervised row, and the same with a norm in FPN."""
    network = small_network(width=0.5)
    source = tmp_path / "source.pth.tar"
    convert.convert(moco_file(source, network.state_dict()), tmp_path / "w.pkl", verify=False)
    file = read_weights(tmp_path / "w.pkl")["model"]
    for fpn_norm, layers in (("", 0), ("SyncBN", 8)):  # 4 lateral and 4 output convolutions
        own = ["MODEL.WEIGHTS", str(tmp_path / "w.pkl"), "MODEL.DEVICE", "cpu", "MODEL.FPN.NORM", fpn_norm]
        cfg = load_config("transfer/lvis_R50_FPN_2x_frozen.yaml", [*own, *NARROW])
        model = build_model(cfg).train()
        assert init_weights.load_into(model, cfg)["matched"] == len(file) == 265
        trunk = model.backbone.bottom_up
        assert sum(isinstance(m, FrozenBatchNorm2d) for m in trunk.modules()) == 53
        with EventStorage():
            batches = iter([[_sample(cfg)], [_sample(cfg)]])
            assert precise_bn.update(model, batches, 2) == layers
            assert len(list(batches)) == (0 if layers else 2)
        sum(_losses(model, cfg).values()).backward()
        assert trunk.stem.conv1.weight.grad is not None  # only norms are frozen
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        state = trunk.state_dict()
        frozen = [key for key in file if ".norm." in key]
        assert len(frozen) == 4 * 53
        assert all(torch.equal(state[key], file[key]) for key in frozen)
