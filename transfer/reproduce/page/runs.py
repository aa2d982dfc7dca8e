"""The runs that a table's numbers are of, with what they left in their folders: input of the page.

A folder may have been copied from elsewhere, so nothing about a file's content is taken for granted: what cannot
be read counts as absent, and the page shows what is left.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.common.files import read_json
from transfer.reproduce.jobs.worker import state

STYLES = 8  # of lines and dots in the page's style sheet; further rows begin again


@dataclass(frozen=True)
class Shown:
    """One row under one column, where there are numbers.

    Attributes:
        style: colour and dashes, the same for a row everywhere.
        column: its title; empty where the table has one column.
        runs: of `collect`, those that have numbers; `results` is the content of each one's results.json.
    """

    init: str
    title: str
    style: int
    column: str
    metrics: list[str]
    runs: list[dict[str, Any]]
    results: list[dict[str, Any]]

    @property
    def label(self) -> str:
        return f"{self.title}, {self.column}" if self.column else self.title


def shown(table: dict[str, Any]) -> list[Shown]:
    """Row by row; of a sweep the best value's runs, as in the table."""
    found = []
    several = len(table["columns"]) > 1
    for number, row in enumerate(table["rows"]):
        for column, cell in zip(table["columns"], row["cells"], strict=True):
            runs = [run for run in cell["tried"].get(cell["best"], []) if run["numbers"]]
            if runs:
                results = [read_json(Path(run["folder"]) / "results.json") for run in runs]
                title = column["title"] if several else ""
                found.append(
                    Shown(row["init"], row["title"], number % STYLES, title, column["metrics"], runs, results)
                )
    return found


def jobs(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Every job that has worked for the table, each once, what is needed first: as `collect` records it, and
    `host` of its state."""
    found: dict[str, dict[str, Any]] = {}
    for row in table["rows"]:
        for cell in row["cells"]:
            for run in (run for runs in cell["tried"].values() for run in runs):
                for job in (*run.get("needs", ()), run):
                    if job.get("seconds"):
                        found.setdefault(
                            job["folder"], {**job, "host": state(Path(job["folder"])).get("host", "")}
                        )
    return list(found.values())


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.json that can be read and have an iteration."""
    try:
        text = (folder / "metrics.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    lines = []
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict) and is_number(content.get("iteration")):
            lines.append({key: value for key, value in content.items() if is_number(value)})
    return lines


def is_number(value: object) -> bool:
    """Whether it is a number that can be drawn and printed."""
    return isinstance(value, int | float) and abs(value) < 1e15


def below(tree: Any, *keys: str) -> dict[str, Any]:
    """The mapping at nested keys; empty where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}
