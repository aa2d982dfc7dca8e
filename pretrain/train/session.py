"""What happens around the steps of a run: waiting for data, writing log lines, saving the state, stopping."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from pretrain.common import distributed
from pretrain.common.console import Bar, Pace, say
from pretrain.common.errors import UserError
from pretrain.common.signals import Signals
from pretrain.data.broken_images import Broken
from pretrain.data.loader import Batch
from pretrain.train import checkpoints
from pretrain.train.checkpoints import Saver
from pretrain.train.log import Clock, Log, Meter, say_step
from pretrain.train.nonfinite import first_bad_layer
from pretrain.train.setup import Run

Views = tuple[torch.Tensor, torch.Tensor]
LAPTOP = "pretrain/laptop_R18.yaml"
_SYNCHRONISED = 5  # first steps after each of which a GPU is waited for, so that they can be timed


@dataclass(frozen=True)
class Due:
    """What follows a step; the same in every process.

    Attributes:
        line: the line of a log period.
        save: a checkpoint, at the end of an epoch, by the clock, or because the run ends or stops.
        stop: the run was asked to stop.
        leave: no step follows, because of that or of too many unreadable images.
        end: this was the last step of the run.
    """

    line: bool
    save: bool
    stop: bool
    leave: bool
    end: bool


class Session:
    """One start of a run, from its first batch to its end or to the signal that stops it.

    Args:
        signals: tells whether the run was asked to stop.
    """

    def __init__(self, run: Run, log: Log, signals: Signals) -> None:
        self.run, self.log, self.signals = run, log, signals
        self.first = run.progress.iteration + 1  # has a line too: on a slow machine a period may take an hour
        self.views: Views | None = None  # of the last step
        self.waited = 0.0  # seconds that its batch took to arrive
        resumed = run.progress.iteration > 0
        self.broken = Broken(
            run.files, run.cfg.DATA.MAX_BROKEN, folder=run.folder, resumed=resumed, device=run.device
        )
        self.clock, self.meter = Clock(run.cfg.SOLVER.IMS_PER_BATCH), Meter(run.device)
        self.saver = Saver(run.cfg, saved=run.progress.iteration or None)
        self.pace = Pace(run.total, run.progress.iteration)
        self.bar = Bar(run.total, run.progress.iteration)

    def batches(self, loader: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches that are left; note how long each took and which images could not be read."""
        while self.run.progress.iteration < self.run.total:
            self.pace.begin()
            begin = time.perf_counter()
            batch = next(loader)
            self.waited = time.perf_counter() - begin
            if batch.broken:
                self.broken.add(batch.broken)
            yield batch

    def add(self, views: Views, metrics: torch.Tensor) -> None:
        """Count a step and its METRICS."""
        self.views = views
        self.meter.add(metrics)
        self.clock.step(self.waited)
        progress = self.run.progress
        self.run.progress = replace(progress, iteration=progress.iteration + 1)
        if self.run.device.type == "cuda" and progress.iteration < self.first + _SYNCHRONISED:
            torch.cuda.synchronize()
        self.pace.end()
        self.bar.show(self.pace.done, self.pace.text())

    def due(self) -> Due:
        """Return what follows this step. Every process calls it.

        Raises:
            UserError: in every process, for a loss that is not finite; at the first step also if too many
                images cannot be read, so that a useless folder leaves no checkpoint behind.
        """
        stop, is_late, new_broken = distributed.any_process(
            self.signals.requested, self.saver.due(), bool(self.broken.new)
        )
        done = self.run.progress.iteration
        if new_broken:
            self.broken.share()
            if done == 1:
                self.broken.check()
        leave, end = stop or self.broken.too_many, done == self.run.total
        ends_epoch = done % self.run.progress.per_epoch == 0
        save = ends_epoch or end or leave or is_late
        in_period = done == self.first or done % self.run.cfg.SOLVER.LOG_PERIOD == 0
        line = in_period or ends_epoch or end or leave
        if (line or save) and not self.meter.is_finite():  # on a GPU this is the first look at the losses
            assert self.views
            raise not_finite(self.run, self.views, done)
        return Due(line, save, stop, leave, end)

    def write_line(self) -> None:
        """Print and write the means of the steps since the last line."""
        progress, total = self.run.progress, self.run.total
        values = {**self.meter.read(), "lr": self.run.optimizer.param_groups[0]["lr"]}
        speed, data_wait = self.clock.read()
        line = {
            "iteration": progress.iteration, "epoch": (progress.iteration - 1) // progress.per_epoch, **values,
            "images_per_second": speed, "data_wait": data_wait, "time": time.time(),
        }  # fmt: skip
        say_step(line, total=total, epochs=self.run.cfg.SOLVER.MAX_EPOCH, seconds_left=self.pace.left())
        self.log.write(line)

    def save(self, due: Due) -> None:
        """Save the state, and the names of unreadable images."""
        run = self.run
        self.saver.save(run.model, run.optimizer, run.progress, scaler=run.scaler, must=due.end or due.leave)
        try:
            self.broken.write()
        except UserError as error:  # a run is worth more than the list
            say(f"warning: {error}")
        if due.end:
            self.signals.saved = (
                f"stopped after the last iteration; everything is saved in {run.folder / checkpoints.LAST}: "
                "the same command with --resume completes the run"
            )

    def leave_if_asked(self, due: Due) -> None:
        """End the process if the run was asked to stop. Raises `UserError` if too many images cannot be read."""
        self.broken.check()
        if due.stop and not due.end:
            done = self.run.progress.iteration
            say(
                f"stopped at iteration {done}; everything is saved in {self.run.folder / checkpoints.LAST}: "
                "the same command with --resume continues"
            )
            self.signals.leave()


def not_finite(run: Run, views: Views, iteration: int) -> UserError:
    """Return the error for a loss that is infinite or NaN, with the first layer whose output is."""
    layer = first_bad_layer(run.model, views, pixels=run.pixels, amp=run.amp)
    where = f", first of all {layer}" if layer else ", while the outputs of all layers are finite"
    return checkpoints.not_finite(
        run.folder, f"the loss became infinite or NaN by iteration {iteration}{where}"
    )
