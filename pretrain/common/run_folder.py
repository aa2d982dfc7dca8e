"""The rules for OUTPUT_DIR that all training runs share: one run per folder, resumed only with the same settings."""

import contextlib
import glob
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pretrain.common import distributed
from pretrain.common.configs import equal
from pretrain.common.console import say
from pretrain.common.errors import UserError, label
from pretrain.common.files import found, is_at, lock, remove_leftover

LOCK = ".lock"  # in OUTPUT_DIR while a run uses it; a killed run leaves the file behind, but not locked
_SHOWN = 3  # changed settings shown in a message
_LONGEST = 200  # characters of the holder's description


@contextlib.contextmanager
def held(folder: Path, key: str = "OUTPUT_DIR") -> Iterator[None]:
    """Keep other runs out of a folder, given by `key`. Every process of a run calls this; the main one holds the lock.

    The lock ends with its process, even if that is killed. If the folder cannot be written, it is not locked: the run
    reports that itself.

    Raises:
        UserError: in every process, if another run holds the folder.
    """
    with contextlib.ExitStack() as stack:
        refused = distributed.is_main() and not stack.enter_context(locked(folder / LOCK))
        if any(distributed.any_process(refused)):
            raise UserError(
                f"{key} {folder} is in use by {holder(folder / LOCK)}: wait for that run, stop it, or name another "
                f"folder (if its machine died, remove {folder / LOCK})"
            )
        yield


@contextlib.contextmanager
def held_file(path: Path) -> Iterator[None]:
    """Keep other processes from writing the file `path`, and remove what killed ones left next to it.

    Raises:
        UserError: another process is writing it.
    """
    lock_file = path.with_name(f".{path.name}{LOCK}")
    with locked(lock_file) as taken:
        if not taken:
            raise UserError(
                f"{path} is being written by {holder(lock_file)}: wait for that process, or name another file"
            )
        remove_leftovers(path.parent, lambda name: name == path.name)
        for folder in found(path.parent, f".{glob.escape(path.name)}.????????/"):  # of `tempfile`
            shutil.rmtree(folder, ignore_errors=True)
        yield


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file, and remove it at the end. Yield whether it could be taken.

    It also counts as taken where it cannot be created, and, with a printed note, where the file system has no locks.
    """
    missing = [parent for parent in path.parents if not os.path.exists(parent)]
    handle, taken = _take(path)
    try:
        yield taken
    finally:
        if handle is not None:
            with contextlib.suppress(OSError):
                path.unlink()  # before the lock ends with the handle
            os.close(handle)
        for parent in missing:  # a run that failed before it wrote anything leaves nothing behind
            with contextlib.suppress(OSError):
                parent.rmdir()


def _take(path: Path) -> tuple[int | None, bool]:
    """Return the handle of the lock file, None if it is not locked, and whether the run may start."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = _open(path)
        except OSError:
            return None, True
        try:
            if not lock(handle):
                os.close(handle)
                return None, False
            if is_at(path, handle):
                os.ftruncate(handle, 0)
                os.write(handle, _describe_this_process().encode())
                return handle, True
        except OSError as error:
            say(f"note: {path}: {error.strerror}: a second run in this folder would not be noticed")
            return handle, True
        os.close(handle)  # its holder has just removed it


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)


def _describe_this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def holder(path: Path) -> str:
    """Return what a lock file says about its holder: process id, host and start."""
    try:
        with open(path, errors="replace") as file:
            text = file.read(_LONGEST)
    except OSError:
        text = ""
    return text if text.isprintable() and text else "another process"


def remove_leftovers(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Remove incomplete files, `.NAME.xyz` and `.NAME.PID.tmp`, that a killed process left behind.

    Args:
        is_ours: returns whether the run writes files of this NAME.
    """
    for path in found(folder, ".*.*"):
        name = re.sub(r"\.\d+\.tmp$|\.[^.]*$", "", path.name[1:])
        if is_ours(name) and not path.name.endswith(LOCK):
            remove_leftover(path)


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
        f"{key} is {label(value)} and was {label(before.get(key))}"
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
