"""Checkpoint files: written whole or not at all, read without running anything that they contain."""

from pathlib import Path
from typing import IO, Any, cast

import torch

from pretrain.common.errors import UserError
from pretrain.common.files import write_atomic
from pretrain.tensor_files.read_any import read_contents


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
