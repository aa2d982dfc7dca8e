"""A lock on a folder that can be taken over when its holder dies, and that also works on network disks.

The lock is a file that only one process can create (O_EXCL). Its holder writes a new number into it every few
seconds. A waiting process watches the file with its own clock, so the machines' clocks need not agree. A lock that
has not changed for `STALE` seconds belongs to a dead process, and one of the waiting processes takes it over.

On the holder's own machine, no process has to wait: the holder, and the commands that inherit its open files, keep a
local file locked, which the system unlocks when the last of them has ended, however that is.
"""

import contextlib
import fcntl
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from pathlib import Path

BEAT = 5.0  # seconds between the holder's signs of life
STALE = 150.0  # network disks may show a change a minute late, and a command needs time to save and exit


class Lost(Exception):
    """Raised when another process took the lock over because it believed that this one was dead."""


class Lock:
    """Call `acquire` to take the lock; while it is held, a thread shows that its holder is alive.

    Args:
        path: the lock file.
        beat, stale: seconds, see `BEAT` and `STALE`.
    """

    def __init__(self, path: Path, *, beat: float = BEAT, stale: float = STALE) -> None:
        self.path, self.beat, self.stale = path, beat, stale
        unique = uuid.uuid4().hex
        self.token = f"{socket.gethostname()} {os.getpid()} {unique}"
        self._temporary = path.with_name(f".{path.name}.{unique}")
        self._stop = threading.Event()
        self.lost = threading.Event()
        self._thread: threading.Thread | None = None
        self._sign: int | None = None

    def acquire(self) -> bool:
        """Take the lock unless a living process holds it. This takes up to `stale` seconds if the lock is not free."""
        self._show_locally()  # before others can read the token
        if not self._create():
            dead = self._dead_holder()
            # If no holder is dead, the lock may have been released meanwhile.
            if not (self._take_over(*dead) if dead else self._create()):
                self._hide_locally()
                return False
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Release the lock if it is still ours."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        with contextlib.suppress(OSError):  # left over if a heartbeat failed half-way
            self._temporary.unlink()
        if self.is_ours():
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        self._hide_locally()  # last: an unlocked local file would be a sign of death while the lock is there

    def is_ours(self) -> bool:
        """Return whether the file still names us: a process that was suspended for long may have lost its lock."""
        return not self.lost.is_set() and holder(self.path) == self.token

    def _show_locally(self) -> None:
        """Lock the local file of this lock's token until this process and the commands that inherit it have ended."""
        try:
            self._sign = os.open(_local(self.token), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            fcntl.flock(self._sign, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.set_inheritable(self._sign, True)
        except OSError:  # a full disk, or one without locks: others wait for `stale` seconds
            self._hide_locally()

    def _hide_locally(self) -> None:
        if self._sign is not None:
            _local(self.token).unlink(missing_ok=True)
            os.close(self._sign)
            self._sign = None

    def _create(self) -> bool:
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(handle, "w") as file:
            file.write(f"{self.token}\n0")
        return True

    def _live(self) -> None:
        number, last = 0, time.monotonic()
        while not self._stop.wait(self.beat):
            number += 1
            try:
                ours = self._show(number)
                last = time.monotonic()
            except OSError:  # a full disk or a restarting file server: others wait for `stale` seconds
                ours = time.monotonic() - last < self.stale / 2
            if not ours:
                self.lost.set()
                return

    def _show(self, number: int) -> bool:
        """Write a heartbeat. Return whether the lock is still ours."""
        try:
            if self.path.read_text().partition("\n")[0] != self.token:
                return False
        except FileNotFoundError:
            return False
        self._temporary.write_text(f"{self.token}\n{number}")
        os.replace(self._temporary, self.path)
        return True

    def _dead_holder(self) -> tuple[str, list[Path]] | None:
        """Return the token of a lock that does not change for `stale` seconds, and the claims on it; else None.

        If its holder is known to have ended, return at once; not if there are claims, whose makers may be alive.
        """
        before, until = (_read(self.path), self._claims()), time.monotonic() + self.stale
        if not self.path.exists():  # released in this moment: nothing would change any more
            return None
        dead = before[0].partition("\n")[0]
        while time.monotonic() < until and (before[1] or not _has_ended(dead)):
            time.sleep(min(self.beat, self.stale) / 4)
            if (_read(self.path), self._claims()) != before:
                return None
        return dead, before[1]

    def _claims(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.name}.claim-*"))

    def _take_over(self, dead: str, claims: list[Path]) -> bool:
        """Replace the lock of a dead holder. Return whether this process did.

        Several processes may find the holder dead at the same moment. Only the one that creates the next claim file may
        replace the lock; otherwise one could delete the new lock of another. Older claims have not changed for as long
        as the lock, so the processes that made them died, too.
        """
        claim = self.path.with_name(f"{self.path.name}.claim-{len(claims):03}")
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        taken = False
        if holder(self.path) == dead:  # else another process was faster and has already removed its claim
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            taken = self._create()
            if _is_token(dead):
                with contextlib.suppress(OSError):  # it may be another user's
                    _local(dead).unlink()
        for made in (*claims, claim):
            made.unlink(missing_ok=True)
        return taken


def holder(path: Path) -> str:
    """Return host, process id and unique number of a lock's holder; empty if the lock is free."""
    return _read(path).partition("\n")[0]


def silence(path: Path) -> float | None:
    """Return the seconds since the last heartbeat of a lock's holder; None if the lock is free.

    Both times come from the disk, so the machines' clocks need not agree. A heartbeat in the future, written before a
    clock was set back, counts as old. On a network disk the answer may be out of date; only `Lock.acquire` decides
    whether a lock can be taken over.
    """
    try:
        last = path.stat().st_mtime
    except OSError:
        return None
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            now = os.fstat(file.fileno()).st_mtime
    except OSError:  # a read-only folder
        now = time.time()
    return abs(now - last)


def _is_token(token: str) -> bool:
    """Return whether a lock's first line is one of ours, whose end can be part of a file's name."""
    return re.fullmatch(r"\S+ \d+ [0-9a-f]{32}", token) is not None


def _local(token: str) -> Path:
    return Path(tempfile.gettempdir()) / f"reproduce-lock-{token.rpartition(' ')[2]}"


def _has_ended(token: str) -> bool:
    """Return whether a holder of this machine and all its commands have ended; False if that is not known."""
    # The folder for temporary files may be on a network disk whose locks are not passed between machines.
    if not _is_token(token) or token.partition(" ")[0] != socket.gethostname():
        return False
    try:
        handle = os.open(_local(token), os.O_RDWR)
    except OSError:  # another container's, or another user's
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
