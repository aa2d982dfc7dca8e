"""The training loop of the linear classifiers."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

from fvcore.common.config import CfgNode

from pretrain.common import distributed
from pretrain.common.console import Bar, Pace, duration, say
from pretrain.common.errors import UserError
from pretrain.common.signals import Signals
from pretrain.data.broken_images import Broken
from transfer.linear import results
from transfer.linear.features import Features, Fixed
from transfer.linear.state import LAST, State, save

_PRINT_PERIOD = 60.0  # seconds between two lines within an epoch, where no bar is shown


def train(
    state: State,
    batches: Iterator[Features],
    val: Fixed,
    *,
    cfg: CfgNode,
    per_epoch: int,
    broken: Broken,
    signals: Signals,
    session_start: float,
) -> None:
    """Train to the end of `batches`. After every epoch, test the classifiers, log the results and save the state.

    Args:
        state: the state to start from; it is changed in place.
        val: features of the test images.
        per_epoch: number of iterations per epoch.
        session_start: when this process started the run, by `time.perf_counter`.
    Raises:
        UserError: too many images are unreadable, or all classifiers have diverged.
        SystemExit: after SIGTERM, SIGUSR1, SIGHUP or Ctrl-C, once the state is saved.
    """
    earlier, last_printed = state.seconds, time.perf_counter()
    epochs, steps = cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.MAX_EPOCH * per_epoch
    pace = Pace(steps, state.iteration)
    with Bar(steps, state.iteration) as bar:
        pace.begin()
        for features, labels, unreadable in batches:
            broken.add(unreadable)
            if state.iteration % per_epoch == 0:
                state.losses.zero_()
            state.losses += state.classifiers.step(features, labels, epoch=state.iteration // per_epoch)
            state.iteration += 1
            pace.end()
            bar.show(state.iteration, pace.text())
            now = time.perf_counter()
            state.seconds = earlier + now - session_start
            ends_epoch = state.iteration % per_epoch == 0
            if ends_epoch:
                _test(state, val, per_epoch=per_epoch, epochs=epochs, seconds_left=pace.left())
                last_printed = time.perf_counter()
            elif not bar.is_shown and now - last_printed > _PRINT_PERIOD:
                epoch, step = divmod(state.iteration, per_epoch)
                say(f"epoch {epoch + 1}/{epochs} iter {step}/{per_epoch}  ETA {duration(pace.left())}")
                last_printed = now
            stops, met_broken = distributed.any_process(signals.requested, bool(broken.new))
            if met_broken:
                broken.share()
            if ends_epoch or stops or broken.too_many:
                broken.write()
                save(state, cfg)
            broken.check()
            if stops and state.iteration < steps:
                say(
                    f"stopped at iteration {state.iteration}; everything is saved in {Path(cfg.OUTPUT_DIR) / LAST}: "
                    "the same command with --resume continues"
                )
                signals.leave()
            pace.begin()


def mean_losses(state: State, steps: int) -> list[float]:
    """Return the loss of each classifier in the current epoch, averaged over its `steps` and over all processes."""
    losses = state.losses / steps
    distributed.mean_over_processes([losses])
    values: list[float] = losses.tolist()
    return values


def _test(state: State, val: Fixed, *, per_epoch: int, epochs: int, seconds_left: float) -> None:
    """Test all classifiers and log one line for each. Raises `UserError` if all have diverged."""
    classifiers, epoch = state.classifiers, state.iteration // per_epoch
    losses, factor = mean_losses(state, per_epoch), classifiers.factor(epoch - 1)
    if not any(map(math.isfinite, losses)):
        raise UserError("the loss became infinite or NaN: use a smaller SOLVER.BASE_LR, and a new OUTPUT_DIR")
    accuracies = classifiers.accuracy(val.features, val.labels)
    lines = [
        {"iteration": state.iteration, "epoch": epoch, "base_lr": rate, "lr": rate * factor,
         "loss": loss if math.isfinite(loss) else None, "top1": top1, "top5": top5}
        for rate, loss, (top1, top5) in zip(classifiers.rates, losses, accuracies, strict=True)
    ]  # fmt: skip
    state.history += lines
    best = results.best(lines)
    of_many = f"best of {len(lines)}: " if len(lines) > 1 else ""
    say(
        f"epoch {epoch}/{epochs}  {of_many}lr {best['lr']:g}  loss {best['loss']:.4f}  top-1 {best['top1']:.2f} %"
        f"  top-5 {best['top5']:.2f} %  ETA {duration(seconds_left)}"
    )
