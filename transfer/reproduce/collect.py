"""What the jobs of a table have left, beside the paper's numbers: one dict, which all outputs are made from."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transfer.reproduce import worker
from transfer.reproduce.jobs import Job, in_order
from transfer.reproduce.plan import Cell, Options
from transfer.reproduce.tables import Column, Table
from transfer.reproduce.verdict import compare


def collect(
    table: Table, cells: Sequence[Cell], options: Options, *, runs: Path, failed: dict[str, str]
) -> dict[str, Any]:
    """The content of `table.json`.

    Args:
        cells: of `plan`.
        runs: folder of all jobs.
        failed: key of a job -> reason, from the scheduler.
    """
    rows: dict[str, dict[str, Any]] = {}
    for cell in cells:
        init = cell.row.init
        row = rows.setdefault(init.name, {"init": init.name, "title": init.title, "cells": []})
        row["cells"].append(_cell(table, cell, runs, failed))
    return {
        "name": table.name,
        "title": table.title,
        "source": table.source,
        "note": table.note,
        "trials": table.trials,
        "columns": [
            {"title": c.title or c.config or c.cited, "config": c.config, "metrics": list(c.metrics)}
            for c in table.columns
        ],
        "smoke": options.smoke,
        "schedule": options.schedule,
        "sweep": options.sweep[0] if options.sweep else None,
        "seeds": list(options.seeds),
        "rows": list(rows.values()),
    }


def _cell(table: Table, cell: Cell, runs: Path, failed: dict[str, str]) -> dict[str, Any]:
    """One row under one column; `tried` has every value of a sweep, `numbers` are those of the best."""
    tried = {value: _runs(cell.column, jobs, runs, failed) for value, jobs in cell.runs.items()}
    best = max(tried, key=lambda value: _score(tried[value]), default="")
    done = [run for run in tried.get(best, []) if run["numbers"]]
    published, spread = _published(table, cell)
    numbers = []
    for n, metric in enumerate(cell.column.metrics):
        ours = [run["numbers"][n] for run in done]
        entry: dict[str, Any] = {"metric": metric, "paper": published[n], "ours": ours}
        if ours:
            found = compare(ours, published[n], std=spread[n], trials=table.trials)
            entry |= asdict(found) | {"interval": list(found.interval) if found.interval else None}
        numbers.append(entry)
    waiting = [run["why_not"] for runs_ in tried.values() for run in runs_ if run["why_not"]]
    return {
        "config": cell.row.config or cell.column.config,
        "numbers": numbers,
        "tried": tried,
        "best": best,
        "changes": list(cell.runs[best][0].changes) if cell.runs else [],
        "why_not": cell.why_not or "; ".join(dict.fromkeys(waiting)),
    }


def _published(table: Table, cell: Cell) -> tuple[list[float | None], list[float | None]]:
    """The paper's numbers and standard deviations of this cell's metrics."""
    first = 0
    for column in table.columns:
        if column is cell.column:
            break
        first += len(column.metrics)
    size = len(cell.column.metrics)
    nothing: list[float | None] = [None] * len(table.metrics)
    numbers, spread = list(cell.row.paper) or nothing, list(table.std) or nothing
    return numbers[first : first + size], spread[first : first + size]


def _score(found: list[dict[str, Any]]) -> float:
    """Mean of the first metric over the runs of one sweep value: what the best is chosen by."""
    numbers = [run["numbers"][0] for run in found if run["numbers"]]
    return sum(numbers) / len(numbers) if numbers else float("-inf")


def _runs(column: Column, jobs: Sequence[Job], runs: Path, failed: dict[str, str]) -> list[dict[str, Any]]:
    return [_run(column, seed, job, runs, failed) for seed, job in enumerate(jobs)]


def _run(column: Column, number: int, job: Job, runs: Path, failed: dict[str, str]) -> dict[str, Any]:
    """One run: its numbers in the order of the column's metrics, or why it has none."""
    folder = job.folder(runs)
    needs = [_record(needed, runs) for needed in in_order([job])[:-1]]
    run: dict[str, Any] = {**_record(job, runs), "needs": needs, "numbers": [], "why_not": ""}
    if not worker.is_done(folder, job.product):
        run["why_not"] = failed.get(job.key, "not run yet")
        return run
    results = json.loads(job.output(runs).read_text())
    try:  # those of the linear probe stand at the top
        run["numbers"] = [number_of(results.get("metrics", results), metric) for metric in column.metrics]
    except KeyError as error:
        run["why_not"] = f"{job.output(runs)} has no {error.args[0]}"
    return run


def _record(job: Job, runs: Path) -> dict[str, Any]:
    """What a job is, where, and how long it has worked so far."""
    folder = job.folder(runs)
    seconds = worker.state(folder).get("seconds", 0)
    return {"name": job.name, "folder": str(folder), "command": job.text(runs), "seconds": seconds}


def number_of(metrics: dict[str, Any], name: str) -> float:
    """A metric of results.json by its name: `bbox.AP50` of the only data set, or `top1`.

    Raises:
        KeyError: with the name; also of a metric that is undefined, as AP is where nothing was detected.
    """
    task, _, leaf = name.rpartition(".")
    found = (
        [tasks.get(task, {}) for tasks in metrics.values() if isinstance(tasks, dict)] if task else [metrics]
    )
    value = next((values[leaf] for values in found if values.get(leaf) is not None), None)
    if value is None:
        raise KeyError(name)
    return float(value)
