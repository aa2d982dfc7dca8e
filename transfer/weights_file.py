"""detectron2's weights files, read without running anything that they contain."""

from pathlib import Path
from typing import Any

import numpy
import torch

from pretrain.errors import UserError
from transfer.numpy_pickle import Array
from transfer.candidates import has_resnet
from transfer.untrusted import leaves, read_contents


def read_weights(path: Path) -> dict[str, Any]:
    """Read a weights file of detectron2, by our converter or another's, without running anything in it.

    Returns:
        `model` (name -> tensor), `author`, `heuristics` (whether names are matched by suffix),
        `preprocessing` and `record` (None in files that are not by our converter).
    Raises:
        UserError: missing, unreadable, not only numbers, or a checkpoint that must be converted first.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    contents, form, _ = read_contents(path)
    if form != "pickle" and has_resnet(dict(leaves(path, contents))):
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
    for key in ("preprocessing", "record"):
        if not isinstance(contents.get(key), dict | None):
            raise UserError(f"{path}: its `{key}` is not a dict: not written by tools/convert_to_d2.py")
    return {
        "model": {name: _as_tensor(path, name, value) for name, value in model.items()},
        "author": str(contents.get("__author__", "unknown")),
        "heuristics": bool(contents.get("matching_heuristics", False)),
        "preprocessing": contents.get("preprocessing"),
        "record": contents.get("record"),
    }


def _as_tensor(path: Path, name: Any, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    array = value.value if isinstance(value, Array) else numpy.asarray(value)
    if array.dtype.kind in "fiub":
        return torch.from_numpy(array)
    raise UserError(f"{path}: {name} is a {type(value).__name__}, not an array of numbers: no weights file?")
