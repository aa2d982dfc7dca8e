"""Check weights files against the configuration and the model, and load them completely or not at all."""

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

from pretrain.common.configs import equal, get
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import file_digest
from transfer.convert.preprocessing import BY_FILE, BY_FLAG, BY_NOBODY, FLAGS, KEYS
from transfer.convert.weights_file import for_detectron2, read_weights

# The tensors of the ResNet in FPN and C4 models, without the norm that a C4 head adds after res5.
_RESNET = re.compile(r"(.*\.)?(stem\.conv\d\.|res[2-5]\.\d+\.)")
_VIT = re.compile(r"(backbone\.net\.)?(pos_embed$|patch_embed\.|blocks\.\d+\.)")
_RELATIVE = (".rel_pos_h", ".rel_pos_w")  # of the detector, initialised with zeros
# names in files: a ViT's first, and those of ResNets in detectron2 or Caffe2
_OF_VIT = re.compile(r"(^|\.)blocks\.0\.attn\.")
_OF_RESNET = re.compile(r"(^|\.)res2[._]0[._]")
_HINTS = {
    _RESNET: "is MODEL.RESNETS.DEPTH right for these weights?",
    _VIT: "are MODEL.VIT.DEPTH, WIDTH, PATCH_SIZE, PRETRAIN_SIZE and CLASS_POSITION right for these weights?",
}
_ASSUMED = ", assumed"
_BACKBONE = "MODEL.BACKBONE.NAME"
_COUNTER = "num_batches_tracked"
_STATISTICS = ("running_mean", "running_var")


def check_preprocessing(cfg: CfgNode, weights: dict[str, Any]) -> None:
    """Compare the configuration with the settings that the weights need, if the file records them.

    Raises:
        UserError: lists every contradicting key, with both values and the overrides that fix it.
    """
    wrong = {}
    for key, needed in (weights["preprocessing"] or {}).items():
        found: Any = cfg
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if not equal(found, needed, tolerance=1e-4):
            wrong[key] = (found, needed)
    if not wrong:
        return
    said = {key: _who_states(weights["record"], key) for key in wrong}
    faults = ", ".join(
        f"{key} is {found} (needed: {needed}{said[key]})" for key, (found, needed) in wrong.items()
    )
    remedy = "add to the command line: " + " ".join(
        f"{key} {_shell(needed)}" for key, (_, needed) in wrong.items()
    )
    if _ASSUMED in said.values():
        flags = ", ".join(FLAGS[name] for name, key in KEYS.items() if said.get(key) == _ASSUMED)
        remedy = (
            "the checkpoint does not state what is assumed: if the network saw something else, convert it again with "
            f"{flags}; otherwise {remedy}"
        )
    raise UserError(f"the configuration contradicts MODEL.WEIGHTS: {faults}; {remedy}")


def check_kind(cfg: CfgNode, weights: dict[str, Any]) -> None:
    """Raise `UserError` for the weights of a ResNet with a config of a ViT, and the reverse."""
    name = cfg.MODEL.BACKBONE.NAME
    is_vit = any(_OF_VIT.search(each) for each in weights["model"])
    if is_vit and "vit" not in name:
        held, examples = "ViT", ("coco_ViTB_SFP_25ep", "custom_ViTS_SFP")
    elif not is_vit and "vit" in name and any(_OF_RESNET.search(each) for each in weights["model"]):
        held, examples = "ResNet", ("coco_R50_FPN", "custom_R50_FPN")
    else:
        return
    raise UserError(
        f"the configuration contradicts MODEL.WEIGHTS, which is a {held}: {_BACKBONE} is {name}: take a config of a "
        f"{held}, such as transfer/{examples[0]}.yaml or, for your own data, transfer/{examples[1]}.yaml, or other "
        "weights"
    )


def _who_states(record: dict[str, Any] | None, key: str) -> str:
    """Return whose word the recorded value of a setting is, as the end of a parenthesis; empty if that is unknown."""
    origins = (record or {}).get("origins")
    origin = origins.get(key) if isinstance(origins, dict) else None
    flag = next((FLAGS[name] for name, own in KEYS.items() if own == key), "")
    words = {BY_FLAG: f", stated by {flag} at the conversion", BY_FILE: ", stated by the checkpoint"}
    return _ASSUMED if origin == BY_NOBODY else words.get(str(origin), "")


def settings(name: str) -> list[str]:
    """Return KEY VALUE pairs with the settings that the MODEL.WEIGHTS file records; none if it has no record.

    MODEL.BACKBONE.NAME is not one of them: with a ViT's name alone, a ResNet's config would train a detector that is
    neither. `check_kind` refuses such weights.

    Raises:
        UserError: as in `read_weights` and `local_path`.
    """
    needed = read_weights(local_path(name))["preprocessing"] or {}
    return [part for key, value in needed.items() if key != _BACKBONE for part in (key, str(value))]


