"""Small pre-training runs, in this process or by the tool."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain import config
from pretrain.tensor_files import checkpoint
from pretrain.train.loop import train
from tests.support.scripts import run_script

MakeFolder = Callable[..., Path]
SMALL = [
    "MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "MODEL.DIM", "16", "MODEL.BN_GROUP_SIZE", "16",
    "MOCO.K", "100", "MOCO.M", "0.9", "INPUT.SIZE", "64", "DATA.NUM_WORKERS", "0", "SOLVER.BASE_LR", "0.01",
    "SOLVER.IMS_PER_BATCH", "32", "SOLVER.MAX_EPOCH", "3", "SOLVER.LOG_PERIOD", "1", "SOLVER.AMP", "off",
    "SOLVER.CHECKPOINT_PERIOD", "1", "LOG.TENSORBOARD", "False", "DEVICE", "cpu",
]  # fmt: skip


def overrides(images: Path, output: Path, *more: str) -> list[str]:
    return [*SMALL, "DATA.TRAIN", str(images), "OUTPUT_DIR", str(output), *more]


def pretrain(images: Path, output: Path, *more: str, resume: bool | Path = False) -> dict[str, Any]:
    """Train in this process; returns the contents of the last checkpoint."""
    train(config.load("pretrain/moco_v2_R50.yaml", overrides(images, output, *more)), resume=resume)
    return checkpoint.load(output / "checkpoint_last.pth.tar")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_script("tools/pretrain.py", "--config", "pretrain/moco_v2_R50.yaml", *arguments)


def log_lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
