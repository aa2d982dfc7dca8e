"""Collects the results of a table's jobs, and the paper's numbers, in one dict that all outputs are made from."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pretrain.common.errors import UserError
from pretrain.common.files import read_json
from transfer.intervals import paired_difference
from transfer.reproduce.jobs import worker
from transfer.reproduce.jobs.job import Job, in_order, made_by
from transfer.reproduce.plan.options import Options
from transfer.reproduce.plan.plan import Cell
from transfer.reproduce.plan.recipe_changes import changes, is_recipes
from transfer.reproduce.plan.released import COMPARABLE, Quote
from transfer.reproduce.plan.tables import Column, Table
from transfer.reproduce.results import compare_runs
from transfer.reproduce.results.verdict import compare

NOT_COMPARABLE = "not comparable"
_LARGEST = 1e15  # larger numbers and NaN are not accepted as metrics


def collect(
    table: Table, cells: Sequence[Cell], options: Options, *, runs: Path, failed: dict[str, str]
) -> dict[str, Any]:
    """Return the content of `table.json`.

    Args:
        cells: as returned by `plan`.
        runs: folder of all jobs.
        failed: key of a job -> reason, as returned by the scheduler.
    """
    rows: dict[str, dict[str, Any]] = {}
    jobs = in_order([job for cell in cells for found in cell.runs.values() for job in found])
    for cell in cells:
        init = cell.row.init
        row = rows.setdefault(init.name, {"init": init.name, "title": init.title, "cells": []})
        if cell.row.quotes:
            row["quotes"] = [_source(quote) for quote in cell.row.quotes]
        row["cells"].append(_cell(table, cell, options, runs, failed))
    if table.baseline in rows:
        _subtract(rows, table.baseline)
    return {
        "name": table.name,
        "title": table.title,
        "source": table.source,
        "note": "; ".join(filter(None, (table.note, *(job.note for job in jobs), _made_by(jobs, runs)))),
        "trials": table.trials,
        "baseline": rows[table.baseline]["title"] if table.baseline in rows else None,
        "columns": [
            {
                "title": column.title or column.config or column.cited,
                "config": column.config,
                "metrics": list(column.metrics),
                "trials": _trials(table, column),
            }
            for column in table.columns
        ],
        "smoke": options.smoke,
        "schedule": options.schedule,
        "sweep": options.sweep[0] if options.sweep else None,
        "seeds": list(options.seeds),
        **({"protocols": table.protocols} if table.protocols else {}),
        "rows": list(rows.values()),
    }


def _source(quote: Quote) -> str:
    """Return where a row's quoted numbers are from."""
    if quote.protocol != COMPARABLE:
        return f"†{quote.protocol} from {quote.source}"
    runs = f"means of {quote.trials} runs" if quote.trials > 1 else "how many runs is not said; taken as one"
    return f"published numbers from {quote.source} ({runs})"


def _elsewhere(cell: Cell, metric: str) -> list[dict[str, Any]]:
    """Return the published numbers of other protocols: `protocol` (its letter) and `value`."""
    if cell.column.overrides:
        return []
    return [
        {"protocol": quote.protocol, "value": quote.of[metric]}
        for quote in cell.row.quotes
        if quote.config == _config(cell) and quote.protocol != COMPARABLE and metric in quote.of
    ]


def _subtract(rows: dict[str, dict[str, Any]], baseline: str) -> None:
    """Add to each number of the other rows its difference to the baseline's: `mean`, `half` and `seeds`.

    Only seeds that both have are counted. `half` is half of the 95 % interval, None for a single seed.
    """
    for row in (row for name, row in rows.items() if name != baseline):
        for cell, other in zip(row["cells"], rows[baseline]["cells"], strict=True):
            for n, number in enumerate(cell["numbers"]):
                pairs = [
                    (a, b)
                    for a, b in zip(_each_seed(cell, n), _each_seed(other, n), strict=False)
                    if a is not None and b is not None
                ]
                if pairs:
                    mean, half = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
                    number["minus_baseline"] = {"mean": mean, "half": half, "seeds": len(pairs)}


