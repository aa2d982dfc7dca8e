"""Checkpoint files: written completely or not at all, and read without running any code that they contain."""

from pathlib import Path
from typing import IO, Any, cast

import torch

from pretrain.common.errors import UserError
from pretrain.common.files import write_atomic
from pretrain.tensor_files.read_any import read_contents


def save(path: Path, contents: dict[str, Any]) -> None:
    """Write a dict of tensors, numbers, strings, lists, tuples and dicts atomically with `torch.save`.

    Raises `UserError` naming the file if it cannot be written, as on a full disk or without permission.
    """

    def write(file: IO[bytes]) -> None:
        watched = _Watched(file)
        try:
            torch.save(contents, cast(IO[bytes], watched))
        except RuntimeError as error:
            raise watched.error or error from None

    write_atomic(path, write)


class _Watched:
    """A file that keeps its first `OSError`, since torch replaces it by a `RuntimeError` about positions."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write to the file."""
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()


def load(path: Path, *, opaque: list[str] | None = None) -> Any:
    """Read a file written by `torch.save`, with all tensors on the CPU, without running any code in the file.

    Torch's own reader (`weights_only=True`) runs no code either, but crashes or hangs on some files; ours is in a box.
    Objects of unknown classes (`argparse.Namespace`, a framework's configuration) become `Opaque`.

    Args:
        opaque: a list to which the names of the replaced classes are appended.
    Raises:
        UserError: the file is missing, truncated, or not a PyTorch checkpoint.
    """
    contents, form, replaced = read_contents(path)
    if form != "torch":
        raise UserError(
            f"{path}: is a {form} file, not a PyTorch checkpoint; pass detectron2 weights to the tool that expects "
            "them, as MODEL.WEIGHTS of tools/train_net.py"
        )
    if opaque is not None:
        opaque.extend(replaced)
    return contents
