"""A lock on a folder that survives the death of its holder, on network disks too.

The lock is a file that only one process can create (O_EXCL). Its holder writes a new number into it every few
seconds. Who waits watches it with its own clock: the machines' clocks need not agree. A lock that has not
changed for `STALE` seconds belongs to a dead process and is taken over, by one of those who wait.
"""

import contextlib
import os
import socket
import tempfile
import threading
import time
import uuid
from pathlib import Path

BEAT = 5.0  # seconds between the holder's signs of life
STALE = 150.0  # network disks may show a file's content a minute late, and a command takes its time to save and end


class Lost(Exception):
    """Another process took the lock over: it believed that this one was dead."""


class Lock:
    """Take it by `acquire`; while it is held a thread shows that its holder lives.

    Args:
        path: the lock file.
        beat, stale: seconds, see above.
    """

    def __init__(self, path: Path, *, beat: float = BEAT, stale: float = STALE) -> None:
        self.path, self.beat, self.stale = path, beat, stale
        unique = uuid.uuid4().hex
        self.token = f"{socket.gethostname()} {os.getpid()} {unique}"
        self._temporary = path.with_name(f".{path.name}.{unique}")
        self._stop = threading.Event()
        self.lost = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> bool:
        """Take the lock if nobody alive holds it. Returns at once where it is free, else within `stale` seconds."""
        if not self._create():
            dead = self._dead_holder()
            if dead is None or not self._take_over(*dead):
                return False
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        with contextlib.suppress(OSError):  # it is there where a beat failed half-way
            self._temporary.unlink()
        if self.is_ours():
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()

    def is_ours(self) -> bool:
        """By what the file says now: a process that was halted for long may not know yet that it has lost its lock."""
        return not self.lost.is_set() and holder(self.path) == self.token

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
            except OSError:  # a full disk, a file server that restarts: others wait for `stale` seconds
                ours = time.monotonic() - last < self.stale / 2
            if not ours:
                self.lost.set()
                return

    def _show(self, number: int) -> bool:
        """Write a sign of life. Returns whether the lock is still ours."""
        try:
            if self.path.read_text().partition("\n")[0] != self.token:
                return False
        except FileNotFoundError:
            return False
        self._temporary.write_text(f"{self.token}\n{number}")
        os.replace(self._temporary, self.path)
        return True

    def _dead_holder(self) -> tuple[str, list[Path]] | None:
        """The token in a lock that does not change for `stale` seconds, and the claims on it, which do not either."""
        before, until = (_read(self.path), self._claims()), time.monotonic() + self.stale
        while time.monotonic() < until:
            time.sleep(min(self.beat, self.stale) / 4)
            if (_read(self.path), self._claims()) != before:
                return None
        return before[0].partition("\n")[0], before[1]

    def _claims(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.name}.claim-*"))

    def _take_over(self, dead: str, claims: list[Path]) -> bool:
        """Only one of those who found the holder dead may replace its lock: the one that makes the next claim.

        Claims that are there already did not change for as long as the lock: their makers died, too.
        """
        claim = self.path.with_name(f"{self.path.name}.claim-{len(claims):03}")
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        taken = False
        if holder(self.path) == dead:  # else another was faster, and has removed its claim already
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            taken = self._create()
        for made in (*claims, claim):
            made.unlink(missing_ok=True)
        return taken


def holder(path: Path) -> str:
    """Host, process and number of who holds a lock; empty: nobody."""
    return _read(path).partition("\n")[0]


def silence(path: Path) -> float | None:
    """Seconds since a lock's holder last showed that it lives; None: nobody holds it.

    Both times are the disk's own, so the machines' clocks need not agree. A look from outside, which may be late by
    what a network disk is late: only `Lock.acquire` takes a lock over.
    """
    try:
        last = path.stat().st_mtime
    except OSError:
        return None
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            now = os.fstat(file.fileno()).st_mtime
    except OSError:  # a folder that one may only read
        now = time.time()
    return max(0.0, now - last)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
