"""Compares our runs with a published number: interval, difference, and whether noise explains it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ALPHA = 0.05  # two-sided
_ROUNDING = 0.05  # papers print one decimal
_SAME = 1e-9  # relative to the mean: a smaller spread is only rounding of equal numbers


@dataclass(frozen=True)
class Comparison:
    """Result of comparing a few runs with a published number.

    Attributes:
        mean, std: of our runs; std (n - 1 in the denominator) is None for one run.
        interval: 95 % confidence interval of the mean by Student's t; None for one run.
        difference: our mean minus the published number; None if nothing is published.
        p: p-value of the test; None if no test is possible.
        verdict: "within noise", "above", "below", "too few trials", "no spread between runs" if the paper gives
            no spread either, or "" if nothing is published.
        test: description of the test that was used.
    """

    mean: float
    std: float | None
    interval: tuple[float, float] | None
    difference: float | None
    p: float | None
    verdict: str
    test: str


def compare(
    runs: Sequence[float], published: float | None, *, std: float | None = None, trials: int = 1
) -> Comparison:
    """Compare at least one run, all of them finite, with a published mean.

    Args:
        std: published standard deviation; None or 0 if it is not published.
        trials: number of runs that the published number is the mean of.

    If the standard deviation is published, several runs get Welch's test, and a single run gets a t test of whether
    it could be one more draw from the paper's runs. Otherwise the paper's runs are assumed to have the spread of ours,
    and the t test has n - 1 degrees of freedom, since only our runs are known; a single run allows no test.
    """
    values = np.asarray(runs, dtype=float)
    mean, spread = float(values.mean()), _spread(values) if len(values) > 1 else None
    interval = None
    if spread is not None:
        half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / len(values) ** 0.5
        interval = (mean - half, mean + half)
    if published is None:
        return Comparison(mean, spread, interval, None, None, "", "")
    p, test = _test(values, published, std=std, trials=trials)
    difference = mean - published
    if p is None:
        verdict = "too few trials" if spread is None else "no spread between runs"
    elif p >= ALPHA or abs(difference) <= _ROUNDING:
        verdict = "within noise"
    else:
        verdict = "above" if difference > 0 else "below"
    return Comparison(mean, spread, interval, difference, p, verdict, test)


def _spread(values: np.ndarray) -> float:
    """Return the standard deviation (n - 1 in the denominator); 0 for equal runs."""
    found = float(values.std(ddof=1))
    return 0.0 if found < _SAME * abs(float(values.mean())) else found


def _test(
    values: np.ndarray, published: float, *, std: float | None, trials: int
) -> tuple[float | None, str]:
    several, known = len(values) > 1, std is not None and std > 0 and trials > 1
    if several and known:
        found = stats.ttest_ind_from_stats(
            values.mean(), _spread(values), len(values), published, std, trials, equal_var=False
        )
        return float(found.pvalue), "Welch's t test against the paper's mean and standard deviation"
    if known:
        assert std is not None
        t = (values[0] - published) / (std * (1 + 1 / trials) ** 0.5)
        return float(2 * stats.t.sf(abs(t), trials - 1)), "t test of one run against the paper's spread"
    if several and (own := _spread(values)) > 0:
        t = (values.mean() - published) / (own * (1 / len(values) + 1 / trials) ** 0.5)
        runs = "one run" if trials == 1 else f"a mean of {trials} runs"
        return float(2 * stats.t.sf(abs(t), len(values) - 1)), (
            f"t test; the paper gives no spread, so its number is treated as {runs} with the spread of ours"
        )
    return None, ""