def check_filled(model: nn.Module, weights: dict[str, Any]) -> int:
    """Check that the weights fill the whole ResNet or ViT of a detector, and that all their tensors are used.

    The ResNet is `backbone.bottom_up` in FPN models, and `backbone` with `roi_heads.res5` in C4 models. Running
    statistics may be missing only if the whole file has none: Caffe2 files whose batch norm is merged into weight
    and bias (MSRA's R-50.pkl). The ViT is `backbone.net`; a file may lack the relative positions, which are the
    detector's.

    Returns:
        The number of the backbone's tensors that the file fills.
    Raises:
        UserError: names the first tensor that would stay random, or that the model does not have.
    """
    placed = _placed(model, weights)
    state = model.state_dict()
    has_statistics = any(name.endswith(_STATISTICS) for name in placed)
    merged = weights["author"] == "Caffe2" and not has_statistics
    exempt = (_COUNTER, *_STATISTICS) if merged else (_COUNTER,)
    pattern = _pattern(state)
    trunk = [name for name in state if pattern.match(name) and not name.endswith(_COUNTER)]
    if not trunk:
        raise UserError("MODEL.WEIGHTS: the model has no ResNet or ViT backbone to fill")
    fitting = {name for name in trunk if name in placed and placed[name].shape == state[name].shape}
    empty = [
        name
        for name in trunk
        if name not in fitting
        and not name.endswith(exempt)
        and not (name.endswith(_RELATIVE) and name not in placed)
    ]
    if empty and not has_statistics and all(name.endswith(_STATISTICS) for name in empty):
        raise UserError(
            f"MODEL.WEIGHTS has no running statistics ({empty[0]}): if its batch norms are merged into weight and "
            "bias, as in MSRA's networks, convert it with tools/convert_to_d2.py --merged-norm"
        )
    if empty:
        raise UserError(
            f"MODEL.WEIGHTS does not fill the backbone: {len(empty)} of {len(trunk)} tensors would stay "
            f"random, first {empty[0]}; {_hint(pattern, empty[0])} Convert them with tools/convert_to_d2.py and use "
            "the settings that it prints"
        )
    extra = [
        name for name in placed if pattern.match(name) and name not in state and not name.endswith(_COUNTER)
    ]
    if extra:
        raise UserError(
            f"MODEL.WEIGHTS: the model lacks {len(extra)} backbone tensors of the file, first {extra[0]}; "
            f"{_hint(pattern, extra[0])}"
        )
    return len(fitting)


def _hint(pattern: re.Pattern[str], name: str) -> str:
    """Return which keys may be wrong if this tensor of a backbone does not fit."""
    if name.endswith(_RELATIVE):  # the file is a detector's
        return "are MODEL.VIT.REL_POS, IMAGE_SIZE, WINDOW and GLOBAL_BLOCKS those of the run that wrote the file?"
    return _HINTS[pattern]


def _pattern(state: dict[str, torch.Tensor]) -> re.Pattern[str]:
    """Return the pattern of the names of the backbone's tensors in a model with this state."""
    return _VIT if any(_VIT.match(name) for name in state) else _RESNET


def load_into(model: nn.Module, cfg: CfgNode) -> dict[str, Any]:
    """Initialise a detector from MODEL.WEIGHTS. Call this before wrapping the model for several processes.

    Returns:
        `path`, `sha256`, `matched` (how many tensors of the backbone were filled) and `record` (None for a file from
        another converter).
    Raises:
        UserError: the file does not exist, is unsafe or unreadable, is of another kind of backbone, needs another
            preprocessing than the configuration's, or does not fill the backbone.
    """
    path = local_path(cfg.MODEL.WEIGHTS)
    weights = read_weights(path)
    check_kind(cfg, weights)
    if weights["preprocessing"] is None:
        is_vit = _pattern(model.state_dict()) is _VIT
        own = "MODEL.VIT.HEADS" if is_vit else "MODEL.RESNETS.STRIDE_IN_1X1"  # which no tensor shows
        say(
            f"note: {path.name} (by {weights['author']}) does not record the settings it needs; assumed: "
            f"INPUT.FORMAT {cfg.INPUT.FORMAT}, MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)}, "
            f"MODEL.PIXEL_STD {list(cfg.MODEL.PIXEL_STD)}, "
            f"{own} {get(cfg, own)}; to have them checked, add a record: "
            f"python tools/convert_to_d2.py {path} {path.stem}_converted.pkl"
        )
    if weights["bare"]:
        say(
            f"note: {path.name} has a backbone's names without matching_heuristics; they are matched by their endings"
        )
    check_preprocessing(cfg, weights)
    matched = check_filled(model, weights)
    _check_kept(model, weights)
    _load(model, weights)
    return {"path": str(path), "sha256": file_digest(path), "matched": matched, "record": weights["record"]}


