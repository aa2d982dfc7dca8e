"""PyTorch's checkpoints, new (zip) and old (before 1.6), as plain data and stand-ins; used in the box (`inside.py`).

`torch.load(weights_only=True)` is as safe, but to import torch takes some ten times as long as to read a ResNet's file,
and it refuses a whole file for objects that real files have next to the weights: dicts of a framework's own class,
enums, functions.
"""

import io
import struct
import zipfile
from typing import IO, Any

from pretrain.common.errors import UserError, label
from pretrain.tensor_files.stand_ins import SIZES, Foreign, Storage, Unpickler

MAGIC = 0x1950A86A20F9469CFC6C  # the first object of the old files
MAX_PICKLE = 256 << 20  # bytes of a zip's data.pkl, which does not contain the tensors' data

Contents = tuple[Any, dict[str, type[Foreign]]]


def read_zip(file: IO[bytes], size: int) -> Contents:
    """Return the object in a zip checkpoint, and the classes in it that stand-ins replace.

    Raises:
        UserError: the file is compressed or big-endian, or a tensor is larger than its data.
        zipfile.BadZipFile: the file is damaged.
    """
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:  # whose message is that this is no zip file
        raise zipfile.BadZipFile("the list of its parts, at its end, is missing or damaged") from None
    members = {info.filename: info for info in archive.infolist()}
    if any(info.compress_type or info.compress_size != info.file_size for info in members.values()):
        raise UserError("its parts are compressed, which PyTorch never does")
    if len(members) != len(archive.infolist()) or sum(info.file_size for info in members.values()) > size:
        raise UserError("its parts overlap, which PyTorch never writes")
    root = _root(archive, members)
    storages: dict[Any, Storage] = {}

    def storage(dtype: str, key: Any, count: int, _: Any) -> Storage:
        if key not in storages:
            info = members.get(f"{root}data/{key}")
            if not info or info.file_size < count * SIZES[dtype]:
                raise UserError(f"storage {label(key)} has fewer than {count} numbers: damaged")
            storages[key] = Storage(dtype, info.file_size, archive.read(info))  # compares the checksum
        return _same(storages[key], dtype, key)

    unpickler = Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), storage=storage)
    return unpickler.load(), unpickler.foreign


def _root(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> str:
    found = [name for name in members if name.count("/") <= 1 and name.endswith("data.pkl")]
    if len(found) != 1:
        raise UserError("it is a zip file without PyTorch's data.pkl, not a checkpoint")
    root = found[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in members:
        raise UserError("it is a TorchScript program: save its state_dict() with torch.save instead")
    if (size := members[found[0]].file_size) > MAX_PICKLE:
        raise UserError(f"it has objects of {size} bytes in addition to its tensors")
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
        raise UserError("it was written on a big-endian machine: save it again on a little-endian one")
    return root


def read_legacy(file: IO[bytes], size: int) -> Contents:
    """Return the object in a file from before PyTorch 1.6, as `read_zip` does.

    The file consists of magic number, version, a description of the machine, the object and the list of its storages'
    keys, each as a pickle; then for each key the number of elements and their values.
    """
    storages: dict[Any, Storage] = {}
    left = size

    def storage(dtype: str, key: Any, count: int, view: Any) -> Storage:
        nonlocal left
        if key not in storages:
            left -= count * SIZES[dtype]
            if left < 0:
                raise UserError(f"its tensors claim {count} numbers: larger than the file")
            storages[key] = Storage(dtype, count * SIZES[dtype])
        whole = _same(storages[key], dtype, key)
        if view is None:
            return whole
        _, start, length = view
        if (
            any(type(n) is not int or n < 0 for n in (start, length))
            or (start + length) * SIZES[dtype] > whole.size
        ):
            raise UserError("it has a part of a storage beyond its end: damaged")
        return Storage(dtype, length * SIZES[dtype], whole=whole, start=start)

    unpickler = Unpickler(file, storage=storage)
    magic, version, system = (Unpickler(file).load() for _ in range(3))
    contents, keys = unpickler.load(), Unpickler(file).load()
    if (
        magic != MAGIC
        or version != 1001
        or not isinstance(system, dict)
        or not system.get("little_endian", True)
    ):
        raise UserError(
            "it is of an unknown version or from a big-endian machine: save it again with a newer PyTorch"
        )
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, str | int) for key in keys)
        or (sorted(map(str, keys)) != sorted(map(str, storages)))
    ):
        raise UserError("its list of storages does not match its tensors: damaged")
    for key in keys:
        whole = storages[key]
        (count,) = struct.unpack("<q", file.read(8))
        whole.data = file.read(whole.size)
        if count * SIZES[whole.dtype] != whole.size or len(whole.data) != whole.size:
            raise UserError(f"storage {label(key)} is incomplete: truncated")
    return contents, unpickler.foreign


def read_pickle(file: IO[bytes]) -> Contents:
    """Return the object in a pickle of arrays and tensors. Raises `UserError` if it names anything else."""

    def load_bytes(data: Any = b"", *_: Any) -> Any:
        """Return a torch storage in a pickle, which consists of a whole old file."""
        if not isinstance(data, bytes):
            raise UserError("it has a storage that does not consist of bytes: damaged")
        return read_legacy(io.BytesIO(data), len(data))[0]

    unpickler = Unpickler(file, load_bytes=load_bytes, strict=True)
    return unpickler.load(), unpickler.foreign


def _same(storage: Storage, dtype: str, key: Any) -> Storage:
    if storage.dtype != dtype:
        raise UserError(f"storage {label(key)} has two types: damaged or hostile")
    return storage
