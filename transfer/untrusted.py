"""Any weights file as named tensors, read without running anything that it contains.

Downloads are untrusted: torch files are read with `weights_only`, pickles by an unpickler that knows arrays and
plain containers only, and sizes are bounded by the file's own size before anything is allocated.
"""

import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pretrain import checkpoint
from pretrain.errors import UserError
from transfer.numpy_pickle import Array, read_pickle
from transfer.torch_zip import read_zip
from transfer.weights_writer import HEADER

MAX_DEPTH = 32  # of containers in one another: real files have 6
MAX_TENSORS = 200_000
_TORCH_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # first object of torch files before 1.6


@dataclass(frozen=True)
class Loaded:
    """What a weights file holds.

    Attributes:
        format: torch, safetensors or pickle.
        tensors: the way to each tensor, joined by dots -> the tensor, on the CPU, of any type.
        other: the top level's entries that hold no tensor: numbers, texts, plain dicts.
        keys: the top level's keys; empty where it is no dict.
        kind: the top level's type, for messages.
        opaque: names of the classes in the file that were not loaded.
        card: `mean` and `std` (of RGB in [0, 1]) from the `config.json` beside a safetensors file.
    """

    format: str
    tensors: dict[str, torch.Tensor]
    other: dict[str, Any]
    keys: tuple[str, ...]
    kind: str
    opaque: tuple[str, ...] = ()
    card: dict[str, Any] = field(default_factory=dict)


def read_file(path: Path) -> Loaded:
    """Read a weights file of any format that we know, told by its content and not by its name.

    Raises:
        UserError: missing, no regular file, unreadable, unsafe, or larger inside than outside.
    """
    contents, form, opaque = read_contents(path)
    tensors: dict[str, torch.Tensor] = {}
    budget = 4 * path.stat().st_size + (1 << 20)  # bfloat16 becomes float32; shared storage is counted anew
    for name, value in leaves(path, contents):
        if name in tensors:
            raise UserError(f"{path}: holds two tensors by the name {name}: save the wanted network alone")
        tensors[name] = value
        budget -= value.numel() * value.element_size()
        if budget < 0 or len(tensors) > MAX_TENSORS:
            raise UserError(
                f"{path}: its tensors claim to be larger than the file: damaged or hostile; refused"
            )
    top = contents if isinstance(contents, dict) else {}
    other = {str(key): value for key, value in top.items() if not isinstance(value, torch.Tensor)}
    return Loaded(form, tensors, other, tuple(map(str, top)), type(contents).__name__, opaque, _card(path))


def read_contents(path: Path) -> tuple[Any, str, tuple[str, ...]]:
    """The file's object with tensors in it, its format, and the classes that were not loaded."""
    head = _head(path)
    opaque: list[str] = []
    if head[:2] == b"PK":
        return read_zip(path, opaque), "torch", tuple(opaque)
    if head[8:9] == b"{":
        return _read_safetensors(path), "safetensors", ()
    if _TORCH_MAGIC in head:
        return checkpoint.load(path, opaque=opaque), "torch", tuple(opaque)
    if head[:1] in (b"\x80", b"(", b"}", b"]"):
        return read_pickle(path), "pickle", ()
    raise UserError(
        f"{path}: neither a PyTorch checkpoint (truncated?), nor safetensors, nor a pickle of numpy arrays"
    )


def _head(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UserError(f"{path}: is no regular file; name a checkpoint file")
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(head) < 16:
        raise UserError(f"{path}: not a readable PyTorch checkpoint (truncated?): {len(head)} bytes")
    return head


def _read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors; under `model`, beside what the header says of them, in a file by `transfer.weights_writer`."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        tensors = dict(load_file(path))
        if HEADER not in header:
            return tensors
        return {**json.loads(header[HEADER]), "model": tensors}
    except Exception as error:  # safetensors_rust's own class, json's
        raise UserError(f"{path}: not a readable safetensors file: {error}") from None


def _card(path: Path) -> dict[str, Any]:
    """Pixel statistics in the `config.json` beside the file, as timm and the Hugging Face hub lay it there."""
    if path.suffix != ".safetensors":
        return {}
    try:
        content = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        card = content.get("pretrained_cfg", content)
        return {key: [float(v) for v in card[key]] for key in ("mean", "std")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def leaves(path: Path, contents: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(dotted name, tensor) of everything in nested containers, in the file's order."""
    stack: list[tuple[str, Any, int]] = [("", contents, 0)]
    steps = 0
    while stack:
        name, node, depth = stack.pop()
        steps += 1
        if depth > MAX_DEPTH or steps > 20 * MAX_TENSORS:
            raise UserError(f"{path}: its containers are nested without end: damaged or hostile; refused")
        if isinstance(node, torch.Tensor):
            yield name, node
        elif isinstance(node, Array):
            yield name, torch.from_numpy(node.value)
        elif isinstance(node, dict):
            items = [(f"{name}.{key}" if name else str(key), value, depth + 1) for key, value in node.items()]
            stack.extend(reversed(items))
        elif isinstance(node, list | tuple):
            items = [(f"{name}.{i}" if name else str(i), value, depth + 1) for i, value in enumerate(node)]
            stack.extend(reversed(items))
