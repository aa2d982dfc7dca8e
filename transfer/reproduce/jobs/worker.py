"""Runs one job: holds the job's lock, runs the command, and records how it ended.

A worker is a separate process, so that a job survives the program that started it: the next program finds the lock
held, waits, and uses the result. `python -m transfer.reproduce.jobs.worker FOLDER` runs the job of a folder.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pretrain.common.files import read_json, write_text
from pretrain.common.signals import STOPPED, Signals, die_with_the_parent, stop_groups
from pretrain.installed import START_FOLDER, as_typed, environment, runnable
from transfer.reproduce.jobs.job import Job, made_by
from transfer.reproduce.jobs.lock import Lock

JOB, STATE, LOCK, LOG = "job.json", "state.json", "lock", "log.txt"
SUBMITTED = "slurm"  # file in a job's folder that holds its SLURM job id
TAKEN = 76  # exit status if another worker has the job
_TAIL = 65536  # bytes at the end of a log that are searched
_PROGRESS = re.compile(r"\bETA\b|\beta: ")
_ERROR = re.compile(r"^(?:\[?\w*rank\w*\]?: ?)?error: ", re.IGNORECASE)  # of our tools
_EXCEPTION = re.compile(r"^(?:\[?\w*rank\w*\]?: ?)?[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b")


def prepare(job: Job, root: Path) -> None:
    """Write job.json for the worker unless it is up to date: `name`, `key`, `command`, `product`."""
    folder, known = job.folder(root), {"name": job.name, "key": job.key, "product": job.product}
    content = {**known, "command": command(job, root)}
    if read_json(folder / JOB) != content:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / JOB, content)


def command(job: Job, root: Path) -> list[str]:
    """Return a job's command, with `{port}` and `{id}` of a launcher filled in so that jobs do not collide.

    Ports are from 20000 to 29999, a range from which systems do not assign ports by themselves. Only the parts before
    the tool are changed.
    """
    parts = job.filled(root)
    end = next((n for n, part in enumerate(parts) if part.startswith("tools/")), 0)
    port, name = str(20000 + int(job.key[:8], 16) % 10000), job.key[:12]
    launcher = [part.replace("{port}", port).replace("{id}", name) for part in parts[:end]]
    return [*launcher, *parts[end:]]


def text(job: Job, root: Path) -> str:
    """Return a job's command as the user would type it."""
    return as_typed(shlex.join(command(job, root)))


def state(folder: Path) -> dict[str, Any]:
    """Return what is known about a folder's job: `state` (running, done, failed, stopped), `seconds`, `host`, ..."""
    return read_json(folder / STATE)


def made_by_all(folder: Path) -> list[dict[str, str]]:
    """Return `made_by` of each start of the job, the last one at the end."""
    known = state(folder)
    earlier = known.get("earlier")
    found = [*(earlier if isinstance(earlier, list) else []), known.get("made_by")]
    return [made for made in found if isinstance(made, dict)]


def is_done(folder: Path, product: str) -> bool:
    """Return whether the job has finished and its product is there."""
    return state(folder).get("state") == "done" and (folder / product).exists()


def last_line(folder: Path) -> str:
    """Return the last line of the log that shows progress, or else the last line; empty without a log."""
    lines = _lines(folder)
    return next((line for line in reversed(lines) if _PROGRESS.search(line)), lines[-1] if lines else "")


def reason(folder: Path) -> str:
    """Return why the command failed, from its log; torchrun's own message at the end does not say why."""
    lines = _lines(folder)
    for pattern in (_ERROR, _EXCEPTION):
        found = [line for line in lines if pattern.search(line) and "ChildFailedError" not in line]
        if found:
            return found[-1]
    return lines[-1] if lines else "no output"


def _lines(folder: Path) -> list[str]:
    """Return the last lines that the command printed since its last start, without blank ones."""
    try:
        with open(folder / LOG, "rb") as file:
            file.seek(max(int(state(folder).get("log", 0)), os.fstat(file.fileno()).st_size - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except (OSError, TypeError, ValueError):
        return []
    return [line.strip() for line in lines if line.strip()]


def work(folder: Path, *, beat: float | None = None, stale: float | None = None) -> int:
    """Run the job of a folder unless it is done or another worker has it.

    Returns the command's exit status; 0 if the job was already done, `TAKEN` if another worker has it, `STOPPED` after
    SIGTERM, SIGUSR1 or SIGHUP.
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
            runnable(job["command"]), cwd=START_FOLDER, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=die_with_the_parent,  # or it would run without holding the lock
            env=dict(environment(), PYTHONUNBUFFERED="1"),
            close_fds=False,  # the command keeps the locks on its GPUs (local.Local) and of `Lock` until it has ended
        )  # fmt: skip
        while process.poll() is None and not signals.requested and not lock.lost.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
        stopped = process.poll() is None
        if stopped:
            stop_groups([process])
    if not lock.is_ours():  # the folder belongs to another worker now
        return TAKEN
    seconds = before + time.monotonic() - began
    code = STOPPED if stopped or process.returncode == STOPPED else process.returncode
    if code == 0 and not (folder / job["product"]).exists():
        code = 1
    named = {0: "done", STOPPED: "stopped"}.get(code, "failed")
    _write(folder / STATE, {"state": named, **note, "seconds": round(seconds, 1), "status": code})
    return code


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(work(Path(sys.argv[1])))
