"""Means over seeds, differences between runs of equal seeds, and their 95 % intervals."""

import math
from collections.abc import Sequence

from scipy import stats


def mean_interval(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return the mean, and half the width of its 95 % interval by Student's t.

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
