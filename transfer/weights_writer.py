"""Weights on disk in the formats that people use, the same bytes for the same contents."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialise

from pretrain.common.errors import UserError
from pretrain.common.files import write_atomic
from pretrain.tensor_files.checkpoint import save
from pretrain.tensor_files.read_any import HEADER

FORMATS = ("pkl", "pth", "safetensors")


def format_of(output: Path) -> str:
    """The format that a file's name asks for. Raises `UserError` for another ending than `FORMATS`."""
    form = output.name.removesuffix(".tar").rpartition(".")[2]
    if form not in FORMATS:
        raise UserError(
            f"{output}: the output must be named *.pkl, else detectron2 reads it as another format; "
            "*.pth and *.safetensors are written too"
        )
    return form


def write_weights(path: Path, contents: Mapping[str, Any]) -> None:
    """Write `{"model": {name: float32 array}, ...}` in the format of the file's name, atomically.

    detectron2 loads `.pkl` and `.pth`; `tools/train_net.py` loads `.safetensors` too, whose header keeps
    everything beside the tensors as JSON.
    """
    form = format_of(path)
    if form == "pkl":
        write_atomic(path, lambda file: file.write(_pickled(contents)))
        return
    tensors = {name: torch.from_numpy(array) for name, array in contents["model"].items()}
    if form == "pth":
        save(path, {**contents, "model": tensors})
        return
    # one entry: the library writes several in a random order
    header = json.dumps({key: value for key, value in contents.items() if key != "model"})
    write_safetensors(path, tensors, metadata={HEADER: header})


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], *, metadata: dict[str, str]) -> None:
    """Write a safetensors file, atomically."""
    data = serialise(tensors, metadata=metadata)
    write_atomic(path, lambda file: file.write(data))


def _pickled(contents: Mapping[str, Any]) -> bytes:
    """A pickle that numpy 1 and 2 can both read.

    numpy 2 names its functions `numpy._core...`, which numpy 1 lacks; both know `numpy.core...`. In protocol
    3 a global is plain text with no length in front, and its first mention precedes all array data.
    """
    data = pickle.dumps(dict(contents), protocol=3)
    return data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1)
