"""Runs commands, each only if something that it depends on has changed since it last ran."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.common.console import duration, say
from pretrain.common.errors import UserError
from pretrain.common.files import write_json
from pretrain.common.signals import Signals, die_with_the_parent, stop_groups
from pretrain.installed import START_FOLDER, as_typed, environment, runnable

_LOOK = 0.2  # seconds between two looks for a signal


@dataclass(frozen=True)
class Stage:
    """A command and what its result depends on.

    Attributes:
        name: shown in the report and in front of the lines that the command prints.
        command: the arguments of `python`, as typed in the root folder of the repository.
        output: the file that exists once the command has finished.
        inputs: files and folders of code whose content the result depends on.
        settings: other text that the result depends on, such as an effective config.
        resumable: whether an interrupted run continues with `--resume`.
        is_whole: for an output of many files, returns whether all of them still exist.
    """

    name: str
    command: tuple[str, ...]
    output: Path
    inputs: tuple[Path, ...] = ()
    settings: str = ""
    resumable: bool = False
    is_whole: Callable[[], bool] = lambda: True

    def key(self) -> str:
        """Return a digest of everything that the result depends on. Equal keys mean equal results."""
        digest = hashlib.sha256("\0".join([*self.command, self.settings]).encode())
        for path in _files(self.inputs):
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def text(self) -> str:
        """Return the command as a user would type it."""
        return as_typed(shlex.join(["python", *self.command]))


def run(stages: Sequence[Stage], records: Path) -> list[dict[str, Any]]:
    """Run stages at the same time, except those that are already done.

    Args:
        stages: stages that do not depend on one another.
        records: folder with a JSON file for each stage, which stores its key, its time and whether it finished.
    Returns:
        One record per stage: `name`, `command`, `seconds`, `cached`.
    Raises:
        UserError: a command failed. The others have run to their end, and finished stages are not repeated.
        KeyboardInterrupt, SystemExit: this program was asked to stop; every command has saved its state and ended.
    """
    waiting = [stage for stage in stages if not _is_done(stage, records)]
    for stage in stages:
        say(f"== {stage.name}: {stage.text()}" + ("" if stage in waiting else "   (done before)"))
    if waiting:
        _run_together(waiting, records)
    return [{**_read(stage, records), "cached": stage not in waiting} for stage in stages]


def _run_together(stages: Sequence[Stage], records: Path) -> None:
    jobs: list[subprocess.Popen[str]] = []
    with Signals(ctrl_c=True) as signals, ThreadPoolExecutor(len(stages)) as pool:
        try:
            for stage in stages:
                jobs.append(_start(stage, records, together=len(stages)))
            watches = [pool.submit(_watch, *pair, records) for pair in zip(stages, jobs, strict=True)]
            while wait(watches, timeout=_LOOK).not_done and not signals.requested:
                pass
            if signals.requested:
                say("stopping: the running commands save their state; the same command continues from there")
        finally:
            stop_groups(jobs)
    if signals.requested:
        signals.leave()
    if failed := [reason for watch in watches if (reason := watch.result())]:
        raise UserError(
            f"{', '.join(failed)} failed; the reason is printed above. The same command continues from there"
        )


def _watch(stage: Stage, job: subprocess.Popen[str], records: Path) -> str:
    """Print the output of a job and record its success. Return what failed, or an empty string."""
    start = time.perf_counter()
    for line in job.stdout or ():
        say(f"[{stage.name}] {line.rstrip()}")
    if status := job.wait():
        return f"{stage.name} (exit status {status})"
    seconds = round(time.perf_counter() - start, 1)
    write_json(_path(stage, records), {**_read(stage, records), "seconds": seconds, "done": True})
    say(f"== {stage.name}: done in {duration(seconds)}")
    return ""


def _start(stage: Stage, records: Path, *, together: int) -> subprocess.Popen[str]:
    key = stage.key()
    resume = stage.resumable and _read(stage, records).get("key") == key
    if not resume and stage.output.parent.name == stage.name:  # the folder belongs to this stage only
        shutil.rmtree(stage.output.parent, ignore_errors=True)
    write_json(
        _path(stage, records), {"name": stage.name, "command": stage.text(), "key": key, "done": False}
    )
    variables = dict(environment(), PYTHONUNBUFFERED="1")
    if together > 1:  # its output is read from a pipe, as UTF-8 whatever this program prints
        variables["PYTHONIOENCODING"] = "utf-8:backslashreplace"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        variables.setdefault("OMP_NUM_THREADS", str(max(1, cores // together)))
    return subprocess.Popen(
        runnable(["python", *stage.command, *(["--resume"] if resume else [])]),
        cwd=START_FOLDER,
        env=variables,
        encoding="utf-8",
        errors="backslashreplace",
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # its workers too can then be stopped, and Ctrl-C reaches only this program
        preexec_fn=die_with_the_parent,
        stdout=subprocess.PIPE if together > 1 else None,
        stderr=subprocess.STDOUT if together > 1 else None,
    )


def _is_done(stage: Stage, records: Path) -> bool:
    record = _read(stage, records)
    same = bool(record.get("done")) and record["key"] == stage.key()
    return same and stage.output.exists() and stage.is_whole()


def _path(stage: Stage, records: Path) -> Path:
    return records / f"{stage.name}.json"


def _read(stage: Stage, records: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(_path(stage, records).read_text())
        return content
    except (OSError, ValueError):
        return {}


def _files(inputs: Iterable[Path]) -> list[Path]:
    return [file for path in inputs for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
