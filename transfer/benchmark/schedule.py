"""Which cells are measured in which order, and which are dropped if the time does not suffice."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pretrain.benchmark import timing
from pretrain.common.console import say
from pretrain.common.errors import message

_LINES = 12  # of a traceback that are kept


@dataclass(frozen=True)
class Cell:
    """One row of a table.

    Attributes:
        table: name of the table.
        name: of the row.
        kind: cells of one kind take about the same time.
        seconds: guess of that time.
        measure: gets the moment of `time.monotonic` by which it should be done, and returns the row's figures.
    """

    table: str
    name: str
    kind: str
    seconds: float
    measure: Callable[[float], dict[str, Any]]


def run(
    cells: Sequence[Cell],
    *,
    seconds: float,
    device: torch.device,
    done: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Measure cells in order, as long as there is time, and return a row for each.

    A cell begins only if the time that is left is at least its guess, or what the slowest one of its kind took; it is
    dropped otherwise, and later ones that are shorter still have their turn. A cell that does not fit into the GPU's
    memory, or that fails, is reported, and the next one begins.

    Args:
        seconds: the time for all cells.
        done: called with all rows so far after each one, so that nothing is lost if the program is killed.
    Returns:
        Rows with `table`, `cell`, `status` (measured, out of memory, dropped, or failed), `seconds` and `result`; with
        the error instead if it failed.
    """
    end = time.monotonic() + seconds
    took: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    for number, cell in enumerate(cells, 1):
        began = time.monotonic()
        row: dict[str, Any] = {"table": cell.table, "cell": cell.name}
        if end - began < max(cell.seconds, took.get(cell.kind, 0.0)):
            rows.append({**row, "status": "dropped", "seconds": 0.0})
        else:
            say(f"{number}/{len(cells)} {cell.table}: {cell.name} ...")
            row |= _measured(cell, end)
            row["seconds"] = round(time.monotonic() - began, 1)
            took[cell.kind] = max(took.get(cell.kind, 0.0), row["seconds"])
            rows.append(row)
            timing.release(device)
        say(
            f"{number}/{len(cells)} {cell.table}: {cell.name}: {rows[-1]['status']}, {rows[-1]['seconds']:.0f} s"
        )
        done(rows)
    return rows


def _measured(cell: Cell, end: float) -> dict[str, Any]:
    """Return status and result. The error's frames, which hold tensors, are gone when this returns."""
    try:
        return {"status": "measured", "result": cell.measure(end)}
    except (
        Exception
    ) as error:  # of a library on hardware that it has not met: the other cells are worth having
        if timing.out_of_memory(error):
            return {"status": "out of memory"}
        lines = traceback.format_exception(error)
        return {
            "status": "failed",
            "error": f"{type(error).__name__}: {message(error)}"[:500],
            "traceback": "".join(lines).splitlines()[-_LINES:],
        }
