"""Progress of a table: what --dry-run and --status print, and a bar, or lines every minute, while it runs."""

import contextlib
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.common.console import Bar, duration, say
from pretrain.common.errors import UserError
from pretrain.common.files import read_json
from pretrain.installed import as_typed
from transfer.report.run_files import read_log
from transfer.reproduce.jobs import lock, worker
from transfer.reproduce.jobs.job import Job

_EVERY = 60.0  # seconds between two lines about the same job, where no bar is shown
_MOVED = 2.0  # seconds after which a bar is drawn again
_FIGURE = re.compile(r"(?:^|/)(?:AP|mIoU|top1|knn)$")
_QUIET = 4 * lock.BEAT  # seconds without a heartbeat after which --status says so


def listing(jobs: Sequence[Job], runs: Path) -> list[str]:
    """Return every command in order, with the state of its job, and then what data are missing."""
    lines = [f"{len(jobs)} jobs in {runs}, {sum(_state(job, runs) == 'done' for job in jobs)} of them done:"]
    for job in jobs:
        lines += ["", f"[{_state(job, runs)}] {job.name}", f"    {worker.text(job, runs)}"]
        lines += [f"    ({job.note})"] if job.note else []
    missing = [job.missing for job in jobs if job.missing and _state(job, runs) != "done"]
    return [*lines, "", *(f"missing: {as_typed(reason)}" for reason in dict.fromkeys(missing))]


def status(jobs: Sequence[Job], runs: Path) -> list[str]:
    """Return one line for each job: state, time, progress."""
    width = max(map(len, (job.name for job in jobs)), default=0)
    return [f"{job.name:<{width}}  {_line(job, runs)}".rstrip() for job in jobs]


class Watch:
    """Shows the progress of the jobs: on a terminal a bar of those that are done, elsewhere lines every minute."""

    def __init__(self, jobs: Sequence[Job], runs: Path) -> None:
        self.jobs, self.runs, self.bar = jobs, runs, Bar(len(jobs), what="jobs")
        self.period = _MOVED if self.bar.is_shown else _EVERY
        self.next = time.monotonic() + (0 if self.bar.is_shown else _EVERY)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def look(self) -> None:
        """Show the progress if it is time to. Call this often."""
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + self.period
        states = {job.key: _state(job, self.runs) for job in self.jobs}
        done = sum(state == "done" for state in states.values())
        running = [job for job in self.jobs if states[job.key] == "running"]
        lines = [f"{job.name}: {_line(job, self.runs)}" for job in running]
        self.bar.show(done, "; ".join(lines))
        for line in [] if self.bar.is_shown else lines:
            say(f"[{done}/{len(self.jobs)}] {line}")


def _state(job: Job, runs: Path) -> str:
    folder = job.folder(runs)
    if worker.is_done(folder, job.product):
        return "done"
    known = str(worker.state(folder).get("state", "waiting"))
    if known == "running" and not lock.holder(folder / worker.LOCK):
        return "stopped"  # the worker died without writing its state
    # A removed product is made again only if another job needs it.
    return known if known != "done" else "removed"


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
            return f"no sign of life for {quiet:.0f} s, last seen on {known['host']}  {last}"
        return "  ".join(
            filter(None, (f"running for {duration(seconds)} on {known['host']}", _tested(folder), last))
        )
    if state == "failed":
        return f"failed: {worker.reason(folder)}"
    with contextlib.suppress(OSError):  # the job may end meanwhile, which removes the file
        return f"{state}, submitted to SLURM as {(folder / worker.SUBMITTED).read_text().strip()}"
    return state


def _tested(folder: Path) -> str:
    """Return the figures of a running job's last evaluation: AP, mIoU, top-1, kNN; or an empty string."""
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
    except (UserError, ValueError, RecursionError):  # not written yet, or damaged
        return []


def _last_ap(folder: Path) -> str:
    """Return the main figures of results.json, or an empty string."""
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
