"""Reading a weights file of any format as named tensors, without running any code in it.

Downloads are untrusted: torch files, pickles and Caffe models are read in a box (`box.py`), safetensors files by their
own library.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load as parse_safetensors

from pretrain.common.errors import UserError, label
from pretrain.common.files import opened
from pretrain.tensor_files import box
from pretrain.tensor_files.torch_files import MAGIC

MAX_TENSORS = 50_000
MAX_NAME = 400  # characters of a tensor's dotted name
MAX_WHOLE = 8 << 30  # bytes of a pickle; the largest ResNet here, four times as wide, has 1.5 GB
HEADER = (
    "detectron2"  # the entry of a safetensors header for the contents of a weights file other than tensors
)
MAX_HEADER = 16 << 20  # bytes of a safetensors header; a ResNet's has 40,000
MAX_CARD = 1 << 20
# A Caffe model's first field: its name, layers of the old or the new format, or its inputs
_CAFFE = (b"\x0a", b"\x12", b"\xa2\x06", b"\x1a", b"\x22", b"\x42")
# Properties of a ResNet and of a ViT that their tensors do not show, as named by timm (the first) and transformers
CARD = ("architecture", "downsample_in_bottleneck", "downsample_in_first_stage", "hidden_act", "model_type",
        "num_attention_heads", "layer_norm_eps")  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """The contents of a weights file.

    Attributes:
        format: torch, safetensors, pickle or caffe.
        tensors: tensors on the CPU, of any type, by their dotted names.
        other: the top-level entries that are not tensors: numbers, strings, plain dicts.
        keys: the top-level keys; empty if the top level is not a dict.
        kind: the top level's type, for messages.
        opaque: names of the classes in the file that were not loaded.
        card: from the `config.json` next to a safetensors or .bin file: the entries of `CARD` that it has, and `mean`
            and `std` (of RGB in [0, 1]), for which a `preprocessor_config.json` is read, too.
        parts: the files of a checkpoint in several files; otherwise the file.
    """

    format: str
    tensors: dict[str, torch.Tensor]
    other: dict[str, Any]
    keys: tuple[str, ...]
    kind: str
    opaque: tuple[str, ...] = ()
    card: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Path, ...] = ()


def read_file(path: Path) -> Loaded:
    """Read a weights file of any known format, which is recognised by its content.

    Only Caffe models, which begin with nothing but a field's number, must also be named `*.caffemodel`.

    Raises:
        UserError: the file is missing, not a regular file, unreadable or unsafe, or claims to hold more than its size.
    """
    contents, form, opaque = read_contents(path)
    tensors = named_tensors(path, contents)
    top = contents if isinstance(contents, dict) else {}
    other = {label(key): value for key, value in top.items() if not isinstance(value, torch.Tensor)}
    kind = getattr(contents, "name", "") or type(contents).__name__
    return Loaded(form, tensors, other, tuple(map(label, top)), kind, opaque, _card(path), (path,))


def read_contents(path: Path) -> tuple[Any, str, tuple[str, ...]]:
    """Return the file's contents with tensors, its format, and the names of the classes that were not loaded."""
    opaque: tuple[str, ...] = ()
    with opened(path) as file:
        before = _stamp(file)
        size = before[0]
        head = file.read(512)
        file.seek(0)
        form = _format(path, head, size)
        if size > MAX_WHOLE and form != "zip":
            raise UserError(
                f"{path}: has {size / 1e9:.0f} GB, too much for a weights file of a ResNet: name another file"
            )
        if form == "safetensors":
            contents = _read_safetensors(path, file.read(size))
        else:
            contents, opaque = box.read(path, file, form, size)
        if _stamp(file) != before:
            raise UserError(f"{path}: changed while it was read: wait until it is written or downloaded")
    return contents, "torch" if form in ("zip", "legacy") else form, opaque


