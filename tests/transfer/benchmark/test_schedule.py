"""Cells run in order while there is time; what does not fit, fails or needs too much memory is reported."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from transfer.benchmark import schedule
from transfer.benchmark.schedule import Cell


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now[0])
    return now


def run(cells: list[Cell], seconds: float) -> list[dict[str, Any]]:
    seen: list[int] = []
    rows = schedule.run(
        cells, seconds=seconds, device=torch.device("cpu"), done=lambda rows: seen.append(len(rows))
    )
    assert seen == list(range(1, len(cells) + 1))  # written after each cell
    return rows


def takes(clock: list[float], seconds: float, result: Any = None) -> Callable[[float], dict[str, Any]]:
    def measure(end: float) -> dict[str, Any]:
        clock[0] += seconds
        return {"end": end, "result": result}

    return measure


def test_what_does_not_fit_is_dropped_and_a_short_cell_still_has_its_turn(clock: list[float]) -> None:
    cells = [
        Cell("a", "first", "long", 10, takes(clock, 50)),
        Cell("a", "second", "long", 10, takes(clock, 30)),
        # 20 s are left: its guess fits, but the slowest of its kind took 50
        Cell("a", "third", "long", 10, takes(clock, 1)),
        Cell("b", "fourth", "short", 15, takes(clock, 1)),
        Cell("b", "fifth", "short", 30, takes(clock, 1)),
    ]
    rows = run(cells, 100)
    assert [(row["cell"], row["status"], row["seconds"]) for row in rows] == [
        ("first", "measured", 50), ("second", "measured", 30), ("third", "dropped", 0), ("fourth", "measured", 1),
        ("fifth", "dropped", 0),
    ]  # fmt: skip
    assert rows[0]["result"]["end"] == 1100


def test_a_cell_that_fails_does_not_end_the_others(clock: list[float]) -> None:
    def full(_: float) -> dict[str, Any]:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def broken(_: float) -> dict[str, Any]:
        raise RuntimeError("no kernel image is available")

    cells = [
        Cell("a", "1", "k", 1, full),
        Cell("a", "2", "k", 1, broken),
        Cell("a", "3", "k", 1, takes(clock, 1)),
    ]
    rows = run(cells, 100)
    assert [row["status"] for row in rows] == ["out of memory", "failed", "measured"]
    assert rows[1]["error"] == "RuntimeError: no kernel image is available"
    assert "in broken" in "".join(rows[1]["traceback"])


def test_ctrl_c_ends_everything(clock: list[float]) -> None:
    def interrupted(_: float) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([Cell("a", "1", "k", 1, interrupted)], 100)
