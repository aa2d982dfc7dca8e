"""Configuration of the fine-tuning stage: detectron2's keys, a few of ours, and the checks before a run."""

from collections.abc import Sequence

import torch

from transfer import d2_compat  # noqa: F401 (first: mends detectron2 before it is imported)

# isort: split
from detectron2.config import CfgNode, get_cfg

from pretrain.config import find_config, merge
from pretrain.errors import UserError


def defaults() -> CfgNode:
    """detectron2's defaults plus our keys."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "auto"  # auto | cpu | cuda
    # weights: MODEL.WEIGHTS must name a file that fills the whole backbone. random: from scratch, and said so.
    cfg.MODEL.INIT = "weights"
    cfg.MODEL.CHANNELS_LAST = True  # memory format of the convolutions; the numbers do not change
    cfg.MODEL.COMPILE = False  # torch.compile of the backbone
    cfg.MODEL.DC5 = CfgNode({"CHANNELS": 512})  # of the 3x3 convolution behind a dilated C5 (App. A.1)
    cfg.MODEL.SEM_SEG_HEAD.DILATION = 6  # of the two 3x3 convolutions of FCN16sHead (App. A.5)
    # Semantic segmentation: a random scale of the whole image, then a square crop, padded where it is smaller.
    cfg.INPUT.SCALE_CROP = CfgNode({"ENABLED": False, "SCALES": (0.5, 2.0), "SIZE": 513})
    cfg.SOLVER.OPTIMIZER = "SGD"  # SGD (the paper) | AdamW (the demo: trains from scratch in minutes)
    cfg.SOLVER.ACCUMULATE = 1  # parts into which each process divides its share of a batch, one after the other
    cfg.SOLVER.AMP.DTYPE = "bfloat16"  # bfloat16 | float16 (scaled losses, as in detectron2)
    cfg.SOLVER.LOG_PERIOD = 20  # iterations
    cfg.SOLVER.CHECKPOINT_PERIOD = 5000  # iterations
    cfg.DATASETS.ROOT = "datasets"  # the folder of coco/, VOC2007/, VOC2012/, demo_*/
    # your own COCO-format data: all four together, in the place of TRAIN and TEST
    cfg.DATASETS.TRAIN_JSON = ""
    cfg.DATASETS.TRAIN_IMAGES = ""
    cfg.DATASETS.TEST_JSON = ""
    cfg.DATASETS.TEST_IMAGES = ""
    cfg.DATASETS.REPAIR = False  # leave out annotations that cannot be used, instead of stopping at them
    # train on a part of the labels: a fraction of the images, or images until each class has SHOTS objects
    cfg.DATASETS.FRACTION = 1.0
    cfg.DATASETS.SHOTS = 0
    cfg.DATASETS.SUBSET_SEED = 0
    cfg.TEST.KEEP_BEST = ""  # e.g. bbox/AP: with TEST.EVAL_PERIOD, keeps model_best.pth
    cfg.TEST.PICTURES = 8  # test images that are drawn, predictions beside ground truth
    cfg.TEST.PICTURE_SCORE = 0.5  # detections below this score are not drawn
    cfg.LOG = CfgNode({"TENSORBOARD": True, "WANDB": ""})  # WANDB: a project's name, where wandb is installed
    cfg.SEED = 0
    cfg.OUTPUT_DIR = "output/transfer"
    return cfg


def load(name: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a config (as given or under `configs/`) with overrides and check it. Raises `UserError`."""
    cfg = defaults()
    merge(cfg, find_config(name), overrides)
    _check(cfg)
    return cfg