def _each_seed(cell: dict[str, Any], n: int) -> list[float | None]:
    """Return a cell's `n`-th metric for each planned seed, None where it is missing."""
    return [run["numbers"][n] if run["numbers"] else None for run in cell["tried"].get(cell["best"], ())]


def _made_by(jobs: Sequence[Job], runs: Path) -> str:
    """Return a note if finished jobs were made with different sources or libraries, or not with the current ones."""
    folders = [job.folder(runs) for job in jobs if worker.is_done(job.folder(runs), job.product)]
    notes = [made for folder in folders for made in worker.made_by_all(folder)]

    def differ(notes: list[dict[str, str]]) -> str:
        names = dict.fromkeys(name for made in notes for name in made)
        return ", ".join(name for name in names if len({str(made.get(name)) for made in notes}) > 1)

    if several := differ(notes):
        return f"its jobs were made with different versions of {several}: see state.json of each job"
    if notes and (other := differ([notes[0], made_by()])):
        return (
            f"its finished jobs were made with other versions of {other} than the current ones: "
            "see state.json of each job"
        )
    return ""


def finished(runs: Sequence[dict[str, Any]]) -> bool:
    """Return whether all runs of a sweep value have the metric that decides: only such a value can be the best."""
    return bool(runs) and all(run["numbers"] and run["numbers"][0] is not None for run in runs)


def without_verdict(number: dict[str, Any]) -> dict[str, Any]:
    """Return a number without its comparison, for a number that must not be compared with the paper's."""
    if not number.get("verdict"):
        return number
    return number | {"difference": None, "p": None, "verdict": NOT_COMPARABLE, "test": ""}


def _cell(table: Table, cell: Cell, options: Options, runs: Path, failed: dict[str, str]) -> dict[str, Any]:
    """Return the content of one row under one column.

    `tried` has every value of a sweep, `numbers` has the results of the best one. `untuned` has those of the recipe's
    own value; it is None if there is no sweep, or if it did not try that value.
    """
    name = _config(cell)
    tried = {value: [_run(cell, job, runs, failed) for job in jobs] for value, jobs in cell.runs.items()}
    best, own = "", None
    if options.sweep:
        best = max(
            (value for value in tried if finished(tried[value])), key=lambda v: _score(tried[v]), default=""
        )
        own = next((value for value in tried if value and is_recipes(name, options.sweep[0], value)), None)
    waiting = [run["why_not"] for runs_ in tried.values() for run in runs_ if run["why_not"]]
    return {
        "config": name,
        **_measured(table, cell, options, tried, best),
        "tried": tried,
        "best": best,
        "untuned": None if own is None else {"value": own, **_measured(table, cell, options, tried, own)},
        "why_not": cell.why_not or "; ".join(dict.fromkeys(waiting)),
        "kind": _kind(cell, runs, failed),
    }


def _kind(cell: Cell, runs: Path, failed: dict[str, str]) -> str:
    """Return in a word or two why a cell may be empty."""
    if cell.why_not:
        if cell.why_not.startswith("needs --init"):
            return "needs --init"
        return "cited only" if cell.row.paper else "left out"
    jobs = [job for found in cell.runs.values() for job in found]
    states = [worker.state(job.folder(runs)).get("state") for job in jobs]
    if "done" in states:
        return "no number"
    return "failed" if "failed" in states or any(job.key in failed for job in jobs) else "not run"


def _measured(
    table: Table, cell: Cell, options: Options, tried: dict[str, list[dict[str, Any]]], value: str
) -> dict[str, Any]:
    """Return `numbers`, the results of one sweep value, and `changes`, the settings that differ from the recipe."""
    runs = tried.get(value, [])
    done = [run for run in runs if run["numbers"]]
    found = dict.fromkeys(change for run in done or runs for change in run["changes"])
    comparable = not (options.smoke or options.schedule != 1 or found)
    published, spread = (
        _published(table, cell.column, cell.row.paper),
        _published(table, cell.column, cell.row.std),
    )
    trials = cell.row.trials.get(_config(cell), _trials(table, cell.column))
    numbers = []
    for n, metric in enumerate(cell.column.metrics):
        ours = [run["numbers"][n] for run in done if run["numbers"][n] is not None]
        entry: dict[str, Any] = {"metric": metric, "paper": published[n], "ours": ours, "planned": len(runs)}
        if elsewhere := _elsewhere(cell, metric):
            entry["elsewhere"] = elsewhere
        if ours:
            compared = compare(ours, published[n], std=spread[n], trials=trials)
            entry |= asdict(compared) | {"interval": list(compared.interval) if compared.interval else None}
        numbers.append(entry if comparable else without_verdict(entry))
    return {"numbers": numbers, "changes": list(found)}


