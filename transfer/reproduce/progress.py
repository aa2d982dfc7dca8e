"""How far a table is: what --dry-run and --status print, and a line now and then while it runs."""

import contextlib
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.common.console import duration, say
from pretrain.common.errors import UserError
from pretrain.common.files import read_json
from transfer.report.run_files import read_log
from transfer.reproduce.jobs import lock, worker
from transfer.reproduce.jobs.job import Job

_EVERY = 60.0  # seconds between two lines about a job
_FIGURE = re.compile(r"(?:^|/)(?:AP|mIoU|top1|knn)$")
_QUIET = 4 * lock.BEAT  # seconds without a sign of life that are worth a word


def listing(jobs: Sequence[Job], runs: Path) -> list[str]:
    """Every command in order, with what is there already."""
    lines = [f"{len(jobs)} jobs, {sum(_state(job, runs) == 'done' for job in jobs)} of them done, in {runs}:"]
    for job in jobs:
        lines += ["", f"[{_state(job, runs)}] {job.name}", f"    {shlex.join(worker.command(job, runs))}"]
        lines += [f"    ({job.note})"] if job.note else []
    missing = [job.missing for job in jobs if job.missing and _state(job, runs) != "done"]
    return [*lines, "", *(f"missing: {reason}" for reason in dict.fromkeys(missing))]


def status(jobs: Sequence[Job], runs: Path) -> list[str]:
    """One line for each job: state, time, progress."""
    width = max(map(len, (job.name for job in jobs)), default=0)
    return [f"{job.name:<{width}}  {_line(job, runs)}".rstrip() for job in jobs]


class Watch:
    """Says every minute how far the running jobs are."""

    def __init__(self, jobs: Sequence[Job], runs: Path) -> None:
        self.jobs, self.runs, self.next = jobs, runs, time.monotonic() + _EVERY

    def look(self) -> None:
        """Call it often."""
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + _EVERY
        states = {job.key: _state(job, self.runs) for job in self.jobs}
        done = sum(state == "done" for state in states.values())
        for job in self.jobs:
            if states[job.key] == "running":
                say(f"[{done}/{len(self.jobs)}] {job.name}: {_line(job, self.runs)}")


def _state(job: Job, runs: Path) -> str:
    folder = job.folder(runs)
    if worker.is_done(folder, job.product):
        return "done"
    known = str(worker.state(folder).get("state", "waiting"))
    if known == "running" and not lock.holder(folder / worker.LOCK):
        return "stopped"  # its worker died and left no word
    return known if known != "done" else "removed"  # made again only where something needs it


def _line(job: Job, runs: Path) -> str:
    folder, state = job.folder(runs), _state(job, runs)
    known = worker.state(folder)
    if state == "done":
        return f"done in {duration(known['seconds'])}  {_last_ap(folder)}"
    if state == "running":
        seconds = known["seconds"] + time.time() - known["began"]
        last = worker.last_line(folder)
        quiet = lock.silence(folder / worker.LOCK) or 0
        if quiet > _QUIET:
            return f"no sign of life for {quiet:.0f} s, was running on {known['host']}  {last}"
        return "  ".join(
            filter(None, (f"running for {duration(seconds)} on {known['host']}", _tested(folder), last))
        )
    if state == "failed":
        return f"failed: {worker.reason(folder)}"
    with contextlib.suppress(OSError):  # it ends, and the file with it
        return f"{state}, submitted to SLURM as {(folder / worker.SUBMITTED).read_text().strip()}"
    return state


def _tested(folder: Path) -> str:
    """The last test's figures of a run that goes on: AP, mIoU, top-1, kNN."""
    for line in reversed(_log(folder)):
        figures = [
            (key, value) for key, value in line.items() if _FIGURE.search(key) and isinstance(value, float)
        ]
        if figures:
            found = ", ".join(f"{key.replace('/', ' ')} {value:.1f}" for key, value in figures)
            return f"iteration {line.get('iteration', '?')}: {found}"
    return ""


def _log(folder: Path) -> list[dict[str, Any]]:
    try:
        return [line for line in read_log(folder / "metrics.json") if isinstance(line, dict)]
    except (UserError, ValueError, RecursionError):  # nothing yet, or damaged
        return []


def _last_ap(folder: Path) -> str:
    """The main figures of results.json, if there are any."""
    results = read_json(folder / "results.json")
    if "top1" in results:
        return f"top-1 {results['top1']:.1f}"
    tasks = [
        pair
        for found in results.get("metrics", {}).values()
        if isinstance(found, dict)
        for pair in found.items()
    ]
    main = [(task, name, values.get(name)) for task, values in tasks for name in ("AP", "mIoU")]
    return ", ".join(f"{task} {name} {value:.1f}" for task, name, value in main if value is not None)
