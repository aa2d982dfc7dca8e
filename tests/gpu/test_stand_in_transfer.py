"""Fine-tuning, prediction and the linear probe on a stand-in for a GPU, on any machine (see `stand_in`)."""

import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from pretrain.model.encoders import ResNet, architecture
from pretrain.model.vit import ViT
from tests.gpu.stand_in import DEVICE, OnGpu, StandIn, plain, stand_in_gpu
from tests.support import detection_data
from tests.support.vit import tiny
from transfer.config.load import load_config
from transfer.convert.preprocessing import IMAGENET
from transfer.convert.vit.architecture import Shape
from transfer.linear import config as linear_config
from transfer.linear.backbone import Backbone, Extractor
from transfer.linear.classifiers import Classifiers
from transfer.linear.features import Fixed
from transfer.linear.knn import knn_accuracy
from transfer.models import build
from transfer.predict.predictor import Predictor
from transfer.train import precise_bn
from transfer.train.state import State, check_finite
from transfer.train.step import grad_scaler, step
from transfer.visualize import instances

CPU = torch.device("cpu")
SMALL = ["MODEL.INIT", "random", "MODEL.DEVICE", "cuda", *detection_data.NARROW]
FEW = [
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "20",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.ROI_HEADS.NUM_CLASSES", "2",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
]  # fmt: skip


@pytest.fixture
def gpu() -> Iterator[StandIn]:
    with stand_in_gpu() as seen:
        yield seen


def _image(size: int) -> dict[str, Any]:
    image = torch.randint(0, 256, (3, size, size), generator=torch.Generator().manual_seed(0))
    return {"image": image.to(torch.uint8), "height": size, "width": size}


def _labelled() -> dict[str, Any]:
    label = torch.randint(0, 21, (32, 32), generator=torch.Generator().manual_seed(1))
    return {**_image(32), "sem_seg": label}


def _objects() -> dict[str, Any]:
    found = Instances((64, 64))
    found.gt_boxes = Boxes(torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]]))
    found.gt_classes = torch.tensor([0, 1])
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 4:40, 4:30] = masks[1, 10:50, 20:60] = True
    found.gt_masks = BitMasks(masks)
    return {**_image(64), "instances": found}


def _trained(cfg: CfgNode, batch: list[dict[str, Any]], tmp_path: Any) -> nn.Module:
    """A model after two steps and PreciseBN, with every tensor on the stand-in."""
    model, _ = build.build(cfg)
    optimizer = build.build_optimizer(cfg, model.train())
    scaler = grad_scaler(cfg)
    with EventStorage():
        for iteration in range(2):
            losses = step(cfg, model, batch, optimizer, iteration, scaler=scaler)
            assert all(isinstance(value, OnGpu) and plain(value).isfinite() for value in losses.values())
        assert (precise_bn.update(model, iter([batch] * 2), 2) > 0) == cfg.TEST.PRECISE_BN.ENABLED
    check_finite(State(model, optimizer, None, scaler), cfg)
    assert all(isinstance(value, OnGpu) for value in model.state_dict().values())
    return model.eval()


