"""detectron2's weights files, read without running anything that they contain."""

import pickle
from pathlib import Path
from typing import Any

import numpy
import torch

from pretrain import checkpoint
from pretrain.errors import UserError
from transfer.sources import has_resnet

# All that arrays of numbers need; numpy 2 writes `_core`, numpy 1 `core`, protocol 5 `_frombuffer`.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UserError(f"the file asks for {module}.{name}; only numpy arrays are read from a .pkl")
        return super().find_class(module, name)


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
    contents = _read_pickle(path) if path.suffix == ".pkl" else _read_torch(path)
    if not isinstance(contents, dict):
        raise UserError(f"{path}: holds a {type(contents).__name__}, not a dict of weights")
    if path.suffix == ".pkl" and not ("model" in contents and "__author__" in contents):
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


def _read_pickle(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()  # latin1: arrays pickled by Python 2
    except UserError as error:
        raise UserError(f"{path}: refused: {error}") from None
    except Exception as error:  # pickle and numpy raise a dozen classes on damaged data
        raise UserError(f"{path}: not a readable weights file (truncated?): {error}") from error


def _read_torch(path: Path) -> Any:
    contents = checkpoint.load(path)
    if has_resnet(contents):
        raise UserError(
            f"{path}: convert it first: python tools/convert_to_d2.py {path} {path.name.split('.')[0]}.pkl"
        )
    return contents


def _as_tensor(path: Path, name: Any, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    array = numpy.asarray(value)
    if array.dtype.kind in "fiub":
        return torch.from_numpy(array)
    raise UserError(f"{path}: {name} is a {type(value).__name__}, not an array of numbers: no weights file?")
