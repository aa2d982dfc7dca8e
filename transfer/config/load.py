"""The configuration of fine-tuning: detectron2's keys, some of ours, and the checks before a run."""

from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg

from pretrain.common.configs import (
    default_output,
    find_config,
    flatten,
    get,
    merge,
    read_yaml,
    stated_nearest,
)
from pretrain.common.errors import UserError, label
from pretrain.common.files import read_json
from transfer import d2_compat
from transfer.config import length
from transfer.config.keys import add_keys
from transfer.config.vit import check_vit

_CHOICES = {
    "SOLVER.OPTIMIZER": ("SGD", "AdamW"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.AMP.DTYPE": ("bfloat16", "float16"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
}
_LEAST = {
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.LOG_PERIOD": 1,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.SAVE_MINUTES": 0,
    "SOLVER.EPOCHS": 0,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "TEST.PRECISE_BN.NUM_ITER": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.SUBSET_SEED": 0,
}
_CLASSES = ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES")
_DEPTHS = (18, 34, 50, 101, 152)  # of detectron2's ResNets
_TASKS = ("bbox", "segm", "keypoints", "sem_seg", "panoptic_seg")


def default_config() -> CfgNode:
    """Return detectron2's defaults with our keys, and with the defaults that we change."""
    cfg = get_cfg()
    add_keys(cfg)
    cfg.MODEL.DEVICE = "auto"  # auto | cpu | cuda
    cfg.SEED = 0
    cfg.OUTPUT_DIR = "output/transfer"
    return cfg


def load_config(name: str, overrides: Sequence[str] = (), *, need_weights: bool = True) -> CfgNode:
    """Read a config (a path, or a name under `configs/`) with overrides and check it. Raises `UserError`.

    Args:
        need_weights: whether the config must state the initial weights; not needed if nothing is trained.
    """
    cfg = read_config(name, overrides)
    _check_init(cfg, need_weights=need_weights)
    _check(cfg)
    _check_classes(cfg, overrides)
    return cfg


def read_config(name: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a config without checking its values. Raises `UserError` for unknown keys and files.

    Without an OUTPUT_DIR, that is named after the config. Of SOLVER.MAX_ITER and SOLVER.EPOCHS, the one
    that is stated last counts; the STEPS, unless they are set too, then follow from it.
    """
    cfg, path = default_config(), find_config(name)
    merge(cfg, path, overrides)
    cfg.OUTPUT_DIR = default_output(path, overrides) or cfg.OUTPUT_DIR
    if cfg.SOLVER.EPOCHS:
        _choose_length(cfg, path, overrides)
    return cfg


def _choose_length(cfg: CfgNode, path: Path, overrides: Sequence[str]) -> None:
    """Keep SOLVER.EPOCHS or SOLVER.MAX_ITER, whichever is stated last: the command line counts most, then the file."""
    stated = stated_nearest(path, overrides, ("SOLVER.EPOCHS", "SOLVER.MAX_ITER"))
    if len(stated) == 2 and "SOLVER.EPOCHS" in overrides[::2]:
        raise UserError(
            "SOLVER.EPOCHS and SOLVER.MAX_ITER: give one of them; iterations follow from epochs and the images"
        )
    if stated == {"SOLVER.EPOCHS"}:
        usual = default_config().SOLVER
        cfg.SOLVER.MAX_ITER = usual.MAX_ITER
        if "SOLVER.STEPS" not in overrides[::2]:
            cfg.SOLVER.STEPS = usual.STEPS
        return
    cfg.SOLVER.EPOCHS = 0.0
    if "SOLVER.STEPS" not in {*flatten(read_yaml(path)), *overrides[::2]}:
        cfg.SOLVER.STEPS = length.steps(cfg.SOLVER.MAX_ITER)


def _check_init(cfg: CfgNode, *, need_weights: bool) -> None:
    if cfg.MODEL.INIT not in ("weights", "random"):
        raise UserError(f"MODEL.INIT {cfg.MODEL.INIT}: choose weights or random")
    if cfg.MODEL.INIT == "random" and cfg.MODEL.WEIGHTS:
        raise UserError(
            f"MODEL.INIT random contradicts MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}: set only one of them"
        )
    if need_weights and cfg.MODEL.INIT == "weights" and not cfg.MODEL.WEIGHTS:
        raise UserError(
            "MODEL.WEIGHTS is empty: set it to a converted file (MODEL.WEIGHTS w.pkl), "
            "or set MODEL.INIT random to train from scratch"
        )


def _check_classes(cfg: CfgNode, overrides: Sequence[str]) -> None:
    """Raise `UserError` if the command line gives another number of classes than DATASETS.TRAIN_JSON has.

    The number of a YAML file is replaced by the json's; a user who states one expects it.
    """
    given = [key for key in overrides[::2] if key in _CLASSES]
    path = Path(cfg.DATASETS.TRAIN_JSON).expanduser()
    if not given or not path.is_file():
        return
    content = read_json(path)  # empty if it is no JSON object, which is reported when the data are prepared
    if not isinstance(content.get("categories"), list):
        return
    has = len(content["categories"])
    for key in given:
        if get(cfg, key) != has:
            raise UserError(
                f"{key} {get(cfg, key)} contradicts DATASETS.TRAIN_JSON {label(str(path))}, which has {has} "
                f"categories: leave {key} out, since the number is read from the json"
            )


def _check(cfg: CfgNode) -> None:
    for key, choices in _CHOICES.items():
        value = get(cfg, key)
        if value not in choices:
            raise UserError(f"{key} {value}: choose {' or '.join(choices)}")
    if cfg.SEED < 0:
        raise UserError(f"SEED {cfg.SEED}: give 0 or more, so that the run is reproducible")
    if cfg.SOLVER.MAX_ITER < 1:
        raise UserError(
            f"SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}: give 1 or more; --eval-only tests without training"
        )
    if cfg.SOLVER.ACCUMULATE < 1:
        raise UserError(f"SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE}: give 1 (undivided) or more")
    for key, least in _LEAST.items():
        if get(cfg, key) < least:
            raise UserError(f"{key} {get(cfg, key)}: give {least} or more")
    if cfg.SOLVER.BASE_LR <= 0:
        raise UserError(f"SOLVER.BASE_LR {cfg.SOLVER.BASE_LR:g}: give a number above 0")
    if not 0 < cfg.SOLVER.BACKBONE_LR_FACTOR < float("inf"):
        raise UserError(
            f"SOLVER.BACKBONE_LR_FACTOR {cfg.SOLVER.BACKBONE_LR_FACTOR:g}: give a number above 0; --frozen keeps the "
            "backbone as it is"
        )
    if not 0 < cfg.SOLVER.LR_DECAY <= 1:
        raise UserError(f"SOLVER.LR_DECAY {cfg.SOLVER.LR_DECAY:g}: give a number above 0 and up to 1")
    scaled = cfg.SOLVER.BACKBONE_LR_FACTOR != 1 or cfg.SOLVER.LR_DECAY != 1
    in_head = (
        cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone" and "res5" not in cfg.MODEL.RESNETS.OUT_FEATURES
    )
    if scaled and cfg.MODEL.BACKBONE.FREEZE_AT >= 5 and not in_head:
        raise UserError(
            "MODEL.BACKBONE.FREEZE_AT 5 (--frozen) trains nothing of the backbone, so SOLVER.BACKBONE_LR_FACTOR and "
            "SOLVER.LR_DECAY would have no effect: leave out one or the other"
        )
    # detectron2's trainer supports this and our loop does not; a key without effect would mislead.
    if cfg.TEST.AUG.ENABLED:
        raise UserError("TEST.AUG.ENABLED True: not supported here; leave it at False")
    _check_data(cfg)
    _check_evaluation(cfg)
    if "vit" in cfg.MODEL.BACKBONE.NAME:
        check_vit(cfg)
    else:
        _check_resnet(cfg)
    _check_compiled(cfg)
    last_step = max(cfg.SOLVER.STEPS, default=0)
    if cfg.SOLVER.EPOCHS:
        if tuple(cfg.SOLVER.STEPS) != tuple(default_config().SOLVER.STEPS):
            raise UserError(
                f"SOLVER.STEPS {tuple(cfg.SOLVER.STEPS)}: SOLVER.EPOCHS {cfg.SOLVER.EPOCHS:g} sets them too: set "
                "SOLVER.MAX_ITER with them, or leave them out"
            )
    elif last_step >= cfg.SOLVER.MAX_ITER and cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        raise UserError(
            f"SOLVER.STEPS {tuple(cfg.SOLVER.STEPS)} reaches beyond SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}: "
            "set both together"
        )


def _check_data(cfg: CfgNode) -> None:
    if not 0 < cfg.DATASETS.FRACTION <= 1:
        raise UserError(f"DATASETS.FRACTION {cfg.DATASETS.FRACTION}: give a number above 0 and up to 1")
    if cfg.DATASETS.SHOTS < 0:
        raise UserError(f"DATASETS.SHOTS {cfg.DATASETS.SHOTS}: give 0 (all objects) or more")
    for name in ("SCALE_CROP", "LSJ"):
        crop = cfg.INPUT[name]
        if crop.ENABLED and crop.SIZE < 1:
            raise UserError(f"INPUT.{name}.SIZE {crop.SIZE}: give the crop's side in pixels")
        if crop.ENABLED and not (len(crop.SCALES) == 2 and 0 < crop.SCALES[0] <= crop.SCALES[1]):
            raise UserError(
                f"INPUT.{name}.SCALES {tuple(crop.SCALES)}: give the smallest and the largest scale, such as (0.5, 2.0)"
            )


def _check_evaluation(cfg: CfgNode) -> None:
    if cfg.TEST.EVAL_PERIOD < 0:
        raise UserError(f"TEST.EVAL_PERIOD {cfg.TEST.EVAL_PERIOD}: give 0 (only at the end) or more")
    if not cfg.TEST.KEEP_BEST:
        return
    if cfg.TEST.KEEP_BEST.split("/")[0] not in _TASKS or cfg.TEST.KEEP_BEST.count("/") != 1:
        tasks = ", ".join(_TASKS)
        raise UserError(f"TEST.KEEP_BEST {cfg.TEST.KEEP_BEST}: write bbox/AP, for example; tasks are {tasks}")
    if not cfg.TEST.EVAL_PERIOD:
        raise UserError(
            f"TEST.KEEP_BEST {cfg.TEST.KEEP_BEST} needs TEST.EVAL_PERIOD, the number of iterations between tests"
        )


def _check_resnet(cfg: CfgNode) -> None:
    """Raise `UserError` for basic blocks (ResNet-18 and 34) outside FPN models, dilated or of another width.

    detectron2 cannot build those.
    """
    depth = cfg.MODEL.RESNETS.DEPTH
    if depth not in _DEPTHS:
        raise UserError(f"MODEL.RESNETS.DEPTH {depth}: choose one of {', '.join(map(str, _DEPTHS))}")
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


def _check_compiled(cfg: CfgNode) -> None:
    """Raise `UserError` for a model that needs detectron2's C++ extension if that is not compiled."""
    if d2_compat.describe()["has_C"]:
        return
    for key, needs in (
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", any),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN".__eq__),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated".__eq__),
    ):
        value = get(cfg, key)
        if needs(value):
            raise UserError(
                f"{key} {value}: needs detectron2's C++ extension, which is not compiled here; run "
                f"`{d2_compat.INSTALLER} --from git` in an environment without detectron2"
            )


def check_processes(cfg: CfgNode, processes: int, *, local: int, train: bool = True) -> None:
    """Raise `UserError` for a number of processes that this machine or the batch size does not allow.

    Args:
        processes: their number in the whole job.
        local: their number on this machine.
        train: whether training batches will be divided among them.
    """
    if processes < 1:
        raise UserError(f"--num-gpus {processes}: give 1 or more (one process runs on the CPU without a GPU)")
    if train and cfg.SOLVER.IMS_PER_BATCH % processes:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} (the total) cannot be divided among "
            f"{processes} processes: use --num-gpus {_largest_divisor(cfg.SOLVER.IMS_PER_BATCH, processes)}"
        )
    share = cfg.SOLVER.IMS_PER_BATCH // processes
    if train and share % cfg.SOLVER.ACCUMULATE:
        raise UserError(
            f"SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE}: the {share} images of each process cannot be divided into "
            f"that many parts: use {_largest_divisor(share, cfg.SOLVER.ACCUMULATE)}"
        )
    gpus = torch.cuda.device_count()
    if processes > 1 and cfg.MODEL.DEVICE != "cpu" and gpus < local:
        raise UserError(
            f"--num-gpus {local}: PyTorch sees {gpus} GPU(s) here: lower it, "
            "or add MODEL.DEVICE cpu to run that many processes on the CPU"
        )


def _largest_divisor(total: int, at_most: int) -> int:
    return next(n for n in range(min(at_most, total), 0, -1) if total % n == 0)