def _check(cfg: CfgNode) -> None:
    if cfg.MODEL.INIT not in ("weights", "random"):
        raise UserError(f"MODEL.INIT {cfg.MODEL.INIT}: choose weights or random")
    if cfg.MODEL.INIT == "random" and cfg.MODEL.WEIGHTS:
        raise UserError(
            f"MODEL.INIT random contradicts MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}: give one of the two"
        )
    if cfg.MODEL.INIT == "weights" and not cfg.MODEL.WEIGHTS:
        raise UserError(
            "MODEL.WEIGHTS is empty: name a converted file (MODEL.WEIGHTS w.pkl), "
            "or say MODEL.INIT random to train from scratch"
        )
    if cfg.SOLVER.OPTIMIZER not in ("SGD", "AdamW"):
        raise UserError(f"SOLVER.OPTIMIZER {cfg.SOLVER.OPTIMIZER}: choose SGD or AdamW")
    if cfg.SOLVER.LR_SCHEDULER_NAME not in ("WarmupMultiStepLR", "WarmupCosineLR"):
        raise UserError(
            f"SOLVER.LR_SCHEDULER_NAME {cfg.SOLVER.LR_SCHEDULER_NAME}: choose WarmupMultiStepLR or WarmupCosineLR"
        )
    if cfg.SEED < 0:
        raise UserError(f"SEED {cfg.SEED}: give 0 or more; every run here is reproducible")
    if cfg.SOLVER.MAX_ITER < 1:
        raise UserError(
            f"SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}: give 1 or more; --eval-only tests without training"
        )
    # detectron2's trainer knows these; our loop does not, and a key without effect would mislead
    for key, only in (
        ("DATALOADER.SAMPLER_TRAIN", "TrainingSampler"),
        ("TEST.EVAL_PERIOD", 0),
        ("TEST.AUG.ENABLED", False),
    ):
        value = cfg
        for part in key.split("."):
            value = value[part]
        if value != only:
            raise UserError(f"{key} {value}: not supported here; leave it at {only}")
    _check_resnet(cfg)
    last_step = max(cfg.SOLVER.STEPS, default=0)
    if last_step >= cfg.SOLVER.MAX_ITER and cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        raise UserError(
            f"SOLVER.STEPS {tuple(cfg.SOLVER.STEPS)} reaches beyond SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}: "
            "set both together"
        )


def _check_resnet(cfg: CfgNode) -> None:
    """detectron2 builds basic blocks (ResNet-18 and 34) in FPN models, at one width and undilated, only."""
    depth = cfg.MODEL.RESNETS.DEPTH
    if depth not in (18, 34):
        return
    if "fpn" not in cfg.MODEL.BACKBONE.NAME:
        raise UserError(
            f"MODEL.RESNETS.DEPTH {depth}: detectron2 has ResNet-18 and 34 only in FPN models; "
            "use a *_FPN config or DEPTH 50"
        )
    for key, needed in (("RES2_OUT_CHANNELS", 64), ("RES5_DILATION", 1)):
        if cfg.MODEL.RESNETS[key] != needed:
            raise UserError(f"MODEL.RESNETS.DEPTH {depth} needs MODEL.RESNETS.{key} {needed}")


def check_processes(cfg: CfgNode, processes: int, *, local: int, train: bool = True) -> None:
    """Refuse a number of processes that this machine or the batch size does not allow. Raises `UserError`.

    Args:
        processes: of the whole job.
        local: those of this machine.
        train: whether batches are to be divided among them.
    """
    if processes < 1:
        raise UserError(f"--num-gpus {processes}: give 1 or more (one process runs on the CPU without a GPU)")
    if train and cfg.SOLVER.IMS_PER_BATCH % processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} (the total) cannot be divided among "
            f"{processes} processes: use --num-gpus {_largest_divisor(cfg.SOLVER.IMS_PER_BATCH, processes)}"
        )
    gpus = torch.cuda.device_count()
    if processes > 1 and cfg.MODEL.DEVICE != "cpu" and gpus < local:
        raise UserError(
            f"--num-gpus {local}: PyTorch sees {gpus} GPU(s) here; lower it, "
            "or add MODEL.DEVICE cpu for as many processes on the CPU"
        )


def _largest_divisor(total: int, at_most: int) -> int:
    return next(n for n in range(min(at_most, total), 0, -1) if total % n == 0)
