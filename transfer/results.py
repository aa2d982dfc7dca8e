"""`results.json`: what a fine-tuning run measured, and everything that the numbers depend on."""

import hashlib
import platform
from pathlib import Path
from typing import Any

import cv2
import numpy
import torch
import torchvision
from fvcore.common.config import CfgNode

from pretrain import __version__
from pretrain.common import distributed
from pretrain.common.configs import digest_text, get

# These keys say where a run reads, computes and writes, and how it is monitored. They do not change its numbers.
IRRELEVANT = (
    "OUTPUT_DIR", "DATASETS.ROOT", "DATASETS.TRAIN_JSON", "DATASETS.TRAIN_IMAGES", "DATASETS.TEST_JSON",
    "DATASETS.TEST_IMAGES", "MODEL.WEIGHTS", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "SOLVER.LOG_PERIOD",
    "SOLVER.CHECKPOINT_PERIOD", "SOLVER.SAVE_MINUTES",
    "TEST.PICTURES", "TEST.PICTURE_SCORE", "TEST.EVAL_PERIOD", "TEST.KEEP_BEST", "LOG",
)  # fmt: skip
# Keys that are younger than the digest, which must not change for them. A run has replaced SOLVER.EPOCHS by MAX_ITER.
YOUNGER = ("SOLVER.SAVE_MINUTES", "SOLVER.EPOCHS")
# Sections that are younger too. The digest has those that a run uses (`unused`).
YOUNGER_SECTIONS = ("MODEL.VIT", "INPUT.LSJ")


def config_digest(cfg: CfgNode) -> str:
    """Return the SHA-256 of the settings that the numbers depend on. It is the same on every machine."""
    copy = cfg.clone()
    copy.defrost()
    left_out = (*YOUNGER, *unused(cfg))
    for key in (*IRRELEVANT, *left_out):
        *parents, leaf = key.split(".")
        node = copy
        for parent in parents:
            node = node[parent]
        if key in left_out:
            node.pop(leaf, None)
        else:
            node[leaf] = type(node[leaf])()
    return hashlib.sha256(digest_text(copy).encode()).hexdigest()


def unused(cfg: CfgNode) -> tuple[str, ...]:
    """Return the sections of `YOUNGER_SECTIONS` that a run does not use."""
    uses = {"MODEL.VIT": "vit" in cfg.MODEL.BACKBONE.NAME, "INPUT.LSJ": get(cfg, "INPUT.LSJ.ENABLED", False)}
    return tuple(section for section in YOUNGER_SECTIONS if not uses[section])


def environment(device: str, *, detector: bool = True) -> dict[str, Any]:
    """Return the library versions and the hardware of a run on `device` (cpu or cuda).

    Args:
        detector: include the libraries of detection; without it, detectron2 need not be installed.
    """
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "versions": {
            "moco-detection-transfer": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            **({"detectron2": _detectron2_version()} if detector else {}),
            "numpy": numpy.__version__,
            "opencv": cv2.__version__,
            **({"pycocotools": _pycocotools_version()} if detector else {}),
        },
        "hardware": {
            "machine": platform.machine(),
            "cpu": _cpu_name(),
            "gpu": gpu,
            "processes": distributed.world_size(),
            "threads": torch.get_num_threads(),
        },
    }


def _detectron2_version() -> str:
    from transfer import d2_compat

    about = d2_compat.describe()
    return f"{about['version']} ({about['origin']})"


def _pycocotools_version() -> str:
    import pycocotools

    return str(getattr(pycocotools, "__version__", "unknown"))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
