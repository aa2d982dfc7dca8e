"""What is done with trained networks on a GPU: converting, linear probe, kNN, RankMe and prediction, as on a CPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain import config
from pretrain.train.checkpoints import LAST
from pretrain.train.loop import train
from tests.gpu.real import DEVICE, GPU
from tests.gpu.steps import CONFIGS, overrides
from tests.support import detection_data
from tests.support.checkpoints import moco_file, plain_file, small_network
from tests.support.layouts import mlp, under
from tests.support.vit.layouts import vit
from transfer.config.load import load_config
from transfer.convert.program.networks import convert_any
from transfer.linear import backbone as linear_backbone
from transfer.linear import config as linear_config
from transfer.linear import rank, run
from transfer.linear.backbone import Extractor
from transfer.predict.predictor import Predictor
from transfer.train import run as training

pytestmark = GPU
MakeFolder = Callable[..., Path]
PROBE = [
    "INPUT.SIZE", "32", "DATA.NUM_WORKERS", "2", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.1",
    "SOLVER.MAX_EPOCH", "3", "SOLVER.STEPS", "[2]",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["v2", "v3", "v3_vit"])
def test_a_checkpoint_of_a_gpu_is_converted_and_probed(
    image_folder: MakeFolder, tmp_path: Path, kind: str
) -> None:
    """The converter compares the written file with its source before it returns."""
    images = image_folder(16, size=(96, 80))
    given = [
        "DATA.TRAIN", str(images), "OUTPUT_DIR", str(tmp_path / "run"), "DATA.NUM_WORKERS", "2", "DEVICE", "cuda",
        "SOLVER.MAX_EPOCH", "2", "LOG.TENSORBOARD", "False",
        *(["MODEL.ARCH", "resnet50"] if kind != "v3_vit" else []),
    ]  # fmt: skip
    train(config.load(CONFIGS[kind], overrides(kind, *given)))
    source, written = tmp_path / "run" / LAST, tmp_path / "moco.pkl"
    convert_any(source, written, heads=3 if kind == "v3_vit" else None)
    views = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    found = []
    for file in (source, written) if kind != "v3_vit" else (source,):  # a detector's ViT lacks the final norm
        for device in (torch.device("cpu"), DEVICE):
            network = linear_backbone.load(
                str(file), _probe_settings(), heads=3 if kind == "v3_vit" else None
            )
            found.append(Extractor(network, device)(views).cpu())
    for other in found[1:]:
        assert (found[0] - other).abs().max() <= 1e-4 * found[0].abs().max()


def _probe_settings() -> linear_config.CfgNode:
    cfg = linear_config.defaults()
    cfg.INPUT.SIZE = 64
    return cfg


@pytest.fixture(params=["ResNet", "ViT"])
def probe(
    image_folder: MakeFolder, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., dict[str, Any]]:
    """Runs the linear probe on a device and returns its results."""
    train_set = image_folder(10, classes=("a", "b"), seed=1)
    val_set = image_folder(4, classes=("a", "b"), seed=2)
    if request.param == "ResNet":
        weights = str(moco_file(tmp_path / "moco.pth.tar", small_network("resnet18").state_dict()))
    else:
        networks = under("module.base_encoder.", vit(1)) | under("module.momentum_encoder.", vit(2))
        weights = str(plain_file(tmp_path / "moco.pth.tar", networks | mlp("module.predictor.", "0")))

    def measured(device: str, *more: str, name: str = "results.json", **options: Any) -> dict[str, Any]:
        output = tmp_path / f"{device}-{name}-{len(more)}"
        given = [
            *PROBE, "DATA.TRAIN", str(train_set), "DATA.VAL", str(val_set), "OUTPUT_DIR", str(output), "DEVICE", device,
            *more,
        ]  # fmt: skip
        cfg = linear_config.load("linear/imagenet.yaml", given)
        if name == "rankme.json":
            rank.run(cfg, [weights, "random"])
        else:
            run.run(cfg, weights, **options)
        found: dict[str, Any] = json.loads((output / name).read_text())
        return found

    return measured


@pytest.mark.parametrize("more", [[], ["CACHE", "True"]], ids=["random crops", "stored features"])
def test_linear_probe(probe: Callable[..., dict[str, Any]], more: list[str]) -> None:
    ours, theirs = probe("cuda", *more), probe("cpu", *more)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-2)
    assert ours["top1"] == pytest.approx(theirs["top1"], abs=12.5)  # one of the eight test images


def test_neighbours_and_rank(probe: Callable[..., dict[str, Any]]) -> None:
    ours, theirs = (probe(device, name="knn.json", knn=True)["knn"] for device in ("cuda", "cpu"))
    assert ours["top1"] == pytest.approx(theirs["top1"], abs=12.5)
    ranks = [probe(device, name="rankme.json")["checkpoints"] for device in ("cuda", "cpu")]
    for one, other in zip(*ranks, strict=True):
        assert one["weights"] == other["weights"] and one["rankme"] == pytest.approx(
            other["rankme"], rel=1e-2
        )


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("coco_R50_FPN", ["SOLVER.BASE_LR", "0.01"]),
        ("coco_ViTB_SFP_100ep", [*detection_data.NARROW_VIT, "SOLVER.BASE_LR", "0.001"]),
    ],
    ids=["ResNet", "ViT"],
)
def test_predictions_are_the_cpus(tmp_path: Path, name: str, more: list[str]) -> None:
    data = detection_data.write_coco(tmp_path / "data", images=4)
    given = [
        "MODEL.INIT", "random", *detection_data.TINY, *detection_data.NARROW, *detection_data.custom(data, data),
        "MODEL.DEVICE", "cuda", "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "()", "OUTPUT_DIR", str(tmp_path / "run"),
        *more,
    ]  # fmt: skip
    training.run(load_config(f"transfer/{name}.yaml", given))
    pictures = sorted(data[1].glob("*.png"))
    there, here = (
        Predictor(tmp_path / "run", device=device, threshold=0.05)(pictures) for device in ("cuda", "cpu")
    )
    for one, other in zip(there, here, strict=True):
        # rounding may change which of two nearly equal scores wins: most boxes have a counterpart
        assert len(one) > 0 and abs(len(one) - len(other)) <= 0.2 * len(other)
        nearest = np.abs(one.boxes[:, None] - other.boxes[None]).max(2).min(1)
        assert np.median(nearest) < 0.1 and (nearest < 1).mean() > 0.8
        assert one.masks is not None and one.masks.shape == (len(one), *one.size)
