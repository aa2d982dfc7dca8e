"""What every training run does with its OUTPUT_DIR: one run a folder, which is resumed only as it was."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pretrain.common import distributed
from pretrain.common.configs import equal
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import found

_SHOWN = 3  # changed settings in a message


def remove_leftovers(folder: Path, is_ours: Callable[[str], bool], *, older_than: float = 0.0) -> None:
    """Remove the half-written files, `.NAME.xyz`, of a process that was killed.

    Args:
        is_ours: whether a file of this NAME is one that the run writes.
        older_than: seconds; a younger file may be one that another process is writing now.
    """
    for path in found(folder, ".*.*"):
        if is_ours(path.name[1:].rpartition(".")[0]):
            with contextlib.suppress(OSError):
                if not older_than or time.time() - path.stat().st_mtime > older_than:
                    path.unlink()


def in_use(folder: Path, *, finished: bool = False) -> UserError:
    """Return the error for an OUTPUT_DIR that holds a run, which a new one would overwrite.

    Args:
        finished: there is nothing left to resume.
    """
    if finished:
        return UserError(
            f"OUTPUT_DIR {folder} holds a finished run: name another OUTPUT_DIR, or remove this one"
        )
    return UserError(
        f"OUTPUT_DIR {folder} holds a run: add --resume to continue it, or name another OUTPUT_DIR"
    )


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return `KEY is B and was A` for each setting of `now`, by dotted key, that is not as before."""
    return [
        f"{key} is {value} and was {str(before.get(key))[:80]}"
        for key, value in now.items()
        if not equal(value, before.get(key))
    ]


def other_settings(changed: list[str]) -> UserError:
    """Return the error for a run that would be resumed with other settings, given by `changes`."""
    shown = ", ".join(changed[:_SHOWN]) + (", ..." if len(changed) > _SHOWN else "")
    return UserError(
        f"--resume: {shown or 'the settings have changed'}; set it back or name another OUTPUT_DIR"
    )


def note_processes(before: int, reason: str) -> None:
    """Print a note if the run had another number of processes before, and why the result is not bit-identical."""
    now = distributed.world_size()
    if before != now:
        say(
            f"note: the run had {before} process(es) and has {now} now: it sees the same images, but {reason}, so the "
            "result will not be bit-identical"
        )
