"""AP of each class and of each size of objects, and the differences to the baseline's, paired by seed."""

from collections.abc import Callable, Sequence
from typing import Any

from transfer.intervals import paired_difference
from transfer.reproduce.page.runs import Shown, below, is_number

BY_CLASS = ("AP-", "IoU-")  # metrics of one class in results.json
# Metrics of the objects of a size, as COCO defines them.
SIZES = {"APs": "small", "APm": "medium", "APl": "large"}

# (`bbox AP`, class) -> one value per run, None where a run has none
_Values = dict[tuple[str, str], list[float | None]]


def classes(runs: Sequence[Shown], baseline: str | None) -> list[dict[str, Any]]:
    """Return one table per column and task, of the metrics of each class.

    Args:
        baseline: title of the row that the others are compared with, if the table has one.
    Returns:
        `title`; `inits`; `compared`, those of them with a difference; `rows`: `name`, `means` (mean over seeds or None
        per init) and `differences` (`mean` and `half` of the 95 % interval or None, per compared init). With a
        difference, the rows are in the order of the largest one.
    """
    tables = _tables(runs, baseline, _class)
    for table in tables:
        table["rows"].sort(key=lambda row: row["name"])
        table["rows"].sort(key=_largest, reverse=True)
    return tables


def sizes(runs: Sequence[Shown], baseline: str | None) -> list[dict[str, Any]]:
    """Return the same for small, medium and large objects, in this order."""
    return _tables(runs, baseline, _size)


def _class(task: str, key: str) -> tuple[str, str] | None:
    if not key.startswith(BY_CLASS):
        return None
    metric, _, kind = key.partition("-")
    return f"{task} {metric}", kind


def _size(task: str, key: str) -> tuple[str, str] | None:
    return (f"{task} AP", SIZES[key]) if key in SIZES else None


def _tables(
    runs: Sequence[Shown], baseline: str | None, part: Callable[[str, str], tuple[str, str] | None]
) -> list[dict[str, Any]]:
    tables = []
    for column in dict.fromkeys(each.column for each in runs):
        group = [each for each in runs if each.column == column]
        found = [_values(each, part) for each in group]
        base = next((n for n, each in enumerate(group) if each.title == baseline), None)
        others = [n for n in range(len(group)) if base is not None and n != base]
        for task in dict.fromkeys(task for values in found for task, _ in values):
            kinds = dict.fromkeys(kind for values in found for of, kind in values if of == task)
            rows = [
                {
                    "name": kind,
                    "means": [_mean(values.get((task, kind), ())) for values in found],
                    "differences": [
                        _difference(group[n], found[n], group[base], found[base], (task, kind))
                        for n in others
                        if base is not None
                    ],
                }
                for kind in kinds
            ]
            rows = [row for row in rows if any(mean is not None for mean in row["means"])]
            if rows:
                title = ", ".join(filter(None, (column, task)))
                compared = [group[n] for n in others] if any(map(_compared, rows)) else []
                tables.append({"title": title, "inits": group, "compared": compared, "rows": rows})
    return tables


def _values(each: Shown, part: Callable[[str, str], tuple[str, str] | None]) -> _Values:
    """Return the metrics that `part` gives a name: of (task, key) in results.json."""
    found: _Values = {}
    for place, results in enumerate(each.results):
        for tasks in below(results, "metrics").values():
            for task, measured in below({"tasks": tasks}, "tasks").items():
                for key, value in below({"measured": measured}, "measured").items():
                    if name := part(task, key):
                        values = found.setdefault(name, [None] * len(each.results))
                        values[place] = value if is_number(value) else None
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None


def _difference(
    each: Shown, values: _Values, base: Shown, others: _Values, name: tuple[str, str]
) -> dict[str, Any] | None:
    """Return `mean` and `half` of the differences at the seeds that both have, or None."""
    mine = dict(zip(each.places, values.get(name, ()), strict=False))
    other = dict(zip(base.places, others.get(name, ()), strict=False))
    pairs = [(mine[place], other[place]) for place in mine if place in other]
    mean, half = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    return None if mean is None else {"mean": mean, "half": half}


def _compared(row: dict[str, Any]) -> bool:
    return any(found is not None for found in row["differences"])


def _largest(row: dict[str, Any]) -> float:
    """Return the size of the row's largest difference, whatever its sign; a row without one comes last."""
    return max((abs(found["mean"]) for found in row["differences"] if found), default=-1.0)
