"""What works on one job: it holds the job's lock, runs the command, and notes how that ended.

It is a process of its own, so that a job outlives the program that started it: the next one finds the lock held,
waits, and takes the result. `python -m transfer.reproduce.jobs.worker FOLDER` works on the job of a folder.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pretrain.common.configs import ROOT
from pretrain.common.files import read_json, write_text
from pretrain.common.signals import STOPPED, Signals
from transfer.reproduce.jobs.job import Job, made_by
from transfer.reproduce.jobs.lock import Lock

JOB, STATE, LOCK, LOG = "job.json", "state.json", "lock", "log.txt"
SUBMITTED = "slurm"  # file in a job's folder: its number in SLURM's queue
TAKEN = 76  # another worker is at it
_PATIENCE = 120  # seconds that a command may take to save and end
_TAIL = 65536  # bytes of a log that are looked at
_PROGRESS = re.compile(r"\bETA\b|\beta: ")
_ERROR = re.compile(r"^(?:\[?\w*rank\w*\]?: ?)?error: ", re.IGNORECASE)  # of our tools
_EXCEPTION = re.compile(r"^(?:\[?\w*rank\w*\]?: ?)?[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b")


def prepare(job: Job, root: Path) -> None:
    """Write what a worker is to do, where it is not there yet: `name`, `key`, `command`, `product`."""
    folder, known = job.folder(root), {"name": job.name, "key": job.key, "product": job.product}
    content = {**known, "command": command(job, root)}
    if read_json(folder / JOB) != content:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / JOB, content)


def command(job: Job, root: Path) -> list[str]:
    """A job's command, with `{port}` and `{id}` of a launcher filled in: two jobs never meet.

    Ports are from 20000 to 29999, where no system takes ports of its own accord. Only what stands before the tool is
    changed.
    """
    parts = job.filled(root)
    end = next((n for n, part in enumerate(parts) if part.startswith("tools/")), 0)
    port, name = str(20000 + int(job.key[:8], 16) % 10000), job.key[:12]
    launcher = [part.replace("{port}", port).replace("{id}", name) for part in parts[:end]]
    return [*launcher, *parts[end:]]


def state(folder: Path) -> dict[str, Any]:
    """What is known of a folder's job: `state` (running, done, failed, stopped), `seconds`, `host`; or nothing."""
    return read_json(folder / STATE)


def made_by_all(folder: Path) -> list[dict[str, str]]:
    """`made_by` of each time that the job was started, the last one's at the end."""
    known = state(folder)
    earlier = known.get("earlier")
    found = [*(earlier if isinstance(earlier, list) else []), known.get("made_by")]
    return [made for made in found if isinstance(made, dict)]


def is_done(folder: Path, product: str) -> bool:
    """Whether the job has finished and its product is there."""
    return state(folder).get("state") == "done" and (folder / product).exists()


def last_line(folder: Path) -> str:
    """The last line of the log that says how far the command is, or else the last one; or nothing."""
    lines = _lines(folder)
    return next((line for line in reversed(lines) if _PROGRESS.search(line)), lines[-1] if lines else "")


def reason(folder: Path) -> str:
    """Why the command has failed, as its log says it: torchrun's own words, which come last, say nothing of it."""
    lines = _lines(folder)
    for pattern in (_ERROR, _EXCEPTION):
        found = [line for line in lines if pattern.search(line) and "ChildFailedError" not in line]
        if found:
            return found[-1]
    return lines[-1] if lines else "no output"


def _lines(folder: Path) -> list[str]:
    """The last ones that the command has printed since it was started last, blank ones left out."""
    try:
        with open(folder / LOG, "rb") as file:
            file.seek(max(int(state(folder).get("log", 0)), os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except (OSError, TypeError, ValueError):
        return []
    return [line.strip() for line in lines if line.strip()]


def work(folder: Path, *, beat: float | None = None, stale: float | None = None) -> int:
    """Run the job of a folder unless it is done or another worker is at it.

    Returns the command's exit status; 0 for a job that is done, `TAKEN` where another worker is at it,
    `STOPPED` after SIGTERM or SIGUSR1.
    """
    times = {name: value for name, value in (("beat", beat), ("stale", stale)) if value is not None}
    lock, job = Lock(folder / LOCK, **times), read_json(folder / JOB)
    if not lock.acquire():
        return TAKEN
    try:
        return 0 if is_done(folder, job["product"]) else _run(folder, job, lock)
    finally:
        lock.release()


def _run(folder: Path, job: dict[str, Any], lock: Lock) -> int:
    before = float(state(folder).get("seconds", 0))
    began, wall = time.monotonic(), time.time()
    makers = made_by_all(folder)
    with open(folder / LOG, "ab") as log, Signals() as signals:
        note = {
            "host": os.uname().nodename, "pid": os.getpid(), "began": wall, "log": log.tell(), "made_by": made_by(),
            "earlier": [each for n, each in enumerate(makers) if each not in makers[:n]],
        }  # fmt: skip
        _write(folder / STATE, {"state": "running", **note, "seconds": before})
        process = subprocess.Popen(
            _program(job["command"]), cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=_die_with_the_worker, env=dict(os.environ, PYTHONUNBUFFERED="1"),
            close_fds=False,  # the locks of its GPUs (executors.Local): free when the command has ended, too
        )  # fmt: skip
        while process.poll() is None and not signals.requested and not lock.lost.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
        stopped = process.poll() is None
        if stopped:
            _stop(process)
    if not lock.is_ours():  # its folder is another's now
        return TAKEN
    seconds = before + time.monotonic() - began
    code = STOPPED if stopped or process.returncode == STOPPED else process.returncode
    if code == 0 and not (folder / job["product"]).exists():
        code = 1
    named = {0: "done", STOPPED: "stopped"}.get(code, "failed")
    _write(folder / STATE, {"state": named, **note, "seconds": round(seconds, 1), "status": code})
    return code


def _program(command: list[str]) -> list[str]:
    return [sys.executable, *command[1:]] if command[0] == "python" else command


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let the command save and end, then force it."""
    for number, patience in ((signal.SIGTERM, _PATIENCE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
            return


def _die_with_the_worker() -> None:
    """Linux: SIGTERM when the worker dies, even by SIGKILL, so that nobody works in a folder without its lock."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_text(path, text)


if __name__ == "__main__":
    sys.exit(work(Path(sys.argv[1])))
