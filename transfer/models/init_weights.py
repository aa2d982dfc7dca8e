"""Weights files: held against the configuration and the model, loaded whole or not at all."""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils.file_io import PathManager
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.common.configs import equal
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import file_digest
from transfer.convert.weights_file import for_detectron2, read_weights

# A ResNet's trunk in FPN and C4 models; a norm that a C4 head adds behind res5 is not part of it.
_TRUNK = re.compile(r"(.*\.)?(stem\.conv\d\.|res[2-5]\.\d+\.)")
_COUNTER = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var")


def check_preprocessing(cfg: CfgNode, weights: dict[str, Any]) -> None:
    """Compare the configuration with the settings that the weights need, if they state them.

    Raises:
        UserError: lists every key that contradicts, with both values and the overrides that mend it.
    """
    wrong = {}
    for key, needed in (weights["preprocessing"] or {}).items():
        found: Any = cfg
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if not equal(found, needed, tolerance=1e-4):
            wrong[key] = (found, needed)
    if wrong:
        faults = ", ".join(f"{key} is {found} (needed: {needed})" for key, (found, needed) in wrong.items())
        mend = " ".join(f"{key} {_shell(needed)}" for key, (_, needed) in wrong.items())
        raise UserError(
            f"the configuration contradicts MODEL.WEIGHTS: {faults}; add to the command line: {mend}"
        )


def settings(name: str) -> list[str]:
    """KEY VALUE pairs that MODEL.WEIGHTS says it needs; none for a file that says nothing.

    Raises:
        UserError: as `read_weights` and `local_path` do.
    """
    needed = read_weights(local_path(name))["preprocessing"] or {}
    return [part for key, value in needed.items() for part in (key, str(value))]


def check_filled(model: nn.Module, weights: dict[str, Any]) -> int:
    """Make sure that the weights fill the whole ResNet of a detector, and that all of theirs go in.

    In FPN models that is `backbone.bottom_up`, in C4 models `backbone` and `roi_heads.res5`. Running
    statistics may be absent only where the whole file has none: Caffe2 files whose batch norm is merged
    into weight and bias (MSRA's R-50.pkl).

    Returns:
        The number of tensors that the file gives to the ResNet.
    Raises:
        UserError: names the first tensor that would stay at its random initialisation, or has no place.
    """
    placed = _placed(model, weights)
    state = model.state_dict()
    merged = weights["author"] == "Caffe2" and not any(name.endswith(_STATISTICS) for name in placed)
    exempt = (_COUNTER, *_STATISTICS) if merged else (_COUNTER,)
    trunk = [name for name in state if _TRUNK.match(name) and not name.endswith(_COUNTER)]
    if not trunk:
        raise UserError("MODEL.WEIGHTS: the model has no ResNet backbone to fill")
    fitting = {name for name in trunk if name in placed and placed[name].shape == state[name].shape}
    empty = [name for name in trunk if name not in fitting and not name.endswith(exempt)]
    if empty:
        raise UserError(
            f"MODEL.WEIGHTS does not fill the backbone: {len(empty)} of {len(trunk)} tensors would stay "
            f"random, first {empty[0]}; is MODEL.RESNETS.DEPTH that of the weights? convert them by "
            "tools/convert_to_d2.py and use the settings that it prints"
        )
    extra = [
        name for name in placed if _TRUNK.match(name) and name not in state and not name.endswith(_COUNTER)
    ]
    if extra:
        raise UserError(
            f"MODEL.WEIGHTS: {len(extra)} backbone tensors have no place in the model, first {extra[0]}; "
            "is MODEL.RESNETS.DEPTH right?"
        )
    return len(fitting)


def load_into(model: nn.Module, cfg: CfgNode) -> dict[str, Any]:
    """Initialise a detector from MODEL.WEIGHTS. Call it before wrapping the model for several processes.

    Returns:
        `path`, `sha256`, `matched` (tensors that the ResNet got) and `record` (None for others' files).
    Raises:
        UserError: no such file, unsafe or unreadable, another preprocessing than the configuration's, or a
            file that does not fill the backbone.
    """
    path = local_path(cfg.MODEL.WEIGHTS)
    weights = read_weights(path)
    if weights["preprocessing"] is None:
        say(
            f"note: {path.name} (by {weights['author']}) does not say what it needs; assumed right: "
            f"INPUT.FORMAT {cfg.INPUT.FORMAT}, MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)}, "
            f"MODEL.PIXEL_STD {list(cfg.MODEL.PIXEL_STD)}, "
            f"MODEL.RESNETS.STRIDE_IN_1X1 {cfg.MODEL.RESNETS.STRIDE_IN_1X1}; to have it checked, add a record: "
            f"python tools/convert_to_d2.py {path} {path.stem}_converted.pkl"
        )
    check_preprocessing(cfg, weights)
    matched = check_filled(model, weights)
    _check_kept(model, weights)
    _load(model, weights)
    return {"path": str(path), "sha256": file_digest(path), "matched": matched, "record": weights["record"]}


