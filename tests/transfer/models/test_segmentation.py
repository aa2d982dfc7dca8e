"""Segmentation as in App. A.5: the head's geometry and loss by hand, mIoU by hand, and a run that learns."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from PIL import Image
from torch import nn
from torch.nn import functional as F

from pretrain.common import distributed
from pretrain.common.errors import UserError
from tests.support.scripts import run_script
from transfer import d2_compat
from transfer.config.load import default_config
from transfer.metrics.sem_seg import sem_seg_evaluator
from transfer.models import segmentation

NARROW = """
MODEL:
  META_ARCHITECTURE: SemanticSegmentor
  BACKBONE: {NAME: build_resnet_backbone, FREEZE_AT: 0}
  RESNETS:
    {DEPTH: 50, NORM: SyncBN, STRIDE_IN_1X1: False, RES5_DILATION: 2, OUT_FEATURES: [res5],
     STEM_OUT_CHANNELS: 16, WIDTH_PER_GROUP: 16, RES2_OUT_CHANNELS: 64}
  SEM_SEG_HEAD: {NAME: FCN16sHead, IN_FEATURES: [res5], CONVS_DIM: 32, NORM: SyncBN, NUM_CLASSES: 21}
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  INIT: random
  DEVICE: cpu
INPUT:
  FORMAT: RGB
  MIN_SIZE_TEST: 0
  SCALE_CROP: {ENABLED: True, SIZE: 97}
"""


def _cfg(**more: object) -> CfgNode:
    cfg = default_config()
    cfg.merge_from_other_cfg(CfgNode.load_cfg(NARROW))
    cfg.merge_from_list([item for pair in more.items() for item in pair])
    return cfg


def _model(**more: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(_cfg(**{"MODEL.RESNETS.NORM": "BN", "MODEL.SEM_SEG_HEAD.NORM": "BN", **more}))


def _images(*sizes: tuple[int, int]) -> list[dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(1)
    made = []
    for height, width in sizes:
        image = torch.randint(0, 256, (3, height, width), generator=rng).to(torch.uint8)
        label = torch.randint(0, 21, (height, width), generator=rng)
        label[torch.rand(height, width, generator=rng) < 0.2] = 255
        made.append({"image": image, "sem_seg": label, "height": height, "width": width})
    return made


def test_network_is_the_papers() -> None:
    model = _model(**{"MODEL.RESNETS.STEM_OUT_CHANNELS": 64, "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
                      "MODEL.RESNETS.RES2_OUT_CHANNELS": 256, "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256})  # fmt: skip
    for name, conv in model.backbone.named_modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
            in_res5 = name.startswith("res5")
            assert conv.dilation == conv.padding == ((2, 2) if in_res5 else (1, 1))
            assert conv.stride == (1, 1) or not in_res5
    head = [
        (name, module) for name, module in model.sem_seg_head.named_modules() if isinstance(module, nn.Conv2d)
    ]
    shapes = {name: tuple(conv.weight.shape) for name, conv in head}
    assert shapes == {
        "convs.0": (256, 2048, 3, 3),
        "convs.1": (256, 256, 3, 3),
        "classifier": (21, 256, 1, 1),
    }
    for _, conv in head[:2]:
        assert (conv.dilation, conv.padding, conv.stride, conv.bias) == ((6, 6), (6, 6), (1, 1), None)
        assert isinstance(conv.norm, nn.BatchNorm2d)
        assert conv.activation(torch.tensor(-1.0)) == 0
        fan_out = conv.weight.shape[0] * 9
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)
    assert model.backbone(torch.zeros(1, 3, 513, 513))["res5"].shape == (1, 2048, 33, 33)


def test_trains_every_layer_and_starts_undecided() -> None:
    model = _model().train()
    losses = model(_images((97, 97), (97, 97)))
    assert set(losses) == {"loss_sem_seg"}
    assert losses["loss_sem_seg"].item() == pytest.approx(math.log(21), rel=0.1)
    losses["loss_sem_seg"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("size", [(97, 97), (50, 131), (64, 96), (33, 17)])
def test_answers_at_the_images_size(size: tuple[int, int]) -> None:
    model = _model().eval()
    with torch.no_grad():
        (answer,) = model(_images(size))
        image = (_images(size)[0]["image"] - model.pixel_mean) / model.pixel_std
        cells = model.sem_seg_head.classifier(model.sem_seg_head.convs(model.backbone(image[None])["res5"]))[
            0
        ]
    assert cells.shape[1:] == tuple(math.ceil(side / 16) for side in size)
    assert answer["sem_seg"].shape == (21, *size)
    torch.testing.assert_close(answer["sem_seg"], _by_hand(cells, size), rtol=1e-4, atol=1e-5)


def _by_hand(cells: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Interpolate pixel p between cell p // 16 and the next, or use the last cell beyond it; rows, then columns."""
    for dim, length in ((1, size[0]), (2, size[1])):
        place = torch.arange(length) / 16
        low = place.floor().long()
        high = (low + 1).clamp(max=cells.shape[dim] - 1)
        part = (place - low).reshape([-1 if i == dim else 1 for i in range(3)])
        cells = cells.index_select(dim, low) * (1 - part) + cells.index_select(dim, high) * part
    return cells


