"""detectron2's weights files, read without running anything that they contain."""

from pathlib import Path
from typing import Any

import torch

from pretrain.common.errors import UserError
from pretrain.tensor_files.numpy_pickle import Array
from pretrain.tensor_files.pickle_machine import label
from pretrain.tensor_files.read_any import named_tensors, read_contents
from transfer.candidates import has_resnet

MAX_TENSORS = 10_000  # detectron2 compares each name with each; its largest detectors have some 2,000


def read_weights(path: Path) -> dict[str, Any]:
    """Read a weights file of detectron2, by our converter or another's, without running anything in it.

    Returns:
        `model` (name -> tensor), `author`, `heuristics` (whether names are matched by suffix),
        `preprocessing` and `record` (None in files that are not by our converter).
    Raises:
        UserError: missing, unreadable, not only numbers, or a checkpoint that must be converted first.
    """
    contents, form, _ = read_contents(path)
    if form != "pickle" and has_resnet(named_tensors(path, contents)):
        raise UserError(
            f"{path}: convert it first: python tools/convert_to_d2.py {path} {path.name.split('.')[0]}.pkl"
        )
    if not isinstance(contents, dict):
        raise UserError(f"{path}: holds a {type(contents).__name__}, not a dict of weights")
    if form == "pickle" and not ("model" in contents and "__author__" in contents):
        # detectron2's rule for the files of Caffe2 and Detectron 1; momentum is solver state.
        blobs = contents.get("blobs", contents)
        if not isinstance(blobs, dict):
            raise UserError(f"{path}: its `blobs` are a {type(blobs).__name__}, not a dict of weights")
        model = {str(name): value for name, value in blobs.items() if not str(name).endswith("_momentum")}
        contents = {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
    model = contents.get("model", contents)
    if not isinstance(model, dict):
        raise UserError(f"{path}: its `model` is a {type(model).__name__}, not a dict of weights")
    if len(model) > MAX_TENSORS:
        raise UserError(f"{path}: holds {len(model)} tensors: no weights file of a detector")
    named_tensors(path, model)  # which are not larger than the file
    for key in ("preprocessing", "record"):
        if not isinstance(contents.get(key), dict | None) or not _plain(contents.get(key)):
            raise UserError(f"{path}: its `{key}` is damaged: not written by tools/convert_to_d2.py")
    return {
        "model": {label(name): _as_tensor(path, name, value) for name, value in model.items()},
        "author": label(contents.get("__author__", "unknown")),
        "heuristics": contents.get("matching_heuristics", False) is True,
        "preprocessing": contents.get("preprocessing"),
        "record": contents.get("record"),
    }


def for_detectron2(weights: dict[str, Any]) -> dict[str, Any]:
    """What `read_weights` gave as the dict that detectron2's checkpointer makes of such a file."""
    return {
        "model": dict(weights["model"]),
        "__author__": weights["author"],
        "matching_heuristics": weights["heuristics"],
    }


def _as_tensor(path: Path, name: Any, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Array) and value.value is not None:
        return torch.from_numpy(value.value)
    if type(value) in (bool, int, float):  # Detectron 1's files have some
        try:
            return torch.tensor(value)
        except (RuntimeError, OverflowError):
            pass
    kind = getattr(value, "name", "") or type(value).__name__
    raise UserError(f"{path}: {label(name)} is a {kind}, not an array of numbers: no weights file?")


def _plain(value: Any, depth: int = 0) -> bool:
    """Whether a record holds nothing but short printable texts and numbers, as ours do."""
    if isinstance(value, dict):
        pairs = len(value) <= 10_000 and depth < 6
        return pairs and all(
            isinstance(k, str) and k.isprintable() and _plain(v, depth + 1) for k, v in value.items()
        )
    if isinstance(value, list | tuple):
        return len(value) <= 10_000 and depth < 6 and all(_plain(part, depth + 1) for part in value)
    if isinstance(value, str):
        return value.isprintable() and len(value) <= 10_000
    return value is None or type(value) in (bool, float) or (type(value) is int and abs(value) < 1 << 63)
