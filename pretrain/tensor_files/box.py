"""Reading a stranger's checkpoint in a box: a child process with limits, of which only plain data comes back.

Bounds inside a parser are never complete, so torch files, pickles and Caffe models are read by a process (`inside.py`)
that cannot run on for ever, fill the memory, open a file or a connection. It needs neither torch nor NumPy and starts
within some hundredths of a second.
"""

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open

from pretrain.common.errors import UserError
from pretrain.tensor_files import inside
from pretrain.tensor_files.stand_ins import SIZES

MAX_HEADER = 64 << 20  # bytes of JSON
_START = "import sys; sys.path += sys.argv.pop(1).split('\\n'); from pretrain.tensor_files.inside import main; main()"
_ROOT = str(Path(__file__).resolve().parents[2])


class Opaque(dict):
    """The stand-in of an object whose class is not loaded. It keeps the entries of a dict subclass."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def read(path: Path, file: IO[bytes], form: str, size: int) -> tuple[Any, tuple[str, ...]]:
    """Return the contents of a torch file, pickle or Caffe model, and the names of the classes that were not loaded.

    Args:
        path: for messages.
        file: the open file, at any position.
        form: `zip`, `legacy`, `pickle` or `caffe`.
        size: of the file in bytes.
    Raises:
        UserError: the file is damaged, refused, or takes the reader more memory or time than its size explains.
    """
    try:
        with tempfile.NamedTemporaryFile(prefix="checkpoint-") as result:
            _run(path, file, form, size, result)
            result.seek(0)
            length = int.from_bytes(result.read(8), "little")
            if length > MAX_HEADER:
                raise UserError(
                    f"{path}: refused: it holds too much in addition to its tensors: damaged or hostile"
                )
            with safe_open(result.name, "pt") as opened:
                header = json.loads(opened.metadata()["json"])
                storages = [opened.get_tensor(str(n)).clone() for n in range(len(opened.keys()))]
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{path}: cannot be read through a temporary file in {tempfile.gettempdir()}: {reason}; set TMPDIR to a "
            "folder with room for a copy of it"
        ) from None
    return decoded(path, header, storages)


def limits(size: int) -> tuple[int, int, int]:
    """Return bytes of memory, seconds of processor time and seconds in all for reading a file of `size` bytes."""
    return min((512 << 20) + 6 * size, _installed()), 10 + size // 10_000_000, 60 + size // 1_000_000


def _run(path: Path, file: IO[bytes], form: str, size: int, result: IO[bytes]) -> None:
    """Run the reader. Raises `UserError` if it does not end well."""
    memory, seconds, wait = limits(size)
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    reader = subprocess.Popen(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            _START,
            _folders(path, form),
            form,
            *map(str, (size, memory, seconds)),
        ],
        stdin=file,
        stdout=result,
        stderr=subprocess.DEVNULL,
    )
    try:
        status = reader.wait(wait)
    except subprocess.TimeoutExpired:
        status = -signal.SIGXCPU
        seconds = wait
    finally:
        reader.kill()
        reader.wait()
    if status == 0:
        return
    if status == inside.DISK:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if status == inside.MEMORY:
        reason = f"needed more than {memory / 1e9:.1f} GB of memory"
    elif status == -signal.SIGXCPU:
        reason = f"took more than {seconds} s"
    elif status == -signal.SIGKILL:
        reason = "was stopped by the system, perhaps because its memory is full"
    else:
        reason = f"crashed the reader (status {status})"
    raise UserError(f"{path}: reading it {reason}: damaged or hostile; nothing was written")


def _folders(path: Path, form: str) -> str:
    """Return the folders from which the reader imports in addition to the standard library, one a line."""
    if form != "caffe":
        return _ROOT
    found = importlib.util.find_spec("google.protobuf") if importlib.util.find_spec("google") else None
    if not found or not found.origin:
        raise UserError(f"{path}: reading a Caffe model needs the package protobuf: pip install protobuf")
    return f"{_ROOT}\n{Path(found.origin).parents[2]}"


def _installed() -> int:
    """Return the machine's memory in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return sys.maxsize


def decoded(path: Path, header: dict[str, Any], storages: list[torch.Tensor]) -> tuple[Any, tuple[str, ...]]:
    """Return the result of `inside.read` as `read` does."""
    if "error" in header:
        raise UserError(f"{path}: {header['error']}")
    return _decode(header["contents"], storages), tuple(header["foreign"])


def _decode(node: Any, storages: list[torch.Tensor]) -> Any:
    """Return what the reader encoded as described in `inside.py`."""
    if not isinstance(node, list):
        return node
    kind, *parts = node
    if kind == "bytes":
        return parts[0].encode("latin1")
    if kind == "tensor":
        return _tensor(storages, *parts)
    if kind in ("list", "tuple"):
        made = [_decode(part, storages) for part in parts]
        return made if kind == "list" else tuple(made)
    entries: dict[Any, Any] = Opaque(parts.pop(0)) if kind == "foreign" else {}
    for key, value in zip(parts[::2], parts[1::2], strict=True):
        entries[_decode(key, storages)] = _decode(value, storages)
    return entries


def _tensor(
    storages: list[torch.Tensor], number: int, dtype: str, offset: int, shape: list[int], strides: list[int]
) -> torch.Tensor:
    kind = getattr(torch, dtype)
    if 0 in shape:
        return torch.empty(shape, dtype=kind)
    data = storages[number]
    whole = data[: len(data) - len(data) % SIZES[dtype]].view(kind)
    return torch.as_strided(whole, shape, strides, offset)
