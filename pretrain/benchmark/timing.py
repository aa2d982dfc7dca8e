"""Timing on a device that works ahead of the program: blocks of steps, medians, peak memory, and running out of it."""

import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

_CALIBRATION = 3  # steps from which the length of a block follows


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done everything that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(step: Callable[[], object], count: int, device: torch.device) -> float:
    """Return the seconds of `count` steps, from an idle device to an idle device."""
    synchronise(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    synchronise(device)
    return time.perf_counter() - began


def steps_for(seconds: float, step: Callable[[], object], device: torch.device) -> int:
    """Return how many steps take about `seconds`, at least one; a few steps are run to find out."""
    each = seconds_of(step, _CALIBRATION, device) / _CALIBRATION
    return max(1, round(seconds / each))


def spread(values: list[float]) -> dict[str, Any]:
    """Return the median, the smallest, the largest and all of one or more values, as the JSON holds them."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "values": values,
    }


class Peak:
    """The most memory that tensors on a GPU take, beyond what they take when this is made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0

    def restart(self) -> None:
        """Forget what was taken so far, such as by cuDNN's trials of algorithms in the first steps."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def read(self) -> float | None:
        """Return the GB (1e9 bytes); None without a GPU."""
        if self.device.type != "cuda":
            return None
        return (torch.cuda.max_memory_allocated(self.device) - self.before) / 1e9


def out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one that it replaced, is that of a GPU without enough memory."""
    while error is not None:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def release(device: torch.device) -> None:
    """Give back what a finished measurement held: its tensors and, after torch.compile, its programs."""
    if "torch._dynamo" in sys.modules:  # importing it for this would take seconds
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
