"""The reader of strangers' checkpoints: a process of its own with limits, started by `box.py`.

Its standard input is the file, its standard output the result, a safetensors file: the storages of the tensors as bytes
under their numbers, and in the header one JSON text. It imports only what it needs, limits itself, then reads; from
then on it can open no file and no connection.

The JSON text has either `error`, a message, or `contents` and `foreign`, the names of the classes that were not loaded.
In `contents` a list stands for anything but None, truth values, numbers and strings: its first entry tells what the
others are.

    "list", "tuple"    the entries
    "dict"             key, value, key, value, ...
    "bytes"            a string of characters up to 255
    "tensor"           storage, dtype, offset, shape, strides
    "foreign"          the name of a class that was not loaded, then as in "dict"
"""

import codecs
import contextlib
import json
import math
import os
import struct
import sys
from collections.abc import Callable
from typing import IO, Any

from pretrain.common.errors import UserError, label
from pretrain.tensor_files import stand_ins, torch_files

MAX_DEPTH = 32  # of nested containers; real files have 6
MAX_CONTAINERS = 200_000  # a container that the file contains often counts as often
MAX_ITEMS = 2_000_000  # in all containers together
MAX_INTEGER = 2048  # bits
MEMORY, DISK = 3, 4  # exit statuses
Reader = Callable[[IO[bytes], int], torch_files.Contents]
_READERS: dict[str, Reader] = {
    "zip": torch_files.read_zip,
    "legacy": torch_files.read_legacy,
    "pickle": lambda file, _: torch_files.read_pickle(file),
}
_KINDS = {"pickle": "weights file", "caffe": "Caffe model"}  # for messages


def reader(form: str) -> Reader:
    """Return the function that reads a format."""
    if form == "caffe":
        # It imports protobuf, which is on the path only for this format.
        from pretrain.tensor_files import caffe_files

        return caffe_files.read
    return _READERS[form]


def main() -> None:
    """Read standard input and write the result. Arguments: format, size of the file, bytes of memory, seconds."""
    form, size, memory, seconds = sys.argv[1], *map(int, sys.argv[2:5])
    reader(form)  # imports what it needs while files can be opened
    limit(memory, seconds)
    try:
        header, storages = read(form, sys.stdin.buffer, size)
        write(sys.stdout.buffer, header, storages)
        sys.stdout.flush()
    except MemoryError:
        os._exit(MEMORY)
    except OSError:
        os._exit(DISK)


