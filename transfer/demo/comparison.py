"""Compares two initialisations: their AP, the difference, and what can be concluded from it."""

import math
from collections.abc import Sequence
from typing import Any

from scipy import stats

TASKS = {"bbox": "box", "segm": "mask"}
METRICS = ("AP", "AP50", "AP75")
ABSENT = "–"

# The contents of results.json, one per seed, in the same order for both initialisations.
Results = Sequence[dict[str, Any]]


def metric(results: Results, task: str, name: str) -> list[float | None]:
    """Return a metric of the first test set in percent, one value per seed; None if it is undefined."""
    return [next(iter(found["metrics"].values())).get(task, {}).get(name) for found in results]


def shown(interval: tuple[float | None, float | None], *, signed: bool = False) -> str:
    """Format a value and half its interval: `5.91`, `+0.42 ± 0.30`, or a dash if the value is undefined."""
    mean, half = interval
    if mean is None or mean != mean:
        return ABSENT
    text = _number(mean, signed=signed)
    return text if half is None else f"{text} ± {half:.2f}"


def overall(moco: Results, random: Results) -> list[tuple[str, list[str]]]:
    """Return rows (name, AP, AP50 and AP75 of boxes, then of masks): both initialisations and their difference."""
    columns = [(task, name) for task in TASKS for name in METRICS]
    rows = [
        (label, [shown(mean_interval(metric(results, *column))) for column in columns])
        for label, results in (("random init", random), ("MoCo", moco))
    ]
    differences = [paired_difference(metric(moco, *column), metric(random, *column)) for column in columns]
    return [*rows, ("difference", [shown(difference, signed=True) for difference in differences])]


def classes(moco: Results, random: Results) -> list[tuple[str, list[str]]]:
    """Return rows (class, box AP of random and MoCo, mask AP of random and MoCo)."""
    names = [
        key.removeprefix("AP-")
        for key in next(iter(random[0]["metrics"].values())).get("bbox", {})
        if key.startswith("AP-")
    ]
    return [
        (
            name,
            [
                shown(mean_interval(metric(results, task, f"AP-{name}")))
                for task in TASKS
                for results in (random, moco)
            ],
        )
        for name in names
    ]


def seeds(moco: Results, random: Results) -> list[tuple[str, list[str]]]:
    """Return rows (seed, box AP of random and MoCo, mask AP of random and MoCo); none for a single seed."""
    if len(moco) < 2:
        return []
    columns = [metric(results, task, "AP") for task in TASKS for results in (random, moco)]
    return [
        (str(found["seed"]), [shown((column[row], None)) for column in columns])
        for row, found in enumerate(moco)
    ]


def verdict(moco: Results, random: Results) -> str:
    """Return the text under the table: the difference with its sign, and what can be concluded from it."""
    count = len(moco)
    found = {
        word: paired_difference(metric(moco, task, "AP"), metric(random, task, "AP"))
        for task, word in TASKS.items()
    }
    if count == 1:
        parts = ", ".join(f"{shown(difference, signed=True)} {word} AP" for word, difference in found.items())
        return (
            f"MoCo minus random initialisation: {parts}, from one seed. "
            "No conclusion can be drawn from one seed at this size."
        )
    parts = "; ".join(f"{word} AP {_range(*difference)}" for word, difference in found.items())
    conclusions = " ".join(_conclusion(word, *difference) for word, difference in found.items())
    return f"MoCo minus random initialisation over {count} seeds: {parts}. {conclusions}"


def _range(mean: float | None, half: float | None) -> str:
    if mean is None or half is None:
        return ABSENT
    low, high = _number(mean - half, signed=True), _number(mean + half, signed=True)
    return f"{_number(mean, signed=True)} (95 % interval {low} to {high})"


def _conclusion(word: str, mean: float | None, half: float | None) -> str:
    if mean is None or half is None:
        return f"Nothing can be concluded about {word} AP, because it is undefined in a run."
    if abs(mean) <= half:
        return f"The {word} interval contains zero: no difference in {word} AP was shown."
    better = "MoCo" if mean > 0 else "random initialisation"
    return f"The {word} interval excludes zero, in favour of {better}, for these data and this schedule only."


def _number(value: float, *, signed: bool) -> str:
    text = f"{value:+.2f}" if signed else f"{value:.2f}"
    if float(text) == 0:
        text = "0.00"  # a value that rounds to zero has no sign
    return text.replace("-", "−")


def mean_interval(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return the mean, and half the width of its 95 % t interval.

    Both are None if any value is undefined (None or not finite). The width is also None for a single value.
    """
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if not numbers or len(numbers) < len(values):
        return None, None
    count = len(numbers)
    mean = sum(numbers) / count
    if count == 1:
        return mean, None
    variance = sum((value - mean) ** 2 for value in numbers) / (count - 1)
    return mean, float(stats.t.ppf(0.975, count - 1)) * math.sqrt(variance / count)


def paired_difference(
    values: Sequence[float | None], baseline: Sequence[float | None]
) -> tuple[float | None, float | None]:
    """Return `mean_interval` of the differences `values` minus `baseline`, seed by seed."""
    pairs = zip(values, baseline, strict=True)
    return mean_interval([None if a is None or b is None else a - b for a, b in pairs])
