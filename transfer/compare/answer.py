"""The answer in sentences: is the first init better than each of the others, and how sure is that?"""

import math
from typing import Any

from scipy import stats

from transfer.reproduce.results.text_tables import signed

_MOST = 100  # seeds; if more would be needed, the difference is not worth showing


def sentences(table: dict[str, Any], mine: str) -> list[str]:
    """Return one sentence for each other init and column of the dict of `collect.collect`.

    Args:
        table: its baseline is the init in question.
        mine: the name of that init.
    """
    found = []
    for row in table["rows"]:
        for column, cell in zip(table["columns"], row["cells"], strict=True):
            difference = cell["numbers"][0].get("minus_baseline")
            if difference:
                found.append(_sentence(mine, row["init"], column["title"], difference))
    return found


def _sentence(mine: str, other: str, part: str, difference: dict[str, Any]) -> str:
    mean, half, seeds = -difference["mean"], difference["half"], difference["seeds"]
    where = f"with {part} of the labels"
    if half is None:
        return f"{mine} minus {other}: {signed(mean)} AP {where}; one seed is too few to tell a difference from noise."
    interval = f"95 % interval {signed(mean - half)} to {signed(mean + half)}; {seeds} seeds"
    if abs(mean) > half > 0:
        word = "better" if mean > 0 else "worse"
        return f"{mine} is {word} than {other} by {abs(mean):.1f} AP {where} ({interval})."
    return f"{mine} and {other}: no difference shown {where} ({signed(mean)} AP, {interval}){_more(mean, half, seeds)}."


def _more(mean: float, half: float, seeds: int) -> str:
    """Return how many seeds would show a difference of this size, if seeds go on to differ as much as these do."""
    if half == 0 or mean == 0:
        return ""
    spread = half * math.sqrt(seeds) / stats.t.ppf(0.975, seeds - 1)
    for count in range(seeds + 1, _MOST + 1):
        if stats.t.ppf(0.975, count - 1) * spread / math.sqrt(count) < abs(mean):
            return f"; too few seeds to tell: about {count} would show a difference of this size"
    return f"; more than {_MOST} seeds would be needed to show a difference of this size"
