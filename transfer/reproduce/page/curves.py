"""Learning curves of a table's runs: small charts for each column, with a line for each init."""

from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from transfer.report.charts import Chart, Line, chart, points
from transfer.reproduce.page.runs import Shown, read_log

_MOST = 150  # points of a line; the screen of a phone cannot show more

Points = list[tuple[float, float]]


def charts(runs: Sequence[Shown]) -> list[Chart]:
    """Return charts of the loss, of the first metric if it was measured during training, and of pre-training."""
    drawn = []
    for column in dict.fromkeys(each.column for each in runs):
        group = [each for each in runs if each.column == column]
        metric = group[0].metrics[0]
        logs = [[_of_best_rate(read_log(Path(run["folder"])), found)
                 for run, found in zip(each.runs, each.results, strict=True)] for each in group]  # fmt: skip
        name = f"{column}: " if column else ""
        losses = [
            _lines(each, [points(log, "loss") for log in found])
            for each, found in zip(group, logs, strict=True)
        ]
        tests = [_lines(each, [points(log, metric.replace(".", "/")) for log in found])
                 for each, found in zip(group, logs, strict=True)]  # fmt: skip
        drawn.append(chart(f"{name}training loss", list(chain(*losses)), from_zero=True))
        if any(len(line.points) > 1 for lines in tests for line in lines):
            drawn.append(chart(f"{name}{metric} on the test images", list(chain(*tests)), unit="%"))
    drawn.append(chart("Pre-training loss", _pretraining(runs)))
    return [found for found in drawn if found]


def mean(curves: Sequence[Points]) -> Points:
    """Return the mean of the curves at each x that all of them have."""
    common = set.intersection(*(({x for x, _ in curve}) for curve in curves)) if curves else set()
    values = [dict(curve) for curve in curves]
    return [(x, sum(curve[x] for curve in values) / len(values)) for x in sorted(common)]


def thinned(curve: Points) -> Points:
    """Return at most `_MOST` points, each the mean of a group of neighbours; the last one is at the curve's end."""
    if len(curve) <= _MOST:
        return curve
    edges = [round(i * len(curve) / _MOST) for i in range(_MOST + 1)]
    groups = [curve[first:last] for first, last in pairwise(edges)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _lines(each: Shown, curves: Sequence[Points]) -> list[Line]:
    """Return the seeds as thin lines, and their mean on top."""
    curves = [curve for curve in curves if curve]
    seeds = [Line(each.title, thinned(curve), each.style, thin=True) for curve in curves]
    return [*(seeds if len(seeds) > 1 else []), Line(each.title, thinned(mean(curves)), each.style)]


def _of_best_rate(log: list[dict[str, Any]], results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the log lines of the learning rate that the results are of; a linear probe may train several at once."""
    return [line for line in log if "base_lr" not in line or line["base_lr"] == results.get("lr")]


def _pretraining(runs: Sequence[Shown]) -> list[Line]:
    """Return one line for each pre-training run, even if several columns and seeds used it."""
    lines: dict[str, Line] = {}
    for each in runs:
        for job in each.runs[0].get("needs", ()):
            if job["name"].startswith("pretrain/"):
                curve = thinned(points(read_log(Path(job["folder"])), "loss"))
                lines.setdefault(job["folder"], Line(each.title, curve, each.style))
    return list(lines.values())