@pytest.mark.parametrize(("size", "cells"), [(513, 33), (769, 49)])
def test_the_papers_crops_have_their_corners_on_cells(size: int, cells: int) -> None:
    logits = torch.randn(1, 2, cells, cells)
    expected = F.interpolate(logits, (size, size), mode="bilinear", align_corners=True)
    torch.testing.assert_close(
        segmentation.upsample(logits)[:, :, :size, :size], expected, rtol=1e-4, atol=1e-5
    )


def test_cells_lie_where_the_network_looks() -> None:
    """With left-right symmetric kernels a mirrored image gives mirrored logits, if the geometry is right."""
    model = _model().eval()
    with torch.no_grad():
        for conv in model.modules():
            if isinstance(conv, nn.Conv2d):
                conv.weight.copy_((conv.weight + conv.weight.flip(-1)) / 2)
        (sample,) = _images((65, 97))
        (plain,) = model([sample])
        (mirrored,) = model([{**sample, "image": sample["image"].flip(-1)}])
    assert plain["sem_seg"].std() > 0
    torch.testing.assert_close(mirrored["sem_seg"].flip(-1), plain["sem_seg"], rtol=1e-3, atol=1e-5)


def test_loss_is_the_mean_cross_entropy_of_labelled_pixels() -> None:
    torch.manual_seed(0)
    head = segmentation.FCN16sHead(
        _cfg(**{"MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 0.5, "MODEL.SEM_SEG_HEAD.NORM": ""}), _SHAPES
    )
    nn.init.normal_(head.classifier.weight)
    features = {"res5": torch.randn(2, 8, 4, 5)}
    labels = torch.stack([sample["sem_seg"] for sample in _images((50, 70), (50, 70))])
    labels[1, 20:] = 255  # different numbers of labelled pixels: the loss is not a mean of the images' means
    nothing, losses = head.train()(features, labels)
    assert nothing is None
    logits, no_losses = head.eval()(features)
    assert no_losses == {}
    total = count = 0.0
    for image, label in zip(logits.detach(), labels, strict=True):
        for y, x in (label != 255).nonzero().tolist():
            scores = image[:, y, x].double()
            total += (scores.exp().sum().log() - scores[label[y, x]]).item()
            count += 1
    assert losses["loss_sem_seg"].item() == pytest.approx(0.5 * total / count, rel=1e-5)


def test_crop_without_a_label_is_no_loss() -> None:
    head = segmentation.FCN16sHead(_cfg(**{"MODEL.SEM_SEG_HEAD.NORM": ""}), _SHAPES).train()
    _, losses = head({"res5": torch.randn(1, 8, 2, 2)}, torch.full((1, 32, 32), 255))
    losses["loss_sem_seg"].backward()
    assert losses["loss_sem_seg"] == 0
    assert all((p.grad == 0).all() for p in head.parameters())


_SHAPES = {"res5": ShapeSpec(channels=8, stride=16)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MODEL.RESNETS.RES5_DILATION": 1}, "stride 32.*RES5_DILATION 2"),
        ({"MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p2", "p3"]}, "needs one of"),
    ],
)
def test_other_backbones_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _model(**change)


CLASSES = ("ground", "box", "disc", "ghost")


def _write(folder: Path, sizes: list[tuple[int, int]]) -> list[dict[str, object]]:
    """Write labels of the first three classes and 255; "ghost" does not occur."""
    rng = np.random.default_rng(5)
    folder.mkdir(exist_ok=True)
    records = []
    for i, (height, width) in enumerate(sizes):
        label = rng.choice([0, 1, 2, 255], (height, width)).astype(np.uint8)
        Image.fromarray(label).save(folder / f"{i}.png")
        names = {"file_name": f"{i}.jpg", "sem_seg_file_name": str(folder / f"{i}.png")}
        records.append({**names, "height": height, "width": width})
    return records


