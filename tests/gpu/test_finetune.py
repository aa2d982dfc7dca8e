"""Fine-tuning on a GPU: ten iterations, PreciseBN and evaluation of each kind of detector, and of each way to train."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage

from pretrain.common.errors import UserError
from tests.gpu.real import DEVICE, GPU, little_memory
from tests.support import detection_data
from tests.support.vit import tiny
from transfer.config.load import load_config
from transfer.data import datasets, train_stream
from transfer.models import build
from transfer.train import run
from transfer.train.run import advice
from transfer.train.step import step

pytestmark = GPU
RUN = [
    "MODEL.INIT", "random", *detection_data.TINY, *detection_data.NARROW, "MODEL.DEVICE", "cuda",
    "DATALOADER.NUM_WORKERS", "2", "SOLVER.MAX_ITER", "10", "SOLVER.STEPS", "(8,)", "SOLVER.CHECKPOINT_PERIOD", "5",
    "SOLVER.BASE_LR", "0.002",
]  # fmt: skip
KINDS = {
    "FPN": ("coco_R50_FPN", [], {"bbox", "segm"}),
    "C4": ("voc_R50_C4_24k", [], {"bbox"}),
    "DC5": ("voc_R50_DC5_24k", ["MODEL.DC5.CHANNELS", "32"], {"bbox"}),
    "ViT": ("coco_ViTB_SFP_100ep", [*detection_data.NARROW_VIT, "SOLVER.BASE_LR", "1e-4"], {"bbox", "segm"}),
}
AMP = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    train = detection_data.write_coco(folder / "train", images=6)
    test = detection_data.write_coco(folder / "test", images=2, seed=1)
    return detection_data.custom(train, test)


@pytest.fixture(autouse=True)
def free_memory() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


def trained(config: str, output: Path, *more: str) -> set[str]:
    """Run to the end; the tasks that were tested. Each loss is a finite number."""
    run.run(load_config(f"transfer/{config}.yaml", [*RUN, "OUTPUT_DIR", str(output), *more]))
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 10 and all(map(math.isfinite, losses))
    record = json.loads((output / "results.json").read_text())
    assert record["hardware"]["gpu"] == torch.cuda.get_device_name()
    weights = torch.load(output / "model_final.pth", weights_only=True, map_location="cpu")["model"]
    assert all(torch.isfinite(value).all() for value in weights.values() if value.is_floating_point())
    (tasks,) = record["metrics"].values()
    return set(tasks)


@pytest.mark.parametrize("kind", KINDS)
def test_detectors(data: list[str], tmp_path: Path, kind: str) -> None:
    config, more, tasks = KINDS[kind]
    assert trained(config, tmp_path / "run", *data, *more) == tasks


def test_keypoints(tmp_path: Path) -> None:
    data = detection_data.write_coco(
        tmp_path / "data", images=4, masks=False, keypoints=17, classes=("person",)
    )
    more = [*detection_data.custom(data, data), "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(32, 32)"]
    assert trained("keypoint_R50_FPN_2x", tmp_path / "run", *more) == {"bbox", "keypoints"}


def test_segmentation(tmp_path: Path) -> None:
    for split in ("train_aug", "val"):
        detection_data.write_voc_labels(tmp_path / "data", split)
    more = [
        "DATASETS.ROOT", str(tmp_path / "data"), "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "INPUT.SCALE_CROP.SIZE", "97",
        "INPUT.MIN_SIZE_TEST", "0",
    ]  # fmt: skip
    assert trained("semseg_voc_R50", tmp_path / "run", *more) == {"sem_seg"}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("FPN", [*AMP, "bfloat16"]),
        ("FPN", [*AMP, "float16"]),
        ("FPN", ["MODEL.CHANNELS_LAST", "False"]),
        ("FPN", ["SOLVER.ACCUMULATE", "2", *AMP, "float16"]),
        ("FPN", ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", "1e-4", "SOLVER.CLIP_GRADIENTS.ENABLED", "True", *AMP,
                 "float16"]),
        ("FPN", ["MODEL.RESNETS.DEPTH", "18", "MODEL.COMPILE", "True", *AMP, "bfloat16"]),
        ("ViT", ["SOLVER.AMP.ENABLED", "False", "MODEL.CHANNELS_LAST", "False"]),
        ("ViT", ["MODEL.VIT.CHECKPOINT_BLOCKS", "True", "SOLVER.ACCUMULATE", "2", *AMP, "float16"]),
        ("ViT", ["MODEL.COMPILE", "True", "MODEL.VIT.DEPTH", "2"]),
    ],
    ids=["bfloat16", "float16", "contiguous", "two parts", "AdamW", "compiled", "ViT float32 contiguous",
         "ViT checkpointed float16 two parts", "ViT compiled"],
)  # fmt: skip
def test_ways_to_train(data: list[str], tmp_path: Path, kind: str, more: list[str]) -> None:
    config, own, tasks = KINDS[kind]
    assert trained(config, tmp_path / "run", *data, *own, *more) == tasks


@pytest.mark.parametrize("again", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize(
    ("dtype", "amp", "tolerance"),
    [
        (torch.float64, None, 1e-10),
        (torch.float32, None, 1e-4),
        (torch.float32, torch.bfloat16, 0.25),
        (torch.float32, torch.float16, 0.04),
    ],
    ids=["float64", "float32", "bfloat16", "float16"],
)
def test_maps_and_gradients_of_a_vit_are_the_cpus(
    dtype: torch.dtype, amp: torch.dtype | None, tolerance: float, again: bool
) -> None:
    """Windows that do not divide the map; relative and absolute positions are interpolated.

    In half precision, where some gradients consist of rounding alone, all of them are compared together.
    """
    precision = torch.autocast("cuda", dtype=amp, enabled=amp is not None)
    found = tiny.maps_and_gradients(
        DEVICE, dtype, precision=precision, checkpoint_blocks=again, image_size=64
    )
    expected = tiny.maps_and_gradients(torch.device("cpu"), torch.float64, image_size=64)
    assert found.keys() == expected.keys()
    if amp:
        found, expected = _gradients_together(found), _gradients_together(expected)
    for name, value in expected.items():
        assert (found[name] - value).norm() <= tolerance * value.norm() + 1e-6, name


def _gradients_together(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Join the gradients, whose names have dots, unlike those of the maps."""
    gradients = [value.double().flatten() for name, value in values.items() if "." in name]
    maps = {name: value for name, value in values.items() if "." not in name}
    return {**maps, "gradients": torch.cat(gradients)}


