"""The runs behind a table's numbers and the files in their folders: the input of the page.

A folder may have been copied from elsewhere, so no file's content is trusted: anything that cannot be read counts as
absent, and the page shows the rest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.common.files import parse_json, read_json
from transfer.reproduce.jobs.worker import state

STYLES = 8  # line and dot styles in the page's style sheet; further rows reuse them from the first on


@dataclass(frozen=True)
class Shown:
    """One row under one column that has numbers.

    Attributes:
        style: number of the colour and dash pattern, the same for a row in every chart.
        column: title of the column; empty if the table has only one.
        runs: those runs of `collect` that have numbers; `results` is the content of each run's results.json.
        places: of these runs among the planned ones. Equal places of two rows are equal seeds.
    """

    init: str
    title: str
    style: int
    column: str
    metrics: list[str]
    runs: list[dict[str, Any]]
    results: list[dict[str, Any]]
    places: list[int]

    @property
    def label(self) -> str:
        return f"{self.title}, {self.column}" if self.column else self.title


def shown(table: dict[str, Any]) -> list[Shown]:
    """Return the runs that the table shows, row by row; for a sweep, those of the best value."""
    found = []
    several = len(table["columns"]) > 1
    for number, row in enumerate(table["rows"]):
        for column, cell in zip(table["columns"], row["cells"], strict=True):
            planned = cell["tried"].get(cell["best"], [])
            places = [place for place, run in enumerate(planned) if run["numbers"]]
            runs = [planned[place] for place in places]
            if runs:
                results = [read_json(Path(run["folder"]) / "results.json") for run in runs]
                title = column["title"] if several else ""
                style, metrics = number % STYLES, column["metrics"]
                found.append(Shown(row["init"], row["title"], style, title, metrics, runs, results, places))
    return found


def jobs(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every job that has run for the table, once, after the jobs it needs.

    Each is as `collect` records it, with the `host` of its state added.
    """
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
    """Return the lines of a run's metrics.json that can be read and have an iteration."""
    try:
        text = (folder / "metrics.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    lines = []
    for line in text.splitlines():
        try:
            content = parse_json(line)
        except ValueError:
            continue
        if isinstance(content, dict) and is_number(content.get("iteration")):
            lines.append({key: value for key, value in content.items() if is_number(value)})
    return lines


def is_number(value: object) -> bool:
    """Return whether `value` is a number that can be drawn and printed."""
    return isinstance(value, int | float) and abs(value) < 1e15


def below(tree: Any, *keys: str) -> dict[str, Any]:
    """Return the mapping at nested keys, or an empty one."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}
