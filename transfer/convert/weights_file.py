"""Read and write detectron2's weights files. Reading never runs code that a file contains."""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise

from pretrain.common.errors import UserError, label
from pretrain.common.files import write_atomic
from pretrain.tensor_files.checkpoint import save
from pretrain.tensor_files.read_any import HEADER, named_tensors, read_contents
from pretrain.tensor_files.shards import is_sharded
from transfer.convert import FORMATS
from transfer.convert.preprocessing import check_record
from transfer.convert.tensor_names import has_detectron2_names, has_resnet

# A ViT's tensors that no detector has, and those of transformers' and torchvision's ViTs.
_OF_VIT = re.compile(
    r"(^|\.)((cls|class)_token|embeddings\.patch_embeddings\.projection\.weight|conv_proj\.weight)$"
)
MAX_TENSORS = 10_000  # detectron2 compares each name with each other; its largest detectors have about 2,000


def read_weights(path: Path) -> dict[str, Any]:
    """Read a weights file of detectron2, written by any converter, without running anything in it.

    Returns:
        `model` (name -> tensor), `author`, `heuristics` (whether names are matched by suffix), `bare` (whether they
        are only because the names are those of a backbone alone, which match in no other way), `preprocessing` and
        `record` (None in files of other converters).
    Raises:
        UserError: the file is missing or unreadable, holds more than numbers, or must be converted first.
    """
    first = f"{path}: convert it first: python tools/convert_to_d2.py {path} {path.name.split('.')[0]}.pkl"
    if path.is_dir():
        raise UserError(
            f"{path}: is a folder: name a weights file; tools/convert_to_d2.py makes one of a checkpoint's folder"
        )
    if is_sharded(path):
        raise UserError(first)
    contents, form, _ = read_contents(path)
    names = named_tensors(path, contents)
    if has_resnet(names) or any(map(_OF_VIT.search, names)):
        raise UserError(first)
    if not isinstance(contents, dict):
        raise UserError(f"{path}: it holds a {type(contents).__name__}, not a dict of weights")
    model = contents.get("model", contents)
    named = isinstance(model, dict) and has_detectron2_names(model)
    if form == "pickle" and not named and not ("model" in contents and "__author__" in contents):
        # detectron2's rule for files of Caffe2 and Detectron 1. Momentum is solver state.
        blobs = contents.get("blobs", contents)
        if not isinstance(blobs, dict):
            raise UserError(f"{path}: its `blobs` is a {type(blobs).__name__}, not a dict of weights")
        model = {str(name): value for name, value in blobs.items() if not str(name).endswith("_momentum")}
        contents = {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
    model = contents.get("model", contents)
    if not isinstance(model, dict):
        raise UserError(f"{path}: its `model` is a {type(model).__name__}, not a dict of weights")
    if len(model) > MAX_TENSORS:
        raise UserError(f"{path}: it holds {len(model)} tensors, more than any detector has")
    named_tensors(path, model)  # checks that they are not larger than the file
    for key in ("preprocessing", "record"):
        if not isinstance(contents.get(key), dict | None) or not _plain(contents.get(key)):
            raise UserError(f"{path}: its `{key}` is damaged, or was not written by tools/convert_to_d2.py")
    check_record(path, contents.get("preprocessing") or {})
    bare = contents.get("matching_heuristics") is not True and has_detectron2_names(model, bare=True)
    return {
        "model": {label(name): _as_tensor(path, name, value) for name, value in model.items()},
        "author": label(contents.get("__author__", "unknown")),
        "heuristics": bare or contents.get("matching_heuristics", False) is True,
        "bare": bare,
        "preprocessing": contents.get("preprocessing"),
        "record": contents.get("record"),
    }


def for_detectron2(weights: dict[str, Any]) -> dict[str, Any]:
    """Return the result of `read_weights` as the dict that detectron2's checkpointer makes from such a file."""
    return {
        "model": dict(weights["model"]),
        "__author__": weights["author"],
        "matching_heuristics": weights["heuristics"],
    }


def _as_tensor(path: Path, name: Any, value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if type(value) in (bool, int, float):  # as in some files of Detectron 1
        try:
            return torch.tensor(value)
        except (RuntimeError, OverflowError):
            pass
    kind = getattr(value, "name", "") or type(value).__name__
    raise UserError(f"{path}: {label(name)} is a {kind}, not an array of numbers: is this a weights file?")


def _plain(value: Any, depth: int = 0) -> bool:
    """Return whether a record consists only of short printable strings and numbers, as ours do."""
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


def format_of(output: Path) -> str:
    """Return the format that a file's extension stands for. Raises `UserError` if it is not one of `FORMATS`."""
    form = output.name.removesuffix(".tar").rpartition(".")[2]
    if form not in FORMATS:
        raise UserError(
            f"{output}: name the output *.pkl, *.pth or *.safetensors; detectron2 chooses its reader by the extension"
        )
    return form


def write_weights(path: Path, contents: Mapping[str, Any]) -> None:
    """Write `{"model": {name: float32 array}, ...}` in the format of the file's name, atomically.

    detectron2 loads `.pkl` and `.pth`. `tools/train_net.py` also loads `.safetensors`, whose header holds everything
    except the tensors as JSON.
    """
    form = format_of(path)
    if form == "pkl":
        write_atomic(path, lambda file: file.write(_pickled(contents)))
        return
    tensors = {name: torch.from_numpy(array) for name, array in contents["model"].items()}
    if form == "pth":
        save(path, {**contents, "model": tensors})
        return
    # A single entry, because the library writes several in random order.
    header = json.dumps({key: value for key, value in contents.items() if key != "model"})
    write_safetensors(path, tensors, metadata={HEADER: header})


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], *, metadata: dict[str, str]) -> None:
    """Write a safetensors file, atomically."""
    data = serialise(tensors, metadata=metadata)
    write_atomic(path, lambda file: file.write(data))


def _pickled(contents: Mapping[str, Any]) -> bytes:
    """Return a pickle that numpy 1 and 2 can both read.

    numpy 2 names its functions `numpy._core...`, which numpy 1 does not have; both have `numpy.core...`. In protocol 3
    a     global is plain text without a length, and its first mention precedes all array data.
    """
    data = pickle.dumps(dict(contents), protocol=3)
    return data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1)
