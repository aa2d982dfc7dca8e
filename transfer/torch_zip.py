"""PyTorch's zip checkpoints, read by an unpickler of our own: tensors come out, nothing of the file runs.

`torch.load(weights_only=True)` is as safe, but refuses whole files for objects beside the weights that real ones
have: dicts of a framework's own class, enums, functions. Here each of them becomes an inert `Opaque`.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import torch

from pretrain.errors import UserError
from transfer.numpy_pickle import KNOWN, scan

_TYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}  # fmt: skip


class Opaque(dict):
    """Stands for an object of a class that we do not load. It keeps entries that a dict's subclass would."""

    def __new__(cls, *_: Any, **__: Any) -> "Opaque":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def add(self, _: Any) -> None: ...

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __call__(self, *_: Any, **__: Any) -> "Opaque":
        return self


def read_zip(path: Path, opaque: list[str]) -> Any:
    """The object in a zip checkpoint, with `Opaque`s; their classes' names are added to `opaque`.

    Raises:
        UserError: damaged, compressed, of another byte order, or a tensor that is larger than its data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_bombs(path, archive)
            found = [
                name for name in archive.namelist() if name.count("/") <= 1 and name.endswith("data.pkl")
            ]
            if len(found) != 1:
                raise UserError(f"{path}: a zip without PyTorch's data.pkl: not a checkpoint")
            root = found[0].removesuffix("data.pkl")
            order = f"{root}byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise UserError(f"{path}: of a big-endian machine: save it again on a little-endian one")
            with archive.open(found[0]) as file:
                scan(file)
            with archive.open(found[0]) as file:
                reader = _Reader(file, archive=archive, root=root)
                contents = reader.load()
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(path)) else f"{path}: refused: {text}") from None
    except Exception as error:  # zipfile's, pickle's, whatever a damaged stack leads to
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path}: not a readable PyTorch checkpoint (truncated?): {reason}") from None
    opaque.extend(sorted(reader.opaque))
    return contents


def _refuse_bombs(path: Path, archive: zipfile.ZipFile) -> None:
    """torch stores its zip members uncompressed; a compressed one may be a thousand times larger inside."""
    inside = sum(member.file_size for member in archive.infolist())
    if inside > path.stat().st_size or any(member.compress_type for member in archive.infolist()):
        raise UserError(f"{path}: its parts are compressed or overlap: not as PyTorch writes them; refused")


class _Reader(pickle.Unpickler):
    def __init__(self, file: IO[bytes], *, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file, encoding="utf-8")
        self.archive, self.root = archive, root
        self.storages: dict[str, torch.Tensor] = {}
        self.opaque: dict[str, type[Opaque]] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _REBUILD:
            return _REBUILD[full]
        if module in ("torch", "torch.storage") and name in _TYPES:
            return _TYPES[name]
        known = KNOWN.get((module.replace("numpy._core", "numpy.core"), name))
        if known is not None:
            return known
        if full not in self.opaque:
            self.opaque[full] = type("Opaque", (Opaque,), {})
        return self.opaque[full]

    def persistent_load(self, identity: Any) -> torch.Tensor:
        """("storage", type, key, location, number of elements) -> the storage as a flat tensor."""
        _, kind, key, _, count = identity
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.root}data/{key}"))
            size = kind.itemsize
            if not isinstance(count, int) or len(data) < count * size:
                raise UserError(f"storage {key} has {len(data)} bytes for {count} numbers: damaged")
            self.storages[key] = (
                torch.frombuffer(data, dtype=kind, count=count) if count else torch.empty(0, dtype=kind)
            )
        return self.storages[key]


def _tensor(storage: torch.Tensor, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    size, stride = tuple(size), tuple(stride)
    if any(not isinstance(n, int) or n < 0 for n in (offset, *size, *stride)) or len(size) != len(stride):
        raise UserError("a tensor with a negative size: damaged")
    if math.prod(size) > 0:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= storage.numel() or math.prod(size) > storage.numel():
            raise UserError(f"a tensor of shape {size} is larger than its {storage.numel()} numbers: damaged")
    return (
        torch.as_strided(storage, size, stride, offset)
        if math.prod(size)
        else torch.empty(size, dtype=storage.dtype)
    )


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_type(function: Any, _: Any, arguments: Any, __: Any) -> Any:
    """A tensor of a subclass, such as torchvision's, or a parameter with attributes."""
    return function(*arguments) if function in (_tensor, _parameter) else Opaque()


_REBUILD: dict[str, Any] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "collections.OrderedDict": OrderedDict,
    "torch.Size": tuple,
}
