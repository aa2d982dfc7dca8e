"""A job: one command with its own folder, whose name identifies everything that the result depends on."""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path

from pretrain import __version__
from pretrain.installed import ROOT

_LIBRARIES = ("torch", "torchvision", "detectron2")
_PLACE = re.compile(r"\{(folder|\d+)\}", re.ASCII)  # placeholder at the start of a part of a command


@dataclass(frozen=True)
class Job:
    """One command of one of the tools. Equal keys mean equal results, so a finished job is never run again.

    Attributes:
        name: readable, with slashes: kind, config, weights, seed. It is the same in every table, since weights are
            named after their recipe or file, not after the row.
        command: as typed in the repository's root; `installed.runnable` says how it runs. At the start of a part
            `{folder}` stands for the job's own folder, and `{0}`, `{1}`, ... for the products of `needs`.
        settings: everything that the result depends on apart from `needs`, as text: the effective config, the data,
            the seed.
        product: the file in the folder that exists once the command has finished.
        needs: jobs whose products the command reads.
        resumable: an interrupted run resumes with `--resume`, which starts from the beginning if nothing was saved.
        missing: why the job cannot run here: which data are missing, and where they come from.
        changes: settings that differ from the paper's recipe.
        note: what a reader of the table must know about the job: where a file comes from, and its licence.
    """

    name: str
    command: tuple[str, ...]
    settings: str
    product: str
    needs: tuple["Job", ...] = ()
    resumable: bool = False
    missing: str = ""
    changes: tuple[str, ...] = ()
    note: str = ""

    @cached_property
    def key(self) -> str:
        """SHA-256 of the name, the settings, the keys of all needed jobs, and this project's version.

        The sources are not part of it, since a changed comment must not cost 53 hours; `made_by` records them.
        """
        text = json.dumps([self.name, self.settings, __version__, *(job.key for job in self.needs)])
        return hashlib.sha256(text.encode()).hexdigest()

    def folder(self, root: Path) -> Path:
        """Return the job's folder, below the folder of all runs."""
        return root / f"{self.name.replace('/', '-')}-{self.key[:8]}"

    def output(self, root: Path) -> Path:
        """Return the product's path."""
        return self.folder(root) / self.product

    def filled(self, root: Path) -> list[str]:
        """Return the command with the placeholders replaced by paths."""
        paths = [str(job.output(root)) for job in self.needs]
        places = {"folder": str(self.folder(root)), **{str(n): path for n, path in enumerate(paths)}}
        command = [
            _PLACE.sub(lambda m: places[m[1]], part, count=1) if _PLACE.match(part) else part
            for part in self.command
        ]
        return [*command, "--resume"] if self.resumable else command


def in_order(jobs: list[Job]) -> list[Job]:
    """Return these jobs and all jobs that they need, each once and after those it needs."""
    ordered: dict[str, Job] = {}

    def add(job: Job) -> None:
        for needed in job.needs:
            add(needed)
        ordered.setdefault(job.key, job)

    for job in jobs:
        add(job)
    return list(ordered.values())


@cache
def made_by() -> dict[str, str]:
    """Return what a job's key leaves out: a digest of this project's sources, and the versions of the libraries."""
    digest = hashlib.sha256()
    for package in ("pretrain", "transfer"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(
                f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
            )
    return {"sources": digest.hexdigest(), **{name: _version(name) for name in _LIBRARIES}}


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "unknown"
