"""The rules for OUTPUT_DIR that all training runs share: one run per folder, resumed only with the same settings."""

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

_SHOWN = 3  # changed settings shown in a message


def remove_leftovers(folder: Path, is_ours: Callable[[str], bool], *, older_than: float = 0.0) -> None:
    """Remove incomplete files, `.NAME.xyz`, that a killed process left behind.

    Args:
        is_ours: returns whether the run writes files of this NAME.
        older_than: seconds; another process may still be writing a file that is younger.
    """
    for path in found(folder, ".*.*"):
        if is_ours(path.name[1:].rpartition(".")[0]):
            with contextlib.suppress(OSError):
                if not older_than or time.time() - path.stat().st_mtime > older_than:
                    path.unlink()


def in_use(folder: Path, *, finished: bool = False) -> UserError:
    """Return the error for an OUTPUT_DIR with a run that a new run would overwrite.

    Args:
        finished: whether that run is finished, so that it cannot be resumed.
    """
    if finished:
        return UserError(
            f"OUTPUT_DIR {folder} holds a finished run: name another OUTPUT_DIR, or remove this one"
        )
    return UserError(
        f"OUTPUT_DIR {folder} holds a run: add --resume to continue it, or name another OUTPUT_DIR"
    )


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return `KEY is B and was A` for each setting, by dotted key, whose value differs from the one before."""
    return [
        f"{key} is {value} and was {str(before.get(key))[:80]}"
        for key, value in now.items()
        if not equal(value, before.get(key))
    ]


def other_settings(changed: list[str]) -> UserError:
    """Return the error for a run that would be resumed with other settings; `changed` is from `changes`."""
    shown = ", ".join(changed[:_SHOWN]) + (", ..." if len(changed) > _SHOWN else "")
    return UserError(
        f"--resume: {shown or 'the settings have changed'}; restore the old settings or name another OUTPUT_DIR"
    )


def note_processes(before: int, reason: str) -> None:
    """Print a note if the number of processes has changed: why (`reason`) the result will not be bit-identical."""
    now = distributed.world_size()
    if before != now:
        say(
            f"note: the run had {before} process(es) and has {now} now: it sees the same images, but {reason}, so the "
            "result will not be bit-identical"
        )
