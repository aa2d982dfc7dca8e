"""`--lr-sweep`: the learning rate of each init, chosen on a part of the training images that nothing else tests on.

A method that needs another learning rate than the recipe's is not a worse one. Every init tries the same rates, with
one seed, and the test images take no part in the choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transfer.reproduce.plan.plan import Cell
from transfer.reproduce.plan.tables import Table

KEY = "SOLVER.BASE_LR"
FACTORS = (0.5, 1.0, 2.0)  # of the recipe's learning rate
SHARE = 0.2  # of the training images, to choose on


def values(base: float) -> tuple[str, ...]:
    """Return the learning rates to try, as config values."""
    return tuple(f"{factor * base:g}" for factor in FACTORS)


def sweep_table(table: Table, places: Mapping[str, str]) -> Table:
    """Return the same comparison on other data: trained on one part of the training images and tested on the other.

    Args:
        places: DATASETS key -> path, for the data of the sweep.
    """
    columns = tuple(replace(column, overrides=_placed(column.overrides, places)) for column in table.columns)
    title = f"Which learning rate suits each init? Tested on {SHARE:.0%} of the training images"
    return replace(table, name="rates", title=title, columns=columns, baseline="")


def _placed(overrides: Sequence[str], places: Mapping[str, str]) -> tuple[str, ...]:
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    return tuple(part for key, value in pairs for part in (key, places.get(key, value)))


def best(swept: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """Return (init, title of a column) -> the best rate, from the dict of `collect.collect` of the sweep.

    A pair is missing if no rate of it could be trained.
    """
    return {
        (row["init"], column["title"]): cell["best"]
        for row in swept["rows"]
        for column, cell in zip(swept["columns"], row["cells"], strict=True)
        if cell["best"]
    }


def tuned(cells: Sequence[Cell], chosen: Mapping[tuple[str, str], str]) -> list[Cell]:
    """Return the cells of a sweep on the test images with no other rate than the chosen one of each."""
    found = []
    for cell in cells:
        rate = chosen.get((cell.row.init.name, cell.column.title))
        why_not = "" if rate else "no learning rate of the sweep could be trained"
        found.append(replace(cell, runs={"": cell.runs[rate]} if rate else {}, why_not=why_not))
    return found


def sentences(chosen: Mapping[tuple[str, str], str]) -> list[str]:
    """Return one sentence for each column: the rate of each init."""
    columns = dict.fromkeys(column for _, column in chosen)
    return [
        f"Learning rates chosen on {SHARE:.0%} of the training images, with {column} of the labels: "
        + ", ".join(f"{init} {rate}" for (init, title), rate in chosen.items() if title == column)
        + "."
        for column in columns
    ]
