"""Checkpoint files: written whole or not at all, read without running anything that they contain."""

import contextlib
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch

from pretrain.errors import UserError


class Opaque:
    """Stands for an object of a class that we do not load: it holds nothing and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __repr__(self) -> str:
        return "Opaque()"


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


def load(path: Path, *, opaque: list[str] | None = None) -> Any:
    """Read a checkpoint on the CPU with `weights_only=True`: no code of the file is ever run.

    Objects of unknown classes (`argparse.Namespace`, a framework's configuration) become `Opaque`.

    Args:
        path: a file by `torch.save`.
        opaque: a list to which the names of the classes that were replaced are added.
    Raises:
        UserError: the file is missing, truncated, or no PyTorch checkpoint.
    """
    if not path.is_file():  # nor a pipe or device, which would be waited for
        raise UserError(f"{path}: no such checkpoint file")
    try:
        _refuse_bombs(path)
        unknown = _unknown_globals(path)
        stubs: list[Any] = [(type("Opaque", (Opaque,), {}), name) for name in unknown]
        with torch.serialization.safe_globals(stubs), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: what cannot be read raises
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen classes here, pickle's and zip's among them
        if "Weights only load failed" in str(error):  # torch's text advises to run the file's code
            hint = "is it detectron2's?" if path.suffix == ".pkl" else "save the model's state_dict alone"
            raise UserError(f"{path}: holds objects that cannot be read safely; {hint}") from error
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: not a readable PyTorch checkpoint (truncated?): {reason}") from error
    if opaque is not None:
        opaque.extend(unknown)
    return contents


def _refuse_bombs(path: Path) -> None:
    """torch stores its zip members as they are; a compressed one may be a thousand times larger inside."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if sum(m.file_size for m in members) > path.stat().st_size or any(m.compress_type for m in members):
        raise ValueError("its parts are compressed or overlap: not as PyTorch writes them")


def _unknown_globals(path: Path) -> list[str]:
    with open(path, "rb") as file:
        if file.read(2) != b"PK":  # the format before PyTorch 1.6 cannot be scanned: torch.load decides
            return []
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
