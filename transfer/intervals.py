"""Means over seeds, with Student's 95 % interval."""

import math
from collections.abc import Sequence

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; more seeds use the last, which is wider.
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def mean_interval(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean, and half the width of its 95 % t interval.

    Both are None where a value is undefined (None or not finite); the width also for a single value.
    """
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if not numbers or len(numbers) < len(values):
        return None, None
    count = len(numbers)
    mean = sum(numbers) / count
    if count == 1:
        return mean, None
    variance = sum((value - mean) ** 2 for value in numbers) / (count - 1)
    return mean, T975[min(count - 2, len(T975) - 1)] * math.sqrt(variance / count)


def paired_difference(
    values: Sequence[float | None], baseline: Sequence[float | None]
) -> tuple[float | None, float | None]:
    """`mean_interval` of `values` less `baseline`, seed by seed."""
    pairs = zip(values, baseline, strict=True)
    return mean_interval([None if a is None or b is None else a - b for a, b in pairs])
