"""How much training an initialisation saves: AP over the iterations of the schedule, from the logs of the runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from transfer.demo.comparison import BASELINE, ROWS, TASKS
from transfer.intervals import mean_interval
from transfer.report.charts import Chart, Line, chart, points

# A key of ROWS -> the lines of metrics.json of each seed.
Logs = Mapping[str, Sequence[list[dict[str, Any]]]]
Curve = list[tuple[float, float]]


def curve(logs: Sequence[list[dict[str, Any]]], task: str) -> Curve:
    """Return (iteration, AP averaged over the seeds), without the iterations at which it is undefined for a seed."""
    each = [dict(points(log, f"{task}/AP")) for log in logs]
    means = {x: mean_interval([values.get(x) for values in each])[0] for x in sorted(each[0])}
    return [(x, mean) for x, mean in means.items() if mean is not None]


def charts(logs: Logs) -> list[Chart]:
    """Draw box AP and mask AP of every initialisation; with several seeds, each seed is a thin curve."""
    drawn = []
    for task, word in TASKS.items():
        lines = []
        for key, each in logs.items():
            row = ROWS[key]
            if len(each) > 1:
                lines += [Line(row.name, points(log, f"{task}/AP"), row.style, thin=True) for log in each]
            lines.append(Line(row.name, curve(each, task), row.style))
        drawn.append(chart(f"{word.capitalize()} AP on the test images", lines, from_zero=True))
    return [found for found in drawn if found]


def sentence(logs: Logs, task: str = "bbox") -> str:
    """Return after how many iterations each initialisation reached the AP that random initialisation ended with."""
    baseline = curve(logs[BASELINE], task)
    if not baseline:
        return ""
    last, goal = baseline[-1]
    if goal == 0:
        return f"Random initialisation had 0 {TASKS[task]} AP after {last:.0f} iterations: nothing to compare with."
    parts = []
    for key in logs:
        if key != BASELINE:
            reached = next((x for x, ap in curve(logs[key], task) if ap >= goal), None)
            parts.append(
                f"{ROWS[key].name} did not reach it"
                if reached is None
                else f"{ROWS[key].name} had reached it after {reached:.0f}"
            )
    tests = ", ".join(f"{x:.0f}" for x, _ in baseline)
    return (
        f"Random initialisation ended at {goal:.2f} {TASKS[task]} AP after {last:.0f} iterations; "
        f"{', and '.join(parts)}. AP was measured after {tests} iterations."
    )
