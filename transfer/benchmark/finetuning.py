"""The speed of fine-tuning next to plain detectron2's loop, on made images of the usual size."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pretrain.benchmark.pretraining import Extent
from pretrain.benchmark.timing import Peak, spread
from pretrain.common.files import write_json
from transfer.config.load import load_config
from transfer.train import benchmark

_GUESS = (8.0, 2.0)  # iterations per second of a GPU, with 2 images and with more
_SIDE = 800  # pixels: no image has to be enlarged to INPUT.MIN_SIZE_TRAIN
# For trying on a CPU whether everything runs; its figures mean nothing.
TINY = [
    "INPUT.MIN_SIZE_TRAIN", "(96,)", "MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "16",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "DATALOADER.NUM_WORKERS", "0",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A config, and what differs from it: the images in a step, and whether float16 is used (by both loops)."""

    config: str
    batch: int
    half: bool

    def __str__(self) -> str:
        return f"{Path(self.config).stem}, {self.batch} images, {'fp16' if self.half else 'fp32'}"


def measure(case: Case, extent: Extent, *, folder: Path, device: str, tiny: bool) -> dict[str, Any]:
    """Time our loop and detectron2's `SimpleTrainer` (`AMPTrainer` with float16) in turns; see `benchmark.train`.

    Args:
        folder: for the made images, which later calls with the same config use again.
        device: cpu or cuda.
        tiny: tiny images and a narrow network.
    Returns:
        Iterations per second of `ours` and of `plain`, and `ratio` of the two in the same round, each as
        `timing.spread`. `split_ms`: of the parts of our step. `peak_gb`: of both loops, whose models are in memory at
        the same time; None on a CPU. `iterations`: of a block.
    """
    settings = [
        *(TINY if tiny else ()), "MODEL.INIT", "random", "MODEL.WEIGHTS", "", "MODEL.DEVICE", device,
        "SOLVER.BASE_LR", "0.0001",  # with few images in a step, the config's could diverge
        "SOLVER.IMS_PER_BATCH", str(case.batch), "SOLVER.AMP.ENABLED", str(case.half), "SOLVER.AMP.DTYPE", "float16",
    ]  # fmt: skip
    cfg = load_config(case.config, settings)
    made = folder / Path(case.config).stem
    _write(made, classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES, side=96 if tiny else _SIDE)
    for part in ("TRAIN", "TEST"):
        cfg.DATASETS[f"{part}_JSON"], cfg.DATASETS[f"{part}_IMAGES"] = (
            str(made / "instances.json"),
            str(made / "images"),
        )
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK  # pre-training turns it on; here sizes vary
    iterations = max(2, round(extent.seconds * _GUESS[case.batch > 2]))
    peak = Peak(torch.device(device))
    peak.restart()
    report = benchmark.train(cfg, iterations=iterations, rounds=extent.rounds)
    return {
        "ours": spread(report["ours"]),
        "plain": spread(report["plain"]),
        "ratio": spread(report["ratios"]),
        "split_ms": {part: 1000 * seconds for part, seconds in report["split"].items()},
        "peak_gb": peak.read(),
        "iterations": iterations,
    }


def _write(folder: Path, *, classes: int, side: int) -> None:
    """Write made images once, with as many classes as the model expects, given to the objects in turn."""
    if folder.exists():
        return
    path, _ = benchmark.write_shapes(folder, side=side)
    content = json.loads(path.read_text())
    content["categories"] = [{"id": number, "name": f"class {number}"} for number in range(1, classes + 1)]
    for annotation in content["annotations"]:
        annotation["category_id"] = annotation["id"] % classes + 1
    write_json(path, content)