def limit(memory: int, seconds: int) -> None:
    """Limit this process to so much more memory and processor time than it has used, and to the files it has open."""
    for encoding in ("cp437", "latin1", "utf-8", "raw_unicode_escape", "unicode_escape", "ascii"):
        codecs.lookup(encoding)  # imported now, since nothing can be imported later
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        memory += int(file.read().split()[0]) * resource.getpagesize()
    wanted = {
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_CPU: (seconds, seconds + 1),  # SIGXCPU at the first, SIGKILL at the second
        resource.RLIMIT_NOFILE: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, values in wanted.items():
        most = resource.getrlimit(kind)[1]
        within = [value if most == resource.RLIM_INFINITY else min(value, most) for value in values]
        with contextlib.suppress(ValueError, OSError):  # macOS does not limit address space
            resource.setrlimit(kind, (within[0], within[1]))


def read(form: str, file: IO[bytes], size: int) -> tuple[dict[str, Any], list[bytes]]:
    """Return the JSON object for a file, and the storages of its tensors."""
    try:
        contents, foreign = reader(form)(file, size)
        encoder = Encoder(4 * size + (1 << 20))  # tensors can share a storage
        tree = encoder.encode(contents)
        names = sorted(kind.name for kind in foreign.values())
        return {"contents": tree, "foreign": names}, [storage.data for storage in encoder.storages]
    except MemoryError:
        raise
    except UserError as error:
        return {"error": f"refused: {error}"}, []
    except Exception as error:  # damaged data can raise anything
        reason = label(" ".join(str(error).split()), 160) or type(error).__name__
        kind = _KINDS.get(form, "PyTorch checkpoint")
        return {"error": f"not a readable {kind} (truncated?): {reason}"}, []


class Encoder:
    """Turns contents into the form above.

    Attributes:
        storages: those that the tensors use, by number.

    Args:
        budget: bytes that all tensors together may have.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.storages: list[stand_ins.Storage] = []
        self.numbers: dict[int, int] = {}  # id of a storage -> its number
        self.containers = self.items = 0

    def encode(self, node: Any, depth: int = 0) -> Any:
        """Return a node of the contents. Raises `UserError` if there are too many, or too deep ones."""
        if type(node) is int and node.bit_length() > MAX_INTEGER:
            raise UserError(f"it holds an integer of {node.bit_length()} bits: damaged or hostile")
        if node is None or type(node) in (bool, int, float, str):
            return node
        if isinstance(node, stand_ins.NumpyArray):
            node = node.tensor
        if isinstance(node, stand_ins.Tensor):
            return self._tensor(node.in_whole())
        if isinstance(node, stand_ins.Storage):  # saved without a tensor
            return self._tensor(_flat(node).in_whole())
        if isinstance(node, bytes | bytearray):
            return ["bytes", node.decode("latin1")]
        if isinstance(node, dict):
            kind = ["foreign", node.name] if isinstance(node, stand_ins.Foreign) else ["dict"]
            entries = [part for n, (key, value) in enumerate(node.items()) for part in (_key(key, n), value)]
        elif isinstance(node, list | tuple | set | frozenset):
            kind, entries = ["tuple" if isinstance(node, tuple) else "list"], list(node)
        else:
            return ["foreign", _name(node)]
        self.containers += 1
        self.items += len(entries)
        if depth > MAX_DEPTH or self.containers > MAX_CONTAINERS or self.items > MAX_ITEMS:
            raise UserError("its containers are nested without end: damaged or hostile")
        return kind + [self.encode(part, depth + 1) for part in entries]

    def _tensor(self, tensor: stand_ins.Tensor) -> list[Any]:
        storage = tensor.storage
        self.budget -= math.prod(tensor.shape) * stand_ins.SIZES[tensor.dtype]
        if self.budget < 0:
            raise UserError("its tensors claim to be larger than the file: damaged or hostile")
        if id(storage) not in self.numbers:
            self.numbers[id(storage)] = len(self.storages)
            self.storages.append(storage)
        return [
            "tensor",
            self.numbers[id(storage)],
            tensor.dtype,
            tensor.offset,
            tensor.shape,
            tensor.strides,
        ]


def _flat(storage: stand_ins.Storage) -> stand_ins.Tensor:
    count = storage.size // stand_ins.SIZES[storage.dtype]
    return stand_ins.Tensor(storage, storage.dtype, 0, (count,), (1,))


def _key(key: Any, number: int) -> Any:
    """Return a key of a dict. One of a class that is not loaded becomes text, which `number` makes unique."""
    if type(key) is tuple:
        return tuple(_key(part, number) for part in key)
    if isinstance(key, stand_ins.Tensor | stand_ins.NumpyArray | stand_ins.Storage):
        raise UserError("it has a dict whose keys are tensors: damaged or hostile")
    return key if key is None or type(key) in (bool, int, float, str, bytes) else f"{_name(key)}#{number}"


def _name(node: Any) -> str:
    """Return the name of a class, function or dtype that a pickle holds as a value."""
    if isinstance(node, stand_ins.Dtype):
        return f"torch.{node}"
    return label(getattr(node, "name", "") or type(node).__name__)


def write(output: IO[bytes], header: dict[str, Any], storages: list[bytes]) -> None:
    """Write the result as a safetensors file, storage after storage so that memory need not hold it twice."""
    entries: dict[str, Any] = {"__metadata__": {"json": json.dumps(header)}}
    position = 0
    for number, data in enumerate(storages):
        entries[str(number)] = {
            "dtype": "U8",
            "shape": [len(data)],
            "data_offsets": [position, position + len(data)],
        }
        position += len(data)
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    output.write(struct.pack("<Q", len(text)) + text)
    for data in storages:
        output.write(data)