def _check_kept(model: nn.Module, weights: dict[str, Any]) -> None:
    """Refuse a model in which a pre-trained FPN or box head (`--keep`) has no place: it would be lost unsaid."""
    state, placed = model.state_dict(), _placed(model, weights)
    for name in (weights["record"] or {}).get("kept", ()):
        if name in placed and name not in state:
            raise UserError(
                f"MODEL.WEIGHTS: {name} was kept, and has no place in this model: set MODEL.FPN.NORM and "
                "MODEL.ROI_BOX_HEAD.{NORM,NUM_CONV,NUM_FC} as it was pre-trained, or convert without --keep"
            )


def load_detector(model: nn.Module, path: Path) -> None:
    """Load a whole detector, such as the `model_final.pth` of a fine-tuning run, every tensor of it.

    Raises:
        UserError: unreadable, or not exactly this model; names the first tensor that differs.
    """
    weights = read_weights(path)
    placed = _placed(model, weights)
    state = model.state_dict()
    missing = [name for name in state if name not in placed and not name.endswith(_COUNTER)]
    # Buffers of old files that the configuration gives today; detectron2 passes over them too.
    stale = ("pixel_mean", "pixel_std", _COUNTER)
    extra = [n for n in placed if n not in state and not n.endswith(stale) and "cell_anchors" not in n]
    shapes = [name for name in state if name in placed and placed[name].shape != state[name].shape]
    faults = {"lacks": missing, "has in excess": extra, "has in another shape": shapes}
    for fault, names in faults.items():
        if names:
            raise UserError(
                f"{path}: not a checkpoint of this model: it {fault} {names[0]} ({len(names)} such); "
                f"{_remedy(names, placed, state)}"
            )
    _load(model, weights)


def _remedy(names: list[str], placed: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> str:
    """Which key differs from that of the run that wrote a checkpoint, as far as the tensors at fault tell."""
    if all("predictor" in name for name in names):
        scores = next((name for name in names if name.endswith("cls_score.weight") and name in placed), None)
        if scores:  # one row a class, and one of the background
            has, needs = len(placed[scores]) - 1, len(state[scores]) - 1
            return f"it knows {has} classes and MODEL.ROI_HEADS.NUM_CLASSES is {needs}"
        return "is MODEL.ROI_HEADS.NUM_CLASSES that of the run that wrote it?"
    if all(_TRUNK.match(name) for name in names):
        return "is MODEL.RESNETS.DEPTH that of the run that wrote it?"
    for head, key in (("mask_head", "MODEL.MASK_ON"), ("keypoint_head", "MODEL.KEYPOINT_ON")):
        if all(head in name for name in names):
            return f"set {key} {names[0] in placed}, as in the run that wrote it"
    return "use the configuration of the run that wrote it"


def local_path(name: str) -> Path:
    """MODEL.WEIGHTS as a file of this machine; detectron2 fetches addresses such as detectron2://..."""
    if not name:
        raise UserError(
            "MODEL.WEIGHTS is empty: name a file by tools/convert_to_d2.py, or set MODEL.INIT random"
        )
    if "://" not in name:
        if not Path(name).is_file():
            raise UserError(f"MODEL.WEIGHTS {name}: no such file; write it with tools/convert_to_d2.py")
        return Path(name)
    try:
        return Path(PathManager.get_local_path(name))
    except Exception as error:  # urllib's, iopath's, the file system's
        raise UserError(f"MODEL.WEIGHTS {name}: cannot be fetched ({error}); download it by hand") from error


def _placed(model: nn.Module, weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The file's tensors by the names that detectron2 gives them: the model's where it finds a match.

    Not from the report of `load_state_dict`: batch norms fill in missing statistics without a word.
    """
    named = dict(weights["model"])
    if weights["heuristics"]:
        try:
            named = align_and_update_state_dicts(
                model.state_dict(), named, c2_conversion=weights["author"] == "Caffe2"
            )
        except (ValueError, KeyError, AssertionError) as error:  # one tensor that would fit in two places
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"MODEL.WEIGHTS: its names do not match the model's: {reason}") from None
    return {name.removeprefix("module."): tensor for name, tensor in named.items()}


def _load(model: nn.Module, weights: dict[str, Any]) -> None:
    """By detectron2's own matching, of what our reader read: detectron2's would run the code in a pickle."""
    checkpointer = DetectionCheckpointer(model)
    # It would list all new heads as missing at each start; what matters has been checked.
    checkpointer.logger = logging.getLogger(f"{__name__}.quiet")
    checkpointer.logger.setLevel(logging.ERROR)
    checkpointer._load_model(for_detectron2(weights))


def _shell(value: Any) -> str:
    return f'"{value}"' if isinstance(value, list | tuple) else str(value)
