"""A job: one command in a folder of its own, whose name says everything that its result depends on."""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path

from pretrain import __version__
from pretrain.common.configs import ROOT

_LIBRARIES = ("torch", "torchvision", "detectron2")
_PLACE = re.compile(r"\{(folder|\d+)\}", re.ASCII)  # begins a part of a command


@dataclass(frozen=True)
class Job:
    """One command of one of the tools. Equal keys mean an equal result, so a finished job is never run again.

    Attributes:
        name: readable, with slashes: kind, config, weights, seed. It is the same in every table: the weights' name
            is that of their recipe or file, not the row's.
        command: run from the repository's root; `python` is the one that runs this. At the beginning of a part
            `{folder}` stands for the job's own folder, `{0}`, `{1}`, ... for the products of `needs`.
        settings: text of everything that the result depends on and that `needs` does not hold: the effective
            config, the data, the seed.
        product: the file in the folder whose presence proves that the command has finished.
        needs: jobs whose products the command reads.
        resumable: an interrupted run goes on with `--resume`, which begins anew where nothing is saved.
        missing: why it cannot run here: the data that are not there, and where they come from.
        changes: settings that are otherwise than in the paper's recipe.
        note: what a reader of the table must know of it: where a file comes from, and its licence.
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
        """SHA-256 of the settings, of the keys of all that is needed, and of this project's version.

        Not of its sources: a changed comment must not cost 53 hours. `made_by` tells them apart.
        """
        text = json.dumps([self.name, self.settings, __version__, *(job.key for job in self.needs)])
        return hashlib.sha256(text.encode()).hexdigest()

    def folder(self, root: Path) -> Path:
        """Where the job works, below the folder of all runs."""
        return root / f"{self.name.replace('/', '-')}-{self.key[:8]}"

    def output(self, root: Path) -> Path:
        """The product's path."""
        return self.folder(root) / self.product

    def filled(self, root: Path) -> list[str]:
        """The command with the paths in place."""
        paths = [str(job.output(root)) for job in self.needs]
        places = {"folder": str(self.folder(root)), **{str(n): path for n, path in enumerate(paths)}}
        command = [
            _PLACE.sub(lambda m: places[m[1]], part, count=1) if _PLACE.match(part) else part
            for part in self.command
        ]
        return [*command, "--resume"] if self.resumable else command


def in_order(jobs: list[Job]) -> list[Job]:
    """These jobs and all that they need, each once and after what it needs."""
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
    """What a job's key leaves out: a digest of this project's sources, and the versions of what computes."""
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