@pytest.mark.parametrize("precision", ["off", "bfloat16", "float16"])
def test_segmentation(gpu: StandIn, precision: str, tmp_path: Any) -> None:
    more = [] if precision == "off" else ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", precision]
    cfg = load_config(
        "transfer/semseg_voc_R50.yaml",
        [*SMALL, "MODEL.SEM_SEG_HEAD.CONVS_DIM", "8", "SOLVER.ACCUMULATE", "2", "SOLVER.IMS_PER_BATCH", "4",
         "OUTPUT_DIR", str(tmp_path), *more],
    )  # fmt: skip
    model = _trained(cfg, [_labelled()] * 4, tmp_path)
    with torch.no_grad():
        (found,) = model([_image(32)])
    assert isinstance(found["sem_seg"], OnGpu) and found["sem_seg"].shape == (21, 32, 32)


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ("coco_R50_FPN", []),
        ("coco_ViTB_SFP_100ep", [*detection_data.NARROW_VIT, "SOLVER.AMP.ENABLED", "False"]),
        ("coco_ViTB_SFP_100ep", [*detection_data.NARROW_VIT, "MODEL.VIT.CHECKPOINT_BLOCKS", "True"]),
    ],
    ids=["ResNet", "ViT", "ViT bfloat16 checkpointed"],
)
def test_detection(gpu: StandIn, tmp_path: Any, config: str, more: list[str]) -> None:
    """Proposals, sampling, losses and inference of detectron2, and what our code does with the results."""
    cfg = load_config(f"transfer/{config}.yaml", [*SMALL, *FEW, *more, "OUTPUT_DIR", str(tmp_path)])
    model = _trained(cfg, [_objects()] * 2, tmp_path)
    with torch.no_grad():
        (found,) = model([_image(64)])
    assert isinstance(found["instances"].scores, OnGpu) and len(found["instances"]) > 0
    owner: Any = types.SimpleNamespace(names=["a", "b"])
    detections = Predictor._plain(owner, found["instances"])
    assert detections.masks is not None and detections.masks.shape[1:] == (64, 64)
    assert len(instances.of_output(found).boxes) == len(detections)


def test_a_vit_waits_for_nothing(gpu: StandIn) -> None:
    """Both passes of backbone and pyramid, with dropped branches: the maps and gradients of the CPU."""
    # Relative positions are interpolated.
    changes = {"drop_path": 0.5, "checkpoint_blocks": True, "image_size": 64}
    found = []
    for device in (CPU, DEVICE):
        torch.manual_seed(0)
        found.append(tiny.maps_and_gradients(device, torch.float64, watch=gpu.no_waits(), **changes))
    for name, value in found[0].items():
        torch.testing.assert_close(plain(found[1][name]), value, rtol=1e-10, atol=1e-12)


def _fixed(count: int, channels: int, seed: int) -> Fixed:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, channels)).astype(np.float32)
    return Fixed(features, rng.integers(0, 3, count), np.arange(count), [])


def test_linear_classifiers_and_neighbours(gpu: StandIn) -> None:
    train, val = _fixed(40, 6, 0), _fixed(10, 6, 1)
    features, labels = torch.from_numpy(train.features), torch.from_numpy(train.labels)
    found = []
    for device in (CPU, DEVICE):
        ours = Classifiers(
            6, 3, rates=[0.1, 1.0], solver=linear_config.defaults().SOLVER, seed=0, device=device
        )  # fmt: skip
        there, answers = features.to(device), labels.to(device)
        waits = len(gpu.waits)
        losses = [ours.step(there, answers, epoch=0) for _ in range(2)]
        assert len(gpu.waits) == waits
        top = ours.accuracy(val.features, val.labels)
        neighbours = knn_accuracy(train, val, k=5, temperature=0.1, device=device)
        found.append((plain(losses[-1]).tolist(), top, neighbours))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5) and found[0][1:] == found[1][1:]


def _resnet() -> tuple[Any, Any]:
    shape = architecture("resnet18", 0.125)
    return ResNet(shape), shape


def _vit() -> tuple[Any, Any]:
    """For images of 64 pixels, so that the positions of others are interpolated."""
    sizes: dict[str, Any] = {"width": 24, "depth": 2, "heads": 3, "registers": 1, "layer_scale": True}
    return ViT(image_size=64, **sizes), Shape(patch_size=16, grid=4, hidden=96, **sizes)


@pytest.mark.parametrize("kind", ["ResNet", "ViT"])
def test_features(gpu: StandIn, kind: str) -> None:
    images = torch.randint(0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = []
    for device in (CPU, DEVICE):
        torch.manual_seed(0)
        network, shape = _resnet() if kind == "ResNet" else _vit()
        backbone = Backbone(network.eval(), shape, IMAGENET, "", "", "")
        found.append(plain(Extractor(backbone, device)(images)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
