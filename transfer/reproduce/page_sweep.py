"""Tuned against untuned: every value that a sweep has tried, beside the recipe's own."""

import statistics
from collections.abc import Sequence
from typing import Any

from transfer.reproduce.changes import is_recipes


def sweeps(table: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry for each cell with several values: `label`, `metrics`, `rows` of (value, means, runs, mark), `gain`.

    `mark` is "best", "recipe" or both; `gain` is the best value's first metric less that of the recipe's, None
    where the recipe's own value was not tried.
    """
    found = []
    for row in table["rows"]:
        for column, cell in zip(table["columns"], row["cells"], strict=True):
            if table["sweep"] and len(cell["tried"]) > 1:
                found.append(_entry(table["sweep"], row["title"], column, cell))
    return found


def _entry(key: str, title: str, column: dict[str, Any], cell: dict[str, Any]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    first: dict[str, float] = {}
    for value, runs in cell["tried"].items():
        numbers = [run["numbers"] for run in runs if run["numbers"]]
        means = [_mean(each) for each in zip(*numbers, strict=True)]
        is_own = is_recipes(cell["config"], key, value)
        marks = [
            word for word, holds in (("best", means and value == cell["best"]), ("recipe", is_own)) if holds
        ]
        if means and means[0] is not None:
            first |= dict.fromkeys(marks, means[0])
        rows.append({"value": value, "means": means, "runs": len(numbers), "marks": marks})
    gain = first["best"] - first["recipe"] if {"best", "recipe"} <= first.keys() else None
    return {
        "title": title,
        "column": column["title"],
        "metrics": column["metrics"],
        "rows": rows,
        "gain": gain,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None