def _published(table: Table, column: Column, values: Sequence[float | None]) -> list[float | None]:
    """Return a column's part of `values`, which has one entry for each metric of the table."""
    before = table.columns[: table.columns.index(column)]
    first = sum(len(each.metrics) for each in before)
    return list((values or [None] * len(table.metrics))[first : first + len(column.metrics)])


def _trials(table: Table, column: Column) -> int:
    """Return how many runs the paper's numbers in a column are means of; 1 if only other columns have a spread."""
    known = any(any(row.std) for row in table.rows)
    own = any(any(_published(table, column, row.std)) for row in table.rows)
    return 1 if known and not own else table.trials


def _score(found: list[dict[str, Any]]) -> float:
    """Return the mean of the first metric over the runs of one sweep value; the best value is chosen by it."""
    return sum(run["numbers"][0] for run in found) / len(found)


def _run(cell: Cell, job: Job, runs: Path, failed: dict[str, str]) -> dict[str, Any]:
    """Return one run: its numbers in the order of the column's metrics (None if missing), or why it has none."""
    needed = in_order([job])[:-1]
    needs = [_record(each, runs) for each in needed]
    run: dict[str, Any] = {**_record(job, runs), "needs": needs, "numbers": [], "why_not": ""}
    before = [change for each in needed for change in each.changes]
    run["changes"] = [*before, *job.changes]
    if not worker.is_done(job.folder(runs), job.product):
        return run | {"why_not": failed.get(job.key, "not run yet")}
    path = job.output(runs)
    results = read_json(path)
    if not results:
        return run | {"why_not": f"{path} is damaged; remove its folder and run the table again"}
    metrics = cell.column.metrics
    found = results.get("metrics", results)  # the linear probe writes its metrics at the top level
    if metrics == ("knn",) and isinstance(knn := results.get("knn"), dict):
        found = {"knn": knn.get("top1")}
    numbers = [number_of(found, metric) for metric in metrics]
    absent = [metric for metric, number in zip(metrics, numbers, strict=True) if number is None]
    return run | {
        "numbers": numbers if len(absent) < len(numbers) else [],
        "why_not": f"{path} has no {', '.join(absent)}" if absent else "",
        "changes": [*before, *_changes(cell, job, path, results)],
    }


def _changes(cell: Cell, job: Job, path: Path, results: dict[str, Any]) -> list[str]:
    """Return the differences between the settings that the run really used and the recipe.

    The weights may have changed some of the planned settings.
    """
    try:
        settings = compare_runs.settings(path.with_name("config.yaml"), results)
    except UserError as error:
        return [str(error)]
    if settings is None:
        return list(job.changes)
    return list(changes(_config(cell), settings, cell.column.overrides))


def _config(cell: Cell) -> str:
    return cell.row.config or cell.column.config


def _record(job: Job, runs: Path) -> dict[str, Any]:
    """Return what a job is, where it is, and how long it has run so far."""
    folder = job.folder(runs)
    seconds = worker.state(folder).get("seconds", 0)
    return {
        "name": job.name,
        "folder": str(folder),
        "command": worker.text(job, runs),
        "seconds": seconds,
    }


def number_of(metrics: Any, name: str) -> float | None:
    """Return a metric of results.json by its name: `bbox.AP50` of the only data set, or `top1`.

    None if it is absent, undefined (such as AP without annotated objects), or not a finite number.
    """
    task, _, leaf = name.rpartition(".")
    if not isinstance(metrics, dict):
        return None
    tasks = [sets.get(task) for sets in metrics.values() if isinstance(sets, dict)] if task else [metrics]
    for values in tasks:
        value = values.get(leaf) if isinstance(values, dict) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST:
            return float(value)
    return None
