"""Checkpoint files: written whole or not at all, read without running anything that they contain."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch

from pretrain.errors import UserError
from pretrain.files.untrusted import read_contents


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write(file)` on a temporary file, flush it to disk and rename it to `path`.

    An interruption at any point leaves the old file, or none: never half of one.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's files are private
        os.replace(name, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        if isinstance(error, OSError):  # a full disk, a folder in the place of the file
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise


def save(path: Path, contents: dict[str, Any]) -> None:
    """Write a dict of tensors, numbers, texts, lists, tuples and dicts, atomically, by `torch.save`.

    Raises `UserError` naming the file: the disk is full, or nobody may write there.
    """

    def write(file: IO[bytes]) -> None:
        watched = _Watched(file)
        try:
            torch.save(contents, cast(IO[bytes], watched))
        except RuntimeError as error:
            raise watched.error or error from None

    write_atomic(path, write)


class _Watched:
    """A file that keeps its first `OSError`: torch puts one of its own about positions in its place."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """As the file's own."""
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        """As the file's own."""
        self.file.flush()


def link(existing: Path, path: Path) -> None:
    """Make `path` the same file as `existing`, at once; a copy, where the file system knows no links."""
    temporary = path.with_name(f".{path.name}.link")
    try:
        temporary.unlink(missing_ok=True)
        os.link(existing, temporary)
        os.replace(temporary, path)
    except OSError:
        with open(existing, "rb") as source:
            write_atomic(path, lambda file: shutil.copyfileobj(source, file))


def found(folder: Path, pattern: str) -> list[Path]:
    """What `Path.glob` finds; nothing where it raises: in a folder of too long a name, or closed to us."""
    return list(folder.glob(pattern)) if os.path.isdir(folder) else []


def load(path: Path, *, opaque: list[str] | None = None) -> Any:
    """Read a file by `torch.save` on the CPU: no code of the file is ever run, and its claims are bounded.

    By our own reader: torch's (`weights_only=True`) runs no code either, but crashes or hangs on some files.
    Objects of unknown classes (`argparse.Namespace`, a framework's configuration) become `Opaque`.

    Args:
        opaque: a list to which the names of the classes that were replaced are added.
    Raises:
        UserError: the file is missing, truncated, or no PyTorch checkpoint.
    """
    contents, form, replaced = read_contents(path)
    if form != "torch":
        raise UserError(f"{path}: is no PyTorch checkpoint, but a {form} file: is it detectron2's?")
    if opaque is not None:
        opaque.extend(replaced)
    return contents