def _evaluate(folder: Path, ranks: int = 1, rank: int = 0) -> dict[str, float] | None:
    """Compute the mIoU of random predictions for the labels in `folder`; this process has every `ranks`-th of them."""
    records = _write(folder, [(20, 30), (41, 17), (8, 64)])
    DatasetCatalog.register("semseg_made_up", lambda: records)
    MetadataCatalog.get("semseg_made_up").set(stuff_classes=list(CLASSES), ignore_label=255)
    cfg = _cfg(**{"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4})
    try:
        evaluator = sem_seg_evaluator("semseg_made_up", cfg)
        evaluator.reset()
        for i in range(rank, len(records), ranks):
            evaluator.process([records[i]], [{"sem_seg": _answer(records[i], i)}])
        results = evaluator.evaluate()
    finally:
        DatasetCatalog.remove("semseg_made_up")
        MetadataCatalog.remove("semseg_made_up")
    return None if results is None else results["sem_seg"]


def _answer(record: dict[str, object], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(CLASSES), record["height"], record["width"], generator=generator)


def test_miou_is_that_of_the_confusion_matrix(tmp_path: Path) -> None:
    got = _evaluate(tmp_path / "labels")
    matrix = np.zeros((4, 4), int)  # truth, prediction
    for i, record in enumerate(_write(tmp_path / "labels", [(20, 30), (41, 17), (8, 64)])):
        label = np.array(Image.open(record["sem_seg_file_name"]))
        for truth, answer in zip(label.ravel(), _answer(record, i).argmax(0).ravel().tolist(), strict=True):
            if truth != 255:
                matrix[truth, answer] += 1
    assert matrix[:, 3].sum() > 0  # predicted, but never the truth
    ious = [100 * matrix[c, c] / (matrix[c].sum() + matrix[:, c].sum() - matrix[c, c]) for c in range(3)]
    assert [got[f"IoU-{name}"] for name in CLASSES[:3]] == pytest.approx(ious)
    assert math.isnan(got["IoU-ghost"])
    assert got["mIoU"] == pytest.approx(np.mean(ious))
    assert got["pACC"] == pytest.approx(100 * matrix.trace() / matrix.sum())
    assert not [key for key in got if "Boundary" in key]


def _evaluate_in_process(folder: str) -> None:
    distributed.init_from_env(torch.device("cpu"))
    d2_compat.set_local_process_group()
    got = _evaluate(Path(folder) / f"labels{distributed.rank()}", 2, distributed.rank())
    Path(folder, f"{distributed.rank()}.json").write_text(json.dumps(got))


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    distributed.spawn(_evaluate_in_process, 2, (str(tmp_path),))
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    alone = _evaluate(tmp_path / "labels")
    assert other is None
    assert main == pytest.approx(alone, nan_ok=True)


@pytest.mark.parametrize(("key", "value"), [("NUM_CLASSES", 5), ("IGNORE_VALUE", 254)])
def test_model_that_does_not_fit_the_labels_is_refused(tmp_path: Path, key: str, value: int) -> None:
    DatasetCatalog.register("semseg_other", lambda: _write(tmp_path, [(8, 8)]))
    MetadataCatalog.get("semseg_other").set(stuff_classes=list(CLASSES), ignore_label=255)
    keys = {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4, f"MODEL.SEM_SEG_HEAD.{key}": value}
    try:
        with pytest.raises(UserError, match=f"SEM_SEG_HEAD.{key} {value}"):
            sem_seg_evaluator("semseg_other", _cfg(**keys))
    finally:
        DatasetCatalog.remove("semseg_other")
        MetadataCatalog.remove("semseg_other")


def _write_voc(root: Path) -> None:
    """Write two images with a red square (aeroplane) and a blue disc (person), in VOC's layout, to train and test."""
    rng = np.random.default_rng(0)
    folder = root / "VOC2012"
    for part in ("JPEGImages", "semseg/train_aug", "semseg/val"):
        (folder / part).mkdir(parents=True)
    for split in ("train_aug", "val"):
        (folder / f"semseg/{split}.txt").write_text("a\nb\n")
    for name, height, width in (("a", 97, 120), ("b", 110, 97)):
        y, x = np.mgrid[:height, :width]
        image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
        label = np.zeros((height, width), np.uint8)
        for kind, colour in ((1, (220, 60, 60)), (15, (60, 60, 220))):
            radius = rng.integers(14, 24)
            dy, dx = y - rng.integers(radius, height - radius), x - rng.integers(radius, width - radius)
            away = np.maximum(abs(dy), abs(dx)) if kind == 1 else np.hypot(dy, dx)
            image[away <= radius], label[away <= radius] = colour, kind
            label[(away > radius) & (away <= radius + 2)] = 255  # as VOC's borders are
        Image.fromarray(image).save(folder / f"JPEGImages/{name}.jpg", quality=95)
        for split in ("train_aug", "val"):
            Image.fromarray(label).save(folder / f"semseg/{split}/{name}.png")


@pytest.mark.slow
def test_learns_two_pictures_end_to_end(tmp_path: Path) -> None:
    _write_voc(tmp_path / "data")
    run = run_script(
        "tools/train_net.py", "--config", "transfer/semseg_voc_R50.yaml", "MODEL.INIT", "random", "MODEL.DEVICE", "cpu",
        "MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "16",
        "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32",
        "DATASETS.ROOT", tmp_path / "data", "DATALOADER.NUM_WORKERS", "0", "INPUT.SCALE_CROP.SIZE", "97",
        "INPUT.SCALE_CROP.SCALES", "(0.8, 1.25)", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.1",
        "SOLVER.MAX_ITER", "80", "SOLVER.STEPS", "(56, 72)", "TEST.PRECISE_BN.NUM_ITER", "10", "TEST.PICTURES", "2",
        "OUTPUT_DIR", tmp_path / "run",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    record = json.loads((tmp_path / "run/results.json").read_text())
    metrics = record["metrics"]["voc_2012_semseg_val"]["sem_seg"]
    assert metrics["mIoU"] > 80
    assert min(metrics[f"IoU-{name}"] for name in ("background", "aeroplane", "person")) > 60
    assert metrics["IoU-dog"] is None
    assert [(tmp_path / "run" / picture).is_file() for picture in record["pictures"]] == [True, True]
