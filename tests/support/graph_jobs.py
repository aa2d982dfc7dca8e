"""Jobs of a line of Python each, for the tests of the run graph."""

import time
from collections.abc import Callable
from pathlib import Path

from transfer.reproduce.jobs.job import Job


def python(name: str, code: str, *needs: Job, settings: str = "") -> Job:
    """A job that runs a line of Python: it appends to `ran`, then does `code`, then writes its product."""
    start = "import pathlib, sys, time, os; f = pathlib.Path(sys.argv[1]); (f / 'ran').open('a').write('x')\n"
    end = "\n(f / 'product').write_text(' '.join(open(p).read() for p in sys.argv[2:]) + sys.argv[1][-1])"
    places = [f"{{{n}}}" for n in range(len(needs))]
    return Job(
        name,
        ("python", "-c", start.replace("{", "{{") + code + end, "{folder}", *places),
        settings,
        "product",
        needs,
    )


def runs(job: Job, root: Path) -> int:
    """How often its command was started."""
    path = job.folder(root) / "ran"
    return len(path.read_text()) if path.exists() else 0


def diamond(code: str = "") -> list[Job]:
    a = python("a", code)
    b, c = python("b", code, a), python("c", code, a)
    return [a, b, c, python("d", code, b, c)]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False
