"""The config keys of pre-training with their defaults, and loading and checking a config."""

import itertools
import os
from collections.abc import Sequence
from typing import Any

from fvcore.common.config import CfgNode

from pretrain.common.configs import default_output, find_config, get, merge
from pretrain.common.errors import UserError
from pretrain.data.folders import Endings
from pretrain.data.views import PAIRS, PARTS
from pretrain.model.encoders import ARCHITECTURES, architecture, projection_head


def load(name: str, overrides: Sequence[str] = (), *, processes: int = 1) -> CfgNode:
    """Return the frozen pre-training config of a YAML file and `KEY VALUE` pairs.

    Raises `UserError` for any setting that cannot work with this number of processes.
    """
    cfg, path = defaults(), find_config(name)
    merge(cfg, path, overrides)
    cfg.OUTPUT_DIR = default_output(path, overrides) or cfg.OUTPUT_DIR
    _forget_absent_labels(cfg, overrides)
    validate(cfg, processes=processes)
    cfg.freeze()
    return cfg


def defaults() -> CfgNode:
    """Return every key of pre-training with its default, the value of MoCo v2 (Chen et al. 2020; He et al. Sec. 4)."""
    return CfgNode(
        {
            "MODEL": {
                "ARCH": "resnet50",  # resnet18|34|50|101|152, resnext50_32x8d, resnext101_32x8d, vit (MoCo v3)
                "WIDTH": 1.0,  # multiplies every channel count of a ResNet
                "STEM_CHANNELS": 0,  # of the first convolution; 0: 64 x WIDTH
                "DIM": 128,  # size of the query and key vectors
                "HEAD": "mlp",  # linear (v1) | mlp (v2: hidden layer as wide as the feature, ReLU); v3 has its own
                "HIDDEN": 4096,  # width of the hidden layers in the projector and the predictor of MoCo v3
                "VIT": {  # the shape of ARCH vit; the default is ViT-B/16
                    "WIDTH": 768,
                    "DEPTH": 12,  # number of blocks
                    "HEADS": 12,
                    "PATCH_SIZE": 16,  # pixels
                },
                "NORM": "ShuffleBN",  # ShuffleBN | SyncBN | BN; MoCo v3: SyncBN
                "BN_GROUP_SIZE": 32,  # number of images normalised together; 256 / 8 GPUs in the paper
                "COMPILE": False,  # whether to use torch.compile
            },
            "MOCO": {
                "MECHANISM": "moco",  # moco | endtoend | memorybank (He et al. Figure 2) | mocov3 (no queue)
                "K": 65536,  # number of keys in the queue, or of negatives drawn from the memory bank
                "M": 0.999,  # momentum of the key encoder; in MoCo v3 it rises from here to 1
                "T": 0.2,  # temperature; 0.07 in v1
                "BANK_M": 0.5,  # momentum of the memory bank's features (Wu et al. 2018)
                "SHUFFLE": True,  # set False only to show the leak that shuffling prevents (Figure A.1)
            },
            "INPUT": {
                "SIZE": 224,  # pixels; views are square
                "AUG": "v2",  # v1 | v2 | v3
                "WITHOUT": [],  # parts of AUG to leave out: crop flip jitter gray blur solarize
                "VIEWS": "cpu",  # cpu | gpu: where to change colours and to blur
                "MIN_SCALE": 0.2,  # smallest share of the image area that a crop may cover
                "MEAN": [0.485, 0.456, 0.406],  # of RGB in [0, 1]
                "STD": [0.229, 0.224, 0.225],
            },
            "DATA": {
                "TRAIN": ["datasets/imagenet/train"],  # folders, text lists, tar shards; labels are not used
                "ENDINGS": [],  # file names that are images: jpg, rgb.png, or !_mask.png for all but these; empty: all
                "NUM_WORKERS": 4,  # loader workers of each training process
                "MAX_BROKEN": 0.01,  # stop if more than this share of the images cannot be read
            },
            "SOLVER": {
                "OPTIMIZER": "sgd",  # sgd | lars | adamw
                "BASE_LR": 0.03,  # of this batch: it is not scaled by the batch size
                "IMS_PER_BATCH": 256,  # total over all processes
                "MOMENTUM": 0.9,  # of SGD and LARS
                "WEIGHT_DECAY": 1e-4,
                "SCHEDULE": "cosine",  # cosine | step | exponential | warmup_cosine (per iteration)
                "WARMUP_EPOCHS": 10.0,  # in which the rate of `warmup_cosine` rises from 0
                "STEPS": [120, 160],  # epochs at which `step` multiplies the rate by 0.1
                "GAMMA": 0.9,  # `exponential` multiplies the rate by this
                "GAMMA_PERIOD": 62500,  # iterations between these multiplications
                "MAX_EPOCH": 200,
                "MAX_ITER": 0,  # stop after this many iterations; 0: only MAX_EPOCH counts
                "CHUNK": 0,  # images that a process's ViT encodes at a time, to save memory; 0: all; same result
                "AMP": "auto",  # auto (bf16 if the GPU has it, or if it is timed faster on a CPU) | bf16 | fp16 | off
                "CHECKPOINT_PERIOD": 10,  # keep the checkpoint of every Nth epoch permanently
                "KEEP_LAST": 3,  # also keep the checkpoints of the last N epochs; 0: keep all
                "SAVE_MINUTES": 15.0,  # also save during an epoch, at this interval; 0: only at its end
                "SAVE_ERRORS": "stop",  # stop | continue: what to do if a checkpoint cannot be written
                "LOG_PERIOD": 20,  # iterations
            },
            "KNN": {
                "TRAIN": "",  # folder of class folders; empty: those of DATA.TRAIN, if it has any
                "VAL": "",  # folder of class folders; empty: leave-one-out on TRAIN
                "K": 20,
                "T": 0.07,
                "PERIOD": 10,  # measure every Nth epoch, and after the last one; 0: never
                "MAX_IMAGES": 5000,  # from each folder, evenly spaced, plus one of each class missed by that
            },
            "LOG": {
                "TENSORBOARD": True,
                "WANDB": "",  # name of a project; empty: none
            },
            "OUTPUT_DIR": "output/pretrain",
            "SEED": 0,
            "DEVICE": "auto",  # auto | cpu | cuda
        }
    )


