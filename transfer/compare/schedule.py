"""How long to train: a schedule from the number of images, and a shorter one that fits into the time that there is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.common.errors import UserError
from transfer.config import length

LEAST = 100  # iterations at least, whatever the time


@dataclass(frozen=True)
class Schedule:
    """The length of the runs of one share of the labels, which is the same for every init."""

    iterations: int

    def overrides(self, warm_up: int) -> tuple[str, ...]:
        """Return KEY, VALUE, ...: the length, the drops of the learning rate, and a warm-up of at most a tenth."""
        return (
            "SOLVER.MAX_ITER", str(self.iterations), "SOLVER.STEPS", str(length.steps(self.iterations)),
            "SOLVER.WARMUP_ITERS", str(length.warm_up(self.iterations, warm_up)),
        )  # fmt: skip


def usual(images: int, fraction: float, batch: int, *, epochs: float = length.EPOCHS) -> Schedule:
    """Return the schedule of a share of the images, by the rule of `transfer.config.length`."""
    return Schedule(length.iterations(round(fraction * images), batch, epochs=epochs))


def fitted(
    schedules: Sequence[Schedule], *, runs: int, each: float, fixed: float, seconds: float
) -> list[Schedule]:
    """Return all schedules shortened by one factor, so that their runs take at most `seconds`.

    Args:
        runs: with each schedule: inits x seeds.
        each: seconds of an iteration.
        fixed: seconds of a run apart from its iterations: its start, PreciseBN and the test.
    Raises:
        UserError: not even `LEAST` iterations of each fit.
    """
    wanted = runs * sum(schedule.iterations for schedule in schedules) * each
    rest = seconds - runs * len(schedules) * fixed
    factor = min(1.0, rest / wanted)
    found = [Schedule(max(LEAST, math.floor(factor * schedule.iterations))) for schedule in schedules]
    needed = runs * sum(schedule.iterations * each + fixed for schedule in found)
    if needed > seconds * 1.001:
        # Those at the least length take more than their share, so only the others can be shortened further.
        least = runs * len(schedules) * (LEAST * each + fixed)
        if least > seconds:
            raise UserError(
                f"--hours {seconds / 3600:g}: even {LEAST} iterations of each of the {runs * len(schedules)} runs take "
                f"{least / 3600:.1f} hours here: give more hours, or fewer seeds, fractions or inits"
            )
        spare = seconds - least
        more = sum(max(0, schedule.iterations - LEAST) for schedule in schedules) * runs * each
        found = [
            Schedule(LEAST + math.floor(max(0, schedule.iterations - LEAST) * spare / more))
            for schedule in schedules
        ]
    return found