@pytest.mark.parametrize("kind", ["FPN", "ViT"])
def test_a_run_stopped_in_the_middle_is_resumed(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """float16, so that the scale and momenta are part of the state, which is read on the CPU first."""
    from transfer.train import loop

    class Killed(Exception):
        pass

    one_step: Callable[..., dict[str, torch.Tensor]] = loop.step

    def until_the_eighth(cfg, model, batch, optimizer, iteration, **options):
        if iteration == 7:
            raise Killed
        return one_step(cfg, model, batch, optimizer, iteration, **options)

    config, own, _ = KINDS[kind]
    more = [*RUN, *data, *own, *AMP, "float16", "OUTPUT_DIR", str(tmp_path / "run")]
    monkeypatch.setattr(loop, "step", until_the_eighth)
    with pytest.raises(Killed):
        run.run(load_config(f"transfer/{config}.yaml", more))
    monkeypatch.setattr(loop, "step", one_step)
    run.run(load_config(f"transfer/{config}.yaml", more), resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == list(range(1, 11))


@pytest.mark.parametrize("kind", ["FPN", "ViT"])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    data: list[str], tmp_path: Path, kind: str
) -> None:
    config, own, _ = KINDS[kind]
    cfg = load_config(f"transfer/{config}.yaml", [*RUN, *data, *own, "OUTPUT_DIR", str(tmp_path)])
    datasets.prepare(cfg)
    model, _ = build.build(cfg)
    optimizer = build.build_optimizer(cfg, model.train())
    batch = next(train_stream.training_batches(cfg, 0))
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[0] = float("nan")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with EventStorage(), pytest.raises(UserError, match=r"not finite at iteration 1 .*loss_cls nan"):
        step(cfg, model, batch, optimizer, 0)
    for name, value in model.named_parameters():
        assert torch.equal(before[name], value) or name.endswith("cls_score.bias")


def test_too_little_memory_names_the_keys(data: list[str], tmp_path: Path) -> None:
    """Eight images of 1333 pixels, a network of full width."""
    large = [
        "MODEL.INIT", "random", *detection_data.TINY, *data, "MODEL.DEVICE", "cuda", "INPUT.MIN_SIZE_TRAIN", "(1000,)",
        "SOLVER.IMS_PER_BATCH", "8", "OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()",
    ]  # fmt: skip
    cfg = load_config("transfer/coco_R50_FPN.yaml", large)
    datasets.prepare(cfg)
    with little_memory(2.0):
        model, _ = build.build(cfg)
        optimizer = build.build_optimizer(cfg, model.train())
        batch = next(train_stream.training_batches(cfg, 0))
        with EventStorage(), pytest.raises(UserError) as caught, advice(cfg):
            step(cfg, model, batch, optimizer, 0)
    for part in (
        "8 images in 1 part(s)",
        "SOLVER.ACCUMULATE to 2",
        "SOLVER.AMP.ENABLED True",
        "INPUT.MAX_SIZE_TRAIN",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