def _forget_absent_labels(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Empty KNN.TRAIN and VAL of a config whose DATA.TRAIN is overridden, if the labelled images are not there.

    They belong to the images that the config names, such as the demo's, and not to those of the command line.
    """
    given = set(overrides[::2])
    if "DATA.TRAIN" in given and not {"KNN.TRAIN", "KNN.VAL"} & given and not os.path.exists(cfg.KNN.TRAIN):
        cfg.KNN.TRAIN = cfg.KNN.VAL = ""


_CHOICES = {
    "MODEL.NORM": ("ShuffleBN", "SyncBN", "BN"),
    "MOCO.MECHANISM": ("moco", "endtoend", "memorybank", "mocov3"),
    "INPUT.AUG": tuple(PAIRS),
    "INPUT.VIEWS": ("cpu", "gpu"),
    "SOLVER.OPTIMIZER": ("sgd", "lars", "adamw"),
    "SOLVER.SCHEDULE": ("cosine", "step", "exponential", "warmup_cosine"),
    "SOLVER.AMP": ("auto", "bf16", "fp16", "off"),
    "SOLVER.SAVE_ERRORS": ("stop", "continue"),
    "DEVICE": ("auto", "cpu", "cuda"),
}

_POSITIVE = (
    "MODEL.DIM", "MODEL.HIDDEN", "MODEL.VIT.WIDTH", "MODEL.VIT.DEPTH", "MODEL.VIT.HEADS", "MODEL.VIT.PATCH_SIZE",
    "MODEL.BN_GROUP_SIZE", "MOCO.K", "MOCO.T", "INPUT.SIZE", "SOLVER.IMS_PER_BATCH",
    "SOLVER.GAMMA", "SOLVER.GAMMA_PERIOD", "SOLVER.MAX_EPOCH", "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.LOG_PERIOD", "KNN.K", "KNN.T", "KNN.MAX_IMAGES",
)  # fmt: skip

_RANGES: dict[str, tuple[float, float]] = {  # both ends included
    "MOCO.M": (0, 1),
    "MOCO.BANK_M": (0, 1),
    "INPUT.MIN_SCALE": (1e-6, 1),
    "DATA.MAX_BROKEN": (0, 1),
    "DATA.NUM_WORKERS": (0, 1024),
    "SOLVER.BASE_LR": (0, float("inf")),
    "SOLVER.MOMENTUM": (0, 1),
    "SOLVER.WEIGHT_DECAY": (0, float("inf")),
    "SOLVER.WARMUP_EPOCHS": (0, float("inf")),
    "SOLVER.CHUNK": (0, float("inf")),
    "SOLVER.MAX_ITER": (0, float("inf")),
    "SOLVER.KEEP_LAST": (0, float("inf")),
    "SOLVER.SAVE_MINUTES": (0, float("inf")),
    "KNN.PERIOD": (0, float("inf")),
    "SEED": (0, 2**63),
}


def validate(cfg: CfgNode, *, processes: int = 1) -> None:
    """Raise `UserError` if a value cannot work with this number of processes."""
    for key, choices in _CHOICES.items():
        if get(cfg, key) not in choices:
            raise UserError(f"{key} {get(cfg, key)}: choose {' or '.join(choices)}")
    for key in _POSITIVE:
        if not get(cfg, key) > 0:
            raise UserError(f"{key} {get(cfg, key)}: must be positive")
    for key, (low, high) in _RANGES.items():
        if not low <= get(cfg, key) <= high:
            raise UserError(f"{key} {get(cfg, key)}: must be between {low:g} and {high:g}")
    for part in cfg.INPUT.WITHOUT:
        if part not in PARTS:
            raise UserError(f"INPUT.WITHOUT {part}: choose from {' '.join(PARTS)}")
    Endings(cfg.DATA.ENDINGS)
    _check_pixels(cfg.INPUT.MEAN, cfg.INPUT.STD)
    _check_network(cfg)
    if cfg.MODEL.STEM_CHANNELS < 0:
        raise UserError(f"MODEL.STEM_CHANNELS {cfg.MODEL.STEM_CHANNELS}: give 0 (64 x MODEL.WIDTH) or more")
    projection_head(cfg.MODEL.HEAD, 1, 1)
    if cfg.KNN.VAL and not cfg.KNN.TRAIN:
        raise UserError(
            "KNN.VAL needs KNN.TRAIN: set it to a folder of class folders, in which neighbours are searched"
        )
    _check_batch(cfg, processes)


def _check_network(cfg: CfgNode) -> None:
    model, v3 = cfg.MODEL, cfg.MOCO.MECHANISM == "mocov3"
    if model.ARCH not in (*ARCHITECTURES, "vit"):
        raise UserError(
            f"MODEL.ARCH {model.ARCH}: unknown architecture; choose one of {', '.join(ARCHITECTURES)}, vit"
        )
    if v3 and model.NORM != "SyncBN":
        raise UserError(f"MODEL.NORM {model.NORM}: MoCo v3 (MOCO.MECHANISM mocov3) needs MODEL.NORM SyncBN")
    if cfg.SOLVER.CHUNK and model.ARCH != "vit":
        raise UserError(
            f"SOLVER.CHUNK {cfg.SOLVER.CHUNK}: a ResNet normalises over the whole batch, so chunks would change the "
            "result: use SOLVER.CHUNK 0, or MODEL.ARCH vit"
        )
    if model.ARCH != "vit":
        _check_width(model.ARCH, model.WIDTH)
        return
    if not v3:
        raise UserError("MODEL.ARCH vit: only MoCo v3 trains a ViT: set MOCO.MECHANISM mocov3")
    if cfg.SOLVER.CHUNK and model.COMPILE:
        raise UserError("SOLVER.CHUNK does not work with MODEL.COMPILE: set one of them to 0 or False")
    if model.WIDTH != 1 or model.STEM_CHANNELS:
        raise UserError("MODEL.WIDTH and MODEL.STEM_CHANNELS are for ResNets: use MODEL.VIT.WIDTH for a ViT")
    width, patch, size = model.VIT.WIDTH, model.VIT.PATCH_SIZE, cfg.INPUT.SIZE
    if width % model.VIT.HEADS or width % 4:
        raise UserError(
            f"MODEL.VIT.WIDTH {width}: must be a multiple of MODEL.VIT.HEADS {model.VIT.HEADS} and of 4"
        )
    if size % patch:
        raise UserError(
            f"INPUT.SIZE {size}: must be a multiple of MODEL.VIT.PATCH_SIZE {patch}: use INPUT.SIZE "
            f"{max(round(size / patch), 1) * patch}"
        )


def _check_width(name: str, width: float) -> None:
    if architecture(name, width).width_per_group < 1:
        # Number of stem channels at which each group of a convolution still has one channel, rounded up.
        narrowest = -(-64 // architecture(name).width_per_group)
        raise UserError(f"MODEL.WIDTH {width}: {name} needs {narrowest / 64:g} or more")


def _check_pixels(mean: Sequence[Any], std: Sequence[Any]) -> None:
    for key, values in (("INPUT.MEAN", mean), ("INPUT.STD", std)):
        if len(values) != 3 or not all(isinstance(value, int | float) for value in values):
            raise UserError(f"{key} {list(values)}: must be three numbers, for R, G and B in [0, 1]")
    if min(std) <= 0:
        raise UserError(f"INPUT.STD {list(std)}: must be positive")


def _check_batch(cfg: CfgNode, processes: int) -> None:
    batch, size = cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.BN_GROUP_SIZE
    if batch % processes:
        whole = max(batch // processes, 2 if cfg.MODEL.NORM == "BN" else 1) * processes
        use = _batch_for_groups(whole, size, processes) if cfg.MODEL.NORM == "ShuffleBN" else whole
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch} does not divide evenly into {processes} processes: use "
            f"SOLVER.IMS_PER_BATCH {use}"
        )
    if cfg.MODEL.NORM == "ShuffleBN":
        _check_groups(batch, size, processes)
    elif cfg.MODEL.NORM == "BN" and batch // processes < 2:
        raise UserError(
            f"MODEL.NORM BN normalises over the images of each process, here {batch // processes}: use "
            f"SOLVER.IMS_PER_BATCH {2 * processes} or more, or MODEL.NORM SyncBN"
        )
    elif batch < 2:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch}: batch norm needs 2 or more images: use SOLVER.IMS_PER_BATCH 2"
        )


def _check_groups(batch: int, size: int, processes: int) -> None:
    fitting = _group_sizes(batch, processes)
    if size in fitting:
        return
    if not fitting:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch} on {processes} process(es) does not divide into groups (at least two, each "
            f"of 2 or more images): use SOLVER.IMS_PER_BATCH {_batch_for_groups(batch, size, processes)}, or "
            "MODEL.NORM SyncBN"
        )
    use = f"use MODEL.BN_GROUP_SIZE {_nearest(fitting, size)}"
    if size < 2:
        raise UserError(f"MODEL.BN_GROUP_SIZE {size}: ShuffleBN needs 2 or more images in a group; {use}")
    if batch <= size:
        raise UserError(
            f"MODEL.BN_GROUP_SIZE {size}: ShuffleBN needs at least two groups in SOLVER.IMS_PER_BATCH "
            f"{batch} to shuffle between; {use}"
        )
    local = batch // processes
    raise UserError(
        f"MODEL.BN_GROUP_SIZE {size} does not fit {local} images on each of {processes} process(es): {use}"
    )


def _batch_for_groups(batch: int, size: int, processes: int) -> str:
    """Return advice: the first usable batch size of `batch`, `batch` + `processes`, ..., and a group size for it."""
    usable = next(n for n in itertools.count(batch, processes) if _group_sizes(n, processes))
    return f"{usable} with MODEL.BN_GROUP_SIZE {_nearest(_group_sizes(usable, processes), size)}"


def _group_sizes(batch: int, processes: int) -> list[int]:
    """Return the sizes of two or more equal groups that do not cross processes, or that consist of whole processes."""
    local = batch // processes
    sizes = [n for n in range(2, batch // 2 + 1) if not batch % n]
    return [n for n in sizes if not local % n or not n % local]


def _nearest(sizes: list[int], wanted: int) -> int:
    return min(sizes, key=lambda size: abs(size - wanted))
