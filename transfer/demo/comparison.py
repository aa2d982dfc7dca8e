"""Compares initialisations: their AP, its differences to random initialisation, and what can be concluded from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transfer.demo.noise import SEEDS, WHERE, Noise
from transfer.intervals import mean_interval, paired_difference

TASKS = {"bbox": "box", "segm": "mask"}
METRICS = ("AP", "AP50", "AP75")
ABSENT = "–"
_COLUMNS = [(task, name) for task in TASKS for name in METRICS]
_FAR = 4.3  # standard deviations: Student's t of three seeds at 5 %, two-sided


@dataclass(frozen=True)
class Row:
    """An initialisation.

    Attributes:
        name: its full name, and how a legend calls it.
        short: the head of a column.
        style: of its curves and dots.
    """

    name: str
    short: str
    style: int


BASELINE = "random"
ROWS = {
    BASELINE: Row("random init", "random", 1),
    "moco": Row("MoCo", "MoCo", 0),
    "moco_v3": Row("MoCo v3", "MoCo v3", 0),
    "supervised": Row("supervised (ImageNet, then Yahoo's open_nsfw)", "supervised", 2),
}
"""Every initialisation of a demo, in order, by the name that its files have."""

# The contents of results.json, one per seed.
Results = Sequence[dict[str, Any]]
# A key of ROWS -> its results, with the same seeds in the same order for every row. The baseline is the first.
Rows = Mapping[str, Results]


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


def overall(rows: Rows, noise: Noise | None = None) -> list[tuple[str, list[str]]]:
    """Return rows (name, AP, AP50 and AP75 of boxes, then of masks) of each initialisation.

    Args:
        noise: with a single seed, is shown behind each number as `(±2.2)`.
    """
    return [
        (
            ROWS[key].name,
            _with_noise(
                [shown(mean_interval(metric(results, *column))) for column in _COLUMNS],
                noise.rows.get(key) if noise else None,
            ),
        )
        for key, results in rows.items()
    ]


def differences(rows: Rows, noise: Noise | None = None) -> list[tuple[str, list[str]]]:
    """Return rows (name, differences to random initialisation in the same columns) of each of the others."""
    return [
        (
            f"{ROWS[key].short} − {ROWS[BASELINE].short}",
            _with_noise(
                [shown(_difference(rows, key, *column), signed=True) for column in _COLUMNS],
                noise.differences.get(key) if noise else None,
            ),
        )
        for key in rows
        if key != BASELINE
    ]


def _with_noise(cells: list[str], spread: tuple[float, ...] | None) -> list[str]:
    if spread is None:
        return cells
    return [
        cell if cell == ABSENT else f"{cell} (±{each:.1f})" for cell, each in zip(cells, spread, strict=True)
    ]


def classes(rows: Rows) -> list[tuple[str, list[str]]]:
    """Return rows (class, box AP of each initialisation, then mask AP of each)."""
    first = next(iter(rows[BASELINE][0]["metrics"].values())).get("bbox", {})
    names = [key.removeprefix("AP-") for key in first if key.startswith("AP-")]
    return [
        (
            name,
            [
                shown(mean_interval(metric(results, task, f"AP-{name}")))
                for task in TASKS
                for results in rows.values()
            ],
        )
        for name in names
    ]


def seeds(rows: Rows) -> list[tuple[str, list[str]]]:
    """Return rows (seed, box AP of each initialisation, then mask AP of each); none for a single seed."""
    baseline = rows[BASELINE]
    if len(baseline) < 2:
        return []
    columns = [metric(results, task, "AP") for task in TASKS for results in rows.values()]
    return [
        (str(found["seed"]), [shown((column[row], None)) for column in columns])
        for row, found in enumerate(baseline)
    ]


def verdict(rows: Rows, noise: Noise | None = None) -> str:
    """Return the text under the table: the differences with their signs, and what can be concluded from them."""
    sentences = [_verdict(rows, key) for key in rows if key != BASELINE]
    if len(rows[BASELINE]) == 1 and noise:
        sentences.append(
            f"These are differences of one seed; ± is the standard deviation from seed to seed, measured once with "
            f"{SEEDS}: {WHERE}."
        )
        sentences += [
            _against(rows, key, spread[0]) for key, spread in noise.differences.items() if key in rows
        ]
    elif len(rows[BASELINE]) == 1:
        sentences.append(
            "These are differences of one seed, and how much AP changes from seed to seed at this size is not known: "
            "nothing can be concluded beyond these numbers."
        )
    return " ".join(sentences)


def _against(rows: Rows, key: str, spread: float) -> str:
    """Return how large a difference in box AP is, measured by its standard deviation from seed to seed."""
    difference, name = _difference(rows, key, "bbox", "AP")[0], ROWS[key].short
    if difference is None:
        return ""
    times = abs(difference) / spread
    far = "far more than seeds explain" if times > _FAR else "which seeds alone may explain"
    return f"The difference of {name} in box AP is {times:.1f} times that deviation, {far}."


def _verdict(rows: Rows, key: str) -> str:
    name, count = ROWS[key].short, len(rows[BASELINE])
    start = f"{name[0].upper()}{name[1:]} minus random initialisation"
    found = {word: _difference(rows, key, task, "AP") for task, word in TASKS.items()}
    if count == 1:
        parts = ", ".join(f"{shown(difference, signed=True)} {word} AP" for word, difference in found.items())
        return f"{start}: {parts}."
    parts = "; ".join(f"{word} AP {_range(*difference)}" for word, difference in found.items())
    conclusions = " ".join(_conclusion(word, name, *difference) for word, difference in found.items())
    return f"{start} over {count} seeds: {parts}. {conclusions}"


def _difference(rows: Rows, key: str, task: str, name: str) -> tuple[float | None, float | None]:
    return paired_difference(metric(rows[key], task, name), metric(rows[BASELINE], task, name))


def _range(mean: float | None, half: float | None) -> str:
    if mean is None or half is None:
        return ABSENT
    low, high = _number(mean - half, signed=True), _number(mean + half, signed=True)
    return f"{_number(mean, signed=True)} (95 % interval {low} to {high})"


def _conclusion(word: str, name: str, mean: float | None, half: float | None) -> str:
    if mean is None or half is None:
        return f"Nothing can be concluded about {word} AP, because it is undefined in a run."
    if abs(mean) <= half:
        return f"The {word} interval contains zero: no difference in {word} AP was shown."
    better = name if mean > 0 else "random initialisation"
    return f"The {word} interval excludes zero, in favour of {better}, for these data and this schedule only."


def _number(value: float, *, signed: bool) -> str:
    text = f"{value:+.2f}" if signed else f"{value:.2f}"
    if float(text) == 0:
        text = "0.00"  # a value that rounds to zero has no sign
    return text.replace("-", "−")
