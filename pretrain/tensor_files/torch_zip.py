"""Reading PyTorch's checkpoints, new (zip) and old (before 1.6), without running any code that they name.

`torch.load(weights_only=True)` is as safe, but refuses a whole file for objects that real files have next to the
weights: dicts of a framework's own class, enums, functions. Here each of them becomes an inert `Opaque`.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from pretrain.common.errors import UserError
from pretrain.tensor_files.pickle_machine import Constructor, Machine, label
from pretrain.tensor_files.stored_zip import StoredZip
from pretrain.tensor_files.torch_objects import TorchObjects

MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # first object of the old files
MAX_PICKLE = 256 << 20  # bytes of a zip's data.pkl, which does not contain the tensors' data


def read_zip(path: Path, file: IO[bytes], size: int, opaque: list[str]) -> Any:
    """Return the object in a zip checkpoint; the names of classes replaced by `Opaque` are appended to `opaque`.

    Raises:
        UserError: the file is damaged, compressed or big-endian, or a tensor is larger than its data.
    """

    def read() -> tuple[Any, TorchObjects]:
        archive = StoredZip(path, file, size)
        root = _root(path, archive)
        storages: dict[Any, torch.Tensor] = {}

        def storage(kind: torch.dtype, key: Any, count: int, _: Any) -> torch.Tensor:
            if key not in storages:
                storages[key] = _flat(archive.read(f"{root}data/{key}"), kind, count)
            if storages[key].dtype != kind:
                raise UserError(f"storage {label(key)} has two types: damaged or hostile")
            return storages[key]

        objects = TorchObjects(storage, 4 * size)
        data = archive.read(f"{root}data.pkl")
        return Machine(data, objects.resolve, persistent=objects.persistent).load(), objects

    return _guarded(path, read, opaque)


def _root(path: Path, archive: StoredZip) -> str:
    found = [name for name in archive.members if name.count("/") <= 1 and name.endswith("data.pkl")]
    if len(found) != 1:
        raise UserError(f"{path}: is a zip file without PyTorch's data.pkl, not a checkpoint")
    root = found[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in archive.members:
        raise UserError(f"{path}: is a TorchScript program: save its state_dict() with torch.save instead")
    if archive.members[found[0]][1] > MAX_PICKLE:
        raise UserError(
            f"{path}: has objects of {archive.members[found[0]][1]} bytes in addition to its tensors: refused"
        )
    order = f"{root}byteorder"
    if order in archive.members and archive.read(order) != b"little":
        raise UserError(f"{path}: was written on a big-endian machine: save it again on a little-endian one")
    return root


def read_legacy(path: Path, data: bytes, opaque: list[str]) -> Any:
    """Return the object in a file from before PyTorch 1.6, as `read_zip` does.

    The file consists of magic number, version, a description of the machine, the object and the list of its storages'
    keys, each as a pickle; then for each key the number of elements and their values.
    """

    def read() -> tuple[Any, TorchObjects]:
        storages: dict[Any, torch.Tensor] = {}
        budget = len(data)

        def storage(kind: torch.dtype, key: Any, count: int, view: Any) -> torch.Tensor:
            nonlocal budget
            if key not in storages:
                budget -= count * kind.itemsize
                if budget < 0:
                    raise UserError(f"its tensors claim {count} numbers: larger than the file")
                storages[key] = torch.empty(count, dtype=kind)
            whole = storages[key]
            if whole.dtype != kind:
                raise UserError(f"storage {label(key)} has two types: damaged or hostile")
            if view is None:
                return whole
            _, start, length = view
            if any(type(n) is not int or n < 0 for n in (start, length)) or start + length > whole.numel():
                raise UserError("it has a part of a storage beyond its end: damaged")
            return whole[start : start + length]

        objects = TorchObjects(storage, 4 * len(data))
        machine = Machine(data, objects.resolve, persistent=objects.persistent)
        _, version, system, contents, keys = (machine.load() for _ in range(5))
        if version != 1001 or not isinstance(system, dict) or not system.get("little_endian", True):
            raise UserError(
                "it is of an unknown version or from a big-endian machine: save it again with a newer PyTorch"
            )
        _fill(data, machine.position, keys, storages)
        return contents, objects

    return _guarded(path, read, opaque)


def in_pickles(path: Path) -> dict[tuple[str, str], Constructor]:
    """Return the replacements of the functions that rebuild tensors in a file by `pickle.dump`.

    Each storage in it is a whole old file as bytes, which cannot hold another one.
    """

    def storage(data: Any = b"", *_: Any) -> Any:
        if not isinstance(data, bytes):
            raise UserError("it has a storage that does not consist of bytes: damaged")
        return read_legacy(path, data, [])

    own = TorchObjects(lambda *_: torch.empty(0), 0).own
    rebuild = {
        ("torch._utils", n): own[f"torch._utils.{n}"] for n in ("_rebuild_tensor_v2", "_rebuild_parameter")
    }
    return {**rebuild, ("torch.storage", "_load_from_bytes"): Constructor(storage)}


def _fill(data: bytes, position: int, keys: Any, storages: dict[Any, torch.Tensor]) -> None:
    """Copy the numbers after the pickles into the storages, in the order of `keys`."""
    if not isinstance(keys, list) or len(set(map(str, keys))) != len(keys) or len(keys) != len(storages):
        raise UserError("its list of storages does not match its tensors: damaged")
    for key in keys:
        whole = storages[key]
        (count,) = struct.unpack_from("<q", data, position)
        size = whole.numel() * whole.element_size()
        if count != whole.numel() or position + 8 + size > len(data):
            raise UserError(f"storage {label(key)} is incomplete: truncated")
        if size:
            part = torch.frombuffer(bytearray(data[position + 8 : position + 8 + size]), dtype=whole.dtype)
            whole.copy_(part)
        position += 8 + size


def _flat(data: bytearray, kind: torch.dtype, count: int) -> torch.Tensor:
    if len(data) < count * kind.itemsize:
        raise UserError(f"a storage has {len(data)} bytes for {count} numbers: damaged")
    return torch.frombuffer(data, dtype=kind, count=count) if count else torch.empty(0, dtype=kind)


def _guarded(path: Path, read: Callable[[], tuple[Any, TorchObjects]], opaque: list[str]) -> Any:
    try:
        contents, objects = read()
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(path)) else f"{path}: refused: {text}") from None
    except Exception as error:  # damaged data can raise anything
        reason = label(" ".join(str(error).split()), 160) or type(error).__name__
        raise UserError(f"{path}: not a readable PyTorch checkpoint (truncated?): {reason}") from None
    opaque.extend(sorted({constructor.name for constructor in objects.opaque.values()}))
    return contents