def _check_kept(model: nn.Module, weights: dict[str, Any]) -> None:
    """Raise `UserError` if the model has no place for a pre-trained FPN or box head (`--keep`), which would be lost."""
    state, placed = model.state_dict(), _placed(model, weights)
    for name in (weights["record"] or {}).get("kept", ()):
        if name in placed and name not in state:
            raise UserError(
                f"MODEL.WEIGHTS: {name} was kept by --keep, but this model does not have it: set MODEL.FPN.NORM and "
                "MODEL.ROI_BOX_HEAD.{NORM,NUM_CONV,NUM_FC} as in pre-training, or convert without --keep"
            )


def load_detector(model: nn.Module, path: Path) -> None:
    """Load all tensors of a whole detector, such as the `model_final.pth` of a fine-tuning run.

    Raises:
        UserError: the file is unreadable, or is not for exactly this model; names the first tensor that differs.
    """
    weights = read_weights(path)
    placed = _placed(model, weights)
    state = model.state_dict()
    missing = [name for name in state if name not in placed and not name.endswith(_COUNTER)]
    # Buffers in old files that now come from the configuration; detectron2 ignores them too.
    stale = ("pixel_mean", "pixel_std", _COUNTER)
    extra = [n for n in placed if n not in state and not n.endswith(stale) and "cell_anchors" not in n]
    shapes = [name for name in state if name in placed and placed[name].shape != state[name].shape]
    faults = {"lacks": missing, "has the unknown tensor": extra, "has a different shape for": shapes}
    for fault, names in faults.items():
        if names:
            raise UserError(
                f"{path}: not a checkpoint of this model: it {fault} {names[0]} ({len(names)} such); "
                f"{_remedy(names, placed, state)}"
            )
    _load(model, weights)


def _remedy(names: list[str], placed: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> str:
    """Return advice on the key that probably differs from the run that wrote a checkpoint, from the wrong tensors."""
    if all("predictor" in name for name in names):
        scores = next((name for name in names if name.endswith("cls_score.weight") and name in placed), None)
        if scores:  # one row for each class, and one for the background
            has, needs = len(placed[scores]) - 1, len(state[scores]) - 1
            return f"it has {has} classes, but MODEL.ROI_HEADS.NUM_CLASSES is {needs}"
        return "is MODEL.ROI_HEADS.NUM_CLASSES the same as in the run that wrote it?"
    if all(_pattern(state).match(name) for name in names):
        key = "MODEL.VIT" if _pattern(state) is _VIT else "MODEL.RESNETS.DEPTH"
        return f"is {key} the same as in the run that wrote it?"
    for head, key in (("mask_head", "MODEL.MASK_ON"), ("keypoint_head", "MODEL.KEYPOINT_ON")):
        if all(head in name for name in names):
            return f"set {key} {names[0] in placed}, as in the run that wrote it"
    return "use the configuration of the run that wrote it"


def local_path(name: str) -> Path:
    """Return MODEL.WEIGHTS as a local file; detectron2 downloads addresses such as detectron2://..."""
    if not name:
        raise UserError(
            "MODEL.WEIGHTS is empty: set it to a file written by tools/convert_to_d2.py, or set MODEL.INIT random"
        )
    if "://" not in name:
        if not Path(name).exists():
            raise UserError(f"MODEL.WEIGHTS {name}: no such file; create it with tools/convert_to_d2.py")
        return Path(name)
    try:
        return Path(PathManager.get_local_path(name))
    except Exception as error:  # from urllib, iopath or the file system
        raise UserError(
            f"MODEL.WEIGHTS {name}: cannot be downloaded ({error}); download it by hand"
        ) from error


def _placed(model: nn.Module, weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the file's tensors under the names that detectron2 gives them: the model's names if it finds a match.

    The report of `load_state_dict` is not enough, because batch norms silently fill in missing statistics.
    """
    named = dict(weights["model"])
    if weights["heuristics"]:
        try:
            named = align_and_update_state_dicts(
                model.state_dict(), named, c2_conversion=weights["author"] == "Caffe2"
            )
        except (
            ValueError,
            KeyError,
            AssertionError,
        ) as error:  # for example, a tensor that would fit in two places
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"MODEL.WEIGHTS: its names do not match the model's: {reason}") from None
    return {name.removeprefix("module."): tensor for name, tensor in named.items()}


def _load(model: nn.Module, weights: dict[str, Any]) -> None:
    """Load with detectron2's own matching what our reader read: detectron2's reader would run code in a pickle."""
    checkpointer = DetectionCheckpointer(model)
    # It would report all new heads as missing on each start; the backbone has been checked already.
    checkpointer.logger = logging.getLogger(f"{__name__}.quiet")
    checkpointer.logger.setLevel(logging.ERROR)
    checkpointer._load_model(for_detectron2(weights))


def _shell(value: Any) -> str:
    return f'"{value}"' if isinstance(value, list | tuple) else str(value)
