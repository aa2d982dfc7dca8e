"""The pre-training loop, in one process or many, on CPUs or GPUs."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, cast

import torch
from fvcore.common.config import CfgNode

from pretrain.common import distributed, loggers
from pretrain.common.console import duration, say
from pretrain.common.errors import UserError, compiler_in_one_line
from pretrain.common.signals import Signals
from pretrain.data import on_device
from pretrain.data.broken_images import Broken
from pretrain.data.loader import Batch, make_train_loader
from pretrain.data.views import recipe_without
from pretrain.model import moco, norm
from pretrain.model.encoders import ResNet
from pretrain.train import checkpoints
from pretrain.train.alarms import Alarms
from pretrain.train.checkpoints import Saver
from pretrain.train.log import Clock, Log, Meter, say_step
from pretrain.train.nonfinite import first_bad_layer
from pretrain.train.schedule import learning_rate
from pretrain.train.setup import Run, set_up
from pretrain.train.step import NonFiniteLoss, train_step

Views = tuple[torch.Tensor, torch.Tensor]


def train(cfg: CfgNode, *, resume: bool = False, other_processes: bool = False) -> None:
    """Pre-train after a config from `pretrain.config.load`; leaves checkpoints and `metrics.json` in OUTPUT_DIR.

    Call it in every process after `dist.init_from_env`.

    Args:
        resume: go on from the last checkpoint, where there is one.
        other_processes: also if it was written by another number of processes.
    Raises:
        UserError: what the user can mend.
        SystemExit: with `stop.STOPPED`, after SIGTERM or SIGUSR1, when the state has been saved.
        KeyboardInterrupt: the same after Ctrl-C.
    """
    loggers.check(cfg)
    run = set_up(cfg, go_on=resume, other_processes=other_processes)
    start, total, per_epoch = run.progress.iteration, run.total, run.progress.per_epoch
    log = Log(
        cfg, iteration=start, alarms=Alarms(cfg, per_epoch=per_epoch, total=total, images=len(run.files))
    )
    with closing(log):
        _go_on(run, log)


def _go_on(run: Run, log: Log) -> None:
    start, total = run.progress.iteration, run.total
    if _knn_is_due(run) and not any(distributed.any_process(log.has("knn", start))):
        _measure_knn(run, log)  # a resumed run may have been stopped before it
    if start >= total:
        say(f"{run.folder}: this run is finished ({start} of {total} iterations); nothing to do")
        return
    begin = time.perf_counter()
    with Signals(ctrl_c=True, alone=distributed.world_size() == 1) as signals:
        batches = make_train_loader(run.files, run.cfg, start=start, stop=total, device=run.device)
        try:
            _loop(run, batches, log, signals)
        finally:  # an exception holds on to this frame, and so to the workers
            getattr(batches, "_shutdown_workers", lambda: None)()
    say(f"finished: {run.folder / checkpoints.LAST} after {duration(time.perf_counter() - begin)}")


def _loop(run: Run, batches: Iterator[Batch], log: Log, signals: Signals) -> None:
    cfg, total, per_epoch = run.cfg, run.total, run.progress.per_epoch
    broken = Broken(
        run.files,
        cfg.DATA.MAX_BROKEN,
        folder=run.folder,
        going_on=run.progress.iteration > 0,
        device=run.device,
    )
    clock = Clock(cfg.SOLVER.IMS_PER_BATCH)
    meter, saver = Meter(run.device), Saver(cfg, saved=run.progress.iteration or None)
    first = run.progress.iteration + 1  # logged too: on a slow machine a period may take an hour
    for done in range(first, total + 1):
        batch, waited = _next(batches, broken)
        views, images = to_device(batch, run)
        rate = _set_rate(run, done - 1)
        meter.add(step(run, views, images, done - 1))
        clock.step(waited)
        run.progress = replace(run.progress, iteration=done)
        stops, is_late, met_broken = distributed.any_process(signals.requested, saver.due(), bool(broken.new))
        if met_broken:
            broken.share()
            if done == 1:  # a folder that is of no use leaves no checkpoint to be removed
                broken.check()
        leaves, ends_epoch, ends_run = stops or broken.too_many, done % per_epoch == 0, done == total
        logs = done == first or done % cfg.SOLVER.LOG_PERIOD == 0 or ends_epoch or ends_run or leaves
        if (logs or is_late) and not meter.is_finite():  # on a GPU nobody has looked so far
            raise _not_finite(run, views, done)
        if logs:
            _write_line(run, log, {**meter.read(), "lr": rate}, clock)
        if ends_epoch or ends_run or leaves or is_late:
            saver.save(run.model, run.optimizer, run.progress, scaler=run.scaler, must=ends_run or leaves)
            _write_names(broken)
            signals.saved = ends_run
        broken.check()
        if stops and not ends_run:
            say(f"stopped at iteration {done}; everything is saved: the same command with --resume goes on")
            signals.leave()
        if _knn_is_due(run):
            _measure_knn(run, log)
        if ends_epoch or is_late:
            clock.restart()  # speed and waiting are those of training alone
    for line in broken.report():
        say(line)


def _next(batches: Iterator[Batch], broken: Broken) -> tuple[Batch, float]:
    """The next batch, and the seconds that it took to come."""
    begin = time.perf_counter()
    batch = next(batches)
    waited = time.perf_counter() - begin
    if batch.broken:
        broken.add(batch.broken)
    return batch, waited


def _write_names(broken: Broken) -> None:
    try:
        broken.write()
    except UserError as error:  # a run is worth more than the list
        say(f"warning: {error}")


def to_device(batch: Batch, run: Run) -> tuple[Views, torch.Tensor]:
    """Query and key views, (N, H, W, 3) uint8 each, and the numbers of the images."""
    query, key, choices, images = (part.to(run.device, non_blocking=True) for part in batch[:4])
    recipe = recipe_without(run.cfg.INPUT.AUG, run.cfg.INPUT.WITHOUT)
    query, key = (on_device.finish(half, choices[:, n], recipe) for n, half in enumerate((query, key)))
    return (query, key), images


def _set_rate(run: Run, iteration: int) -> float:
    rate = learning_rate(run.cfg.SOLVER, iteration // run.progress.per_epoch, iteration)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    return rate


def step(run: Run, views: Views, images: torch.Tensor, iteration: int) -> torch.Tensor:
    cfg = run.cfg
    try:
        with compiler_in_one_line():
            return train_step(
                run.model, run.optimizer, views, pixels=run.pixels, images=images, iteration=iteration,
                order=moco.key_order(cfg, iteration), bf16=run.bf16, scaler=run.scaler,
                parts=norm.parts(cfg, run.device),
            )  # fmt: skip
    except NonFiniteLoss:
        raise _not_finite(run, views, iteration + 1) from None
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"the GPU's memory does not suffice for SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}: use fewer "
            "images, and a MODEL.BN_GROUP_SIZE that divides them, or more GPUs"
        ) from None


def _not_finite(run: Run, views: Views, iteration: int) -> UserError:
    layer = first_bad_layer(run.model, views, pixels=run.pixels, amp=run.amp)
    where = f", first of all {layer}" if layer else ", while the outputs of all layers are finite"
    return checkpoints.not_finite(
        run.folder, f"the loss became infinite or NaN by iteration {iteration}{where}"
    )


def _write_line(run: Run, log: Log, values: dict[str, Any], clock: Clock) -> None:
    done, total = run.progress.iteration, run.total
    speed, data_wait, left = clock.read(total - done)
    line = {"iteration": done, "epoch": (done - 1) // run.progress.per_epoch, **values, "images_per_second": speed,
            "data_wait": data_wait, "time": time.time()}  # fmt: skip
    say_step(line, total=total, epochs=run.cfg.SOLVER.MAX_EPOCH, seconds_left=left)
    log.write(line)


def _knn_is_due(run: Run) -> bool:
    """Before the first step, every KNN.PERIOD epochs, and at the end; `False` where there are no labels."""
    done, per_epoch = run.progress.iteration, run.progress.per_epoch
    return run.probe is not None and (done % (per_epoch * run.cfg.KNN.PERIOD) == 0 or done == run.total)


def _measure_knn(run: Run, log: Log) -> None:
    assert run.probe
    accuracy = run.probe.measure(cast(ResNet, run.model.encoder_q), bf16=run.bf16)
    log.write({"knn": accuracy, "epoch": run.progress.epoch, "iteration": run.progress.iteration})
    say(f"kNN {accuracy:.1f} % (chance {run.probe.chance:.1f} %) at iteration {run.progress.iteration}")