def _stamp(file: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _format(path: Path, head: bytes, size: int) -> str:
    if len(head) < 16:
        raise UserError(f"{path}: not a readable PyTorch checkpoint (truncated?): {len(head)} bytes")
    if head[:2] == b"PK":
        return "zip"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    if MAGIC.to_bytes(10, "little") in head[:20]:
        return "legacy"
    if head[257:262] == b"ustar" or head.startswith((b"sys_info\0", b"./PaxHeaders")):
        raise UserError(
            f"{path}: is a tar file, an archive or from PyTorch 0.1; unpack it, or load it with an old PyTorch and "
            "save its state_dict() again"
        )
    if path.suffix == ".caffemodel" and head.startswith(_CAFFE):
        return "caffe"
    if head[:1] in (b"\x80", b"(", b"}", b"]", b"c"):
        return "pickle"
    if head.startswith((b"version https://git-lfs", b"<", b"{")):
        raise UserError(f"{path}: is text, not weights: the download gave a web page or a Git LFS pointer")
    if _is_text(head):
        raise UserError(f"{path}: is a text file, not weights: name a checkpoint file")
    raise UserError(
        f"{path}: is not a weights file: it does not begin like a PyTorch checkpoint, a safetensors file, a pickle "
        "of NumPy arrays or a Caffe model (*.caffemodel); name another file, or download it again"
    )


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", errors="ignore")  # the last character can be cut off
    return len(text.encode()) > len(head) - 4 and all(c.isprintable() or c in "\t\r\n" for c in text)


def _read_safetensors(path: Path, data: bytes) -> dict[str, Any]:
    """Return the tensors; in files by `transfer.convert.weights_file` they are under `model` next to other entries."""
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER:
        raise UserError(f"{path}: has a safetensors header of {length} bytes: damaged or hostile")
    try:
        header = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        tensors = dict(parse_safetensors(data))
        if HEADER not in header:
            return tensors
        return {**json.loads(header[HEADER]), "model": tensors}
    except Exception as error:  # of safetensors or json, or for a type that PyTorch lacks
        reason = label(" ".join(str(error).split()), 160) or type(error).__name__
        raise UserError(f"{path}: not a readable safetensors file: {reason}") from None


def _card(path: Path) -> dict[str, Any]:
    """Return what is used of the `config.json` next to the file, where timm and the Hugging Face Hub put it.

    transformers states mean and std in another file.
    """
    if path.suffix not in (".safetensors", ".bin"):
        return {}
    content = _json(path.parent / "config.json")
    card = {key: content[key] for key in CARD if isinstance(content.get(key), str | bool | int | float)}
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError, OverflowError):
        pixels = content.get("pretrained_cfg", content)
        if "mean" not in pixels:
            images = _json(path.parent / "preprocessor_config.json")
            pixels = {key: images[f"image_{key}"] for key in ("mean", "std")}
        found = {key: [float(v) for v in pixels[key]] for key in ("mean", "std")}
        if all(len(v) == 3 and all(map(math.isfinite, v)) for v in found.values()) and min(found["std"]) > 0:
            card |= found
    return card


def _json(path: Path) -> dict[str, Any]:
    """Return the contents of a JSON file, or nothing if it is missing, unreadable or not a dict."""
    try:
        with opened(path) as file:
            content = json.loads(file.read(MAX_CARD))
    except (UserError, OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def named_tensors(path: Path, contents: Any) -> dict[str, torch.Tensor]:
    """Return the tensors in nested containers by dotted name. Raises `UserError` if they are larger than the file."""
    tensors: dict[str, torch.Tensor] = {}
    budget = 4 * path.stat().st_size + (1 << 20)  # bfloat16 becomes float32; shared storage counts repeatedly
    for name, value in _leaves(path, contents):
        if name in tensors:
            raise UserError(f"{path}: holds two tensors named {name}: save only the wanted network")
        tensors[name] = value
        budget -= value.numel() * value.element_size()
        if budget < 0 or len(tensors) > MAX_TENSORS:
            raise UserError(
                f"{path}: its tensors claim to be larger than the file: damaged or hostile; refused"
            )
    return tensors


def _leaves(path: Path, contents: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (dotted name, tensor) for every tensor in nested containers, in the file's order."""
    stack: list[tuple[str, Any]] = [("", contents)]
    while stack:
        name, node = stack.pop()
        if isinstance(node, torch.Tensor):
            yield name, node
            continue
        if not isinstance(node, dict | list | tuple):  # the file is a single number
            continue
        entries = node.items() if isinstance(node, dict) else enumerate(node)
        inner = [
            (f"{name}.{label(key)}" if name else label(key), value)
            for key, value in entries
            if isinstance(value, torch.Tensor | dict | list | tuple)
        ]
        if inner and len(name) > MAX_NAME:
            raise UserError(
                f"{path}: has a name of more than {MAX_NAME} characters: damaged or hostile; refused"
            )
        stack.extend(reversed(inner))
