"""Configuration of the linear probe: YAML files as in pre-training, with keys for this task."""

import os
from collections.abc import Sequence
from typing import Any

from fvcore.common.config import CfgNode

from pretrain.common.configs import find_config, flatten, get, merge
from pretrain.common.errors import UserError
from pretrain.common.files import missing_folder

_POSITIVE = (
    "MODEL.WIDTH", "MODEL.VIT.WIDTH", "MODEL.VIT.DEPTH", "MODEL.VIT.HEADS", "MODEL.VIT.PATCH_SIZE", "SOLVER.BASE_LR",
    "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_EPOCH", "KNN.K", "KNN.T",
)  # fmt: skip
_NOT_NEGATIVE = ("DATA.NUM_WORKERS", "MODEL.STEM_CHANNELS", "SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY", "SEED")
FOLDERS = ("DATA.TRAIN", "DATA.VAL")
_SMALLEST = 32  # pixels: the stride of a ResNet
# These keys say where a run reads, computes and writes. They do not change its numbers.
IRRELEVANT = (
    "DATA.TRAIN", "DATA.VAL", "DATA.NUM_WORKERS", "DATA.MAX_BROKEN", "KNN.K", "KNN.T", "OUTPUT_DIR", "DEVICE",
)  # fmt: skip
# Younger keys: at their defaults they are left out of digests, so that runs made before them stay valid.
YOUNGER = ("MODEL.VIT", "SOLVER.SCHEDULE")


def defaults() -> CfgNode:
    """Return every key with its default, from He et al. Sec. 4.1 or, if not given there, the authors' script."""
    return CfgNode(
        {
            "DATA": {
                "TRAIN": "datasets/imagenet/train",  # a folder of class folders
                "VAL": "datasets/imagenet/val",  # the same class folders, with other images
                "NUM_WORKERS": 4,  # loader workers per process
                "MAX_BROKEN": 0.01,  # stop if more than this share of TRAIN is unreadable
            },
            "MODEL": {
                "ARCH": "resnet50",  # only for `--weights random`; otherwise read from the file
                "WIDTH": 1.0,  # likewise
                "STEM_CHANNELS": 0,  # likewise; 0: 64 x WIDTH
                "VIT": {"WIDTH": 768, "DEPTH": 12, "HEADS": 12, "PATCH_SIZE": 16},  # likewise, of ARCH vit
            },
            "INPUT": {
                "SIZE": 224,  # pixels of the square views; tests use the central 7/8 of the image
            },
            "SOLVER": {
                "BASE_LR": 30.0,
                "IMS_PER_BATCH": 256,  # total over all processes
                "MAX_EPOCH": 100,
                "SCHEDULE": "step",  # step | cosine (MoCo v3: from BASE_LR to 0, in each epoch)
                "STEPS": [60, 80],  # epochs at which `step` multiplies the learning rate by 0.1
                "MOMENTUM": 0.9,
                "WEIGHT_DECAY": 0.0,
            },
            "SWEEP": [],  # learning rates, one classifier for each; empty: SOLVER.BASE_LR only
            "CACHE": False,  # train on stored features of fixed centre crops instead of random crops
            "KNN": {
                "K": 200,
                "T": 0.07,
            },
            "OUTPUT_DIR": "output/linear",
            "SEED": 0,
            "DEVICE": "auto",  # auto | cpu | cuda
        }
    )


def load(
    name: str, overrides: Sequence[str] = (), *, processes: int = 1, folders: Sequence[str] = FOLDERS
) -> CfgNode:
    """Return the frozen config of a YAML file and `KEY VALUE` pairs. Raises `UserError` for invalid settings.

    Args:
        folders: keys of the folders that must exist.
    """
    cfg = defaults()
    merge(cfg, find_config(name), overrides)
    _validate(cfg, processes, folders)
    cfg.freeze()
    return cfg


def rates(cfg: CfgNode) -> list[float]:
    """Return the learning rate of each classifier."""
    return [float(rate) for rate in cfg.SWEEP] or [cfg.SOLVER.BASE_LR]


def of_numbers(cfg: CfgNode) -> dict[str, Any]:
    """Return the settings that the numbers depend on, by dotted key, without the younger keys at their defaults."""
    left_out = tuple(f"{key}." for key in (*IRRELEVANT, *unset(cfg)))
    return {key: value for key, value in flatten(cfg).items() if not f"{key}.".startswith(left_out)}


def unset(cfg: CfgNode) -> tuple[str, ...]:
    """Return the keys and sections of `YOUNGER` that have their defaults."""
    return tuple(key for key in YOUNGER if get(cfg, key) == get(defaults(), key))


def _validate(cfg: CfgNode, processes: int, folders: Sequence[str]) -> None:
    values = flatten(cfg)
    for key in _POSITIVE:
        if not 0 < values[key] < float("inf"):
            raise UserError(f"{key} {values[key]}: must be positive")
    for key in _NOT_NEGATIVE:
        if not 0 <= values[key] < float("inf"):
            raise UserError(f"{key} {values[key]}: must not be negative")
    _check_vit(cfg)
    if cfg.INPUT.SIZE < _SMALLEST:
        raise UserError(f"INPUT.SIZE {cfg.INPUT.SIZE}: must be {_SMALLEST} or more")
    if not 0 <= cfg.DATA.MAX_BROKEN <= 1:
        raise UserError(f"DATA.MAX_BROKEN {cfg.DATA.MAX_BROKEN}: must be between 0 and 1")
    if not all(type(rate) in (int, float) and 0 < rate < float("inf") for rate in cfg.SWEEP):
        raise UserError(f"SWEEP {cfg.SWEEP}: must be positive numbers, as in --sweep 10,30,100")
    if len(set(cfg.SWEEP)) < len(cfg.SWEEP):
        raise UserError(f"SWEEP {cfg.SWEEP}: lists a learning rate twice; list each rate once")
    if cfg.SOLVER.SCHEDULE not in ("step", "cosine"):
        raise UserError(f"SOLVER.SCHEDULE {cfg.SOLVER.SCHEDULE}: choose step or cosine")
    if cfg.DEVICE not in ("auto", "cpu", "cuda"):
        raise UserError(f"DEVICE {cfg.DEVICE}: choose auto, cpu or cuda")
    if cfg.SOLVER.IMS_PER_BATCH % processes:
        usable = max(cfg.SOLVER.IMS_PER_BATCH // processes, 1) * processes
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} does not divide evenly into {processes} processes: "
            f"use {usable}"
        )
    for key in folders:
        if not os.path.isdir(values[key]):
            raise UserError(missing_folder(key, values[key], "; give a folder of class folders"))


def _check_vit(cfg: CfgNode) -> None:
    shape = cfg.MODEL.VIT
    if cfg.MODEL.ARCH != "vit":
        return
    if shape.WIDTH % 4 or shape.WIDTH % shape.HEADS:
        raise UserError(
            f"MODEL.VIT.WIDTH {shape.WIDTH}: must be a multiple of MODEL.VIT.HEADS {shape.HEADS} and of 4"
        )
    if cfg.MODEL.WIDTH != 1 or cfg.MODEL.STEM_CHANNELS:
        raise UserError("MODEL.WIDTH and MODEL.STEM_CHANNELS are for ResNets: use MODEL.VIT.WIDTH for a ViT")
