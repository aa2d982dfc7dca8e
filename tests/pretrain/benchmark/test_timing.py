"""Blocks of steps: how many, what is reported of them, and which errors mean a full GPU."""

import itertools

import pytest
import torch

from pretrain.benchmark import timing
from pretrain.common.errors import UserError

CPU = torch.device("cpu")


def test_a_block_lasts_about_as_long_as_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is replaced by one that a step advances by 50 ms."""
    now = itertools.count()
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def step() -> None:
        next(now)
        clock[0] += 0.05

    assert timing.steps_for(2.0, step, CPU) == 40
    assert next(now) == 3  # steps from which it follows
    assert timing.steps_for(0.001, step, CPU) == 1
    assert timing.seconds_of(step, 7, CPU) == pytest.approx(0.35)


def test_a_spread_holds_all_values() -> None:
    assert timing.spread([3.0, 1.0, 2.0, 9.0]) == {
        "median": 2.5, "low": 1.0, "high": 9.0, "values": [3.0, 1.0, 2.0, 9.0],
    }  # fmt: skip


def test_a_full_gpu_is_found_behind_the_line_for_the_user() -> None:
    """`pretrain.train.loop.step` replaces the error of torch by one of its own."""
    full = torch.cuda.OutOfMemoryError("CUDA out of memory")
    assert timing.out_of_memory(full) and not timing.out_of_memory(RuntimeError("other"))
    try:
        try:
            raise full
        except torch.cuda.OutOfMemoryError:
            raise UserError("the GPU does not have enough memory") from None
    except UserError as error:
        assert timing.out_of_memory(error)


def test_memory_is_unknown_without_a_gpu() -> None:
    peak = timing.Peak(CPU)
    peak.restart()
    assert peak.read() is None
