"""How long to train: a schedule from the number of images, and a shorter one that fits into the time that there is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.common.errors import UserError

EPOCHS = 29  # of the paper's smallest data set: 9,000 iterations of 16 images for 5,011 images (He et al., Table 4)
USUAL = 500  # iterations at least, if the time allows it: with less, the heads are hardly trained
LEAST = 100  # iterations at least, whatever the time
_STEPS = (3 / 4, 11 / 12)  # of the schedule, as in the paper's recipes


@dataclass(frozen=True)
class Schedule:
    """The length of the runs of one share of the labels, which is the same for every init."""

    iterations: int

    def overrides(self, warm_up: int) -> tuple[str, ...]:
        """Return KEY, VALUE, ...: the length, the drops of the learning rate, and a warm-up of at most a tenth."""
        drops = (round(part * self.iterations) for part in _STEPS)
        steps = tuple(dict.fromkeys(drop for drop in drops if 0 < drop < self.iterations))
        return (
            "SOLVER.MAX_ITER", str(self.iterations), "SOLVER.STEPS", str(steps),
            "SOLVER.WARMUP_ITERS", str(min(warm_up, self.iterations // 10)),
        )  # fmt: skip


def usual(images: int, fraction: float, batch: int) -> Schedule:
    """Return the schedule of a share of the images: `EPOCHS` epochs, and at least `USUAL` iterations."""
    return Schedule(max(USUAL, math.ceil(EPOCHS * max(1, round(fraction * images)) / batch)))


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
